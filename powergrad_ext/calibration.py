"""Probabilities and validation losses of a network that was trained with PGT.

Training with alpha calibrates softmax(alpha * z), not softmax(z). Both rank the classes alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from powergrad_ext.alpha import as_alpha, checked_alpha
from powergrad_ext.cross_entropy import cross_entropy
from powergrad_ext.operators import HALF_DTYPES


def probabilities(logits: Tensor, dim: int = -1, *, alpha: float | Tensor = 0.3) -> Tensor:
    """Probabilities of a network that was trained with alpha, ``softmax(alpha * logits)``.

    Args:
        logits: any shape and floating point type.
        dim: the dimension of the classes.
        alpha: the loss's exponent, a float or a 0-d tensor.

    Returns:
        The shape of logits, float64 for float64 logits, else float32.

    Raises:
        ValueError: alpha is not finite or not > 0.
    """
    return torch.softmax(_scaled(logits, alpha), dim)


@torch.no_grad()
def negative_log_likelihood(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    alpha: float | Tensor = 0.3,
) -> Tensor:
    """The validation loss at :func:`probabilities`, comparable between values of alpha.

    Args:
        logits: (C), (N, C) or (N, C, d1, ..., dK), any floating point type.
        target: as for :func:`powergrad_ext.cross_entropy`, and so are the next three.
        weight: (C).
        ignore_index: rows with this index count for nothing.
        reduction: "none", "mean" or "sum".
        alpha: the loss's exponent, a float or a 0-d tensor.

    Returns:
        The loss at ``softmax(alpha * logits)``, without a gradient; float64 for float64 logits,
        else float32.

    Raises:
        What :func:`powergrad_ext.cross_entropy` raises.
    """
    return cross_entropy(_scaled(logits, alpha), target, weight, ignore_index, reduction, alpha=1.0)


def _scaled(logits: Tensor, alpha: float | Tensor) -> Tensor:
    return as_alpha(checked_alpha(alpha)) * (
        logits.float() if logits.dtype in HALF_DTYPES else logits
    )
