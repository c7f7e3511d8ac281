"""The last layer and the loss in one, of a layer whose classes are sharded over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from powergrad_ext import vocab_parallel
from powergrad_ext.operators import CROSS_ENTROPY_STATISTICS, SHARD_NUMBERS, accumulate_dtype
from powergrad_ext.options import Options
from powergrad_ext.vocab_parallel import Shard

ops = torch.ops.powergrad

LEAST_ROWS = 128  # of a row chunk: fewer make the products slow
CHUNKS = 16  # logits and their gradient together are an eighth then


class Layer(NamedTuple):
    """This process's classes of a layer, (C_r, H), its rows, (N, H), and their targets."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    options: Options  # alpha a tensor
    chunk_rows: int | None
    shard: Shard

    def row_chunks(self) -> Iterator[slice]:
        """Rows of which logits exist at a time."""
        count = self.input.shape[0]
        step = self.chunk_rows or max(LEAST_ROWS, -(-count // CHUNKS))
        for first in range(0, count, step):
            yield slice(first, min(first + step, count))

    def logits(self, rows: slice) -> Tensor:
        """Of this process's classes."""
        return F.linear(self.input[rows], self.linear_weight, self.linear_bias)

    def total_weight(self, *agreed: Any) -> Tensor:
        """What a mean divides by, once all arguments are checked: no logits are needed for that.

        Ranks exchange their fingerprints first, since the sizes of all other messages depend on the
        arguments. A rank that cannot go on says so to the others before it raises.
        """
        nothing = self.input.new_empty(self.input.shape[0], 0)
        constants = (self.chunk_rows, *agreed)
        fingerprint = vocab_parallel.fingerprint_of(self.input, self.shard, *constants)
        classes = sum(self.shard.sizes)
        try:
            message, total_weight = ops.cross_entropy_shard_forward(
                nothing, self.target, *self.options, classes, 0, fingerprint
            )
        except Exception:
            vocab_parallel.refuse(nothing, 1, self.shard)
            raise
        # As the message of a single row: a device looks at those that have rows.
        header = F.pad(message[:1], (0, SHARD_NUMBERS))
        headers = vocab_parallel.all_gather(header, self.shard)
        options = self.options._replace(reduction="none")
        ops.cross_entropy_merge_shards(headers, total_weight, *options)
        return total_weight

    def statistics(self, logits: Tensor, rows: slice) -> Tensor:
        """Of whole rows, all that a loss and its gradient need: an exchange."""
        options = self.options._replace(reduction="none")
        messages, total_weight = vocab_parallel.exchange(
            logits, self.target[rows], options, self.shard, 0
        )
        return ops.cross_entropy_merge_shards(messages, total_weight, *options)[1]

    def gradient(
        self, grad_output: Tensor, total_weight: Tensor, logits: Tensor, rows: slice, merged: Tensor
    ) -> Tensor:
        """Of the logits, for the grad_output of all rows or of each."""
        return ops.cross_entropy_backward(
            grad_output,
            logits,
            self.target[rows],
            merged[:CROSS_ENTROPY_STATISTICS],
            total_weight,
            *self.options,
            self.shard.before,
            self.shard.after,
        )


class Gradients:
    """Of a layer's arguments, summed over row chunks; None where they are not wanted."""

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
        """Those of a row chunk, from that of its logits."""
        input = self.layer.input[rows]
        of_input, of_weight, of_bias = self.sums
        if of_input is not None:
            torch.mm(gradient, self.layer.linear_weight, out=of_input[rows])
        if of_weight is not None:
            if input.is_cuda and input.dtype != of_weight.dtype:
                of_weight += torch.mm(gradient.t(), input, out_dtype=of_weight.dtype)
            else:
                of_weight.addmm_(gradient.t().to(of_weight.dtype), input.to(of_weight.dtype))
        if of_bias is not None:
            of_bias += gradient.sum(0, dtype=of_bias.dtype)


class LinearCrossEntropy(torch.autograd.Function):
    """The losses of a layer's rows, their sum, or that divided by the total weight.

    The gradients of a sum and a mean are computed in forward, where a chunk's logits are at hand,
    and backward multiplies them by the one number that grad_output is. They are saved as tensors
    that autograd frees after backward, and that hooks may pack.
    """

    @staticmethod
    def forward(ctx: Any, total_weight: Tensor, with_gradient: bool, *arguments: Any) -> Tensor:
        layer = Layer(*arguments)
        options = layer.options
        reduces = options.reduction != "none"
        wanted = [reduces and with_gradient and needed for needed in ctx.needs_input_grad[2:5]]
        gradients = Gradients(layer, wanted)
        one = total_weight.new_ones((), dtype=accumulate_dtype(layer.input))
        of_rows, scale = _division(layer, total_weight)
        collected = [one.new_empty(SHARD_NUMBERS, 0)]
        for rows in layer.row_chunks():
            logits = layer.logits(rows)
            collected.append(layer.statistics(logits, rows))
            if gradients.are_wanted:
                gradient = layer.gradient(one, of_rows, logits, rows, collected[-1])
                gradients.add(gradient, rows)
        merged = torch.cat(collected, 1)
        # The message of a single shard, which is merged with nothing, and reduced.
        message = torch.cat([one.view(1), merged.flatten()]).unsqueeze(0)
        divisor = options.divisor(total_weight)
        loss, _ = ops.cross_entropy_merge_shards(message, divisor, *options)
        ctx.reduces = reduces
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in layer[:4]]
        if reduces:
            ctx.save_for_backward(*gradients.sums, scale, layer.target != options.ignore_index)
        else:
            tensors, ctx.options = options.split()
            ctx.save_for_backward(*layer[:4], merged, total_weight, *tensors)
            ctx.chunk_rows, ctx.shard = layer.chunk_rows, layer.shard
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        vocab_parallel.refuse_second_order()
        if ctx.reduces:
            sums = LinearCrossEntropy._scaled(ctx, grad_output)
        else:
            sums = LinearCrossEntropy._gradients_by_rows(ctx, grad_output)
        gradients = (
            None if total is None else total.to(dtype)
            for total, dtype in zip(sums, ctx.dtypes[:3], strict=True)
        )
        return None, None, *gradients, *[None] * (len(ctx.needs_input_grad) - 5)

    @staticmethod
    def _scaled(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
        """What forward computed, times grad_output; rows that do not count keep their zeros."""
        *totals, scale, counts = ctx.saved_tensors
        factor = (scale * grad_output).to(grad_output.dtype)
        of_layer = torch.where(counts.any(), factor, 0.0)
        of_rows = torch.where(counts, factor, 0.0).unsqueeze(-1)  # never rounded to half
        return [
            None if total is None else total * by
            for total, by in zip(totals, (of_rows, of_layer, of_layer), strict=True)
        ]

    @staticmethod
    def _gradients_by_rows(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
        saved, (merged, total_weight, *tensors) = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        arguments: list[Any] = [  # hooks may have packed them in other types
            None if tensor is None else tensor.to(dtype)
            for tensor, dtype in zip(saved, ctx.dtypes, strict=True)
        ]
        options = ctx.options.joined(tensors)
        layer = Layer._make([*arguments, options, ctx.chunk_rows, ctx.shard])
        gradients = Gradients(layer, ctx.needs_input_grad[2:5])
        for rows in layer.row_chunks():
            logits, of_rows = layer.logits(rows), grad_output[rows]
            gradient = layer.gradient(of_rows, total_weight, logits, rows, merged[:, rows])
            gradients.add(gradient, rows)
        return gradients.sums


def _division(layer: Layer, total_weight: Tensor) -> tuple[Tensor, Tensor]:
    """What a mean's rows are divided by before the products, and what is left to multiply by.

    In float16 the quotients would underflow before a loss scale can lift them: rows of the largest
    weight get the size 16 there, as in csrc/torch/linear_cross_entropy.cpp.
    """
    one = torch.ones_like(total_weight)
    if layer.input.dtype != torch.float16 or layer.options.reduction != "mean":
        return total_weight, one
    weight = layer.options.weight
    largest = one if weight is None else weight.abs().amax().to(one.dtype)
    divisor = torch.where(total_weight == 0, total_weight, largest / 16)
    return divisor, torch.where(total_weight == 0, one, divisor / total_weight)
