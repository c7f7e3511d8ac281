"""What annealing alpha to 1 does: `python -m examples.digits.annealing` takes some minutes.

Each method's learning rate is the best of four over seeds that are not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from examples.evidence.comparison import Estimate, format_estimate
from powergrad_ext import AlphaSchedule, cross_entropy

from . import methods
from .data import load_split
from .report import report_table
from .training import BATCH_SIZE, Evaluation, train

ALPHA = 0.25
EPOCHS = 5
RATES = (0.02, 0.04, 0.08, 0.16)
TUNING_SEEDS = range(100, 108)
SEEDS = range(16)


class Annealed:
    """PGT with an alpha that goes from ALPHA to 1 in the course of one training run."""

    def __init__(self, shape: str, hold: float) -> None:
        steps = EPOCHS * (len(load_split(0).train_labels) // BATCH_SIZE)
        self.schedule = AlphaSchedule(ALPHA, 1.0, steps, shape=shape, hold=hold)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss at this step's alpha, of which backward has a copy; then on to the next step."""
        loss = cross_entropy(logits, labels, alpha=self.schedule.alpha.clone())
        self.schedule.step()
        return loss


def annealed(shape: str, hold: float, rate: float) -> methods.Method:
    """Return an annealed method, new for each run; what it trains in the end is softmax(z)."""
    return methods.Method("annealed", Annealed(shape, hold), alpha=1.0, learning_rate=rate)


METHODS: dict[str, Callable[[float], methods.Method]] = {
    "cross-entropy": lambda rate: methods.Method(
        "cross-entropy", F.cross_entropy, alpha=1.0, learning_rate=rate
    ),
    f"α = {ALPHA}": lambda rate: methods.power_gradient(ALPHA, rate),
    "linear to 1": lambda rate: annealed("linear", 0.0, rate),
    "cosine to 1": lambda rate: annealed("cosine", 0.0, rate),
    "held 60 %, then linear": lambda rate: annealed("linear", 0.6, rate),
}


def test_results(
    make: Callable[[float], methods.Method], rate: float, seeds: Sequence[int]
) -> list[Evaluation]:
    """Return how each seed's network does on its test set in the end."""
    return [train(make(rate), seed, EPOCHS).test[-1] for seed in seeds]


def accuracies(results: Sequence[Evaluation]) -> list[float]:
    """Return the accuracy of each seed, in percent."""
    return [result.accuracy for result in results]


def main() -> None:
    """Tune each method, run it on the reported seeds, print the table."""
    table = report_table(
        "Test accuracy minus cross-entropy's, and test losses",
        ("", "rate", "difference, points", "softmax(z)", "softmax(αz)"),
        f"mean ± standard error over {len(SEEDS)} paired seeds",
    )
    baseline: list[float] = []
    for name, make in METHODS.items():
        tuning = {
            rate: np.mean(accuracies(test_results(make, rate, TUNING_SEEDS))) for rate in RATES
        }
        rate = max(tuning, key=tuning.__getitem__)
        results = test_results(make, rate, SEEDS)
        baseline = baseline or accuracies(results)
        difference = Estimate.over(np.subtract(accuracies(results), baseline).tolist())
        table.add_row(
            name,
            f"{rate:g}",
            format_estimate(difference, 2, "+"),
            format_estimate(Estimate.over([result.nll for result in results]), 3),
            format_estimate(Estimate.over([result.nll_trained for result in results]), 3),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
