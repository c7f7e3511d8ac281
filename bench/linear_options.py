"""Steps of linear_cross_entropy with one of its options, and the identity that checks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import powergrad_ext as pg

if TYPE_CHECKING:
    from .linear import Problem
    from .step import Step

ALPHA = 0.3
SOFTCAP, Z_LOSS = 30.0, 1e-4


def row_weight(problem: Problem) -> Tensor:
    case = problem.case
    return torch.linspace(0.5, 1.5, case.rows, device=case.device)


OPTIONS: dict[str, tuple[str, Callable[[Problem], dict[str, Any]]]] = {
    "metrics": ("with metrics", lambda _: {"return_metrics": True}),
    "z-loss": ("with z-loss", lambda _: {"z_loss": Z_LOSS}),
    "softcap": ("with a softcap", lambda _: {"softcap": SOFTCAP}),
    "row-weights": ("with row weights", lambda problem: {"row_weight": row_weight(problem)}),
}


def step_with(name: str) -> Callable[[Problem], Step]:
    """A step of ours with the option of that name."""

    def make(problem: Problem) -> Step:
        options = OPTIONS[name][1](problem)

        def loss(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
            found = pg.linear_cross_entropy(input, linear_weight, target, alpha=ALPHA, **options)
            return found[0] if options.get("return_metrics") else found

        return problem.step(loss)

    return make


def identity(problem: Problem, logits: Tensor, alpha: float, name: str) -> Tensor:
    """A loss whose ordinary gradient is PGT's, with the option if there is one of that name."""
    if name == "softcap":
        logits = SOFTCAP * torch.tanh(logits / SOFTCAP)
    lse_of_alpha = torch.logsumexp(alpha * logits, 1) / alpha
    losses = lse_of_alpha - logits.gather(1, problem.target[:, None])[:, 0]
    if name == "z-loss":
        losses = losses + 2 * Z_LOSS * torch.logsumexp(logits.detach(), 1) * lse_of_alpha
    if name == "row-weights":
        weights = row_weight(problem)
        return (weights * losses).sum() / weights.sum()
    return losses.mean()
