"""How long the loss alone takes, forward and backward, against F.cross_entropy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

from .methods import Criterion


@dataclass(frozen=True)
class Size:
    """Logits of (rows, classes), timed in alternating rounds of so many calls each.

    owner says what has logits of that size.
    """

    owner: str
    rows: int
    classes: int
    rounds: int
    calls: int


SIZES = (Size("language model", 1024, 32000, rounds=9, calls=1),)
"""Not this network's: what its loss costs is timed where it is paid, in the training steps."""


@dataclass(frozen=True)
class LossTime:
    """Medians over the rounds; the speedup is the median of the rounds' own ratios."""

    size: Size
    cross_entropy_seconds: float
    power_gradient_seconds: float
    speedup: float
    threads: int


def time_loss(power_gradient: Criterion, size: Size) -> LossTime:
    """Time both losses on the same float32 logits.

    Rounds alternate between the two, so a machine that slows down for a moment slows both.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size.rows, size.classes, generator=generator).requires_grad_()
    labels = torch.randint(size.classes, (size.rows,), generator=generator)
    threads = torch.get_num_threads()
    timers = [
        Timer(
            "torch.autograd.grad(criterion(logits, labels), logits)",
            globals={"criterion": criterion, "logits": logits, "labels": labels},
            num_threads=threads,
        )
        for criterion in (F.cross_entropy, power_gradient)
    ]
    rounds = np.array(
        [[timer.timeit(size.calls).mean for timer in timers] for _ in range(size.rounds)]
    )
    baseline, ours = rounds.T
    return LossTime(
        size,
        float(np.median(baseline)),
        float(np.median(ours)),
        float(np.median(baseline / ours)),
        threads,
    )
