"""Autograd over the raw operators for torch.func.

The operators' own autograd (csrc/torch/autograd.cpp) is the fast one; functorch does not accept
autograd functions written in C++, so where one of its levels is active these take their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

ops = torch.ops.powergrad


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
) -> Tensor:
    """As torch.ops.powergrad.cross_entropy."""
    loss, _, _ = _CrossEntropy.apply(
        input, target, weight, ignore_index, reduction, label_smoothing, alpha
    )
    return loss


def log_softmax(input: Tensor, dim: int, alpha: Tensor) -> Tensor:
    """As torch.ops.powergrad.log_softmax."""
    output, _ = _LogSoftmax.apply(input, dim, alpha)
    return output


class _ReverseMode(Function):
    """A function for vmap and reverse mode; forward mode is refused in words of our own."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "powergrad_ext: forward-mode derivatives are not implemented: PowerGrad Transform "
            "defines a gradient, for reverse mode (torch.func.grad, vjp, jacrev)"
        )


class _CrossEntropy(_ReverseMode):
    @staticmethod
    def forward(*args: Any) -> Any:
        return ops.cross_entropy_forward(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, weight, *ctx.options, alpha = inputs
        _, statistics, total_weight = output
        ctx.mark_non_differentiable(statistics, total_weight)
        ctx.save_for_backward(input, target, weight, alpha, statistics, total_weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> Any:
        input, target, weight, alpha, statistics, total_weight = ctx.saved_tensors
        _, reduction, label_smoothing = ctx.options
        grad_input = grad_target = None
        if ctx.needs_input_grad[0]:
            grad_input = _CrossEntropyBackward.apply(
                grad_output, input, target, weight, *ctx.options, alpha, statistics, total_weight
            )
        if ctx.needs_input_grad[1]:
            grad_target = ops.cross_entropy_target_gradient(
                grad_output, input, weight, reduction, label_smoothing, total_weight
            ).to(target.dtype)
        return grad_input, grad_target, None, None, None, None, None


class _CrossEntropyBackward(_ReverseMode):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return ops.cross_entropy_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, input, target, weight, *ctx.options, alpha, _, total_weight = inputs
        ctx.save_for_backward(grad_output, input, target, weight, alpha, total_weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_output, input, target, weight, alpha, total_weight = ctx.saved_tensors
        grads = ops.cross_entropy_double_backward(
            grad, grad_output, input, target, weight, *ctx.options, alpha, total_weight
        )
        grad_target = None
        if ctx.needs_input_grad[2]:
            _, reduction, label_smoothing = ctx.options
            grad_target = ops.cross_entropy_backward_target_gradient(
                grad, grad_output, input, weight, reduction, label_smoothing, alpha, total_weight
            ).to(target.dtype)
        return *grads, grad_target, None, None, None, None, None, None, None


class _LogSoftmax(_ReverseMode):
    @staticmethod
    def forward(input: Tensor, dim: int, alpha: Tensor) -> Any:
        return ops.log_softmax_forward(input, dim, alpha, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, ctx.dim, alpha = inputs
        _, statistics = output
        ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(input, alpha, statistics)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> Any:
        input, alpha, statistics = ctx.saved_tensors
        grad = _LogSoftmaxBackward.apply(grad_output, input, ctx.dim, alpha, statistics)
        return grad, None, None


class _LogSoftmaxBackward(_ReverseMode):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return ops.log_softmax_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, input, ctx.dim, alpha, _ = inputs
        ctx.save_for_backward(grad_output, input, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_output, input, alpha = ctx.saved_tensors
        grads = ops.log_softmax_double_backward(grad, grad_output, input, ctx.dim, alpha)
        return *grads, None, None, None
