"""The command of every experiment: run what is missing, print the table, draw the picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .journal import Journal, Record
from .machine import machine
from .picture import draw
from .report import Quantity, tables, write_into_page
from .study import Measure, Outcomes, Study, carry_out
from .threads import thread_count

THREADS = 1
"""Sharing tensors this small gains little, and costs a lot where something else is running too."""


@dataclass(frozen=True)
class Plan:
    """A study with its settings, which a journal must agree with, and how to run an arm."""

    study: Study
    settings: Record
    measure: Measure


@dataclass(frozen=True)
class Experiment:
    """What an example says to the shared command."""

    name: str
    """Of the folder in examples/."""
    title: str
    plan: Callable[[argparse.Namespace, Path], Plan]
    """From the command line and the folder for what comes out."""
    quantities: Sequence[Quantity]
    """The rows of the table; the first are the panels of the picture."""
    panels: int
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None


@thread_count(THREADS)
def run(experiment: Experiment, arguments: Sequence[str] | None = None) -> Outcomes:
    """Carry out an experiment; a second call goes on where the first was stopped."""
    options = parse(experiment, arguments)
    folder: Path = options.output or Path("demo", experiment.name + "-quick" * options.quick)
    console = Console()
    plan = experiment.plan(options, folder)
    study = plan.study
    if options.seeds is not None:
        study = replace(study, seeds=range(options.seeds))
    columns = (
        TextColumn(experiment.name),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=study.runs)
        journal = Journal(
            folder / "runs.jsonl",
            plan.settings | {"quick": options.quick},
            machine(THREADS),
            after_run=lambda: progress.advance(task),
        )
        outcomes = carry_out(study, plan.measure, journal)
    text = tables(outcomes, experiment.quantities, journal)
    console.print(text, markup=False, soft_wrap=True)
    write_into_page(folder / "README.md", text)
    picture = draw(
        outcomes,
        experiment.quantities[: experiment.panels],
        experiment.title,
        folder / "results.png",
    )
    console.print(f"Picture: {picture}", soft_wrap=True)
    return outcomes


def parse(experiment: Experiment, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; two seeds are the least that have an interval."""
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{experiment.name}", description=experiment.title
    )
    parser.add_argument("--quick", action="store_true", help="a minute, which shows no effect yet")
    parser.add_argument("--seeds", type=int, help="paired seeds, at least 2")
    parser.add_argument("--output", type=Path, help="folder for runs, table and picture")
    experiment.options(parser)
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {options.seeds}")
    return options
