"""Does PGT cost anything? Its step against the step that people have now, and alpha against 1.

The loss alone, and whole training steps around it. What is said of a case rests on the 95 %
interval of the median ratio of interleaved rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# As `python bench/overhead.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require()

import numpy as np
import torch.nn.functional as F
from rich.table import Table

import powergrad_ext as pg
from bench import command_line
from bench.cases import CASES, FRESH, Group
from bench.clock import clock_of
from bench.estimates import Estimate, Samples, estimate
from bench.measure import checked_steps, play, warm_up
from bench.peers import COPY, WITHOUT_PGT, heading_of, name_of_ours, ours
from bench.problem import Problem
from bench.recording import recording
from bench.report import as_words, empty_table, median_milliseconds
from bench.result import Record, rounded
from bench.training import WORKLOADS, Workload, training_steps

ALPHAS = (1.0, 0.3, 0.25)
PLAIN, PGT, PGT_QUARTER = map(name_of_ours, ALPHAS)
ORDINARY = next(peer for peer in WITHOUT_PGT if peer.name == "eager")
LOSSES = (COPY.name, ORDINARY.name, PLAIN, PGT, PGT_QUARTER)
COMPARISONS = (
    (PGT, ORDINARY.name),
    (PGT_QUARTER, ORDINARY.name),
    (PGT, PLAIN),
    (PGT_QUARTER, PLAIN),
)
SHOWN = ((PGT, ORDINARY.name), (PGT, PLAIN))
"""What the README shows of them."""
LOSS_CASES = ("cifar100", "imagenet", "imagenet-large", "gpt2", "llama3")
NOTICEABLE = 0.02
"""An interval that reaches further above 1 than this leaves the question open."""


@dataclass(frozen=True)
class Subject:
    """A loss or a training step: seconds of every round by which loss it is done with."""

    name: str
    logits: str
    seconds: dict[str, Samples]

    def ratio(self, over: str, under: str) -> Estimate:
        return estimate(self.seconds[over] / self.seconds[under])

    def as_json(self) -> list[Record]:
        about = {"kind": "step", "name": self.name, "logits": self.logits.replace(" ", "")}
        return [
            {**about, "loss": loss, "seconds": rounded(seconds)}
            for loss, seconds in self.seconds.items()
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each subject, write its samples, print its times and verdicts."""
    options = parse(arguments)
    with recording(options) as record:
        subjects = record.collect(tasks(options))
        record.console.print(times_table(subjects), verdict_table(subjects))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.parser(__doc__)
    command_line.choose(parser, "--case", tuple(CASES), LOSS_CASES, "sizes of the loss alone")
    names = {device: [workload.name for workload in of] for device, of in WORKLOADS.items()}
    parser.add_argument(
        "--training",
        nargs="*",
        metavar="NETWORK",
        help="steps of networks, of: "
        + "; ".join(f"{', '.join(of)} (--device {device})" for device, of in names.items())
        + " (default: all of the device)",
        default=argparse.SUPPRESS,
    )
    command_line.add_measuring_options(parser, budget=60.0, per="training step")
    options = parser.parse_args(arguments)
    here = names[options.device]
    options.training = getattr(options, "training", here)
    for name in options.training:
        if name not in here:
            parser.error(
                f"argument --training: {name!r} does not run with --device {options.device} "
                f"(choose from {', '.join(here)})"
            )
    return options


def tasks(options: argparse.Namespace) -> dict[str, Callable[[], Subject]]:
    """What is to be measured, by name; a loss alone gets an eighth of a training step's time."""
    device, budget = options.device, options.budget
    of_losses = {
        case: partial(measure_loss, Group(CASES[case], "float32", FRESH, device), budget / 8)
        for case in options.case
    }
    of_steps = {
        workload.name: partial(measure_training, workload, device, budget)
        for workload in WORKLOADS[device]
        if workload.name in options.training
    }
    return {**of_losses, **of_steps}


def measure_loss(group: Group, budget: float) -> Subject:
    """The loss alone, and a copy of its logits."""
    steps, _ = checked_steps(Problem(group), (COPY, ORDINARY, *map(ours, ALPHAS)))
    clock = clock_of(group.device, group.logits_bytes)
    seconds = play([warm_up(name, step, clock) for name, step in steps.items()], clock, budget)
    return Subject(f"loss, {group.case.name}", group.size, seconds)


def measure_training(workload: Workload, device: str, budget: float) -> Subject:
    """A training step with each of the losses."""
    of_ours = {name_of_ours(alpha): partial(pg.cross_entropy, alpha=alpha) for alpha in ALPHAS}
    steps = training_steps(workload, device, {ORDINARY.name: F.cross_entropy, **of_ours})
    clock = clock_of(device)
    # All calls count: they are alike but for the loss, and leave the memory alike.
    candidates = [warm_up(name, step, clock, uncounted_calls=0) for name, step in steps.items()]
    seconds = play(candidates, clock, budget)
    return Subject(f"step, {workload.name}", workload.logits, seconds)


def subjects_of(records: Iterable[Record]) -> list[Subject]:
    """The subjects of a file, in its order."""
    subjects: dict[str, Subject] = {}
    for record in records:
        if record["kind"] == "step":
            name = record["name"]
            logits = record["logits"].replace("x", " x ")
            subject = subjects.setdefault(name, Subject(name, logits, {}))
            subject.seconds[record["loss"]] = np.array(record["seconds"])
    return list(subjects.values())


def verdict(ratio: Estimate) -> str:
    """What the interval allows to be said."""
    above = ratio.high - 1.0
    if above < 0.0:
        return f"[green]no overhead[/]: faster by {1.0 - ratio.median:.1%}"
    if ratio.low > 1.0:
        return f"[red]overhead[/]: {ratio.low - 1.0:.1%} to {above:.1%}"
    if above <= NOTICEABLE:
        return f"[green]no overhead[/]: {above:.1%} at most"
    return f"[yellow]open[/]: between {ratio.low - 1.0:+.1%} and {above:+.1%}"


def times_table(subjects: Sequence[Subject]) -> Table:
    """Medians in milliseconds."""
    headings = ["what is timed", "logits", *map(heading_of, LOSSES)]
    table = empty_table("Milliseconds, float32", headings)
    for subject in subjects:
        times = [median_milliseconds(subject.seconds, loss) for loss in LOSSES]
        table.add_row(subject.name, subject.logits, *times)
    return table


def verdict_table(subjects: Sequence[Subject]) -> Table:
    """A line per subject and comparison."""
    headings = ["what is timed", "time of", "by that of", "ratio [95 % interval]", "verdict"]
    table = empty_table("Does it cost anything?", headings)
    as_words(table, 1, 2, 4)
    for subject in subjects:
        for over, under in COMPARISONS:
            ratio = subject.ratio(over, under)
            cells = (heading_of(over), heading_of(under), ratio.with_interval, verdict(ratio))
            table.add_row(subject.name, *cells)
        table.add_section()
    return table


if __name__ == "__main__":
    main()
