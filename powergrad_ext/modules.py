"""The losses as modules, in place of torch.nn.CrossEntropyLoss and torch.nn.LogSoftmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from powergrad_ext import onnx
from powergrad_ext.alpha import checked_alpha, shown
from powergrad_ext.functional import cross_entropy, log_softmax


class PowerGradCrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`powergrad_ext.cross_entropy` as a module; arguments as torch.nn.CrossEntropyLoss's.

    Args:
        alpha: the exponent, a float or a 0-d tensor. A tensor can be changed in place between
            steps without compiling again. It is not part of the state dict.

    Raises:
        ValueError: alpha is not such a number, finite and > 0 (a tensor on a GPU is not looked at).
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

    def extra_repr(self) -> str:
        return (
            f"alpha={shown(self.alpha)}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
        )


class PowerGradLogSoftmax(nn.Module):
    """:func:`powergrad_ext.log_softmax` as a module.

    Args:
        dim: the dimension of the classes.
        alpha: the exponent, a float or a 0-d tensor.

    Raises:
        ValueError: as for :class:`PowerGradCrossEntropyLoss`.
    """

    def __init__(self, dim: int = -1, *, alpha: float | Tensor = 0.3) -> None:
        super().__init__()
        self.dim = dim
        self.alpha = checked_alpha(alpha)

    def forward(self, input: Tensor) -> Tensor:
        """Log-probabilities of ``input``; see :func:`powergrad_ext.log_softmax`."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            alpha = torch.as_tensor(self.alpha, dtype=torch.float64)
            return torch.ops.powergrad.log_softmax(input, self.dim, alpha=alpha)
        return log_softmax(input, self.dim, alpha=self.alpha)

    def __prepare_scriptable__(self) -> PowerGradLogSoftmax:
        """What torch.jit.script calls: a script may be exported, which calls no Python of ours."""
        onnx.register_for_torchscript()
        return self

    def extra_repr(self) -> str:
        return f"dim={self.dim}, alpha={shown(self.alpha)}"
