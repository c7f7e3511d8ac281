"""The rules of linear cross-entropy's operators for ONNX and flops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from powergrad_ext.cross_entropy_rules import onnx_value
from powergrad_ext.exporting import register_onnx
from powergrad_ext.options import split_options

ops = torch.ops.powergrad
Shape = Sequence[int]


def scaled(output: Tensor, logit_scale: float, softcap: float | None) -> Tensor:
    """What the loss reads, of the layer's output."""
    if softcap is not None:
        return torch.tanh(output * (logit_scale / softcap)) * softcap
    return output if logit_scale == 1.0 else output * logit_scale


# ONNX


@register_onnx("powergrad::linear_cross_entropy_forward")
def _onnx_value(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    *arguments: Any,
) -> Any:
    options, (_, logit_scale, softcap, *_shard, gradients, metrics) = split_options(
        arguments if isinstance(arguments[-1], bool) else (*arguments, False)  # without its default
    )
    logits = scaled(F.linear(input, linear_weight, linear_bias), logit_scale, softcap)
    value = onnx_value(logits, target, *options, any(gradients), metrics)
    if value is NotImplemented:
        return value
    for_backward = [input.new_empty(shape) for shape in (0, (), ())]
    return *value[:2], *for_backward, *(input.new_empty(0) for _ in gradients)


# torch.utils.flop_counter


def _products(input: Shape, linear_weight: Shape, gradients: Sequence[bool]) -> int:
    """Flops of the logits and of the gradients of input and linear_weight, as for F.linear.

    torch counts no elementwise operations and no sums, such as a bias's gradient.
    """
    classes, features = linear_weight
    rows = math.prod(input[:-1])
    return 2 * rows * classes * features * (1 + sum(gradients[:2]))


@register_flop_formula(ops.linear_cross_entropy_forward)
def _(input: Shape, linear_weight: Shape, *args: Any, out_shape: Any = None, **_: Any) -> int:
    # `metrics`, the last argument, is left out where it has its default.
    return _products(input, linear_weight, args[-2] if isinstance(args[-1], bool) else args[-1])


@register_flop_formula(ops.linear_cross_entropy_backward)
def _(
    grad_output: Shape,
    input: Shape,
    linear_weight: Shape,
    *args: Any,
    out_shape: Any = None,
    **_: Any,
) -> int:
    return _products(input, linear_weight, args[-1])
