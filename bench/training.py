"""Whole training steps: forward, loss, backward and the optimiser, with one loss or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .networks import Transformer, resnet50, small_resnet
from .step import Step

Loss = Callable[[Tensor, Tensor], Tensor]
RATE = 1e-4
"""Small: how long a step takes should not depend on how many were taken."""


@dataclass(frozen=True)
class Workload:
    """A network with one batch of random data.

    Attributes:
        logits: their shape, for the table.
        make: the network and its batch on a device: model, inputs, targets.
    """

    name: str
    logits: str
    make: Callable[[str], tuple[nn.Module, Tensor, Tensor]]


def training_steps(workload: Workload, device: str, losses: dict[str, Loss]) -> dict[str, Step]:
    """A step per loss, all with the same weights, which they go on training together."""
    torch.manual_seed(0)
    model, inputs, targets = workload.make(device)
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)

    def step_with(loss: Loss) -> Step:
        def run() -> Tensor:
            optimiser.zero_grad()
            value = loss(model(inputs), targets)
            value.backward()
            optimiser.step()
            return value

        return Step(run)

    return {name: step_with(loss) for name, loss in losses.items()}


def cifar(device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The smallest network of its kind: the more of a step is the loss, the more it can be seen."""
    images = torch.randn(128, 3, 32, 32, device=device)
    return small_resnet(1, 100).to(device), images, torch.randint(100, (128,), device=device)


def imagenet(device: str) -> tuple[nn.Module, Tensor, Tensor]:
    images = torch.randn(256, 3, 224, 224, device=device)
    return resnet50(1000).to(device), images, torch.randint(1000, (256,), device=device)


def language(device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Small on a CPU, where a large one would take seconds for a step."""
    batch, length, width, layers = (16, 512, 768, 6) if device == "cuda" else (4, 128, 128, 2)
    model = Transformer(50257, width, layers, length).to(device)
    tokens = torch.randint(50257, (batch, length), device=device)
    return model, tokens, torch.randint(50257, (batch * length,), device=device)


WORKLOADS = {
    "cpu": (
        Workload("ResNet-8", "128 x 100", cifar),
        Workload("transformer", "512 x 50257", language),
    ),
    "cuda": (
        Workload("ResNet-50", "256 x 1000", imagenet),
        Workload("transformer", "8192 x 50257", language),
    ),
}
