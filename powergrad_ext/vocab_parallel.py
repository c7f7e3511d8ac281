"""Rows whose classes are sharded over processes (vocabulary parallel).

Every process reduces its own classes. The shard statistics of a row merge as a monoid
(csrc/shards.h), so one all-gather of five statistics a row, seven with metrics, is all that is
communicated.
"""

from __future__ import annotations

import math
import sys
import zlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from powergrad_ext._constant import assume_constant_result
from powergrad_ext.operators import (
    SHARD_STATISTICS,
    SHARD_STATISTICS_WITH_METRICS,
    accumulate_dtype,
)
from powergrad_ext.options import Options, split_options

ops = torch.ops.powergrad
collectives = torch.ops._c10d_functional


class Shard(NamedTuple):
    """Which classes this process has: ranks hold them in their order."""

    group: str  # its name, which all compilers take for a constant
    sizes: tuple[int, ...]  # how many classes each rank has; -1 where this rank has to ask
    rank: int
    is_certain: bool = True  # not remembered from another call, which may have been another layer's

    @property
    def before(self) -> int:
        """How many classes lower ranks have."""
        return sum(self.sizes[: self.rank])

    @property
    def after(self) -> int:
        """How many classes higher ranks have."""
        return sum(self.sizes[self.rank + 1 :])


# What a rank says in place of a fingerprint.
REFUSED, ASKED = -1.0, -2.0


class SizesDifferError(Exception):
    """Raised on every rank: the sizes that one of them remembers are another layer's."""


def cross_entropy(
    input: Tensor, target: Tensor, options: Options, shard: Shard, metrics: bool, *agreed: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a shard's rows, what a mean divides by, and metrics (3, rows) if asked for.

    `agreed` is what ranks have to agree about besides the other arguments.
    """
    if target.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "cross_entropy(): the derivative for 'target' is not implemented where classes are "
            "sharded over processes; pass target.detach()"
        )
    fingerprint = fingerprint_of(input, shard, metrics, *options.constants(), *agreed)
    options = options.for_operator(input)
    return _CrossEntropy.apply(input, target, *options, shard, fingerprint, metrics)


def log_softmax(input: Tensor, dim: int, alpha: Tensor, shard: Shard) -> Tensor:
    """As :func:`powergrad_ext.log_softmax`, of a shard's classes: its part of the result.

    Backward adds up one number a row over the group.
    """
    refuse_loss_parallel()
    return _LogSoftmax.apply(input, dim, alpha, shard)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        options, (shard, fingerprint, metrics) = split_options(arguments)
        gathered, total_weight = exchange(input, target, options, shard, fingerprint, metrics)
        divisor = options.divisor(total_weight)
        loss, merged = ops.cross_entropy_merge_shards(gathered, divisor, *options, metrics)
        statistics = merged[: options.statistics]
        of_rows = merged[SHARD_STATISTICS:].clone()  # not a view of what is saved
        tensors, ctx.options = options.split()
        ctx.save_for_backward(input, target, statistics, total_weight, *tensors)
        ctx.shard = shard
        ctx.mark_non_differentiable(total_weight, of_rows)
        if options.reduction == "none":
            loss = loss.view(_row_shape(input))
        return loss, total_weight, of_rows

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        saved, tensors = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        options = ctx.options.joined(tensors)
        others = (ctx.shard.before, ctx.shard.after)
        grad_input = ops.cross_entropy_backward(grad_output, *saved, *options, *others)
        return grad_input, *[None] * (4 + len(options))


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, dim: int, alpha: Tensor, shard: Shard) -> Tensor:
        logits = input.movedim(dim, min(input.dim() - 1, 1))
        # The sums are those of any target.
        target = torch.zeros(_row_shape(logits), dtype=torch.int64, device=input.device)
        options = Options(reduction="none", alpha=alpha)
        fingerprint = fingerprint_of(input, shard)
        gathered, unused = exchange(logits, target, options, shard, fingerprint)
        _, merged = ops.cross_entropy_merge_shards(gathered, unused, *options)
        maximum, alpha_sumexp_m1, _, sumexp_m1, _ = merged.view(
            SHARD_STATISTICS, *_row_shape(logits)
        )
        ctx.save_for_backward(input, alpha, maximum, alpha_sumexp_m1)
        ctx.dim, ctx.shard = dim, shard
        # z - maximum first: it is exact or nearly so, however far from 0 the row lies.
        output = input - maximum.unsqueeze(dim) - sumexp_m1.log1p().unsqueeze(dim)
        if output.dtype != input.dtype or not output.is_contiguous():
            # Only then: torch 2.11's compiler loses the gradient behind a conversion of nothing.
            output = output.to(input.dtype, memory_format=torch.contiguous_format)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """dz = g - p' sum(g): cross-entropy's with g for a target, its gradient times -1."""
        refuse_second_order()
        refuse_loss_parallel()
        input, alpha, maximum, alpha_sumexp_m1 = ctx.saved_tensors
        total = grad_output.sum(ctx.dim, dtype=maximum.dtype)
        total = collectives.wait_tensor(collectives.all_reduce(total, "sum", ctx.shard.group))
        to = min(input.dim() - 1, 1)
        grad_logits = ops.cross_entropy_backward(
            total.new_full((), -1.0),
            input.movedim(ctx.dim, to),
            grad_output.movedim(ctx.dim, to),
            torch.stack([maximum, alpha_sumexp_m1, total]).flatten(1),
            total.new_ones((), dtype=torch.float64),
            *Options(reduction="sum", alpha=alpha),
            ctx.shard.before,
            ctx.shard.after,
        )
        return grad_logits.movedim(to, ctx.dim), *[None] * 3


def refuse_second_order() -> None:
    """Instead of a gradient that would pass for a constant."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "backward with create_graph=True is not implemented where classes are sharded over "
            "processes"
        )


