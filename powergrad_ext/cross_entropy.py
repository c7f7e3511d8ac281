"""Cross-entropy: the function, the module, and its rules for vmap and ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from powergrad_ext import dtensor
from powergrad_ext._native import _C
from powergrad_ext.alpha import as_alpha, checked_alpha, shown
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
from powergrad_ext.exporting import is_exporting, refuse_scripts, register_onnx
from powergrad_ext.operators import accumulate_dtype
from powergrad_ext.options import Options, require_tensor, require_type, split_options

ops = torch.ops.powergrad


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
) -> Tensor:
    r"""Cross-entropy whose gradient is that of the PowerGrad Transform (arXiv 2111.12495).

    With ``p = softmax(z)``, target distribution ``q`` and class weights ``w``, per row::

        loss = -sum_j w_j q_j log p_j                          (torch's value, untouched by alpha)
        dz_j = p'_j sum_c w_c q_c - w_j q_j,    p' = p**alpha / sum(p**alpha) = softmax(alpha z)

    which is the ordinary gradient of ``F.cross_entropy(alpha * z, ...) / alpha``. ``alpha=1`` is
    ordinary cross-entropy. Training with ``alpha < 1`` calibrates ``softmax(alpha * z)``, so report
    probabilities and validation losses at that temperature. For ``alpha != 1`` the gradient is not
    the value's derivative, and ``torch.autograd.gradcheck`` says so: check against the identity
    above. Every backward through a graph gives the same bits for the same grad_output.

    Semantics are those of :func:`torch.nn.functional.cross_entropy` except that int32 targets and
    weights of any floating point type are accepted, and that for float16 and bfloat16 logits the
    loss is computed and returned in float32 (also under autocast, which leaves the logits as they
    are).

    Backward reads the arguments again, and raises an error if one has been changed in place since;
    except where forward has computed the gradient (reductions "mean" and "sum" on a CPU, but not in
    float16).

    Args:
        input: logits, float32, float64, bfloat16 or float16, of shape (C), (N, C) or
            (N, C, d1, ..., dK), any strides. Or a DTensor: sharded rows stay where they are,
            classes sharded over one mesh dimension take an all-gather of five numbers a row
            (:mod:`powergrad_ext.distributed`), any other placement is redistributed first.
        target: class indices, int64, int32 or uint8, of shape (), (N) or (N, d1, ..., dK), each in
            [0, C) or ignore_index; or class probabilities of the shape of input, in any of its
            dtypes (another than input's or float32 is converted). They may require grad.
        weight: (C), in any of these dtypes.
        ignore_index: rows with this index count for nothing and get a zero gradient.
        reduction: "none", "mean" (divided by the summed weights of the rows that count) or "sum".
        label_smoothing: in [0, 1].
        alpha: a float, or a 0-d floating point tensor on the CPU or on input's device, which can be
            changed under torch.compile without compiling again. Finite and > 0. A tensor on a GPU
            is read there, whenever the kernels run: it can be changed between replays of a CUDA
            graph, and its value is not checked.
        inplace_backward: let backward write the gradient over input; the caller promises not to use
            the logits again. Another backward that needs them, or another part of the same
            tensor, raises. It is a permission: nothing is overwritten under torch.compile,
            torch.func and saved-tensor hooks (checkpoints, offloading), for a leaf (which would
            become its own gradient), or where the layout forbids it.

    Returns:
        The loss, float64 for float64 logits, else float32: a scalar, or for reduction "none" of
        target's index shape.

    Raises:
        ValueError: alpha, reduction, or batch sizes that differ.
        IndexError: a target outside [0, C) that is not ignore_index; on a GPU, a device-side
            assertion, as torch's own.
        TypeError: logits that are not floating point.
        RuntimeError: label_smoothing outside [0, 1]; target, weight or devices that do not fit.
        NotImplementedError: a CUDA tensor in a build without CUDA kernels.
    """
    options = (weight, ignore_index, reduction, label_smoothing, alpha)
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,
            tuple(tensor for tensor in (input, target, weight) if tensor is not None),
            input,
            target,
            **Options(*options).keywords(),
            inplace_backward=inplace_backward,
        )
    require_tensor("cross_entropy", "input", input)
    require_tensor("cross_entropy", "target", target)
    if not isinstance(alpha, float):
        options = (*options[:-1], as_alpha(alpha))
    if type(input) is not Tensor and dtensor.is_dtensor(input):
        return dtensor.cross_entropy(input, target, Options(*options))
    if torch.compiler.is_compiling() or type(input) is FakeTensor:
        keywords = Options(*options).for_operator(input).keywords()
        return ops.cross_entropy(input, target, **keywords, inplace_backward=inplace_backward)
    if torch._C._is_tracing() and is_exporting():
        return onnx_value(input, target, *options, False)[0]
    try:
        return _C.cross_entropy(input, target, *options, inplace_backward)
    except TypeError:  # the binding's own message lists C++ types and names no argument
        Options(*options).require_types("cross_entropy")
        require_type("cross_entropy", "inplace_backward", inplace_backward, bool, "bool")
        raise


class PowerGradCrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`powergrad_ext.cross_entropy` as a module; arguments as torch.nn.CrossEntropyLoss's.

    Args:
        alpha: the exponent, a float or a 0-d tensor. A tensor can be changed in place between
            steps without compiling again. It is not part of the state dict.

    Raises:
        ValueError: alpha is not such a number, finite and > 0 (a tensor on a GPU is not read).
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        alpha: float | Tensor = 0.3,
    ) -> None:
        super().__init__(
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        self.alpha = checked_alpha(alpha)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` for ``target``; see :func:`powergrad_ext.cross_entropy`."""
        options = (self.weight, self.ignore_index, self.reduction, self.label_smoothing)
        # TorchScript knows operators, not the function around them.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            alpha = torch.as_tensor(self.alpha, dtype=torch.float64)
            return torch.ops.powergrad.cross_entropy(input, target, *options, alpha=alpha)
        return cross_entropy(input, target, *options, alpha=self.alpha)

    def __prepare_scriptable__(self) -> PowerGradCrossEntropyLoss:
        """Called by torch.jit.script."""
        refuse_scripts("cross_entropy")
        return self

    def extra_repr(self) -> str:
        return (
            f"alpha={shown(self.alpha)}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
        )


# vmap


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
    folded = fold(input, has_rows), fold(target, has_rows)
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
    if are_batched(in_dims[2:]):
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
    if are_batched(in_dims[5:]):
        return one_by_one(ops.cross_entropy_backward, size, in_dims, args)
    input = batched(input, input_dim, size)
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
        *options._replace(reduction="none"),
        *others,
    )
    return gradient.reshape(input.shape), 0


def _operator(input: Tensor, target: Tensor, *args: Any) -> Tensor:
    *options, inplace_backward = args
    keywords = Options(*options).keywords()
    return ops.cross_entropy(input, target, **keywords, inplace_backward=inplace_backward)


def _operator_rule(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    args = (*args[:-1], False)  # samples may share their logits: nothing is overwritten
    if are_batched(in_dims[2:]):
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
    """The outputs of cross_entropy_forward, of which only the loss is used."""
    options, (needs_backward,) = split_options(arguments)
    if needs_backward:
        return NotImplemented
    wide = accumulate_dtype(input)
    input = input.to(wide)
    target = target.to(wide if target.is_floating_point() else torch.int64)
    if options.weight is not None:
        options = options._replace(weight=options.weight.to(wide))
    is_one_row = input.dim() == 1  # ONNX needs a batch dimension
    if is_one_row:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    if target.is_floating_point() or options.label_smoothing:
        loss = _onnx_value_of_soft(input, target, options)
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
    return loss, input.new_empty(0), input.new_empty(())


def _onnx_value_of_soft(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """For probabilities and smoothing, which torch's conversion of cross_entropy drops."""
    classes = input.shape[1]
    shape = [classes, *[1] * (input.dim() - 2)]  # broadcasts over rows
    weight, reduction = options.weight, options.reduction
    weights = input.new_ones(shape) if weight is None else weight.reshape(shape)
    if target.is_floating_point():
        counts: Tensor | None = None
        divisor: Tensor | int = math.prod(input.shape) // classes
    else:
        counts = target != options.ignore_index
        indices = torch.arange(classes, device=input.device).reshape(shape)
        target = (indices == target.unsqueeze(1)).to(input)
        divisor = options.divisor(torch.where(counts, (weights * target).sum(1), 0.0).sum())
    smoothing = options.label_smoothing
    target = (1.0 - smoothing) * target + smoothing / classes
    losses = -(weights * target * torch.log_softmax(input, 1)).sum(1)
    if counts is not None:
        losses = torch.where(counts, losses, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / divisor if reduction == "mean" else losses.sum()
