"""The rules of cross-entropy's operators for vmap and ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from powergrad_ext.batching import (
    InDims,
    are_batched,
    batched,
    fold,
    join,
    one_by_one,
    register_vmap,
    split,
)
from powergrad_ext.exporting import register_onnx
from powergrad_ext.metrics import metrics_of_logits
from powergrad_ext.operators import accumulate_dtype
from powergrad_ext.options import Options, split_options

ops = torch.ops.powergrad

# vmap

_ROW_WEIGHT = Options._fields.index("row_weight")


def _are_shared_batched(in_dims: InDims) -> bool:
    """Whether samples differ in something that all rows of a call share; dims from options on."""
    return are_batched(in_dims[:_ROW_WEIGHT] + in_dims[_ROW_WEIGHT + 1 :])


def _batched_rows(options: Options, in_dims: InDims, size: int) -> Options:
    """With the row weights of all samples; dims from options on."""
    if options.row_weight is None:
        return options
    row_weight = batched(options.row_weight, in_dims[_ROW_WEIGHT], size)
    return options._replace(row_weight=row_weight)


def _folded(options: Options, has_rows: bool) -> Options:
    """Those of a folded call, from which its samples' losses are reduced."""
    row_weight = options.row_weight
    if row_weight is not None:
        row_weight = fold(row_weight, has_rows)
    return options._replace(reduction="none", row_weight=row_weight)


def _rows_of(input: Tensor) -> list[int]:
    """The shape of one sample's rows, of logits with a batch dimension."""
    return [] if input.dim() == 2 else [input.shape[1], *input.shape[3:]]


def _losses(
    op: Callable[..., Any],
    size: int,
    in_dims: InDims,
    input: Tensor,
    target: Tensor,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Any]:
    """The samples' losses and total weights, and all that op returned for them together."""
    options, more = split_options(arguments)
    input = batched(input, in_dims[0], size)
    target = batched(target, in_dims[1], size)
    rows = _rows_of(input)
    has_rows = input.dim() > 2
    options = _batched_rows(options, in_dims[2:], size)
    folded = fold(input, has_rows), fold(target, has_rows)
    returned = op(*folded, *_folded(options, has_rows), *more)
    losses = returned if isinstance(returned, Tensor) else returned[0]
    totals = _total_weights(input, target, options)
    if options.reduction == "none":
        return losses.reshape(size, *rows), totals, returned
    losses = losses.reshape(size, math.prod(rows)).sum(1)
    if options.reduction == "mean":
        losses = (losses / options.divisor(totals)).to(losses.dtype)
    return losses, totals, returned


