"""Time the loss, forward and backward, against peers; say which promises about speed are kept."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

# As `python bench/run.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import cases, command_line, machine, memory, report, requirements
from bench.cases import CASES, DTYPES, MODES, Group
from bench.explain import command_lines
from bench.measure import measure
from bench.peers import ALPHAS, Peer, others, registry
from bench.profiling import write_profile
from bench.result import Result, write

Found = TypeVar("Found")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for: measure time or memory, profile, or explain."""
    options = parse(arguments)
    command_line.use_threads(options.threads)
    console = command_line.console()
    if options.explain:
        console.print(command_lines(options.case[0], options.device), soft_wrap=True, markup=False)
        return
    facts = machine.describe(options.device)
    console.print(*machine.lines(facts), sep="\n", soft_wrap=True)
    with open(options.output or os.devnull, "w") as lines:
        write(lines, [facts])
        if options.profile:
            for group in groups(options):
                write_profile(group, peers(options, group.mode), options.profile, console)
        elif options.memory:
            peaks = measure_memory(options, lines, console)
            console.print(report.memory_table(peaks, registry(options.alpha)))
        else:
            print_times(measure_times(options, lines, console), options, console)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = [peer.name for peer in others()]
    command_line.choose(parser, "--case", tuple(CASES), cases.DEFAULT_CASES, "what to compute")
    command_line.choose(parser, "--dtype", tuple(DTYPES), cases.DEFAULT_DTYPES, "logits' types")
    command_line.choose(parser, "--mode", MODES, cases.DEFAULT_MODES, "which part of a step")
    command_line.choose(parser, "--peer", names, names, "whom to compare with, besides a copy")
    parser.add_argument(
        "--alpha",
        nargs="*",
        type=float,
        default=ALPHAS,
        metavar="ALPHA",
        help="exponents for ours; the first also for the others that know PGT",
    )
    command_line.add_machine_options(parser)
    parser.add_argument(
        "--budget", type=float, default=2.0, help="seconds per case, type and mode, more or less"
    )
    parser.add_argument("--output", type=Path, help="write all samples there, as lines of JSON")
    parser.add_argument("--quick", action="store_true", help="a telling subset, in under a minute")
    parser.add_argument("--full", action="store_true", help="all cases")
    parser.add_argument(
        "--memory", action="store_true", help="measure the peak of memory instead of time"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="write torch.profiler traces there instead"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print the perf or ncu commands for our kernels at the first case instead",
    )
    options = parser.parse_args(arguments)
    if options.full:
        options.case = tuple(CASES)
    if options.quick:
        options.case, options.dtype = cases.QUICK_CASES, ("float32",)
        options.mode, options.budget = (cases.FRESH,), 1.0
    return options


def groups(options: argparse.Namespace) -> list[Group]:
    """What is asked for, mode by mode."""
    return [
        Group(CASES[case], dtype, mode, options.device)
        for mode, dtype, case in product(options.mode, options.dtype, options.case)
    ]


def peers(options: argparse.Namespace, mode: str) -> list[Peer]:
    """Who is asked for and has that mode; the copy and ours always."""
    left_out = {peer.name for peer in others()} - set(options.peer)
    return [
        peer for peer in registry(options.alpha) if mode in peer.modes and peer.name not in left_out
    ]


def with_progress(
    tasks: Sequence[tuple[str, Callable[[], Found]]], console: Console
) -> Iterator[Found]:
    """What the tasks return, with a bar that names the one at work."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(SpinnerColumn(), *columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(tasks))
        for name, task in tasks:
            progress.update(bar, description=name)
            yield task()
            progress.advance(bar)


def measure_times(options: argparse.Namespace, lines: TextIO, console: Console) -> list[Result]:
    """Measure group by group, writing each as it comes."""

    def timed(group: Group) -> Result:
        result = measure(group, peers(options, group.mode), options.budget)
        write(lines, result.as_json())
        return result

    tasks = [(str(group), lambda group=group: timed(group)) for group in groups(options)]
    return list(with_progress(tasks, console))


def measure_memory(
    options: argparse.Namespace, lines: TextIO, console: Console
) -> list[memory.Peak]:
    """Measure peer by peer, writing each as it comes."""

    def measured(group: Group, peer: Peer) -> memory.Peak:
        found = memory.peak(group, peer, options.alpha, options.threads)
        write(lines, [found.as_json()])
        return found

    tasks = [
        (f"{group} {peer.name}", lambda group=group, peer=peer: measured(group, peer))
        for group in groups(options)
        for peer in peers(options, group.mode)
    ]
    return list(with_progress(tasks, console))


def print_times(results: list[Result], options: argparse.Namespace, console: Console) -> None:
    """Print tables, verdicts, and who did not take part."""
    console.print(*report.time_tables(results, registry(options.alpha)))
    console.print(report.verdict_table(requirements.judge(results, options.device)))
    console.print(*report.skipped_lines(results), sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