def refuse_loss_parallel() -> None:
    """Instead of ordinary cross-entropy: F.nll_loss returns the gradient of logits there."""
    if _in_loss_parallel():
        raise RuntimeError(
            "log_softmax(): sharded classes are not supported inside torch's loss_parallel(), whose"
            " F.nll_loss returns the gradient of ordinary cross-entropy whatever 'alpha' is; call"
            " powergrad_ext.cross_entropy, inside or outside of it"
        )


@assume_constant_result
def _in_loss_parallel() -> bool:
    """Whether torch's context is open, which hands DTensor operators of its own."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    handlers = module.DTensor._op_dispatcher._custom_op_handlers
    return torch.ops.aten.nll_loss_backward.default in handlers


def exchange(
    input: Tensor,
    target: Tensor,
    options: Options,
    shard: Shard,
    fingerprint: int,
    metrics: bool = False,
) -> tuple[Tensor, Tensor]:
    """The shard statistics of all ranks, and what a mean divides by.

    A rank that cannot take part says so to the others, which would wait for it, and then raises.

    Raises:
        SizesDifferError: on every rank, which can exchange sizes then and call again.
    """
    try:
        if -1 in shard.sizes:
            raise RuntimeError(
                "vocab_parallel_cross_entropy(): only some ranks have as many classes as of another"
                " layer in this group, whose sizes they remember: on a GPU give each layer a group"
                " of its own (torch.distributed.new_group)"
            )
        own, total_weight = ops.cross_entropy_shard_forward(
            input, target, *options, shard.before, shard.after, fingerprint, metrics
        )
    except Exception:
        if not torch.compiler.is_compiling():
            # The error may come from remembered sizes that belong to another layer.
            answer = REFUSED if shard.is_certain else ASKED
            gathered = _answer(answer, input, math.prod(_row_shape(input)), shard, metrics)
            if not shard.is_certain:
                require_sizes(gathered)
        raise
    gathered = all_gather(own, shard)
    if not shard.is_certain and not input.is_cuda:  # on a GPU that would mean waiting for it
        require_sizes(gathered)
    return gathered, total_weight


def require_sizes(gathered: Tensor) -> None:
    """Raises SizesDifferError on all ranks or on none, since all of them read the same answers.

    On a GPU only ranks that do not know the sizes call this, because reading would synchronise the
    others.
    """
    answers = set(gathered[:, 0].tolist())
    if answers == {ASKED} or (len(answers) > 1 and not gathered.is_cuda):
        raise SizesDifferError


def agree(input: Tensor, target: Tensor, options: Options, shard: Shard, *constants: Any) -> Tensor:
    """What a mean of a layer's rows divides by, once all arguments but the layer are checked.

    `input` is the layer's, (N, H). Ranks exchange their fingerprints, since the sizes of all other
    exchanges depend on the arguments. A rank that cannot go on says so before it raises.
    """
    logits = input.new_empty(input.shape[0], 0)
    fingerprint = fingerprint_of(input, shard, *constants)
    try:
        own, total_weight = ops.cross_entropy_shard_forward(
            logits, target, *options, sum(shard.sizes), 0, fingerprint
        )
    except Exception:
        if not torch.compiler.is_compiling():
            _answer(REFUSED, logits, 1, shard)  # as the statistics of a single row
        raise
    # As the statistics of a single row: a GPU compares those of each row.
    header = F.pad(own[:1], (0, SHARD_STATISTICS))
    options = options._replace(reduction="none", row_weight=None)
    ops.cross_entropy_merge_shards(all_gather(header, shard), total_weight, *options)
    return total_weight


def _answer(answer: float, input: Tensor, rows: int, shard: Shard, metrics: bool = False) -> Tensor:
    """Send this in place of the statistics of so many rows, for which the others wait."""
    of_row = SHARD_STATISTICS_WITH_METRICS if metrics else SHARD_STATISTICS
    size = (1 + of_row * rows,)
    return all_gather(input.new_full(size, answer, dtype=accumulate_dtype(input)), shard)


def all_gather(own: Tensor, shard: Shard) -> Tensor:
    """The shard statistics of all ranks, (processes, size)."""
    processes = len(shard.sizes)
    if processes == 1:
        return own.unsqueeze(0)
    gathered = collectives.all_gather_into_tensor(own, processes, shard.group)
    return collectives.wait_tensor(gathered).view(processes, -1)


def fingerprint_of(input: Tensor, shard: Shard, *constants: Any) -> int:
    """By which ranks whose arguments differ are found out; operators add the number of rows."""
    return _checksum(str(input.dtype), shard.sizes, *constants)


@assume_constant_result
def _checksum(*constants: Any) -> int:
    return zlib.crc32(repr(constants).encode())


def _row_shape(logits: Tensor) -> torch.Size:
    """Without the classes: dimension 1, or the only one."""
    return logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
