"""What is right, and how far from it an answer may be.

Two oracles that share no line with the kernels, nor with each other:

- `identity`: PowerGrad Transform's gradient of cross_entropy(z) is the ordinary gradient of
  cross_entropy(alpha z) / alpha, which torch takes in float64 with all its options. It says what is
  meant. Its p' - 1 cancels, so it cannot judge confident rows or float64.
- `definition`: the formulas themselves in numpy's long double, written so that nothing cancels. It
  says how accurate an answer is. The tests show that the two agree.

The bounds are those that the README promises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Gradients: 2 ulp of their own type, plus a share of the largest gradient.
# - Of the same row: the whole block's would hide a bad row behind a good one.
# - Where every class has mass, and for log_softmax, two numbers of like size are subtracted, and a
#   row of small gradients may be the difference of rounded large ones: the largest of those terms,
#   again of the same row.
# Losses: relative.
# The exponent alpha (z - max) is a rounded number too, and hands its error on to the exponential:
# 4e-6 is the share of float32's rounding at an exponent of 66, 1e-14 that of float64's at 90.
ULPS = 2.0
SHARE = {torch.float32: 4e-6, torch.float64: 1e-14}


class Expected(NamedTuple):
    loss: Tensor
    gradient: Tensor
    target_gradient: Tensor | None
    terms: Tensor | None = None  # what the gradient subtracts, unless the target is one class


def identity(
    logits: Tensor,
    target: Tensor,
    grad_output: Tensor,
    *,
    alpha: float,
    weight: Tensor | None = None,
    **options: Any,
) -> Expected:
    """Loss, gradient and gradient of probability targets in float64, by torch's own derivative."""
    logits, target, grad_output = logits.cpu(), target.cpu(), grad_output.cpu()
    z = logits.detach().double().requires_grad_()
    weight = None if weight is None else weight.cpu().double()
    probabilities = target.is_floating_point()
    q = target.detach().double().requires_grad_() if probabilities else target.long()
    loss = F.cross_entropy(z, q, weight, **options)
    scaled = F.cross_entropy(alpha * z, q, weight, **options) / alpha
    (gradient,) = torch.autograd.grad(scaled, z, grad_output.double())
    of_target = torch.autograd.grad(loss, q, grad_output.double())[0] if probabilities else None
    return Expected(loss.detach(), gradient, of_target)


@np.errstate(all="ignore")
def definition(
    logits: Tensor,
    target: Tensor,
    grad_output: Tensor,
    *,
    alpha: float,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
) -> Expected:
    """The same in long double, from the formulas of powergrad_ext.reference."""
    class_dim = min(1, logits.dim() - 1)
    z = _rows(logits, class_dim)
    r = np.ones(len(z), np.longdouble) if row_weight is None else _long(row_weight).reshape(-1)
    z = np.where(r[:, None] == 0, 0, z)  # whatever a row of weight 0 holds
    classes = z.shape[1]
    w = np.ones(classes, np.longdouble) if weight is None else _long(weight)
    smoothing = np.longdouble(label_smoothing)
    log_p, _ = _softmax(z, np.longdouble(1))
    if target.is_floating_point():
        q = _rows(target, class_dim) * (1 - smoothing) + smoothing / classes
        losses = -(w * q * log_p).sum(1)
        counts = r != 0
        total_weight = r.sum()
    else:
        index = target.detach().cpu().numpy().reshape(-1).astype(np.int64)
        counts = (index != ignore_index) & (r != 0)
        index = np.where(counts, index, 0)
        q = (1 - smoothing) * (np.arange(classes) == index[:, None]) + smoothing / classes
        each = np.arange(len(z))
        # The target alone: 0 times the -inf of a masked class would be NaN.
        losses = -(1 - smoothing) * w[index] * log_p[each, index] if classes else each
        if label_smoothing:
            losses = losses - smoothing / classes * (w * log_p).sum(1)
        total_weight = (r * w[index] * counts).sum() if classes else np.longdouble(0)
    lse = z.max(1) - log_p.max(1) if classes else losses
    losses = losses + z_loss * lse**2
    of_p = 2 * z_loss * lse[:, None]
    mass = w * q
    _, (p, complement) = _softmax(z, np.longdouble(alpha))
    # p W - mass_j = p (W - mass_j) - mass_j (1 - p)
    others = mass.sum(1, keepdims=True) - mass
    gradient = p * others - mass * complement + p * of_p
    terms = np.maximum(p * (mass.sum(1, keepdims=True) + abs(of_p)), mass)

    losses = losses * r
    scale = _long(grad_output).reshape(-1, 1) * r[:, None]
    if reduction == "mean":
        scale = scale / total_weight
    losses = np.where(counts, losses, 0)
    gradient = np.where(counts[:, None], gradient * scale, 0)
    of_target = -w * (1 - smoothing) * log_p * scale
    total = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / total_weight}[reduction]
    return Expected(
        torch.as_tensor(np.asarray(total, dtype=float)).reshape(grad_output.shape),
        _unrows(gradient, logits, class_dim),
        _unrows(of_target, logits, class_dim) if target.is_floating_point() else None,
        _unrows(terms * abs(scale), logits, class_dim)
        if target.is_floating_point() or label_smoothing or z_loss
        else None,
    )


def _softmax(z: np.ndarray, alpha: np.longdouble) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """log p, (p, 1 - p) of softmax(alpha z): rows whose sum without the maximum is kept apart."""
    if not z.size:
        return z, (z, z)
    largest = z.max(1, keepdims=True)
    below = alpha * (z - largest)
    below = np.where(z == largest, largest - largest, below)  # NaN for a row without a finite one
    first = np.arange(z.shape[1]) == z.argmax(1)[:, None]
    e = np.exp(below)
    rest = np.where(first, 0, e).sum(1, keepdims=True) + (largest - largest)
    p = e / (1 + rest)
    return below - np.log1p(rest), (p, np.where(first, rest / (1 + rest), 1 - p))


def _long(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy().astype(np.longdouble)


def _rows(tensor: Tensor, class_dim: int) -> np.ndarray:
    """As rows, (rows, C)."""
    moved = tensor.detach().movedim(class_dim, -1)
    return _long(moved.reshape(moved.shape[:-1].numel(), moved.shape[-1]))


def _unrows(rows: np.ndarray, like: Tensor, class_dim: int) -> Tensor:
    moved = like.detach().movedim(class_dim, -1)
    return torch.from_numpy(rows.astype(float)).reshape(moved.shape).movedim(-1, class_dim)


def log_softmax_definition(
    logits: Tensor, dim: int, grad_output: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, g - softmax(alpha z) sum(g), and its terms, in long double."""
    if logits.dim() == 0:
        rows = log_softmax_definition(logits[None], 0, grad_output[None], alpha)
        return rows[0][0], rows[1][0], rows[2][0]
    with np.errstate(all="ignore"):
        z, g = _rows(logits, dim), _rows(grad_output, dim)
        log_p, _ = _softmax(z, np.longdouble(1))
        _, (p, complement) = _softmax(z, np.longdouble(alpha))
        gradient = g * complement - p * (g.sum(1, keepdims=True) - g)
        terms = abs(g) + p * abs(g).sum(1, keepdims=True)
    return tuple(_unrows(rows, logits, dim) for rows in (log_p, gradient, terms))


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between the numbers of `dtype` around each float64 value."""
    kind = torch.finfo(dtype)
    exponent = torch.frexp(value.abs().clamp(min=kind.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(value, kind.eps), exponent - 1)


def assert_gradient(
    actual: Tensor, expected: Tensor, class_dim: int, terms: Tensor | None = None
) -> None:
    """Within the promised bound; rows run along `class_dim`."""
    expected = expected.to(actual.device)
    finite = _finite(expected)
    of_row = finite if terms is None else _finite(terms.to(actual.device))
    largest = of_row.abs().amax(class_dim, keepdim=True) if actual.numel() else of_row
    share = SHARE[accumulation_type(actual.dtype)]
    _assert_within(actual, expected, ULPS * ulp(finite, actual.dtype) + share * largest)


def assert_loss(actual: Tensor, expected: Tensor) -> None:
    """Within the promised relative bound, and the same NaNs and infinities."""
    expected = expected.to(actual.device)
    share = SHARE[accumulation_type(actual.dtype)]
    _assert_within(actual, expected, share * _finite(expected).abs())


def assert_log_probabilities(actual: Tensor, expected: Tensor) -> None:
    """Rounded once to their own type, and as accurate as a loss."""
    expected = expected.to(actual.device)
    finite = _finite(expected)
    share = SHARE[accumulation_type(actual.dtype)]
    _assert_within(actual, expected, ULPS * ulp(finite, actual.dtype) + share * finite.abs())


def _finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, 0.0)


def _assert_within(actual: Tensor, expected: Tensor, allowed: Tensor) -> None:
    assert actual.shape == expected.shape
    if not actual.numel():
        return
    actual = actual.detach().double()
    difference = torch.where(expected.isfinite(), (actual - expected).abs(), 0.0)
    same_special = expected.isfinite() | (actual == expected) | (actual.isnan() & expected.isnan())
    tiny = torch.finfo(torch.float64).smallest_normal
    excess = torch.where(same_special, difference / allowed.clamp(min=tiny), torch.inf)
    excess = excess.nan_to_num(nan=torch.inf)
    at = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
    assert excess[at] <= 1.0, (
        f"{excess[at]:.3g} times the allowed error at {at}: "
        f"{actual[at].item()!r} instead of {expected[at].item()!r}"
    )
