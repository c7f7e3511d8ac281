"""The paper's six networks, from torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
from torch import nn
from torchvision import models


@dataclass(frozen=True)
class Architecture:
    """How to make a network for so many classes, and what the paper trains it with."""

    make: Callable[[int], nn.Module]
    alpha: float
    batch_size: int = 1024


def resnet18_without_batchnorm(classes: int) -> nn.Module:
    """Return a ResNet-18 whose normalisations are left out."""
    return models.resnet18(num_classes=classes, norm_layer=nn.Identity)


ARCHITECTURES = {
    "resnet18": Architecture(lambda classes: models.resnet18(num_classes=classes), 0.25),
    "resnet50": Architecture(lambda classes: models.resnet50(num_classes=classes), 0.3),
    "resnet101": Architecture(lambda classes: models.resnet101(num_classes=classes), 0.3),
    "seresnet18": Architecture(
        lambda classes: timm.create_model("seresnet18", num_classes=classes), 0.25
    ),
    "seresnet50": Architecture(
        lambda classes: timm.create_model("seresnet50", num_classes=classes), 0.3
    ),
    "resnet18-without-batchnorm": Architecture(resnet18_without_batchnorm, 0.25, batch_size=256),
}
