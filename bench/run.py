"""Time the loss, forward and backward, against peers; say which promises about speed are kept."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import Progress

# As `python bench/run.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import machine, measure, report, requirements
from bench.cases import CASES, DEFAULT_CASES, DEFAULT_DTYPES, DTYPES, MODES, Group
from bench.peers import COPY, OTHERS, OURS

REDIRECTED_WIDTH = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the lines as they come, print the tables."""
    options = parse(arguments)
    use_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else REDIRECTED_WIDTH)
    facts = machine.describe()
    console.print(*report.machine_lines(facts), sep="\n", soft_wrap=True)
    with open(options.json or os.devnull, "w") as lines:
        write(lines, [{"kind": "machine", **facts}])
        results = list(measure_all(options, lines, console))
        verdicts = requirements.judge(results)
        write(lines, map(requirements.as_json, verdicts))
    console.print(*report.tables(results), report.verdict_table(verdicts))
    console.print(*report.skipped_lines(results), sep="\n", soft_wrap=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    others = [peer.name for peer in OTHERS]
    choose(parser, "--case", tuple(CASES), DEFAULT_CASES, "what to compute")
    choose(parser, "--dtype", tuple(DTYPES), DEFAULT_DTYPES, "types of the logits")
    choose(parser, "--mode", MODES, MODES, "where the gradient goes")
    choose(parser, "--peer", others, others, "whom to compare with, besides a copy")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads that all may use"
    )
    parser.add_argument(
        "--budget", type=float, default=2.0, help="seconds per case, type and mode, more or less"
    )
    parser.add_argument("--json", type=Path, help="write all samples there, as JSON lines")
    return parser.parse_args(arguments)


def choose(
    parser: argparse.ArgumentParser,
    name: str,
    choices: Sequence[str],
    default: Sequence[str],
    what: str,
) -> None:
    """Add an option that takes some of the choices."""
    parser.add_argument(
        name,
        nargs="*",
        choices=choices,
        default=default,
        metavar=name.strip("-").upper(),
        help=f"{what}, of: {', '.join(choices)}",
    )


def use_threads(count: int) -> None:
    """Give everyone as many threads; JAX makes its pool, of this size, when it is imported."""
    torch.set_num_threads(count)
    os.environ["NPROC"] = str(count)


def measure_all(
    options: argparse.Namespace, lines: TextIO, console: Console
) -> Iterator[measure.Result]:
    """Measure group by group, showing progress."""
    groups = [
        Group(CASES[case], dtype, mode)
        for mode, dtype, case in product(options.mode, options.dtype, options.case)
    ]
    others = [peer for peer in OTHERS if peer.name in options.peer]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(groups))
        for group in groups:
            progress.update(task, description=str(group))
            peers = [peer for peer in (COPY, *others, *OURS) if group.mode in peer.modes]
            result = measure.measure(group, peers, options.budget)
            write(lines, measure.as_json(result))
            progress.advance(task)
            yield result


def write(lines: TextIO, records: Iterable[dict[str, Any]]) -> None:
    """Append records, each on a line of its own."""
    lines.writelines(json.dumps(record) + "\n" for record in records)
    lines.flush()


if __name__ == "__main__":
    main()
