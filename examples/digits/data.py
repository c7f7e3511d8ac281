"""The data: scikit-learn's bundled 8x8 digits, split and shuffled by a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

BRIGHTEST_PIXEL = 16


@dataclass(frozen=True)
class Split:
    """Images (N, 1, 8, 8) float32 in [0, 1] and labels (N,) int64, for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_split(seed: int) -> Split:
    """Return a stratified 70/30 split of the 1797 digits that depends on the seed alone."""
    pixels, labels = load_digits(return_X_y=True)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=0.3, stratify=labels, random_state=seed
    )

    def as_images(rows: object) -> Tensor:
        return (torch.as_tensor(rows, dtype=torch.float32) / BRIGHTEST_PIXEL).view(-1, 1, 8, 8)

    return Split(
        as_images(train_pixels),
        torch.as_tensor(train_labels, dtype=torch.int64),
        as_images(test_pixels),
        torch.as_tensor(test_labels, dtype=torch.int64),
    )


def shuffled_batches(split: Split, batch_size: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return full training batches, reshuffled every epoch, in an order fixed by the seed.

    The loader owns its random generator, so nothing else a training run draws can shift the order.
    """
    dataset = TensorDataset(split.train_images, split.train_labels)
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    # A batch sampler used as the sampler makes the dataset slice whole batches, not single digits.
    return DataLoader(
        dataset, sampler=BatchSampler(order, batch_size, drop_last=True), batch_size=None
    )
