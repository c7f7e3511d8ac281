"""What torch.utils.flop_counter.FlopCounterMode counts for the last layer and the loss in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

ops = torch.ops.powergrad

Shape = Sequence[int]


def _products(input: Shape, linear_weight: Shape, gradients: Sequence[bool]) -> int:
    """The logits' and those of the gradients of input and linear_weight, as torch counts F.linear.

    The rest is elementwise, and a bias's gradient is a sum: torch counts neither.
    """
    classes, features = linear_weight
    rows = math.prod(input[:-1])
    return 2 * rows * classes * features * (1 + sum(gradients[:2]))


@register_flop_formula(ops.linear_cross_entropy_forward)
def _(input: Shape, linear_weight: Shape, *args: Any, out_shape: Any = None, **_: Any) -> int:
    return _products(input, linear_weight, args[-1])


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
