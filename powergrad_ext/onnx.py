"""What ONNX exporters make of torch.ops.powergrad.*: their values, which are torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import register_decomposition
from torch.onnx.symbolic_helper import parse_args

from powergrad_ext import operators

ops = torch.ops.powergrad


# torch.onnx.export(dynamo=True) takes operators apart by torch's table of decompositions, and meets
# ours as the raw ones of forward. Nobody else asks the table for those, and compiled graphs keep
# them; but FakeTensor would, for shapes, if it did not find functions for that. What only backward
# reads is left empty.
register_decomposition(ops.cross_entropy_forward, type="meta")(operators.cross_entropy_forward)
register_decomposition(ops.log_softmax_forward, type="meta")(operators.log_softmax_forward)


@register_decomposition(ops.log_softmax_forward)
def _(input: Tensor, dim: int, alpha: Tensor, needs_backward: bool) -> Any:
    if needs_backward:
        return NotImplemented
    return torch.log_softmax(input, dim), input.new_empty(0)


@register_decomposition(ops.cross_entropy_forward)
def _(
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


# The exporter for TorchScript (dynamo=False), from the first version in which ONNX's LogSoftmax
# means one dimension.


@parse_args("v", "i", "v")
def _log_softmax(graph: Any, input: Any, dim: int, alpha: Any) -> Any:
    return graph.op("LogSoftmax", input, axis_i=dim)


torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
    "powergrad::log_softmax", _log_softmax, 13
)
