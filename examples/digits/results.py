"""Everything the demo measured, and the comparisons drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from examples.evidence.comparison import Comparison, compare

from .methods import Method
from .timing import LossTime
from .training import Run


@dataclass(frozen=True)
class Results:
    """Both methods, their runs, the loss's times.

    The two sequences of runs hold the same seeds in the same order.
    """

    cross_entropy: Method
    power_gradient: Method
    cross_entropy_runs: Sequence[Run]
    power_gradient_runs: Sequence[Run]
    loss_times: Sequence[LossTime]

    @property
    def train_accuracy(self) -> Comparison:
        """Percent of the training set right after the last epoch."""
        return self._compare(lambda run: run.train[-1].accuracy, higher_is_better=True)

    @property
    def test_accuracy(self) -> Comparison:
        """Percent of the test set right after the last epoch."""
        return self._compare(lambda run: run.test[-1].accuracy, higher_is_better=True)

    @property
    def test_accuracy_by_epoch(self) -> list[Comparison]:
        """Percent of the test set right after each epoch."""
        epochs = range(len(self.cross_entropy_runs[0].test))
        return [
            self._compare(lambda run, at=epoch: run.test[at].accuracy, higher_is_better=True)
            for epoch in epochs
        ]

    @property
    def test_nll(self) -> Comparison:
        """Test negative log-likelihood at softmax(z)."""
        return self._compare(lambda run: run.test[-1].nll, higher_is_better=False)

    @property
    def test_nll_trained(self) -> Comparison:
        """Test negative log-likelihood at softmax(alpha * z), with each method's own alpha."""
        return self._compare(lambda run: run.test[-1].nll_trained, higher_is_better=False)

    @property
    def loss_share(self) -> Comparison:
        """Percent of a training step spent in the loss, forward and backward: the median step."""
        return self._compare(loss_share, higher_is_better=False)

    @property
    def step_seconds(self) -> float:
        """Of the median training step, whichever the loss."""
        runs = (*self.cross_entropy_runs, *self.power_gradient_runs)
        return float(np.median([run.step_seconds for run in runs]))

    def _compare(self, quantity: Callable[[Run], float], *, higher_is_better: bool) -> Comparison:
        return compare(
            [quantity(run) for run in self.cross_entropy_runs],
            [quantity(run) for run in self.power_gradient_runs],
            higher_is_better=higher_is_better,
        )


def loss_share(run: Run) -> float:
    """Return the percent of the run's median step that went into the loss."""
    return 100 * float(np.median(np.divide(run.loss_seconds, run.step_seconds)))