def _total_weights(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """What reduction="mean" divides each sample by, (B), float64."""
    size, rows = input.shape[0], math.prod(_rows_of(input))
    row_weight = options.row_weight
    if target.dim() == input.dim():
        if row_weight is not None:
            return row_weight.double().reshape(size, rows).sum(1)
        return input.new_full((size,), rows, dtype=torch.float64)
    counts = options.rows_that_count(target)
    if options.weight is None:
        weights = counts.double()
    else:
        safe_target = torch.where(counts, target, 0).long()
        weights = torch.where(counts, options.weight.double()[safe_target], 0.0)
    if row_weight is not None:
        weights = weights * row_weight
    return weights.reshape(size, rows).sum(1)


@torch.library.register_vmap("powergrad::cross_entropy_forward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    if _are_shared_batched(in_dims[2:]):
        return one_by_one(ops.cross_entropy_forward, size, in_dims, args)
    losses, totals, returned = _losses(ops.cross_entropy_forward, size, in_dims, *args)
    rows = _rows_of(batched(args[0], in_dims[0], size))
    return (losses, split(returned[1], size, rows), totals), (0, 1, 0)


@torch.library.register_vmap("powergrad::cross_entropy_backward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    grad_output, input, target, statistics, total_weight = args[:5]
    grad_dim, input_dim, target_dim, statistics_dim, total_dim = in_dims[:5]
    options, others = split_options(args[5:])
    size = info.batch_size
    if _are_shared_batched(in_dims[5:]):
        return one_by_one(ops.cross_entropy_backward, size, in_dims, args)
    input = batched(input, input_dim, size)
    options = _batched_rows(options, in_dims[5:], size)
    has_rows = input.dim() > 2
    rows = [size, *_rows_of(input)]
    grad_output = batched(grad_output, grad_dim, size)
    if options.reduction == "mean":
        grad_output = grad_output / options.divisor(batched(total_weight, total_dim, size))
    if options.reduction != "none":
        grad_output = grad_output.reshape(size, *[1] * (len(rows) - 1)).expand(rows)
    gradient = ops.cross_entropy_backward(
        fold(grad_output, has_rows),
        fold(input, has_rows),
        fold(batched(target, target_dim, size), has_rows),
        join(statistics, statistics_dim, size),
        total_weight.new_ones(()),
        *_folded(options, has_rows),
        *others,
    )
    return gradient.reshape(input.shape), 0


def _operator(input: Tensor, target: Tensor, *args: Any) -> Tensor:
    *options, inplace_backward = args
    keywords = Options(*options).keywords()
    return ops.cross_entropy(input, target, **keywords, inplace_backward=inplace_backward)


def _operator_rule(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    args = (*args[:-1], False)  # samples may share their logits: nothing is overwritten
    if _are_shared_batched(in_dims[2:]):
        return one_by_one(_operator, info.batch_size, in_dims, args)
    losses, _, _ = _losses(_operator, info.batch_size, in_dims, *args)
    return losses, 0


register_vmap(
    "cross_entropy",
    _operator_rule,
    _operator,
    input=None,
    target=None,
    **Options().keywords(),
    inplace_backward=False,
)


# ONNX


@register_onnx("powergrad::cross_entropy_forward")
def onnx_value(input: Tensor, target: Tensor, *arguments: Any) -> Any:
    """The outputs of cross_entropy_forward, of which the loss and metrics are used."""
    options, (needs_backward, *metrics) = split_options(arguments)
    if needs_backward:
        return NotImplemented
    wide = accumulate_dtype(input)
    input = input.to(wide)
    target = target.to(wide if target.is_floating_point() else torch.int64)
    if options.weight is not None:
        options = options._replace(weight=options.weight.to(wide))
    if options.row_weight is not None:
        options = options._replace(row_weight=options.row_weight.to(wide))
    is_one_row = input.dim() == 1  # ONNX needs a batch dimension
    if is_one_row:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
        if options.row_weight is not None:
            options = options._replace(row_weight=options.row_weight.unsqueeze(0))
    has_own = options.row_weight is not None or options.z_loss
    if target.is_floating_point() or options.label_smoothing or has_own:
        loss = _onnx_value_by_definition(input, target, options)
    else:
        loss = F.cross_entropy(
            input,
            target,
            options.weight,
            ignore_index=options.ignore_index,
            reduction=options.reduction,
        )
    if is_one_row and options.reduction == "none":
        loss = loss.squeeze(0)
    if not any(metrics):
        return loss, input.new_empty(0), input.new_empty(())
    of_rows = metrics_of_logits(input, target, options.rows_that_count(target))
    values = torch.stack([metric.to(wide).flatten() for metric in of_rows])
    return loss, values, input.new_empty(())


def _onnx_value_by_definition(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """For what torch's cross_entropy does not have, and what its conversion drops: smoothing."""
    classes = input.shape[1]
    shape = [classes, *[1] * (input.dim() - 2)]  # broadcasts over rows
    weight, reduction = options.weight, options.reduction
    weights = input.new_ones(shape) if weight is None else weight.reshape(shape)
    row_weight = 1.0 if options.row_weight is None else options.row_weight
    counts: Tensor | None = None if options.row_weight is None else options.row_weight != 0
    divisor: Tensor | int = math.prod(input.shape) // classes
    if not target.is_floating_point():
        counts = options.rows_that_count(target)
        indices = torch.arange(classes, device=input.device).reshape(shape)
        target = (indices == target.unsqueeze(1)).to(input)
        of_rows = (weights * target).sum(1) * row_weight
        divisor = options.divisor(torch.where(counts, of_rows, 0.0).sum())
    elif options.row_weight is not None:
        divisor = options.row_weight.sum()
    smoothing = options.label_smoothing
    target = (1.0 - smoothing) * target + smoothing / classes
    losses = -(weights * target * torch.log_softmax(input, 1)).sum(1)
    if options.z_loss:
        losses = losses + options.z_loss * torch.logsumexp(input, 1).square()
    losses = losses * row_weight
    if counts is not None:
        losses = torch.where(counts, losses, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / divisor if reduction == "mean" else losses.sum()
