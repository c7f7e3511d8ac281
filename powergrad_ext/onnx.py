"""What ONNX exporters make of torch.ops.powergrad.*: their values, which are torch's own.

torch.onnx is imported only where an export asks: it takes longer than the rest of the package.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from powergrad_ext.operators import accumulate_dtype
from powergrad_ext.options import Options, split_options


def _log_softmax_value(input: Tensor, dim: int, alpha: Tensor, needs_backward: bool) -> Any:
    if needs_backward:
        return NotImplemented
    return torch.log_softmax(input, dim), input.new_empty(0)


def _cross_entropy_value(input: Tensor, target: Tensor, *arguments: Any) -> Any:
    options, (needs_backward,) = split_options(arguments)
    if needs_backward:
        return NotImplemented
    wide = accumulate_dtype(input)
    input = input.to(wide)
    target = target.to(wide if target.is_floating_point() else torch.int64)
    if options.weight is not None:
        options = options._replace(weight=options.weight.to(wide))
    is_one_row = input.dim() == 1  # ONNX has none without a batch
    if is_one_row:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    if target.is_floating_point() or options.label_smoothing:
        loss = _soft_value(input, target, options)
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


def _soft_value(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """Of probabilities and smoothing, which torch's conversion of cross_entropy drops."""
    classes = input.shape[1]
    shape = [classes, *[1] * (input.dim() - 2)]  # of what is the same for all rows
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


def _linear_cross_entropy_value(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    *arguments: Any,
) -> Any:
    options, (_, gradients) = split_options(arguments)
    logits = F.linear(input, linear_weight, linear_bias)
    value = _cross_entropy_value(logits, target, *options, any(gradients))
    if value is NotImplemented:
        return value
    return value[0], input.new_empty(()), *(input.new_empty(0) for _ in gradients)


# torch.onnx.export(dynamo=True) meets our operators as the raw ones of forward, and traces them
# again; what only backward reads is left empty. Not in torch's table of decompositions: it is there
# for everybody, and Inductor refuses an operator that it finds in it where the environment has CI.
def _in_onnx(value: Callable[..., Any]) -> Callable[..., Any]:
    def trace(mode: Any, operator: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
            with mode:
                outputs = value(*args, **kwargs)
            if outputs is not NotImplemented:
                return outputs
        return mode.__torch_dispatch__(operator, types, args, kwargs)

    return trace


def _register(operator: str, value: Callable[..., Any]) -> None:
    torch.library.register_torch_dispatch(operator, ProxyTorchDispatchMode, _in_onnx(value))


_register("powergrad::cross_entropy_forward", _cross_entropy_value)
_register("powergrad::linear_cross_entropy_forward", _linear_cross_entropy_value)
_register("powergrad::log_softmax_forward", _log_softmax_value)


@functools.cache
def register_for_torchscript() -> None:
    """Tell the exporter of TorchScript (dynamo=False) what log-softmax is.

    Called where our function is traced and where our module is scripted. Who exports
    torch.ops.powergrad.log_softmax from a script of their own calls it before.
    """
    from torch.onnx.symbolic_helper import parse_args

    @parse_args("v", "i", "v")
    def log_softmax(graph: Any, input: Any, dim: int, alpha: Any) -> Any:
        return graph.op("LogSoftmax", input, axis_i=dim)

    # From the first version in which ONNX's LogSoftmax means one dimension.
    torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
        "powergrad::log_softmax", log_softmax, 13
    )
