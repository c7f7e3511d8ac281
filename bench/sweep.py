"""How the cost of a step's loss grows: with rows, classes, alpha, threads and type.

The sweep over alpha has PGT in plain PyTorch besides the peers that are chosen.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# As `python bench/sweep.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require()

import numpy as np
import torch
from rich.table import Table

from bench import command_line
from bench.cases import DTYPES, FRESH, Case, Group
from bench.estimates import Samples
from bench.measure import measure
from bench.peers import (
    COPY,
    DEFAULT_ALPHA,
    WITHOUT_PGT,
    Peer,
    heading_of,
    is_ours,
    name_of_ours,
    ours,
    with_pgt,
)
from bench.recording import recording
from bench.report import empty_table, median_milliseconds
from bench.result import Record, Result, rounded

PEERS = tuple(peer for peer in WITHOUT_PGT if FRESH in peer.modes)
VOCABULARY = Case("vocabulary", 256, 32000)
OURS = "ours"
"""Our name along a sweep: at the default alpha, or in the sweep over alpha at each."""


@dataclass(frozen=True)
class Point:
    """Seconds of every round by peer, at one place of a sweep."""

    sweep: str
    x: float | str
    seconds: dict[str, Samples]

    def median(self, peer: str) -> float:
        return float(np.median(self.seconds[peer]))

    def as_json(self) -> list[Record]:
        return [
            {
                "kind": "point",
                "sweep": self.sweep,
                "x": self.x,
                "peer": peer,
                "seconds": rounded(seconds),
            }
            for peer, seconds in self.seconds.items()
        ]


@dataclass(frozen=True)
class Sweep:
    """One variable, all else fixed.

    Attributes:
        label: of the variable, with what is fixed.
        measure: what to do at a value: device, peers, budget, value.
        has_slope: the cost is a power of the variable, as far as one can hope.
    """

    name: str
    label: str
    values: Sequence[float | str]
    measure: Callable[..., Result]
    has_slope: bool = True
    ticks: Sequence[float] = ()
    """Where a plot has its marks; powers of ten if nothing is said."""


def at_rows(device: str, peers: Sequence[Peer], budget: float, rows: int) -> Result:
    group = Group(Case("rows", rows, 1000), "float32", FRESH, device)
    return measure(group, (*peers, ours(DEFAULT_ALPHA)), budget)


def at_classes(device: str, peers: Sequence[Peer], budget: float, classes: int) -> Result:
    group = Group(Case("classes", 256, classes), "float32", FRESH, device)
    return measure(group, (*peers, ours(DEFAULT_ALPHA)), budget)


def at_few_classes(device: str, peers: Sequence[Peer], budget: float, classes: int) -> Result:
    """Around the number of classes at which the CPU's kernels no longer transpose rows."""
    group = Group(Case("few-classes", 4096, classes), "float32", FRESH, device)
    return measure(group, (*peers, ours(DEFAULT_ALPHA)), budget)


def at_alpha(device: str, peers: Sequence[Peer], budget: float, alpha: float) -> Result:
    """PGT, ours and as people have it without us; of the others, who know no alpha, the usual one.

    The compilers would be asked for the same code again at every alpha.
    """
    constant = [peer for peer in peers if peer.name in (COPY.name, "eager")]
    following = [peer for peer in with_pgt(alpha) if peer.name != "reference"]
    group = Group(VOCABULARY, "float32", FRESH, device)
    return measure(group, (*constant, *following, ours(alpha)), budget)


def at_threads(device: str, peers: Sequence[Peer], budget: float, threads: int) -> Result:
    """Without JAX, whose pool of threads keeps the size that it was made with."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        following = [peer for peer in peers if peer.name != "jax"]
        group = Group(VOCABULARY, "float32", FRESH, device)
        return measure(group, (*following, ours(DEFAULT_ALPHA)), budget)
    finally:
        torch.set_num_threads(before)


def at_dtype(device: str, peers: Sequence[Peer], budget: float, dtype: str) -> Result:
    group = Group(VOCABULARY, dtype, FRESH, device)
    return measure(group, (*peers, ours(DEFAULT_ALPHA)), budget)


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4 and so on, and the limit itself."""
    return sorted({*(2**k for k in range(limit.bit_length()) if 2**k <= limit), limit})


