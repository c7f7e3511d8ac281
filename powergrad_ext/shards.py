"""Rows whose classes are shared out over processes: what each of them computes and exchanges.

Every process reduces its own classes; what they found merges as a monoid (csrc/shards.h), so that
one exchange of five numbers a row is all that is communicated.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from powergrad_ext._constant import assume_constant_result
from powergrad_ext.alpha import as_tensor
from powergrad_ext.operators import CROSS_ENTROPY_STATISTICS, SHARD_NUMBERS, accumulate_dtype

ops = torch.ops.powergrad
collectives = torch.ops._c10d_functional


class Shard(NamedTuple):
    """Which of all classes this process has: ranks share them out in their order."""

    group: str | None  # its name, which all compilers take for a constant
    sizes: tuple[int, ...]  # how many classes each rank has
    rank: int

    @property
    def before(self) -> int:
        """How many classes lower ranks have."""
        return sum(self.sizes[: self.rank])

    @property
    def after(self) -> int:
        """How many classes higher ranks have."""
        return sum(self.sizes[self.rank + 1 :])


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: float | Tensor,
    shard: Shard,
    agreed: tuple[Any, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The loss of a shard's rows, and what a mean divides by.

    `agreed` is what ranks have to agree about besides the other arguments.
    """
    if target.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "cross_entropy(): the derivative for 'target' is not implemented where classes are "
            "shared out over processes; pass target.detach()"
        )
    # A compiler may take a number for an input of its graph.
    known = None if torch.compiler.is_compiling() else alpha
    options = (ignore_index, reduction, label_smoothing, known, weight is not None, *agreed)
    return _CrossEntropy.apply(
        input,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        as_tensor(alpha, input),
        shard,
        options,
    )


def log_softmax(input: Tensor, dim: int, alpha: Tensor, shard: Shard) -> Tensor:
    """As :func:`powergrad_ext.log_softmax`, of a shard's classes: its part of the result.

    Backward adds up one number a row over the group.
    """
    return _LogSoftmax.apply(input, dim, alpha, shard)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        alpha: Tensor,
        shard: Shard,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        arguments = (input, target, weight, ignore_index, reduction, label_smoothing, alpha)
        messages, total_weight = exchange(arguments, shard, options)
        loss, numbers = ops.cross_entropy_merge_shards(messages, reduction, alpha, total_weight)
        statistics = numbers[:CROSS_ENTROPY_STATISTICS]
        ctx.save_for_backward(input, target, weight, alpha, statistics, total_weight)
        ctx.options = (ignore_index, reduction, label_smoothing)
        ctx.shard = shard
        ctx.mark_non_differentiable(total_weight)
        return loss.view(_row_shape(input)) if reduction == "none" else loss, total_weight

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        input, target, weight, alpha, statistics, total_weight = ctx.saved_tensors
        grad_input = ops.cross_entropy_shard_backward(
            grad_output,
            input,
            target,
            weight,
            *ctx.options,
            alpha,
            statistics,
            total_weight,
            ctx.shard.before,
            ctx.shard.after,
        )
        return grad_input, *[None] * 8


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, dim: int, alpha: Tensor, shard: Shard) -> Tensor:
        logits = input.movedim(dim, min(input.dim() - 1, 1))
        # The sums are those of any target.
        target = torch.zeros(_row_shape(logits), dtype=torch.int64, device=input.device)
        messages, nothing = exchange((logits, target, None, -100, "none", 0.0, alpha), shard, ())
        _, numbers = ops.cross_entropy_merge_shards(messages, "none", alpha, nothing)
        maximum, alpha_rest, _, rest, _ = numbers.view(SHARD_NUMBERS, *_row_shape(logits))
        ctx.save_for_backward(input, alpha, maximum, alpha_rest)
        ctx.dim, ctx.shard = dim, shard
        # z - maximum first: it is exact or nearly so, however far from 0 the row lies.
        output = input - maximum.unsqueeze(dim) - rest.log1p().unsqueeze(dim)
        if output.dtype != input.dtype or not output.is_contiguous():
            # Only then: behind a conversion of nothing torch 2.11's compiler loses the gradient.
            output = output.to(input.dtype, memory_format=torch.contiguous_format)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """dz = g - p' sum(g): cross-entropy's with g for a target, its gradient times -1."""
        refuse_second_order()
        input, alpha, maximum, alpha_rest = ctx.saved_tensors
        mass = grad_output.sum(ctx.dim, dtype=maximum.dtype)
        mass = collectives.wait_tensor(collectives.all_reduce(mass, "sum", ctx.shard.group))
        to = min(input.dim() - 1, 1)
        grad_logits = ops.cross_entropy_shard_backward(
            mass.new_full((), -1.0),
            input.movedim(ctx.dim, to),
            grad_output.movedim(ctx.dim, to),
            None,
            -100,
            "sum",
            0.0,
            alpha,
            torch.stack([maximum, alpha_rest, mass]).flatten(1),
            mass.new_ones((), dtype=torch.float64),
            ctx.shard.before,
            ctx.shard.after,
        )
        return grad_logits.movedim(to, ctx.dim), *[None] * 3


def refuse_second_order() -> None:
    """Instead of a gradient that would pass for a constant."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "backward with create_graph=True is not implemented where classes are shared out over "
            "processes"
        )


def exchange(
    arguments: tuple[Any, ...], shard: Shard, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """The messages of all ranks, and what a mean divides by.

    `arguments` are those of the operator; `options` what ranks have to agree about besides types,
    classes and rows. A rank that cannot take part says so to the others, which would wait for it,
    and then raises.
    """
    constants = tuple(None if isinstance(option, Tensor) else option for option in options)
    fingerprint = _checksum(str(arguments[0].dtype), shard.sizes, constants)
    try:
        message, total_weight = ops.cross_entropy_shard_forward(
            *arguments, shard.before, shard.after, fingerprint
        )
    except Exception:
        if not torch.compiler.is_compiling():
            refuse(arguments[0], math.prod(_row_shape(arguments[0])), shard)
        raise
    return _all_gather(message, shard), total_weight


def refuse(input: Tensor, rows: int, shard: Shard) -> None:
    """Tell the others, which wait for a message about so many rows, that there will be none."""
    size = (1 + SHARD_NUMBERS * rows,)
    _all_gather(input.new_full(size, -1.0, dtype=accumulate_dtype(input)), shard)


def _all_gather(message: Tensor, shard: Shard) -> Tensor:
    processes = len(shard.sizes)
    if processes == 1:
        return message.unsqueeze(0)
    gathered = collectives.all_gather_into_tensor(message, processes, shard.group)
    return collectives.wait_tensor(gathered).view(processes, -1)


@assume_constant_result
def _checksum(*constants: Any) -> int:
    return zlib.crc32(repr(constants).encode())


def _row_shape(logits: Tensor) -> torch.Size:
    """Without the classes: dimension 1, or the only one."""
    return logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
