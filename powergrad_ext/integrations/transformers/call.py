"""One call of a fused model with labels: its last layer computes the loss, its loss returns it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from powergrad_ext import RowMetrics, linear_cross_entropy
from powergrad_ext.integrations.transformers.changes import Changes
from powergrad_ext.integrations.transformers.logits import FusedLogits


@dataclass(frozen=True)
class Settings:
    """The arguments of fuse_last_layer, and what it found out about the model."""

    options: dict[str, Any]
    """Of linear_cross_entropy."""
    shifts_labels: bool
    counts_items: bool
    """Whether the model's loss is divided by num_items_in_batch."""
    changes: Changes
    """A scale and a cap of the logits."""


class FusedCall:
    """Created by the model's forward, used by its last layer and by its loss.

    Args:
        model: the model's class name.
        settings: of fuse_last_layer.
        target: labels that are aligned with the logits, -100 where none counts.
        reduction: "mean" or "sum".
        offset: (1, classes), what the model will add to its layer's output.
        return_metrics: whether the layer makes metrics of its rows too.
    """

    def __init__(
        self,
        model: str,
        settings: Settings,
        target: Tensor,
        reduction: str,
        offset: Tensor | None,
        return_metrics: bool,
    ) -> None:
        self.model = model
        self.options = settings.options | settings.changes.options()
        self.changes = replace(settings.changes, has_offset=offset is not None)
        self.offset = offset
        self.labels = target.clone()  # the model may mask its labels in place
        self.target = self.labels.reshape(-1)
        self.reduction = reduction
        self.return_metrics = return_metrics
        self.row_metrics: RowMetrics | None = None
        self.loss: Tensor | None = None
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
        if self.offset is not None:
            offset = self.offset.reshape(-1).to(weight)
            bias = offset if bias is None else bias + offset
        made = linear_cross_entropy(
            hidden.reshape(rows, -1),
            weight,
            self.target.to(hidden.device),
            linear_bias=bias,
            reduction=self.reduction,
            return_metrics=self.return_metrics,
            **self.options,
        )
        loss, self.row_metrics = made if self.return_metrics else (made, None)
        shape = (*hidden.shape[:-1], weight.shape[0])
        return FusedLogits.of(loss, self, shape, hidden.dtype, Changes())

    def require_changes(self, made: Changes) -> None:
        if not made.are_close_to(self.changes):
            raise self.misfit(f"it makes {made} of its logits z, and not {self.changes},")

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
        self.loss = loss
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

    def metrics(self) -> dict[str, Any]:
        """After the model's forward, the further fields of its output."""
        assert self.row_metrics is not None
        shape = self.labels.shape
        rows = RowMetrics(*(each.reshape(shape) for each in self.row_metrics))
        return {"loss_sum": self.loss, "aligned_labels": self.labels, "row_metrics": rows}
