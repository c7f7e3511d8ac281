"""Train with each alpha, with BatchNorm and without, over paired seeds."""

from __future__ import annotations

import argparse
from operator import itemgetter
from pathlib import Path

from examples.evidence.needs import needed_by

with needed_by("examples.places"):
    from examples.evidence import command
    from examples.evidence.report import Quantity
    from examples.evidence.study import Arm, Metrics, Study

    from . import data
    from .network import NETWORKS
    from .training import Size, measure

ALPHAS = (0.1, 0.25, 0.5, 1.0, 1.43, 2.0)
FULL = Size(places=60_000, batch=128, epochs=1)
QUICK = Size(places=6_000, batch=128, epochs=1)
QUANTITIES = (
    Quantity("accuracy", "accuracy, %", 2, True),
    Quantity("rare_top5", "top-5, rare countries, %", 2, True),
    Quantity("nll_trained", "NLL, softmax(αz)", 4, False),
    Quantity("top5", "top-5, %", 2, True),
    Quantity("nll", "NLL, softmax(z)", 4, False),
    Quantity("calibration_error_trained", "calibration error, softmax(αz), %", 2, False),
    Quantity("rare_accuracy", "accuracy, rare countries, %", 2, True),
    Quantity("frequent_accuracy", "accuracy, frequent countries, %", 2, True),
    Quantity("rare_nll_trained", "NLL, rare countries, softmax(αz)", 4, False),
)


def plan(options: argparse.Namespace, folder: Path) -> command.Plan:
    """Return 8 seeds of 12 arms, or less of everything."""
    gazetteer = data.load()
    size = QUICK if options.quick else FULL
    alphas = (0.25, 1.0) if options.quick else ALPHAS
    accuracy = itemgetter("accuracy")
    study = Study.of(NETWORKS, alphas, (0.04, 0.16, 0.64), accuracy, quick=options.quick)

    def run(arm: Arm, rate: float, seed: int, part: str) -> Metrics:
        return measure(gazetteer, size, arm, rate, seed, part)

    return command.Plan(study, vars(size), run)


EXPERIMENT = command.Experiment(
    "places",
    "Which country is a place in? Names of GeoNames, test data",
    plan,
    QUANTITIES,
    panels=3,
)


if __name__ == "__main__":
    command.run(EXPERIMENT)
