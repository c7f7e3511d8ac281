"""Train with each alpha, with BatchNorm and without, over paired seeds."""

from __future__ import annotations

import argparse
from operator import itemgetter
from pathlib import Path

from examples.evidence.needs import needed_by

with needed_by("examples.characters"):
    from examples.evidence import command
    from examples.evidence.report import Quantity
    from examples.evidence.study import Arm, Metrics, Study

    from .data import JIS_LEVEL_1, load
    from .fonts import SYSTEM
    from .training import NETWORKS, Size, measure

ALPHAS = (0.1, 0.25, 0.5, 1.0)
FULL = Size(characters=len(JIS_LEVEL_1), width=32, batch=256, epochs=6)
QUICK = Size(characters=32, width=8, batch=32, epochs=2)
QUANTITIES = (
    Quantity("accuracy", "accuracy, %", 2, True),
    Quantity("top5", "top-5, %", 2, True),
    Quantity("nll_trained", "NLL, softmax(αz)", 4, False),
    Quantity("nll", "NLL, softmax(z)", 4, False),
    Quantity("calibration_error_trained", "calibration error, softmax(αz), %", 2, False),
)


def plan(options: argparse.Namespace, folder: Path) -> command.Plan:
    """Return 8 seeds of 8 arms, or less of everything."""
    size = QUICK if options.quick else FULL
    parts = load(options.fonts, JIS_LEVEL_1[: size.characters])
    alphas = (0.25, 1.0) if options.quick else ALPHAS
    accuracy = itemgetter("accuracy")
    study = Study.of(NETWORKS, alphas, (0.02, 0.08, 0.32), accuracy, quick=options.quick)

    def run(arm: Arm, rate: float, seed: int, part: str) -> Metrics:
        return measure(parts, size, arm, rate, seed, part)

    images = {part: len(those.pixels) for part, those in parts.items()}
    return command.Plan(study, vars(size) | {"images": images}, run)


def options(parser: argparse.ArgumentParser) -> None:
    """Add where the typefaces are."""
    parser.add_argument("--fonts", type=Path, default=SYSTEM, help="folder with typefaces")


EXPERIMENT = command.Experiment(
    "characters",
    "Which character is it, in a typeface never seen?",
    plan,
    QUANTITIES,
    panels=3,
    options=options,
)


if __name__ == "__main__":
    command.run(EXPERIMENT)
