"""timm's losses with PGT, under timm's names.

timm's train.py takes them by its line ``from timm.loss import ...``: import these two from here.
"""

from __future__ import annotations

from timm import loss
from torch import Tensor

from powergrad_ext.alpha import checked_alpha
from powergrad_ext.cross_entropy import cross_entropy


class LabelSmoothingCrossEntropy(loss.LabelSmoothingCrossEntropy):
    """timm's loss of the same name, with the gradient of :func:`powergrad_ext.cross_entropy`.

    Args:
        smoothing: the share of the target that is spread over all classes, at least 0, less than 1.
        alpha: the exponent, a float or a 0-d tensor (:class:`powergrad_ext.AlphaSchedule`).
    """

    def __init__(self, smoothing: float = 0.1, alpha: float | Tensor = 0.3) -> None:
        super().__init__(smoothing)
        self.alpha = checked_alpha(alpha)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean loss of logits x (N, C) for class indices target (N)."""
        return cross_entropy(x, target, label_smoothing=self.smoothing, alpha=self.alpha)


class SoftTargetCrossEntropy(loss.SoftTargetCrossEntropy):
    """timm's loss of the same name, with the gradient of :func:`powergrad_ext.cross_entropy`.

    Args:
        alpha: the exponent, a float or a 0-d tensor (:class:`powergrad_ext.AlphaSchedule`).
    """

    def __init__(self, alpha: float | Tensor = 0.3) -> None:
        super().__init__()
        self.alpha = checked_alpha(alpha)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean loss of logits x (..., C) for targets of the same shape, as mixup makes them.

        Raises:
            ValueError: shapes that differ.
        """
        if x.shape != target.shape:
            raise ValueError(
                f"target must have x's shape {tuple(x.shape)}, got {tuple(target.shape)}"
            )
        classes = x.size(-1)
        return cross_entropy(x.reshape(-1, classes), target.reshape(-1, classes), alpha=self.alpha)
