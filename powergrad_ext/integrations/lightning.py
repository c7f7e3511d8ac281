"""A schedule of alpha for Lightning; the loss itself is called as in any training_step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from powergrad_ext import AlphaSchedule
from powergrad_ext.integrations.steps import learn_steps


class AlphaCallback(Callback):
    """Sets a schedule's alpha before each batch, from the number of optimizer steps taken.

    Args:
        schedule: whose ``alpha`` the loss was given. Without ``steps`` it gets the Trainer's.

    Raises:
        ValueError: when training begins, alpha changes and neither knows the number of steps.
    """

    def __init__(self, schedule: AlphaSchedule) -> None:
        self.schedule = schedule

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule.steps is None:  # the Trainer's estimate may load data
            steps = trainer.estimated_stepping_batches
            learn_steps(self.schedule, steps, "the Trainer's estimated_stepping_batches")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.schedule.step(trainer.global_step)
