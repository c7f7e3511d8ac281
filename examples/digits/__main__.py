"""Train on digits with cross-entropy and with PGT, over paired seeds, and report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from examples.evidence.needs import needed_by

INSTALL = "make demo  or  pip install --no-build-isolation --editable '.[demo]'"
with needed_by("examples.digits", INSTALL):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    from . import plot, report
    from .methods import TUNED_RATE, Method, cross_entropy, power_gradient
    from .results import Results
    from .timing import SIZES, time_loss
    from .training import Run, train


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the demo: train, time, print the tables and the sentences, write the plot."""
    options = parse(arguments)
    console = Console()
    baseline = cross_entropy()
    ours = power_gradient(options.alpha, options.learning_rate)
    console.print(
        "Training a ResNet-8 on scikit-learn's 8x8 digits with cross-entropy at learning rate "
        f"{baseline.learning_rate:g} and with the PowerGrad Transform ({ours.name}) at "
        f"{ours.learning_rate:g}: {options.seeds} seeds of {options.epochs} epochs each."
    )
    results = measure(baseline, ours, options.seeds, options.epochs, console)
    console.print(report.training_table(results), report.timing_table(results))
    console.print(report.conclusions(results))
    picture = plot.save(results, options.output / "digits.png")
    console.print(f"Training curves: [bold]{picture}[/bold]", soft_wrap=True)
    return results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; two seeds are the least that have a standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=16, help="paired seeds, at least 2")
    parser.add_argument("--epochs", type=int, default=5, help="epochs per seed")
    parser.add_argument("--alpha", type=float, default=0.25, help="PGT's exponent")
    parser.add_argument(
        "--learning-rate", type=float, default=TUNED_RATE, help="PGT's rate; tune it with alpha"
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the plot")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {options.seeds}")
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    return options


def measure(baseline: Method, ours: Method, seeds: int, epochs: int, console: Console) -> Results:
    """Train both methods on every seed in turn, then time their losses, showing progress."""
    with Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[news]}"),
        console=console,
    ) as progress:
        training = [
            (method, progress.add_task(method.name, total=seeds * epochs, news=""), list[Run]())
            for method in (baseline, ours)
        ]
        timing = progress.add_task("loss timing", total=len(SIZES), news="")
        for seed in range(seeds):
            for method, task, runs in training:
                advance = partial(show_epoch, progress, task, seed)
                runs.append(train(method, seed, epochs, advance))
        loss_times = [
            time_loss(ours.criterion, size) for size in progress.track(SIZES, task_id=timing)
        ]
    (_, _, baseline_runs), (_, _, our_runs) = training
    return Results(baseline, ours, baseline_runs, our_runs, loss_times)


def show_epoch(progress: Progress, task: TaskID, seed: int, run: Run) -> None:
    """Advance a method's bar by one epoch and show what it came to."""
    news = f"seed {seed}: {run.test[-1].accuracy:.1f} % of the test set right"
    progress.update(task, advance=1, news=news)


if __name__ == "__main__":
    main()
