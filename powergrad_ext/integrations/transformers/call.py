"""One call of a fused model with labels: its last layer computes the loss, its loss returns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from powergrad_ext import linear_cross_entropy
from powergrad_ext.integrations.transformers.logits import FusedLogits

# What a model does to its layer's output: "mul" or "div" by a number, "add" a tensor (1, classes).
Step = tuple[str, float | Tensor]


@dataclass(frozen=True)
class Settings:
    """The arguments of fuse_last_layer, and what it found out about the model."""

    options: dict[str, Any]
    """Of linear_cross_entropy."""
    shifts_labels: bool
    counts_items: bool
    """Whether the model's loss is divided by num_items_in_batch."""
    steps: tuple[Step, ...]
    """The scale of the logits."""


class FusedCall:
    """Created by the model's forward, used by its last layer and by its loss.

    Args:
        model: the model's class name.
        options: of linear_cross_entropy.
        target: labels that are aligned with the logits, -100 where none counts.
        reduction: "mean" or "sum".
        steps: what the model will do to the logits.
    """

    def __init__(
        self,
        model: str,
        options: dict[str, Any],
        target: Tensor,
        reduction: str,
        steps: tuple[Step, ...],
    ) -> None:
        self.model = model
        self.options = options
        self.target = target.reshape(-1)
        self.reduction = reduction
        self.steps = steps
        self.is_made = self.is_taken = False

    def misfit(self, why: str) -> RuntimeError:
        return RuntimeError(
            f"fuse_last_layer() does not fit {self.model}: {why} before or in the loss. Undo it by "
            "unfuse_last_layer() and use set_loss_function() or trainer_loss()"
        )

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> FusedLogits:
        """The loss of the layer's input, in place of logits. Called by the layer's forward."""
        if self.is_made:
            raise self.misfit("it calls its last layer more than once")
        if isinstance(weight, DTensor):
            raise self.misfit(
                "its last layer is a DTensor when it is called, tensor-parallel maybe"
            )
        rows = hidden.shape[:-1].numel()
        if rows != self.target.numel():
            raise ValueError(
                f"labels must be as many as the rows of the last layer's input "
                f"{tuple(hidden.shape)}, {rows}, got {self.target.numel()}"
            )
        self.is_made = True
        shape = (*hidden.shape[:-1], weight.shape[0])
        dtype = hidden.dtype
        for kind, operand in self.steps:
            if isinstance(operand, Tensor):
                offset = operand.reshape(-1).to(weight)
                bias = offset if bias is None else bias + offset
            else:
                factor = operand if kind == "mul" else 1.0 / operand
                hidden = hidden * factor
                bias = None if bias is None else bias * factor
        loss = linear_cross_entropy(
            hidden.reshape(rows, -1),
            weight,
            self.target.to(hidden.device),
            linear_bias=bias,
            reduction=self.reduction,
            **self.options,
        )
        return FusedLogits.of(loss, self, shape, dtype)

    def require_step(self, number: int, kind: str, operand: Any) -> int:
        """1 if this is the next planned step, 0 if it changes nothing; else an error."""
        if kind != "add" and not isinstance(operand, Tensor) and operand == 1.0:
            return 0
        if number < len(self.steps):
            planned, expected = self.steps[number]
            if kind == planned and (
                operand is expected if isinstance(expected, Tensor) else operand == expected
            ):
                return 1
        shown = f"a tensor {tuple(operand.shape)}" if isinstance(operand, Tensor) else operand
        raise self.misfit(f"it changes its logits ({kind}, {shown})")

    def require_all_steps(self, number: int) -> None:
        if number != len(self.steps):
            kind, operand = self.steps[number]
            raise self.misfit(f"it does not apply its own {kind} of {operand} to its logits")

    def take(self, loss: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
        """The loss, if cross_entropy's arguments are those that it was computed for."""
        if self.is_taken:
            raise self.misfit("it takes the loss of its logits more than once")
        if reduction not in ("mean", "sum"):
            raise self.misfit(f"it wants reduction {reduction!r}")
        self.is_taken = True
        wrong = self.misfit("its labels are not those of the call, aligned or shifted as planned,")
        if target.dim() != 1 or target.shape != self.target.shape or ignore_index != -100:
            raise wrong
        target, expected = target.to(loss.device), self.target.to(loss.device)
        if loss.device.type == "cpu" and not torch.compiler.is_compiling():
            if not torch.equal(target, expected):
                raise wrong
        else:  # torch.equal would synchronise with the device, and break a compiled graph
            torch._assert_async((target == expected).all(), str(wrong))
        if reduction == self.reduction:
            return loss
        counted = (expected != -100).sum()
        return loss / counted if reduction == "mean" else loss * counted

    def require_taken(self) -> None:
        """After the model's forward."""
        if not self.is_made:
            raise self.misfit("its last layer is not called as a module")
        if not self.is_taken:
            raise self.misfit("its loss is not made from its last layer's output")
