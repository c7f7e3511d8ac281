"""Images in folders, a folder per class below train/ and val/."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from .processes import Processes

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_folder(folder: Path, transform: v2.Transform) -> ImageFolder:
    """Return the images below a folder; without any, end with a sentence that says so."""
    if not folder.is_dir():
        sys.exit(
            f"examples.imagenet: {folder} is not found: --data must name a folder with train/ and "
            "val/, each with a folder of images per class"
        )
    try:
        return ImageFolder(str(folder), transform)
    except FileNotFoundError as empty:
        sys.exit(f"examples.imagenet: {folder} has no images in a folder per class: {empty}")


def training_set(folder: Path, size: int) -> ImageFolder:
    """Return the images of train/, cropped at random, flipped and normalised: (3, size, size)."""
    crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    return read_folder(folder / "train", v2.Compose([*crop, *as_normalised_tensor()]))


def validation_set(folder: Path, size: int) -> ImageFolder:
    """Return the images of val/, their middle, normalised: (3, size, size)."""
    crop = [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)]
    return read_folder(folder / "val", v2.Compose([*crop, *as_normalised_tensor()]))


def as_normalised_tensor() -> list[v2.Transform]:
    """Return what makes float32 of a picture, with ImageNet's mean 0 and deviation 1."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]


def training_batches(
    dataset: Dataset, batch_size: int, workers: int, seed: int, processes: Processes
) -> DataLoader:
    """Return this process's share of full batches, shuffled by seed and epoch."""
    if len(dataset) < batch_size:
        sys.exit(
            f"examples.imagenet: a batch of {batch_size} images needs as many to train on, and "
            f"there are {len(dataset)}: choose a smaller --batch-size"
        )
    sampler = DistributedSampler(dataset, processes.count, processes.rank, seed=seed)
    return DataLoader(
        dataset,
        batch_size // processes.count,
        sampler=sampler,
        num_workers=workers,
        pin_memory=processes.device.type == "cuda",
        drop_last=True,
    )


def validation_batches(
    dataset: Dataset, batch_size: int, workers: int, processes: Processes
) -> DataLoader:
    """Return this process's share of the images, each of which is in one share only."""
    share = Subset(dataset, range(processes.rank, len(dataset), processes.count))
    return DataLoader(share, batch_size // processes.count, num_workers=workers)


def make_fake_images(folder: Path, classes: int = 4, per_class: int = 48, size: int = 40) -> Path:
    """Write noisy pictures of a colour per class below train/ and val/; return the folder."""
    random = torch.Generator().manual_seed(0)
    colours = torch.rand(classes, 3, generator=random)
    for split, count in (("train", per_class), ("val", per_class // 3)):
        for label in range(classes):
            class_folder = folder / split / f"class{label}"
            class_folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                noise = torch.rand(size, size, 3, generator=random)
                pixels = (127 * colours[label] + 128 * noise).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(class_folder / f"{number}.png")
    return folder
