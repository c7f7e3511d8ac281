"""What torch.ops.powergrad.* need beyond their kernels.

Shapes for FakeTensor and meta tensors, and batching rules for vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from powergrad_ext._native import _C

#: Rows of the statistics tensors (csrc/powergrad.h): maximum, alpha sum, target mass.
CROSS_ENTROPY_STATISTICS = 3
LOG_SOFTMAX_STATISTICS = 2

ops = torch.ops.powergrad


def _accumulate_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _class_dim(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _row_shape(input: Tensor, class_dim: int) -> list[int]:
    return [*input.shape[:class_dim], *input.shape[class_dim + 1 :]]


def _new_statistics(input: Tensor, class_dim: int, count: int) -> Tensor:
    rows = 1
    for size in _row_shape(input, class_dim):
        rows *= size
    return input.new_empty((count, rows), dtype=_accumulate_dtype(input))


def _check_devices(input: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != input.device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{input.device} and {tensor.device}! (argument '{name}')"
            )


@torch.library.register_fake("powergrad::cross_entropy_forward")
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
    needs_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _C.check_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, alpha)
    class_dim = _class_dim(input)
    shape = _row_shape(input, class_dim) if reduction == "none" else []
    return (
        input.new_empty(shape, dtype=_accumulate_dtype(input)),
        _new_statistics(input, class_dim, CROSS_ENTROPY_STATISTICS if needs_backward else 0),
        input.new_empty((), dtype=torch.float64),
    )


@torch.library.register_fake("powergrad::cross_entropy_forward_gradient")
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, statistics, total_weight = ops.cross_entropy_forward(
        input, target, weight, ignore_index, reduction, label_smoothing, alpha, True
    )
    return loss, torch.empty_like(input), statistics, total_weight


@torch.library.register_fake("powergrad::cross_entropy_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
    statistics: Tensor,
    total_weight: Tensor,
) -> Tensor:
    _C.check_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, alpha)
    _check_devices(input, grad_output=grad_output, statistics=statistics, total_weight=total_weight)
    return torch.empty_like(input)


@torch.library.register_fake("powergrad::cross_entropy_backward_")
def _(input: Tensor, grad_output: Tensor, *arguments: Any) -> None:
    ops.cross_entropy_backward(grad_output, input, *arguments)  # for its checks


@torch.library.register_fake("powergrad::log_softmax_forward")
def _(input: Tensor, dim: int, alpha: Tensor, needs_backward: bool) -> tuple[Tensor, Tensor]:
    _C.check_log_softmax(input, dim, alpha)
    class_dim = dim % max(input.dim(), 1)
    count = LOG_SOFTMAX_STATISTICS if needs_backward else 0
    return torch.empty_like(input), _new_statistics(input, class_dim, count)


@torch.library.register_fake("powergrad::log_softmax_backward")
def _(grad_output: Tensor, input: Tensor, dim: int, alpha: Tensor, statistics: Tensor) -> Tensor:
    _C.check_log_softmax(input, dim, alpha)
    _check_devices(input, grad_output=grad_output, statistics=statistics)
    return torch.empty_like(input)


# vmap. A batch of calls is one call with more rows; only where the samples differ in something that
# all rows of a call share (alpha, class weights) are they computed one by one.


def _batched(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with its batch dimension in front."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold(tensor: Tensor, has_rows: bool) -> Tensor:
    """(B, N, ...) to (B * N, ...); a sample that is a single row, (B, ...), stays."""
    return tensor.flatten(0, 1) if has_rows else tensor


def _one_by_one(
    op: Callable[..., Any], batch_size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    samples = [
        op(
            *(
                arg if dim is None else arg.select(dim, index)
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )
        for index in range(batch_size)
    ]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples), 0
    outputs = tuple(torch.stack(tensors) for tensors in zip(*samples, strict=True))
    return outputs, (0,) * len(outputs)


@torch.library.register_vmap("powergrad::cross_entropy_forward")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    input, target, weight, ignore_index, reduction, label_smoothing, alpha, needs_backward = args
    input_dim, target_dim, weight_dim, *_, alpha_dim, _ = in_dims
    size = info.batch_size
    if weight_dim is not None or alpha_dim is not None:
        return _one_by_one(ops.cross_entropy_forward, size, in_dims, args)
    input = _batched(input, input_dim, size)
    target = _batched(target, target_dim, size)
    has_rows = input.dim() > 2
    losses, statistics, _ = ops.cross_entropy_forward(
        _fold(input, has_rows),
        _fold(target, has_rows),
        weight,
        ignore_index,
        "none",
        label_smoothing,
        alpha,
        needs_backward,
    )
    losses = losses.reshape(size, *_row_shape(input, 2 if has_rows else 1)[1:])
    statistics = statistics.reshape(statistics.shape[0], size, -1)
    totals = _total_weights(input, target, weight, ignore_index)
    if reduction != "none":
        losses = losses.reshape(size, -1).sum(1)
    if reduction == "mean":
        losses = (losses / totals).to(losses.dtype)
    return (losses, statistics, totals), (0, 1, 0)


def _total_weights(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> Tensor:
    """What reduction="mean" divides each sample by, (B), float64."""
    if target.shape == input.shape:
        class_dim = 2 if input.dim() > 2 else 1
        rows = input[:1].numel() // max(input.shape[class_dim], 1)
        return input.new_full((input.shape[0],), rows, dtype=torch.float64)
    counts = target != ignore_index
    if weight is None:
        weights = counts.double()
    else:
        safe_target = torch.where(counts, target, 0).long()
        weights = torch.where(counts, weight.double()[safe_target], 0.0)
    return weights.reshape(input.shape[0], -1).sum(1)


@torch.library.register_vmap("powergrad::cross_entropy_backward")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    grad_output, input, target, weight, ignore_index, reduction, label_smoothing, alpha = args[:8]
    statistics, total_weight = args[8:]
    grad_dim, input_dim, target_dim, weight_dim, *_, alpha_dim, statistics_dim, total_dim = in_dims
    size = info.batch_size
    if weight_dim is not None or alpha_dim is not None:
        return _one_by_one(ops.cross_entropy_backward, size, in_dims, args)
    input = _batched(input, input_dim, size)
    has_rows = input.dim() > 2
    rows = _row_shape(input, 2 if has_rows else 1)
    upstream = _batched(grad_output, grad_dim, size)
    if reduction == "mean":
        upstream = upstream / _batched(total_weight, total_dim, size)
    if reduction != "none":
        upstream = upstream.reshape(size, *[1] * (len(rows) - 1)).expand(rows)
    gradient = ops.cross_entropy_backward(
        _fold(upstream, has_rows),
        _fold(input, has_rows),
        _fold(_batched(target, target_dim, size), has_rows),
        weight,
        ignore_index,
        "none",
        label_smoothing,
        alpha,
        _batched(statistics, statistics_dim, size).movedim(0, 1).flatten(1),
        total_weight.new_ones(()),
    )
    return gradient.reshape(input.shape), 0


def _batched_dim(dim: int, sample: Tensor) -> int:
    """A sample's class dimension in the batched tensor."""
    return dim % max(sample.dim() - 1, 1) + 1


