"""What torch.ops.powergrad.* do under vmap.

A batch of calls is one call with more rows; only where the samples differ in something that all
rows of a call share (alpha, class weights) are they computed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call_vmap_helper
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from powergrad_ext.options import Options, split_options

ops = torch.ops.powergrad

InDims = tuple[int | None, ...]


def _batched(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with its batch dimension in front."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold(tensor: Tensor, has_rows: bool) -> Tensor:
    """(B, N, ...) to (B * N, ...); a sample that is a single row, (B, ...), stays."""
    return tensor.flatten(0, 1) if has_rows else tensor


def _split(statistics: Tensor, size: int, rows: list[int]) -> Tensor:
    """The statistics of a folded call, (K, B * rows), by samples: (K, B, rows)."""
    return statistics.reshape(statistics.shape[0], size, math.prod(rows))


def _join(statistics: Tensor, dim: int | None, size: int) -> Tensor:
    """Statistics by samples as those of a folded call, (K, B * rows)."""
    return _batched(statistics, dim, size).movedim(0, 1).flatten(1)


def _are_batched(in_dims: InDims) -> bool:
    return any(dim is not None for dim in in_dims)


def _one_by_one(
    op: Callable[..., Any], size: int, in_dims: InDims, args: tuple[Any, ...]
) -> tuple[Any, Any]:
    def sample(index: int) -> list[Any]:
        return [
            arg if dim is None else arg.select(dim, index)
            for arg, dim in zip(args, in_dims, strict=True)
        ]

    def made_up() -> list[Any]:
        """Of an empty batch: class 0, alpha 1, for the shapes of what comes back."""
        return [
            arg
            if dim is None
            else arg.new_full((*arg.shape[:dim], *arg.shape[dim + 1 :]), arg.is_floating_point())
            for arg, dim in zip(args, in_dims, strict=True)
        ]

    samples = [op(*sample(index)) for index in range(size)] or [op(*made_up())]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples)[:size], 0
    outputs = tuple(torch.stack(tensors)[:size] for tensors in zip(*samples, strict=True))
    return outputs, (0,) * len(outputs)


# Cross-entropy.


def _rows_of(input: Tensor) -> list[int]:
    """The sizes of one value per row of one sample, of logits with a batch dimension."""
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
    input = _batched(input, in_dims[0], size)
    target = _batched(target, in_dims[1], size)
    rows = _rows_of(input)
    has_rows = input.dim() > 2
    folded = _fold(input, has_rows), _fold(target, has_rows)
    returned = op(*folded, *options._replace(reduction="none"), *more)
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
    if target.dim() == input.dim():
        return input.new_full((size,), rows, dtype=torch.float64)
    counts = target != options.ignore_index
    if options.weight is None:
        weights = counts.double()
    else:
        safe_target = torch.where(counts, target, 0).long()
        weights = torch.where(counts, options.weight.double()[safe_target], 0.0)
    return weights.reshape(size, rows).sum(1)


@torch.library.register_vmap("powergrad::cross_entropy_forward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    if _are_batched(in_dims[2:]):
        return _one_by_one(ops.cross_entropy_forward, size, in_dims, args)
    losses, totals, returned = _losses(ops.cross_entropy_forward, size, in_dims, *args)
    rows = _rows_of(_batched(args[0], in_dims[0], size))
    return (losses, _split(returned[1], size, rows), totals), (0, 1, 0)


@torch.library.register_vmap("powergrad::cross_entropy_backward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    grad_output, input, target, statistics, total_weight = args[:5]
    grad_dim, input_dim, target_dim, statistics_dim, total_dim = in_dims[:5]
    options, others = split_options(args[5:])
    size = info.batch_size
    if _are_batched(in_dims[5:]):
        return _one_by_one(ops.cross_entropy_backward, size, in_dims, args)
    input = _batched(input, input_dim, size)
    has_rows = input.dim() > 2
    rows = [size, *_rows_of(input)]
    upstream = _batched(grad_output, grad_dim, size)
    if options.reduction == "mean":
        upstream = upstream / options.divisor(_batched(total_weight, total_dim, size))
    if options.reduction != "none":
        upstream = upstream.reshape(size, *[1] * (len(rows) - 1)).expand(rows)
    gradient = ops.cross_entropy_backward(
        _fold(upstream, has_rows),
        _fold(input, has_rows),
        _fold(_batched(target, target_dim, size), has_rows),
        _join(statistics, statistics_dim, size),
        total_weight.new_ones(()),
        *options._replace(reduction="none"),
        *others,
    )
    return gradient.reshape(input.shape), 0


def _cross_entropy(input: Tensor, target: Tensor, *args: Any) -> Tensor:
    *options, inplace_backward = args
    keywords = Options(*options).keywords()
    return ops.cross_entropy(input, target, **keywords, inplace_backward=inplace_backward)


def _cross_entropy_rule(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    args = (*args[:-1], False)  # nothing is written over logits that may be those of others
    if _are_batched(in_dims[2:]):
        return _one_by_one(_cross_entropy, info.batch_size, in_dims, args)
    losses, _, _ = _losses(_cross_entropy, info.batch_size, in_dims, *args)
    return losses, 0


# Log-softmax.


def _rows_first(input: Tensor, dim: int) -> tuple[Tensor, int]:
    """Logits with a batch dimension, never of single numbers, and the class dimension in them."""
    logits = input.unsqueeze(1) if input.dim() == 1 else input
    return logits, dim % max(logits.dim() - 1, 1) + 1


@torch.library.register_vmap("powergrad::log_softmax_forward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    input, dim, alpha, needs_backward = args
    size = info.batch_size
    if in_dims[2] is not None:  # alpha
        return _one_by_one(ops.log_softmax_forward, size, in_dims, args)
    input = _batched(input, in_dims[0], size)
    logits, class_dim = _rows_first(input, dim)
    output, statistics = ops.log_softmax_forward(logits, class_dim, alpha, needs_backward)
    rows = [*logits.shape[1:class_dim], *logits.shape[class_dim + 1 :]]
    return (output.reshape(input.shape), _split(statistics, size, rows)), (0, 1)


@torch.library.register_vmap("powergrad::log_softmax_backward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    grad_output, input, dim, alpha, statistics = args
    grad_dim, input_dim, _, alpha_dim, statistics_dim = in_dims
    size = info.batch_size
    if alpha_dim is not None:
        return _one_by_one(ops.log_softmax_backward, size, in_dims, args)
    input = _batched(input, input_dim, size)
    logits, class_dim = _rows_first(input, dim)
    gradient = ops.log_softmax_backward(
        _batched(grad_output, grad_dim, size).reshape(logits.shape),
        logits,
        class_dim,
        alpha,
        _join(statistics, statistics_dim, size),
    )
    return gradient.reshape(input.shape), 0


def _log_softmax(input: Tensor, dim: int, alpha: Tensor) -> Tensor:
    return ops.log_softmax(input, dim, alpha=alpha)


def _log_softmax_rule(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    input, dim, alpha = args
    if in_dims[2] is not None:  # alpha
        return _one_by_one(_log_softmax, info.batch_size, in_dims, args)
    input = _batched(input, in_dims[0], info.batch_size)
    return _log_softmax(*_rows_first(input, dim), alpha).reshape(input.shape), 0


# The public operators. register_vmap takes no operator with a tensor that is keyword-only (alpha);
# this is what it does, with the arguments in one order.


def _register(name: str, rule: Callable[..., Any], op: Callable[..., Any], **defaults: Any) -> None:
    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **options: Any) -> Any:
        names = list(defaults)[len(args) :]
        given = [*args, *({**defaults, **options}[name] for name in names)]
        interpreter: Any = retrieve_current_functorch_interpreter()
        return custom_function_call_vmap_helper(interpreter, rule, op, *given)

    _library.impl(name, kernel, "FuncTorchBatched", with_keyset=True)


_library = torch.library.Library("powergrad", "IMPL")
_register(
    "cross_entropy",
    _cross_entropy_rule,
    _cross_entropy,
    input=None,
    target=None,
    **Options().keywords(),
    inplace_backward=False,
)
_register("log_softmax", _log_softmax_rule, _log_softmax, input=None, dim=-1, alpha=None)
