"""What torch.ops.powergrad.* return, without data: for FakeTensor and meta tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from powergrad_ext._native import _C

#: Rows of the statistics tensors (csrc/powergrad.h): maximum, alpha sum, target mass.
CROSS_ENTROPY_STATISTICS = 3
LOG_SOFTMAX_STATISTICS = 2
#: What a shard of the classes tells the others of a row (csrc/shards.h).
SHARD_NUMBERS = 5

ops = torch.ops.powergrad


def accumulate_dtype(input: Tensor) -> torch.dtype:
    """Of losses and statistics."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _class_dim(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _row_shape(input: Tensor, class_dim: int) -> list[int]:
    return [*input.shape[:class_dim], *input.shape[class_dim + 1 :]]


def _row_count(input: Tensor, class_dim: int) -> int:
    return math.prod(_row_shape(input, class_dim))


def _new_statistics(input: Tensor, class_dim: int, count: int) -> Tensor:
    rows = _row_count(input, class_dim)
    return input.new_empty((count, rows), dtype=accumulate_dtype(input))


def _check_devices(input: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != input.device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{input.device} and {tensor.device}! (argument '{name}')"
            )


@torch.library.register_fake("powergrad::cross_entropy_forward")
def cross_entropy_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
    needs_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As torch.ops.powergrad.cross_entropy_forward, without data."""
    _C.check_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, alpha)
    class_dim = _class_dim(input)
    shape = _row_shape(input, class_dim) if reduction == "none" else []
    return (
        input.new_empty(shape, dtype=accumulate_dtype(input)),
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


@torch.library.register_fake("powergrad::cross_entropy_shard_forward")
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
    classes_before: int,
    classes_after: int,
    fingerprint: int,
) -> tuple[Tensor, Tensor]:
    _C.check_cross_entropy(
        input,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        alpha,
        classes_before,
        classes_after,
    )
    rows = _row_count(input, _class_dim(input))
    return (
        input.new_empty((SHARD_NUMBERS * rows + 1,), dtype=accumulate_dtype(input)),
        input.new_empty((), dtype=torch.float64),
    )


@torch.library.register_fake("powergrad::cross_entropy_merge_shards")
def _(
    messages: Tensor, reduction: str, alpha: Tensor, total_weight: Tensor
) -> tuple[Tensor, Tensor]:
    rows = messages.shape[1] // SHARD_NUMBERS
    loss = messages.new_empty((rows,) if reduction == "none" else ())
    return loss, messages.new_empty((SHARD_NUMBERS, rows))


@torch.library.register_fake("powergrad::cross_entropy_shard_backward")
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
    classes_before: int,
    classes_after: int,
) -> Tensor:
    _C.check_cross_entropy(
        input,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        alpha,
        classes_before,
        classes_after,
    )
    _check_devices(input, grad_output=grad_output, statistics=statistics, total_weight=total_weight)
    return torch.empty_like(input)


def _linear_gradients(
    input: Tensor, linear_weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    wide = accumulate_dtype(input)
    shapes = [input.shape, linear_weight.shape, linear_weight.shape[:1]]
    dtypes = [input.dtype, wide, wide]
    grad_input, grad_linear_weight, grad_linear_bias = (
        input.new_empty(shape, dtype=dtype) if is_wanted else input.new_empty((0,), dtype=wide)
        for shape, dtype, is_wanted in zip(shapes, dtypes, wanted, strict=True)
    )
    return grad_input, grad_linear_weight, grad_linear_bias


@torch.library.register_fake("powergrad::linear_cross_entropy_forward")
def _(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    alpha: Tensor,
    chunk_rows: int,
    gradients: list[bool],
) -> tuple[Tensor, ...]:
    _C.check_linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        reduction,
        ignore_index,
        label_smoothing,
        alpha,
        chunk_rows,
    )
    shape = input.shape[:-1] if reduction == "none" else ()
    return (
        input.new_empty(shape, dtype=accumulate_dtype(input)),
        input.new_empty((), dtype=torch.float64),
        *_linear_gradients(input, linear_weight, gradients),
    )


@torch.library.register_fake("powergrad::linear_cross_entropy_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    alpha: Tensor,
    chunk_rows: int,
    gradients: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    _C.check_linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        "none",
        ignore_index,
        label_smoothing,
        alpha,
        chunk_rows,
    )
    _check_devices(input, grad_output=grad_output)
    return _linear_gradients(input, linear_weight, gradients)


@torch.library.register_fake("powergrad::log_softmax_forward")
def log_softmax_forward(
    input: Tensor, dim: int, alpha: Tensor, needs_backward: bool
) -> tuple[Tensor, Tensor]:
    """As torch.ops.powergrad.log_softmax_forward, without data."""
    _C.check_log_softmax(input, dim, alpha)
    class_dim = dim % max(input.dim(), 1)
    count = LOG_SOFTMAX_STATISTICS if needs_backward else 0
    return input.new_empty(input.shape), _new_statistics(input, class_dim, count)


@torch.library.register_fake("powergrad::log_softmax_backward")
def _(grad_output: Tensor, input: Tensor, dim: int, alpha: Tensor, statistics: Tensor) -> Tensor:
    _C.check_log_softmax(input, dim, alpha)
    _check_devices(input, grad_output=grad_output, statistics=statistics)
    return torch.empty_like(input)