@torch.library.register_vmap("powergrad::log_softmax_forward")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    input, dim, alpha, needs_backward = args
    input_dim, _, alpha_dim, _ = in_dims
    size = info.batch_size
    if alpha_dim is not None:
        return _one_by_one(ops.log_softmax_forward, size, in_dims, args)
    input = _batched(input, input_dim, size)
    logits = input.unsqueeze(1) if input.dim() == 1 else input
    output, statistics = ops.log_softmax_forward(
        logits, _batched_dim(dim, logits), alpha, needs_backward
    )
    statistics = statistics.reshape(statistics.shape[0], size, -1)
    return (output.reshape(input.shape), statistics), (0, 1)


@torch.library.register_vmap("powergrad::log_softmax_backward")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    grad_output, input, dim, alpha, statistics = args
    grad_dim, input_dim, _, alpha_dim, statistics_dim = in_dims
    size = info.batch_size
    if alpha_dim is not None:
        return _one_by_one(ops.log_softmax_backward, size, in_dims, args)
    input = _batched(input, input_dim, size)
    logits = input.unsqueeze(1) if input.dim() == 1 else input
    gradient = ops.log_softmax_backward(
        _batched(grad_output, grad_dim, size).reshape(logits.shape),
        logits,
        _batched_dim(dim, logits),
        alpha,
        _batched(statistics, statistics_dim, size).movedim(0, 1).flatten(1),
    )
    return gradient.reshape(input.shape), 0
