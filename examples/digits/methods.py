"""The two methods compared: a loss, and the learning rate that suits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from powergrad_ext import PowerGradCrossEntropyLoss

Criterion = Callable[[Tensor, Tensor], Tensor]

TUNED_RATE = 0.04
"""The best of 0.02, 0.04, 0.08, 0.16 and 0.32, over seeds 100 to 115, none of which the demo runs.

Each loss was searched by itself; at alpha = 1 and at alpha = 0.25 the same rate came out best."""


@dataclass(frozen=True)
class Method:
    """A loss and its learning rate.

    alpha says which probabilities the loss trains, softmax(alpha * z): 1 for cross-entropy.
    """

    name: str
    criterion: Criterion
    alpha: float
    learning_rate: float


def cross_entropy() -> Method:
    """Return PyTorch's own cross-entropy, at the learning rate found best for it."""
    return Method("cross-entropy", F.cross_entropy, alpha=1.0, learning_rate=TUNED_RATE)


def power_gradient(alpha: float, learning_rate: float) -> Method:
    """Return PGT at an exponent and a learning rate; the two want to be chosen together.

    With SGD, PGT is cross-entropy on alpha * z with other learning rates layer by layer, so a rate
    tuned for one exponent and used for another would compare the rates more than the losses.
    """
    return Method(
        f"PGT, α = {alpha:g}", PowerGradCrossEntropyLoss(alpha=alpha), alpha, learning_rate
    )
