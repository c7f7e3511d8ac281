"""Time the loss, forward and backward, against peers; say which promises about speed are kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

# As `python bench/run.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require()

from rich.console import Console

from bench import cases, command_line, memory, report, requirements, verdicts
from bench.allocator import keeps_memory
from bench.cases import CASES, DTYPES, FRESH, MODES, Group
from bench.explain import command_lines
from bench.measure import measure
from bench.peers import ALPHAS, Peer, others, registry
from bench.profiling import write_profile
from bench.recording import recording
from bench.result import Result

TORCH = ("eager", "eager-log-softmax")
"""Whom `--gpu` compares with everywhere; all others only where they are to be met."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for: measure time or memory, profile, or explain."""
    options = parse(arguments)
    if options.explain:
        console = command_line.console()
        console.print(command_lines(options.case[0], options.device), soft_wrap=True, markup=False)
        return
    with recording(options) as record:
        if options.profile:
            for group in groups(options):
                write_profile(group, peers(options, group), options.profile, record.console)
            return
        results = [] if options.memory else record.collect(time_tasks(options))
        peaks = record.collect(memory_tasks(options)) if options.memory or options.gpu else []
        if results:
            print_times(results, peaks, options, record.console)
        if peaks:
            record.console.print(report.memory_table(peaks, registry(options.alpha)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.parser(__doc__)
    command_line.choose(parser, "--case", tuple(CASES), cases.DEFAULT_CASES, "what to compute")
    command_line.choose(parser, "--dtype", tuple(DTYPES), cases.DEFAULT_DTYPES, "logits' types")
    command_line.choose(parser, "--mode", MODES, cases.DEFAULT_MODES, "which part of a step")
    command_line.choose_peers(parser, others())
    parser.add_argument(
        "--alpha",
        nargs="+",
        type=float,
        default=ALPHAS,
        metavar="ALPHA",
        help="exponents for ours; the first also for the others that know PGT",
    )
    command_line.add_measuring_options(parser, budget=2.0, per="case, type and mode")
    parser.add_argument("--quick", action="store_true", help="a telling subset, in under a minute")
    parser.add_argument("--full", action="store_true", help="all cases of a CPU")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="what a GPU's promises speak of, time and memory, in a few minutes",
    )
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
        options.case = cases.CPU_CASES
    if options.gpu:
        options.device, options.alpha, options.budget = "cuda", ALPHAS[:2], 0.3
        options.peer = (*TORCH, *requirements.ALL_OTHERS)
    if options.quick:
        options.case, options.dtype = cases.QUICK_CASES, ("float32",)
        options.mode, options.budget = (FRESH,), 1.0
    return options


def groups(options: argparse.Namespace) -> list[Group]:
    """What is asked for, mode by mode."""
    of_modes = cases.GPU_CASES if options.gpu else dict.fromkeys(options.mode, options.case)
    return [
        Group(CASES[case], dtype, mode, options.device)
        for mode, names in of_modes.items()
        for dtype, case in product(options.dtype, names)
    ]


def peers(options: argparse.Namespace, group: Group) -> list[Peer]:
    """Who is asked for and has that mode; the floors and ours always."""
    asked = set(options.peer)
    if options.gpu and not (group.mode == FRESH and group.case.name in cases.COMPILED_ON_GPU):
        asked &= {*TORCH}  # the others compile for each shape, longer than a group is measured
    left_out = {peer.name for peer in others()} - asked
    return [
        peer
        for peer in registry(options.alpha)
        if group.mode in peer.modes and peer.name not in left_out
    ]


def time_tasks(options: argparse.Namespace) -> dict[str, Callable[[], Result]]:
    """Groups to be timed, by name."""
    return {
        str(group): partial(measure, group, peers(options, group), options.budget)
        for group in groups(options)
    }


def memory_tasks(options: argparse.Namespace) -> dict[str, Callable[[], memory.Peak]]:
    """Peers whose memory is to be measured, by group and name."""
    asked = groups(options)
    if options.gpu:  # of steps, and of whom the promise speaks
        asked = [group for group in asked if group.mode == FRESH]
    return {
        f"{group} {peer.name}": partial(memory.peak, group, peer, options.alpha, options.threads)
        for group in asked
        for peer in peers(options, group)
        if not options.gpu or peer.name in ("eager", requirements.DEFAULT)
    }


def print_times(
    results: list[Result],
    peaks: list[memory.Peak],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Print tables, verdicts, and who did not take part."""
    console.print(*report.time_tables(results, registry(options.alpha)))
    kept = keeps_memory(options.allocator)
    judged = verdicts.judge(results, options.device, kept, peaks)
    console.print(report.verdict_table(judged))
    console.print(*report.skipped_lines(results), sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
