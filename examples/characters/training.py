"""One run: a network, an alpha, a rate and a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.digits.network import residual_network
from examples.evidence.metrics import class_metrics, logits_of
from examples.evidence.study import Arm, Metrics
from examples.evidence.training import batches, fit

from .data import Images

NETWORKS = ("BatchNorm", "no BatchNorm")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Size:
    """How many characters, how wide a network, how many images at a time, how often each."""

    characters: int
    width: int
    batch: int
    epochs: int


class Brightness(nn.Module):
    """Images of bytes as numbers in [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


def character_network(kind: str, size: Size) -> nn.Sequential:
    """Return a network from images (N, 1, SIZE, SIZE) uint8 to logits (N, size.characters)."""

    def nothing(width: int) -> nn.Module:
        return nn.Identity()

    normalisation = nn.BatchNorm2d if kind == "BatchNorm" else nothing
    return nn.Sequential(Brightness(), residual_network(size.characters, size.width, normalisation))


def measure(
    parts: dict[str, Images], size: Size, arm: Arm, rate: float, seed: int, part: str
) -> Metrics:
    """Train on all images in an order that the seed draws, as it draws the weights; judge."""
    train, held_out = parts["train"], parts[part]
    torch.manual_seed(seed)
    network = character_network(arm.network, size).to(DEVICE)
    fit(
        network,
        train.pixels.to(DEVICE),
        train.characters.to(DEVICE),
        batches(len(train.pixels), size.batch, size.epochs, seed),
        alpha=arm.alpha,
        rate=rate,
    )
    logits = logits_of(network, held_out.pixels.to(DEVICE), batch=512)
    return class_metrics(logits.cpu(), held_out.characters, arm.alpha)
