"""What is right, in float64 or better, and how far from it an answer may be.

Two oracles that share no line with the kernels, nor with each other:

- `identity`: PowerGrad Transform's gradient of cross_entropy(z) is the ordinary gradient of
  cross_entropy(alpha z) / alpha, and torch can take that in float64 with all its options.
- `definition`: the formulas themselves in numpy's long double, against which float64 can be held.

The bounds are those that the README promises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Gradients: 2 ulp of their own type, plus a share of the largest gradient of the same row (not of
# the block of rows: that would hide a bad row behind a good one).
GRADIENT_ULPS = 2.0
GRADIENT_SHARE = {torch.float32: 4e-6, torch.float64: 1e-14}
# Losses, relative. Float64 is given 45 rounding steps: its exponents alpha (z - max) carry half a
# step of a number up to 100 into the exponential, and thousands of terms are added.
LOSS_SHARE = {torch.float32: 4e-6, torch.float64: 1e-14}


class Expected(NamedTuple):
    loss: Tensor
    gradient: Tensor
    target_gradient: Tensor | None


def identity(
    logits: Tensor,
    target: Tensor,
    upstream: Tensor,
    *,
    alpha: float,
    weight: Tensor | None = None,
    **options: Any,
) -> Expected:
    """Loss, gradient and gradient of probability targets in float64, by torch's own derivative."""
    z = logits.detach().double().requires_grad_()
    weight = None if weight is None else weight.double()
    probabilities = target.is_floating_point()
    q = target.detach().double().requires_grad_() if probabilities else target.long()
    loss = F.cross_entropy(z, q, weight, **options)
    scaled = F.cross_entropy(alpha * z, q, weight, **options) / alpha
    (gradient,) = torch.autograd.grad(scaled, z, upstream.double())
    of_target = torch.autograd.grad(loss, q, upstream.double())[0] if probabilities else None
    return Expected(loss.detach(), gradient, of_target)


def log_softmax_identity(
    logits: Tensor, dim: int, upstream: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and gradient in float64: that of log_softmax(alpha z) / alpha."""
    z = logits.detach().double().requires_grad_()
    scaled = torch.log_softmax(alpha * z, dim) / alpha
    (gradient,) = torch.autograd.grad(scaled, z, upstream.double())
    return torch.log_softmax(z.detach(), dim), gradient


def definition(logits: Tensor, mass: Tensor, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses (N) and gradients (N, C) of rows (N, C), mass_j = w_j q_j, in long double."""
    z = logits.detach().cpu().numpy().astype(np.longdouble)
    w_q = mass.detach().cpu().numpy().astype(np.longdouble)
    exponent = np.longdouble(alpha)

    def softmax_and_log(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = x - x.max(axis=1, keepdims=True)
        total = np.exp(below).sum(axis=1, keepdims=True)
        return np.exp(below) / total, below - np.log(total)

    log_p = softmax_and_log(z)[1]
    powered = softmax_and_log(exponent * z)[0]
    losses = -(w_q * log_p).sum(axis=1)
    return losses, powered * w_q.sum(axis=1, keepdims=True) - w_q


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between the numbers of `dtype` around each float64 value."""
    kind = torch.finfo(dtype)
    exponent = torch.frexp(value.abs().clamp(min=kind.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(value, kind.eps), exponent - 1)


def assert_gradient(actual: Tensor, expected: Tensor, class_dim: int) -> None:
    """Within the promised bound, NaN where expected; rows run along `class_dim`."""
    share = GRADIENT_SHARE[accumulation_type(actual.dtype)]
    expected = expected.to(device=actual.device, dtype=torch.float64)
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return
    largest = expected.abs().amax(class_dim, keepdim=True)
    allowed = GRADIENT_ULPS * ulp(expected.nan_to_num(), actual.dtype) + share * largest
    _assert_within(actual, expected, allowed)


def assert_loss(actual: Tensor, expected: Tensor) -> None:
    """Within the promised relative bound, and the same NaNs and infinities."""
    share = LOSS_SHARE[accumulation_type(actual.dtype)]
    expected = expected.to(device=actual.device, dtype=torch.float64)
    assert actual.shape == expected.shape
    _assert_within(actual, expected, share * expected.abs())


def assert_log_probabilities(actual: Tensor, expected: Tensor) -> None:
    """Rounded once to their own type, and as accurate as a loss."""
    share = LOSS_SHARE[accumulation_type(actual.dtype)]
    expected = expected.to(device=actual.device, dtype=torch.float64)
    assert actual.shape == expected.shape
    finite = expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    allowed = GRADIENT_ULPS * ulp(finite, actual.dtype) + share * finite.abs()
    _assert_within(actual, expected, allowed)


def _assert_within(actual: Tensor, expected: Tensor, allowed: Tensor) -> None:
    special = ~expected.isfinite()
    same = actual.double()[special].nan_to_num(nan=0.5) == expected[special].nan_to_num(nan=0.5)
    assert same.all(), f"{(~same).sum()} NaNs or infinities are elsewhere: {actual}, {expected}"
    excess = torch.where(special, 0.0, (actual.double() - expected).abs() / allowed.clamp(min=1e-300))
    worst = excess.nan_to_num(nan=torch.inf).max().item() if excess.numel() else 0.0
    if worst > 1.0:
        at = np.unravel_index(int(excess.nan_to_num(nan=torch.inf).argmax()), excess.shape)
        raise AssertionError(
            f"{worst:.3g} times the allowed error at {tuple(map(int, at))}: "
            f"{actual[at].item()!r} instead of {expected[at].item()!r}"
        )
