"""The networks in whose training steps the loss is timed: residual networks and a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Block = Callable[[int, int, int], tuple[nn.Module, int]]
"""Channels, width and stride to a block and how many channels come out of it."""


class Residual(nn.Module):
    """What the layers make of x, added to x (projected where the shape changes)."""

    def __init__(self, layers: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = layers
        unchanged = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if unchanged else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def basic_block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """Two 3x3 convolutions."""
    layers = nn.Sequential(
        convolution(inputs, width, 3, stride), nn.ReLU(), convolution(width, width, 3)
    )
    return Residual(layers, inputs, width, stride), width


def bottleneck_block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """A 3x3 convolution between two 1x1."""
    outputs = 4 * width
    layers = nn.Sequential(
        convolution(inputs, width, 1),
        nn.ReLU(),
        convolution(width, width, 3, stride),
        nn.ReLU(),
        convolution(width, outputs, 1),
    )
    return Residual(layers, inputs, outputs, stride), outputs


def residual_network(
    stem: nn.Module, block: Block, widths: Sequence[int], depths: Sequence[int], classes: int
) -> nn.Sequential:
    """Stages of blocks, each at half the resolution of the one before, and a linear classifier."""
    layers: list[nn.Module] = [stem]
    channels = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            module, channels = block(channels, width, stride)
            layers.append(module)
    classifier = nn.Linear(channels, classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)


def small_resnet(blocks: int, classes: int) -> nn.Sequential:
    """For 32x32 images, of 6 * blocks + 2 layers, as in section 4.2 of arXiv 1512.03385."""
    stem = nn.Sequential(convolution(3, 16, 3), nn.ReLU())
    return residual_network(stem, basic_block, (16, 32, 64), (blocks,) * 3, classes)


def resnet50(classes: int) -> nn.Sequential:
    """For 224x224 images, as in table 1 of arXiv 1512.03385."""
    stem = nn.Sequential(convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    return residual_network(stem, bottleneck_block, (64, 128, 256, 512), (3, 4, 6, 3), classes)


class Transformer(nn.Module):
    """A causal language model: tokens (batch, length) to logits (batch * length, vocabulary)."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) / width**0.5)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))
        self.output = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.position
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        return self.output(hidden).flatten(0, 1)
