"""Rows with weights, and metrics by their definition in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IGNORED = -100
SHAPES = {"rows": (9, 13), "long rows": (3, 4100), "strided": (2, 7, 3, 5), "one row": (5,)}


def make_rows(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a masked class 0, class indices, and row weights; of some rows 0 or ignored."""
    random = torch.Generator().manual_seed(seed)
    class_dim = min(1, len(shape) - 1)
    logits = 3.0 * torch.randn(shape, dtype=torch.float64, generator=random)
    logits.select(class_dim, 0).fill_(-math.inf)
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    target = torch.randint(1, shape[class_dim], rows, generator=random)
    row_weight = 0.25 + torch.rand(rows, generator=random, dtype=torch.float64)
    if rows:
        target.view(-1)[2::5] = IGNORED
        row_weight.view(-1)[1::4] = 0.0
    return logits.to(device, dtype), target.to(device), row_weight.to(device)


def make_finite_rows(
    shape: tuple[int, ...] = (6, 7), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without the masked class, for the reference and for label smoothing."""
    logits, target, row_weight = make_rows(shape, dtype)
    logits.select(min(1, len(shape) - 1), 0).fill_(0.5)
    return logits, target, row_weight


def metrics_of(
    logits: Tensor, target: Tensor, row_weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and hit of each row."""
    z = logits.detach().double().movedim(min(1, logits.dim() - 1), -1)
    counts = target != IGNORED
    if row_weight is not None:
        counts = counts & (row_weight != 0)
    index = torch.where(counts, target, 0).long().unsqueeze(-1)
    of_target = z.gather(-1, index).squeeze(-1)
    # Without the maximum's own exponential, which is 1: a confident row is what is beside it.
    highest = z.max(-1, keepdim=True)
    below = highest.values - z
    exponentials = (-below).exp().scatter(-1, highest.indices, 0.0)
    others = exponentials.sum(-1)
    log_prob = (of_target - highest.values.squeeze(-1)) - others.log1p()
    terms = torch.where(exponentials == 0, 0.0, exponentials * below)
    entropy = others.log1p() + terms.sum(-1) / (1 + others)
    correct = of_target == highest.values.squeeze(-1)
    return (
        torch.where(counts, log_prob, 0.0),
        torch.where(counts, entropy, 0.0),
        counts & correct & ~log_prob.isnan(),
    )


def assert_near(found: Tensor, right: Tensor, tolerance: float) -> None:
    """Relative to each number, or to the largest."""
    largest = right.nan_to_num(posinf=0.0, neginf=0.0).abs().max().item() if right.numel() else 0.0
    torch.testing.assert_close(
        found.double(), right, rtol=tolerance, atol=tolerance * largest, equal_nan=True
    )
