"""What torch.ops.powergrad.* do on DTensors.

Rows that are shared out over their first dimension stay where they are: nothing is communicated but
the loss and the number that a mean divides by. Any other sharding, over the classes among them, is
undone first.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

ops = torch.ops.powergrad


def is_sharded(input: Tensor) -> bool:
    """Whether it is a DTensor, without importing what makes them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(input, module.DTensor)


def cross_entropy(
    input: Any,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
) -> Tensor:
    """As :func:`powergrad_ext.cross_entropy`, of logits that are a DTensor.

    The ranks' rows weigh differently in a mean, which no placement can say: so it is a sum, which
    is pending, divided by the sum of weights.
    """
    _register()
    is_mean = reduction == "mean"
    loss, _, total_weight = ops.cross_entropy_forward(
        input,
        target,
        None if weight is None else _replicated(weight, input),
        ignore_index,
        "sum" if is_mean else reduction,
        label_smoothing,
        alpha,
        torch.is_grad_enabled(),
    )
    if not is_mean:
        return loss
    return (loss / total_weight.full_tensor()).to(loss.dtype)


def log_softmax(input: Any, dim: int, alpha: Tensor) -> Tensor:
    """As :func:`powergrad_ext.log_softmax`, of a DTensor."""
    _register()
    return ops.log_softmax_forward(input, dim, alpha, torch.is_grad_enabled())[0]


def _replicated(tensor: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor if is_sharded(tensor) else DTensor.from_local(tensor, like.device_mesh)


@torch.compiler.assume_constant_result
def _register() -> None:
    """As a compiler takes it: it calls this while it traces, and does not look into it."""
    _register_once()


@functools.cache
def _register_once() -> None:
    """Tell DTensor which placements the raw operators take, and which they return."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    everywhere, rows, of_statistics = Replicate(), Shard(0), Shard(1)

    @register_sharding(ops.cross_entropy_forward.default)
    def _(input: Any, target: Any, weight: Any, ignore_index: int, reduction: str, *_: Any) -> Any:
        of_weight = None if weight is None else everywhere
        others = [of_weight, None, None, None, everywhere, None]
        shardings: list[Any] = [([everywhere] * 3, [everywhere, everywhere, *others])]
        if input.ndim > 1 and reduction != "mean":
            loss = rows if reduction == "none" else Partial()
            shardings.append(([loss, of_statistics, Partial()], [rows, rows, *others]))
        return shardings

    @register_sharding(ops.cross_entropy_backward.default)
    def _(
        grad_output: Any,
        input: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        *_: Any,
    ) -> Any:
        others = [None if weight is None else everywhere, None, None, None, everywhere]
        shardings: list[Any] = [([everywhere], [everywhere] * 3 + others + [everywhere] * 2)]
        if input.ndim > 1 and reduction != "mean":
            upstream = rows if reduction == "none" else everywhere
            shardings.append(([rows], [upstream, rows, rows, *others, of_statistics, Partial()]))
        return shardings

    @register_sharding(ops.log_softmax_forward.default)
    def _(input: Any, dim: int, *_: Any) -> Any:
        shardings: list[Any] = [([everywhere] * 2, [everywhere, None, everywhere, None])]
        if dim % max(input.ndim, 1) > 0:
            shardings.append(([rows, of_statistics], [rows, None, everywhere, None]))
        return shardings

    @register_sharding(ops.log_softmax_backward.default)
    def _(grad_output: Any, input: Any, dim: int, *_: Any) -> Any:
        shardings: list[Any] = [
            ([everywhere], [everywhere, everywhere, None, everywhere, everywhere])
        ]
        if dim % max(input.ndim, 1) > 0:
            shardings.append(([rows], [rows, rows, None, everywhere, of_statistics]))
        return shardings
