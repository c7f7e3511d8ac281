"""The number of steps of a framework's trainer, for a schedule that was given none."""

from __future__ import annotations

import math

from powergrad_ext import AlphaSchedule


def learn_steps(schedule: AlphaSchedule, steps: float, source: str) -> None:
    """Give the schedule the trainer's number of steps, unless it has its own.

    Raises:
        ValueError: the number is infinite, or less than 1 as for an endless dataset, and alpha
            changes over the steps.
    """
    if schedule.steps is not None:
        return
    if 1 <= steps < math.inf:
        schedule.steps = int(steps)
    elif schedule.start != schedule.end:
        raise ValueError(
            f"steps must be given to AlphaSchedule, since {source} is not known "
            f"(got {steps}; an iterable dataset has no length)"
        )
