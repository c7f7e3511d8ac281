"""The network: a ResNet-8 with BatchNorm, the smallest of the CIFAR ResNets (arXiv 1512.03385)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Normalisation = Callable[[int], nn.Module]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (N, C, H, W) -> (N, width, H/stride, W/stride)."""

    def __init__(
        self, channels: int, width: int, stride: int, normalisation: Normalisation
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            normalisation(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            normalisation(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), normalisation(width)
            )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.residual(features) + self.shortcut(features))
        return activated


def residual_network(
    classes: int = 10, width: int = 16, normalisation: Normalisation = nn.BatchNorm2d
) -> nn.Sequential:
    """Return a ResNet-8 from images (N, 1, H, W) to logits (N, classes).

    For ten classes and a width of 16 it has 78 thousand weights.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        normalisation(width),
        nn.ReLU(),
        ResidualBlock(width, width, 1, normalisation),
        ResidualBlock(width, 2 * width, 2, normalisation),
        ResidualBlock(2 * width, 4 * width, 2, normalisation),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )
