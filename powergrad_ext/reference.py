r"""The specification: what powergrad_ext computes, in plain PyTorch.

For one row of logits z, a target distribution q (one-hot, smoothed or given), class weights w and
an exponent alpha > 0, PowerGrad Transform (arXiv 2111.12495) keeps the value of cross-entropy and
replaces p by p' in its gradient:

    p    = softmax(z)
    p'   = p^alpha / sum_j p_j^alpha = softmax(alpha z)
    L    = -sum_j w_j q_j log p_j
    dz_j = p'_j (sum_c w_c q_c) - w_j q_j
    dq_j = -w_j log p_j

Ordinary cross-entropy of the logits alpha z, divided by alpha, has exactly this dz as its ordinary
gradient, whatever the weights, ignored rows, smoothing or reduction: the gradient of
f(alpha z) / alpha is f'(alpha z). So each function here takes its value from one expression and its
gradient from another. Second derivatives are the true derivatives of these gradients.

With a row weight r and z-loss, where lse = logsumexp(z):

    L    = r (-sum_j w_j q_j log p_j + z_loss lse^2)
    dz_j = r (p'_j (sum_c w_c q_c + 2 z_loss lse) - w_j q_j)

Slow and short on purpose. The kernels are tested against it; it runs wherever PyTorch does.
"""

from __future__ import annotations

import math
import sys
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from powergrad_ext.metrics import metrics_of_logits

HALF_PRECISION = (torch.bfloat16, torch.float16)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    alpha: float | Tensor = 0.3,
    inplace_backward: bool = False,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    return_metrics: bool = False,
) -> Any:
    """`torch.nn.functional.cross_entropy` with the gradient of PowerGrad Transform.

    Args:
        input: logits, (C), (N, C) or (N, C, d1, ..., dK); float32, float64, bfloat16 or float16.
        target: class indices, int64, int32 or uint8, (), (N) or (N, d1, ..., dK); or probabilities
            in the shape of `input`.
        weight: (C), or None for ones.
        ignore_index: rows with this index have loss 0 and gradient exactly 0, whatever their
            logits.
        reduction: "none", "mean" (over the weights of the rows that count) or "sum".
        label_smoothing: in [0, 1].
        alpha: the exponent, a number or a 0-d tensor, finite and > 0.
        inplace_backward: accepted and ignored. It promises that the logits are not used again, so
            that a kernel may write the gradient over them; the gradient is the same either way.
        row_weight: (), (N) or (N, d1, ..., dK), a finite number >= 0 for each row: the factor of
            its loss, its gradient and its share of what a mean divides by. Rows of weight 0 are as
            ignored.
        z_loss: finite and >= 0, the factor of logsumexp(z)^2 in the loss of each row that counts.
        return_metrics: return also a `RowMetrics`; for class indices.

    Returns:
        The loss, (), (N) or (N, d1, ..., dK); float32 for half-precision logits, else the logits'
        type. With `return_metrics`, the loss and a `RowMetrics`.

    Raises:
        ValueError: alpha, row_weight, z_loss, return_metrics, or what torch raises it for.
        RuntimeError: `weight`, `row_weight` or `alpha` require a gradient, or what torch raises it
            for.
        IndexError: a target out of range.
    """
    _refuse_gradient(weight=weight, alpha=alpha, row_weight=row_weight)
    logits = _widened(input)
    by_index = not target.is_floating_point()
    target = target.long() if by_index else _widened(target)
    weight = None if weight is None else _widened(weight)
    options = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    if return_metrics and not by_index:
        raise ValueError("return_metrics must be False where target holds probabilities, got True")
    if row_weight is None and z_loss == 0.0:
        loss = _CrossEntropy.apply(logits, target, weight, _checked(alpha), options)
    else:
        loss = _weighted(logits, target, weight, _checked(alpha), options, row_weight, z_loss)
    if not return_metrics:
        return loss
    counts = target != ignore_index
    if row_weight is not None:
        counts = counts & (row_weight != 0)
    return loss, metrics_of_logits(logits.detach(), target, counts)


def _weighted(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    alpha: float | Tensor,
    options: dict[str, Any],
    row_weight: Tensor | None,
    z_loss: float,
) -> Tensor:
    """The loss with z-loss and a weight for each row."""
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be finite and >= 0, got {z_loss}")
    class_dim = min(1, logits.dim() - 1)
    rows = logits.select(class_dim, 0).detach()
    row_weight = torch.ones_like(rows) if row_weight is None else row_weight.to(rows.dtype)
    is_valid = bool(((row_weight >= 0) & row_weight.isfinite()).all())
    if row_weight.shape != rows.shape or not is_valid:
        raise ValueError(f"row_weight must be finite, >= 0 and of shape {list(rows.shape)}")
    counts = row_weight != 0
    shares = row_weight
    if target.is_floating_point():
        target = torch.where(counts.unsqueeze(class_dim), target, 0.0)
    else:
        counts = counts & (target != options["ignore_index"])
        target = torch.where(counts, target, options["ignore_index"])
        if weight is not None:
            shares = shares * weight[torch.where(counts, target, 0)]
        shares = torch.where(counts, shares, 0.0)
    logits = torch.where(counts.unsqueeze(class_dim), logits, 0.0)
    losses = _CrossEntropy.apply(logits, target, weight, alpha, {**options, "reduction": "none"})
    losses = losses + z_loss * _SquaredLogSumExp.apply(logits, class_dim, alpha)
    losses = torch.where(counts, losses * row_weight, 0.0)
    if options["reduction"] == "none":
        return losses
    return losses.sum() / shares.sum() if options["reduction"] == "mean" else losses.sum()


def log_softmax(
    input: Tensor,
    dim: int = -1,
    *,
    alpha: float | Tensor = 0.3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`torch.nn.functional.log_softmax` whose gradient is g - softmax(alpha z) sum(g).

    Every loss built on log-probabilities gets PowerGrad Transform from it.

    Args:
        input: logits of any shape.
        dim: the dimension of the classes.
        alpha: the exponent, a number or a 0-d tensor, finite and > 0.
        dtype: the type to which `input` is converted first.

    Returns:
        Log-probabilities, in the shape of `input` and its type or `dtype`.

    Raises:
        ValueError: alpha.
        RuntimeError: `alpha` requires a gradient, or what torch raises it for.
        IndexError: `dim` out of range.
    """
    _refuse_gradient(alpha=alpha)
    logits = input if dtype is None else input.to(dtype)
    return _LogSoftmax.apply(_widened(logits), dim, _checked(alpha)).to(logits.dtype)


class _CrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        alpha: float | Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        return F.cross_entropy(logits, target, weight, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, target, weight, ctx.alpha, ctx.options = inputs
        ctx.save_for_backward(logits, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight = ctx.saved_tensors
        alpha: float | Tensor = ctx.alpha

        def of_logits(z: Tensor) -> Tensor:
            if not target.is_floating_point():  # NaN logits of an ignored row would spread
                ignored = target == ctx.options["ignore_index"]
                z = z.masked_fill(ignored.unsqueeze(min(1, z.dim() - 1)), 0.0)
            return F.cross_entropy(alpha * z, target, weight, **ctx.options) / alpha

        def of_target(q: Tensor) -> Tensor:
            return F.cross_entropy(logits, q, weight, **ctx.options)

        d_logits = _pull_back(of_logits, logits, grad_output)
        d_target = _pull_back(of_target, target, grad_output) if ctx.needs_input_grad[1] else None
        return d_logits, d_target, None, None, None


class _SquaredLogSumExp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, class_dim: int, alpha: float | Tensor) -> Tensor:
        return torch.logsumexp(logits, class_dim).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, ctx.class_dim, ctx.alpha = inputs
        ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """2 lse p': the gradient of logsumexp(alpha z) / alpha is p'."""
        (logits,) = ctx.saved_tensors

        def of_logits(z: Tensor) -> Tensor:
            return torch.logsumexp(ctx.alpha * z, ctx.class_dim) / ctx.alpha

        slope = 2.0 * torch.logsumexp(logits, ctx.class_dim)
        return _pull_back(of_logits, logits, grad_output * slope), None, None


class _LogSoftmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, dim: int, alpha: float | Tensor) -> Tensor:
        return torch.log_softmax(logits, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, ctx.dim, ctx.alpha = inputs
        ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        alpha: float | Tensor = ctx.alpha

        def of_logits(z: Tensor) -> Tensor:
            return torch.log_softmax(alpha * z, ctx.dim) / alpha

        return _pull_back(of_logits, logits, grad_output), None, None


def _pull_back(function: Any, at: Tensor, grad_output: Tensor) -> Tensor:
    """The ordinary gradient of `function`; itself differentiable, any number of times."""
    pull_back = torch.func.vjp(function, at)[1]
    return pull_back(grad_output)[0]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF_PRECISION else tensor


def _checked(alpha: float | Tensor) -> float | Tensor:
    if isinstance(alpha, Tensor):
        # Reading the value on another device would synchronise.
        good = alpha.dim() == 0 and alpha.is_floating_point()
        good = good and (alpha.device.type != "cpu" or 0.0 < float(alpha) < math.inf)
    else:
        good = isinstance(alpha, Real) and 0.0 < alpha <= sys.float_info.max
    if not good:
        raise ValueError(f"alpha must be a finite number > 0 or a 0-d tensor of one, got {alpha!r}")
    # A copy: a schedule may overwrite its tensor before backward runs.
    return alpha.clone() if isinstance(alpha, Tensor) else float(alpha)


def _refuse_gradient(**tensors: object) -> None:
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            raise RuntimeError(f"{name} must not require a gradient: none is defined for it")
