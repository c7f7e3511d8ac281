"""The last layer and the loss in one, of a layer whose classes are shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from powergrad_ext import shards
from powergrad_ext.operators import CROSS_ENTROPY_STATISTICS, SHARD_NUMBERS, accumulate_dtype
from powergrad_ext.shards import Shard

ops = torch.ops.powergrad

LEAST_ROWS = 128  # of a chunk: fewer make the products slow
CHUNKS = 16  # logits and their gradient together are an eighth then


class Layer(NamedTuple):
    """This process's classes of a layer, (C_r, H), and what the loss takes besides."""

    input: Tensor  # (N, H)
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    alpha: Tensor
    chunk_rows: int | None
    agreed: tuple[Any, ...]  # what ranks have to agree about besides
    shard: Shard

    def chunks(self) -> Iterator[slice]:
        """Rows of which logits exist at a time."""
        count = self.input.shape[0]
        step = self.chunk_rows or max(LEAST_ROWS, -(-count // CHUNKS))
        for first in range(0, count, step):
            yield slice(first, min(first + step, count))

    def logits(self, rows: slice) -> Tensor:
        """Of this process's classes."""
        return F.linear(self.input[rows], self.linear_weight, self.linear_bias)

    def total_weight(self, reduction: str) -> Tensor:
        """What a mean divides by; no logits are needed to check arguments and every target.

        A rank that cannot go on says so to the others before it raises.
        """
        nothing = self.input.new_empty(self.input.shape[0], 0)
        options = (self.ignore_index, reduction, self.label_smoothing, self.alpha)
        try:
            return ops.cross_entropy_shard_forward(
                nothing, self.target, self.weight, *options, sum(self.shard.sizes), 0, 0
            )[1]
        except Exception:
            for rows in self.chunks():
                shards.refuse(nothing, rows.stop, self.shard)
                break
            raise

    def numbers(self, logits: Tensor, rows: slice) -> Tensor:
        """What a loss and its gradient need of whole rows: an exchange."""
        options = (self.ignore_index, "none", self.label_smoothing)
        arguments = (logits, self.target[rows], self.weight, *options, self.alpha)
        agreed = (*options, *self.agreed)
        messages, total_weight = shards.exchange(arguments, self.shard, agreed)
        return ops.cross_entropy_merge_shards(messages, "none", self.alpha, total_weight)[1]

    def gradient(self, upstream: Tensor, logits: Tensor, rows: slice, numbers: Tensor) -> Tensor:
        """Of the logits, for an upstream gradient for all rows or for each."""
        return ops.cross_entropy_shard_backward(
            upstream,
            logits,
            self.target[rows],
            self.weight,
            self.ignore_index,
            "none" if upstream.dim() > 0 else "sum",
            self.label_smoothing,
            self.alpha,
            numbers[:CROSS_ENTROPY_STATISTICS],
            upstream.new_ones((), dtype=torch.float64),
            self.shard.before,
            self.shard.after,
        )


class Gradients:
    """Of a layer's arguments, summed over chunks of rows; None where they are not wanted."""

    def __init__(self, layer: Layer, wanted: Sequence[bool]) -> None:
        wide = accumulate_dtype(layer.input)
        self.layer = layer
        self.are_wanted = any(wanted)
        self.sums = [
            torch.zeros_like(argument, dtype=dtype) if is_wanted and argument is not None else None
            for argument, dtype, is_wanted in zip(
                layer[:3], (layer.input.dtype, wide, wide), wanted, strict=True
            )
        ]

    def add(self, gradient: Tensor, rows: slice) -> None:
        """Those of a chunk, from that of its logits."""
        input = self.layer.input[rows]
        of_input, of_weight, of_bias = self.sums
        if of_input is not None:
            torch.mm(gradient, self.layer.linear_weight, out=of_input[rows])
        if of_weight is not None:
            if input.dtype == of_weight.dtype:
                of_weight.addmm_(gradient.t(), input)
            elif input.is_cuda:
                of_weight += torch.mm(gradient.t(), input, out_dtype=torch.float32)
            else:
                of_weight += gradient.t() @ input
        if of_bias is not None:
            of_bias += gradient.sum(0, dtype=of_bias.dtype)

    def of_arguments(self, factor: Tensor | float) -> Iterator[Tensor | None]:
        """In the arguments' own types."""
        for total, argument in zip(self.sums, self.layer[:3], strict=True):
            if total is None or argument is None:
                yield None
            else:
                yield (total * factor).to(argument.dtype)


class LinearCrossEntropy(torch.autograd.Function):
    """The losses of a layer's rows or their sum, and what a mean divides by."""

    @staticmethod
    def forward(
        ctx: Any, reduction: str, with_gradient: bool, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        layer = Layer(*arguments)
        total_weight = layer.total_weight(reduction)
        is_sum = reduction == "sum"
        now = is_sum and with_gradient
        gradients = Gradients(layer, [now and wanted for wanted in ctx.needs_input_grad[2:5]])
        one = total_weight.new_ones((), dtype=accumulate_dtype(layer.input))
        collected = [one.new_empty(SHARD_NUMBERS, 0)]
        for rows in layer.chunks():
            logits = layer.logits(rows)
            collected.append(layer.numbers(logits, rows))
            if gradients.are_wanted:
                gradients.add(layer.gradient(one, logits, rows, collected[-1]), rows)
        numbers = torch.cat(collected, 1)
        # The message of a single shard, which is put together with nothing, and reduced.
        message = torch.cat([one.view(1), numbers.flatten()]).unsqueeze(0)
        loss, _ = ops.cross_entropy_merge_shards(message, reduction, layer.alpha, total_weight)
        if is_sum:
            ctx.gradients = gradients
        else:  # torch is to see that they are unchanged
            ctx.save_for_backward(*layer[:5], layer.alpha, numbers)
            ctx.layer = layer
        ctx.mark_non_differentiable(total_weight)
        return loss, total_weight

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        shards.refuse_second_order()
        if not ctx.saved_tensors:
            return None, None, *ctx.gradients.of_arguments(grad_output), *[None] * 8
        numbers = ctx.saved_tensors[-1]
        gradients = Gradients(ctx.layer, ctx.needs_input_grad[2:5])
        for rows in ctx.layer.chunks():
            logits = ctx.layer.logits(rows)
            gradient = ctx.layer.gradient(grad_output[rows], logits, rows, numbers[:, rows])
            gradients.add(gradient, rows)
        return None, None, *gradients.of_arguments(1.0), *[None] * 8