THREADS = powers_of_two(len(os.sched_getaffinity(0)))
SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep("rows", "rows (1000 classes)", [4**k for k in range(1, 8)], at_rows),
        Sweep("classes", "classes (256 rows)", [10 * 4**k for k in range(8)], at_classes),
        Sweep(
            "few-classes",
            "classes (4096 rows)",
            [2, 3, 5, 10, 20, 50, 80, 100, 120, 150, 180, 200, 220, 256, 300, 400],
            at_few_classes,
        ),
        Sweep(
            "alpha",
            "α (256 x 32000)",
            [0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0],
            at_alpha,
            has_slope=False,
            ticks=(0.1, 0.25, 0.5, 1.0, 2.0),
        ),
        Sweep("threads", "threads (256 x 32000)", THREADS, at_threads, ticks=THREADS),
        Sweep("dtype", "type (256 x 32000)", list(DTYPES), at_dtype, has_slope=False),
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the samples and the plots, print times and slopes."""
    options = parse(arguments)
    with recording(options) as record:
        points = record.collect(tasks(options))
        for sweep in (SWEEPS[name] for name in options.sweep):
            of_sweep = [point for point in points if point.sweep == sweep.name]
            record.console.print(table(sweep, of_sweep))
        if options.plot:
            from bench.plots import draw_sweeps, save

            paths = save(draw_sweeps(points, record.facts), options.plot)
            record.console.print(*paths, sep="\n", soft_wrap=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.parser(__doc__)
    command_line.choose(parser, "--sweep", tuple(SWEEPS), tuple(SWEEPS), "what to vary")
    command_line.choose_peers(parser, PEERS)
    command_line.add_measuring_options(parser, budget=1.0, per="point")
    parser.add_argument("--plot", type=Path, help="draw there, as .png and .svg")
    options = parser.parse_args(arguments)
    if options.plot:
        packages.require("matplotlib")
    return options


def tasks(options: argparse.Namespace) -> dict[str, Callable[[], Point]]:
    """All points of the sweeps that are asked for, by a name for each."""
    peers = (COPY, *(peer for peer in PEERS if peer.name in options.peer))
    measured = (options.device, peers, options.budget)
    return {
        f"{sweep.name} {value}": partial(at, sweep, value, partial(sweep.measure, *measured))
        for sweep in (SWEEPS[name] for name in options.sweep)
        for value in sweep.values
    }


def at(sweep: Sweep, value: float | str, measured: Callable[..., Result]) -> Point:
    """Measure a point; ours get one name, whatever their alpha."""
    seconds = measured(value).seconds
    return Point(
        sweep.name,
        value,
        {OURS if is_ours(peer) else peer: samples for peer, samples in seconds.items()},
    )


def slope(points: Sequence[Point], peer: str) -> float:
    """The exponent of the power law through the points of the larger half.

    The smaller ones show what a call costs whatever its size.
    """
    present = [point for point in points if peer in point.seconds]
    largest = present[len(present) // 2 :] if len(present) > 3 else present
    x = np.log([float(point.x) for point in largest])
    y = np.log([point.median(peer) for point in largest])
    return float(np.polynomial.Polynomial.fit(x, y, 1).convert().coef[1])


def table(sweep: Sweep, points: Sequence[Point]) -> Table:
    """Medians in milliseconds by value, and the slopes below."""
    peers = peers_of(points)
    headings = [heading(sweep, peer) for peer in peers]
    grown = empty_table(f"{sweep.label}: milliseconds", [sweep.name, *headings])
    for point in points:
        times = [median_milliseconds(point.seconds, peer) for peer in peers]
        grown.add_row(f"{point.x:.3g}" if sweep.name == "alpha" else str(point.x), *times)
    if sweep.has_slope and len(points) > 1:
        grown.add_section()
        grown.add_row("slope", *(f"{slope(points, peer):.2f}" for peer in peers))
    return grown


def heading(sweep: Sweep, peer: str) -> str:
    """What readers see of a peer; along the sweep over alpha, ours have none of their own."""
    if peer != OURS:
        return heading_of(peer)
    return "ours" if sweep.name == "alpha" else heading_of(name_of_ours(DEFAULT_ALPHA))


def peers_of(points: Iterable[Point]) -> list[str]:
    """Everyone who was measured at any of these points."""
    return list(dict.fromkeys(peer for point in points for peer in point.seconds))


def points_of(records: Iterable[Record]) -> list[Point]:
    """The points of a file, in its order."""
    points: dict[tuple[str, float | str], Point] = {}
    for record in records:
        if record["kind"] == "point":
            key = (record["sweep"], record["x"])
            point = points.setdefault(key, Point(*key, {}))
            point.seconds[record["peer"]] = np.array(record["seconds"])
    return list(points.values())


if __name__ == "__main__":
    main()
