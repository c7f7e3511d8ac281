"""What ONNX exporters make of torch.ops.powergrad.*: their values, which are torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.onnx.symbolic_helper import parse_args


def _log_softmax_value(input: Tensor, dim: int, alpha: Tensor, needs_backward: bool) -> Any:
    if needs_backward:
        return NotImplemented
    return torch.log_softmax(input, dim), input.new_empty(0)


def _cross_entropy_value(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
    needs_backward: bool,
) -> Any:
    if needs_backward or label_smoothing:  # which torch's conversion of cross_entropy drops
        return NotImplemented
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    loss = F.cross_entropy(
        input.to(wide),
        target.to(wide if target.is_floating_point() else torch.int64),
        None if weight is None else weight.to(wide),
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return loss, input.new_empty(0), input.new_empty(())


def _linear_cross_entropy_value(
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
) -> Any:
    value = _cross_entropy_value(
        F.linear(input, linear_weight, linear_bias),
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        alpha,
        any(gradients),
    )
    if value is NotImplemented:
        return value
    return value[0], input.new_empty(()), *(input.new_empty(0) for _ in gradients)


# torch.onnx.export(dynamo=True) meets our operators as the raw ones of forward, and traces them
# again; what only backward reads is left empty. Not in torch's table of decompositions: it is there
# for everybody, and Inductor refuses an operator that it finds in it where the environment has CI.
def _in_onnx(value: Callable[..., Any]) -> Callable[..., Any]:
    def trace(mode: Any, operator: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if torch.onnx.is_in_onnx_export():
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


# The exporter for TorchScript (dynamo=False), from the first version in which ONNX's LogSoftmax
# means one dimension.


@parse_args("v", "i", "v")
def _log_softmax(graph: Any, input: Any, dim: int, alpha: Any) -> Any:
    return graph.op("LogSoftmax", input, axis_i=dim)


torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
    "powergrad::log_softmax", _log_softmax, 13
)
