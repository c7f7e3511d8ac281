"""The loss for fastai's Learner."""

from __future__ import annotations

from typing import Any

from fastai.losses import BaseLoss
from torch import Tensor

from powergrad_ext.calibration import probabilities
from powergrad_ext.cross_entropy import PowerGradCrossEntropyLoss


class PowerGradCrossEntropyLossFlat(BaseLoss):
    """fastai's CrossEntropyLossFlat with PGT: ``Learner(..., loss_func=...(alpha=0.3))``.

    Args:
        axis: the dimension of the classes.
        alpha: the exponent, a float or a 0-d tensor (:class:`powergrad_ext.AlphaSchedule`).
        options: those of :class:`powergrad_ext.PowerGradCrossEntropyLoss`.
    """

    y_int = True  # fastai: targets are class indices

    def __init__(self, axis: int = -1, *, alpha: float | Tensor = 0.3, **options: Any) -> None:
        super().__init__(PowerGradCrossEntropyLoss, axis=axis, alpha=alpha, **options)

    def decodes(self, x: Tensor) -> Tensor:
        """The most probable classes."""
        return x.argmax(dim=self.axis)

    def activation(self, x: Tensor) -> Tensor:
        """What get_preds returns: the probabilities that the loss calibrates."""
        return probabilities(x, self.axis, alpha=self.func.alpha)
