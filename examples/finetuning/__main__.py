"""Fine-tune with each alpha, over paired seeds, from one base model."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.evidence.needs import needed_by

with needed_by("examples.finetuning"):
    from examples.evidence import command
    from examples.evidence.report import Quantity
    from examples.evidence.study import Arm, Metrics, Study

    from .metrics import ENTROPY
    from .texts import load
    from .training import Size, base_model, measure

ALPHAS = (0.5, 0.7, 1.0, 1.43, 2.0)
FULL = Size(batch=8, pretraining_steps=1200, windows=240, epochs=3, judged=100)
QUICK = Size(batch=8, pretraining_steps=100, windows=64, epochs=1, judged=24)
QUANTITIES = (
    Quantity("new_nll_best", "new text: loss, best temperature", 4, False),
    Quantity("old_nll_best", "old text: loss, best temperature", 4, False),
    Quantity("matched_distinct4", f"distinct 4-grams at {ENTROPY} nats, %", 2, True),
    Quantity("new_nll", "new text: loss at softmax(z)", 4, False),
    Quantity("new_nll_trained", "new text: loss at softmax(αz)", 4, False),
    Quantity("old_nll", "old text: loss at softmax(z)", 4, False),
    Quantity("old_nll_trained", "old text: loss at softmax(αz)", 4, False),
    Quantity("new_entropy", "new text: entropy at softmax(z), nats", 3, True),
    Quantity("new_entropy_trained", "new text: entropy at softmax(αz), nats", 3, True),
    Quantity("matched_nll", f"new text: loss at {ENTROPY} nats", 4, False),
    Quantity("matched_distinct2", f"distinct 2-grams at {ENTROPY} nats, %", 2, True),
)


def loss(metrics: Metrics) -> float:
    """Return what picks a rate: minus the loss of the new text, at what training drives."""
    return -metrics["new_nll_trained"]


def plan(options: argparse.Namespace, folder: Path) -> command.Plan:
    """Return 8 seeds of 5 arms, or less of everything."""
    texts = load()
    size = QUICK if options.quick else FULL
    base = base_model(texts, size, folder / "base.pt")
    alphas = (1.0, 1.43) if options.quick else ALPHAS
    study = Study.of(("transformer",), alphas, (1e-3, 4e-3, 1.6e-2), loss, quick=options.quick)

    def run(arm: Arm, rate: float, seed: int, part: str) -> Metrics:
        return measure(base, texts, size, arm, rate, seed, part)

    tokens = {part: len(text) for part, text in texts.new.items()}
    return command.Plan(study, vars(size) | {"new": tokens}, run)


EXPERIMENT = command.Experiment(
    "finetuning",
    "A small model of the King James Bible learns Python's reference",
    plan,
    QUANTITIES,
    panels=3,
)


if __name__ == "__main__":
    command.run(EXPERIMENT)
