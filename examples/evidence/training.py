"""One run of a classifier: SGD with momentum, a rate that falls along a cosine, batches by seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

import powergrad_ext as pg

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


def batches(count: int, size: int, epochs: int, seed: int) -> list[Tensor]:
    """Return the indices of each batch; the seed alone fixes them, whatever a network draws."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    return [part for order in orders for part in order.split(size) if len(part) == size]


def fit(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    order: list[Tensor],
    *,
    alpha: float,
    rate: float,
) -> None:
    """Train in place on the batches of inputs (N, ...) and labels (N,), in this order."""
    network.train()
    optimizer = SGD(network.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = OneCycleLR(
        optimizer, rate, total_steps=len(order), pct_start=0.1, cycle_momentum=False
    )
    for batch in order:
        optimizer.zero_grad()
        loss = pg.cross_entropy(network(inputs[batch]), labels[batch], alpha=alpha)
        loss.backward()
        optimizer.step()
        schedule.step()
