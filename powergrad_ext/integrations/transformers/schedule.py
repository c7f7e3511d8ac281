"""A schedule of alpha for a Trainer."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback

from powergrad_ext import AlphaSchedule
from powergrad_ext.integrations.steps import learn_steps


class AlphaCallback(TrainerCallback):
    """Sets a schedule's alpha before each optimizer step of a Trainer, also of one that resumes.

    It warns of a label_smoothing_factor, by which the Trainer computes a loss of its own, without
    the transform, or which compute_loss_func takes precedence over.

    Args:
        schedule: whose ``alpha`` the loss was given. Without ``steps`` it gets the Trainer's.

    Raises:
        ValueError: when training begins, alpha changes and neither knows the number of steps.
    """

    def __init__(self, schedule: AlphaSchedule) -> None:
        self.schedule = schedule

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        factor = getattr(args, "label_smoothing_factor", 0.0)
        if factor:
            warnings.warn(
                f"TrainingArguments(label_smoothing_factor={factor}) is not "
                "for the losses of powergrad_ext: leave it at 0 and give label_smoothing to them",
                stacklevel=2,
            )
        learn_steps(self.schedule, state.max_steps, "the Trainer's max_steps")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.schedule.step(state.global_step)
