"""The random data of one group, and the logits as a model's last layer leaves them."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from .cases import (
    DTYPES,
    OF_LOG_SOFTMAX,
    PROBABILITIES,
    SMOOTHING,
    UNREDUCED,
    WEIGHTS,
    Group,
)

GPU_BUFFERS = 3
"""Logits are written to these in turn: no step finds its own data of the last one in the cache."""


class Problem:
    """The data of a group.

    Attributes:
        pristine: (rows, classes, *inner), never written.
        target: (rows, *inner) int64, or probabilities in the shape and type of the logits.
        grad_output: (rows, *inner), the gradient of each row's loss, or in the shape and type of
            the logits, that of each log-probability; None if the loss is a mean.
        arguments: what the function that is differentiated takes after the logits: the target;
            nothing for log-softmax.
        options: what it has to be told besides.
        logits: a copy of pristine that may be overwritten and requires a gradient; not a leaf, as a
            model's output is none.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        generator = torch.Generator(group.device).manual_seed(0)
        on_device: dict[str, Any] = {"generator": generator, "device": group.device}
        rows = (group.shape[0], *group.case.inner)
        dtype = DTYPES[group.dtype]
        self.pristine = torch.randn(group.shape, **on_device).to(dtype)
        if group.mode == PROBABILITIES:
            self.target = torch.randn(group.shape, **on_device).softmax(dim=1).to(dtype)
        else:
            self.target = torch.randint(group.case.classes, rows, **on_device)
        self.grad_output: Tensor | None = None
        self.arguments: tuple[Tensor, ...] = (self.target,)
        self.options: dict[str, Any] = {}
        if group.mode == UNREDUCED:
            self.grad_output = torch.rand(rows, **on_device) + 0.5
            self.options = {"reduction": "none"}
        elif group.mode == SMOOTHING:
            self.options = {"label_smoothing": 0.1}
        elif group.mode == WEIGHTS:
            weight = torch.rand(group.case.classes, **on_device) + 0.5
            self.options = {"weight": weight.to(dtype)}
        elif group.mode in OF_LOG_SOFTMAX:
            # Of one sign, as a loss would send it: nothing cancels in its sum.
            self.grad_output = (torch.rand(group.shape, **on_device) + 0.5).to(dtype)
            self.arguments, self.options = (), {"dim": 1}
        count = GPU_BUFFERS if group.device == "cuda" else 1
        self._buffers = cycle([torch.empty_like(self.pristine) for _ in range(count)])
        self.logits: Tensor
        self.restore()

    def restore(self) -> None:
        """Write the logits anew, as a model's last layer would have done just before the loss."""
        self.logits = next(self._buffers).detach().copy_(self.pristine.detach().requires_grad_())
