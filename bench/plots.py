"""The figures as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from . import machine
from .cases import FRESH
from .estimates import Estimate
from .overhead import SHOWN, Subject
from .peers import heading_of
from .requirements import DEFAULT
from .result import Record, Result
from .sweep import OURS, PEERS, SWEEPS, Point, heading, peers_of, slope

STYLE = Path(__file__).with_name("plot.mplstyle")
FINE_PRINT = {"fontsize": 7.5, "color": "#747c86"}
OUR_COLOUR = "#e0542f"
COLOURS = {
    OURS: OUR_COLOUR,
    "eager": "#64789a",
    "compile": "#3a8fb7",
    "jax": "#8a6fb0",
    "hook": "#5f9e6e",
    "scaled": "#b9935a",
    "copy": "#949ca7",
}


def save(figure: Figure, path: Path, description: str = "") -> list[Path]:
    """Write a PNG and an SVG, the same bytes for the same figures; return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with matplotlib.style.context(STYLE):
        figure.savefig(paths[0], dpi=150, metadata={"Description": description})
        figure.savefig(paths[1], metadata={"Description": description, "Date": None})
    return paths


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in this folder's style."""

    def drawn(*arguments: object) -> Figure:
        with matplotlib.style.context(STYLE):
            return draw(*arguments)

    return drawn


def fine_print(figure: Figure, facts: Record) -> None:
    """Where it was measured, below."""
    figure.supxlabel("\n".join(machine.lines(facts)), x=0.01, ha="left", **FINE_PRINT)


@styled
def draw_sweeps(points: Sequence[Point], facts: Record) -> Figure:
    """A panel per sweep, time over the variable, both by their logarithm; names in the last one."""
    names = list(dict.fromkeys(point.sweep for point in points))
    across = min(len(names) + 1, 3)
    down = -(-(len(names) + 1) // across)
    figure = Figure(figsize=(3.8 * across, 3.4 * down))
    figure.suptitle("A step of the loss: milliseconds", x=0.01, ha="left", fontweight="bold")
    panels = figure.subplots(down, across, squeeze=False).flat
    expected = [peer.name for peer in PEERS if peer.name in peers_of(points)]
    lines: dict[str, Line2D] = {}
    for name in names:
        of_sweep = [point for point in points if point.sweep == name]
        axes = next(panels)
        for peer, line in draw_sweep(axes, of_sweep).items():
            lines.setdefault(peer, line)
        if absent := [peer for peer in expected if peer not in peers_of(of_sweep)]:
            axes.set_xlabel(f"without {', '.join(map(heading_of, absent))}", **FINE_PRINT)
    for unused in panels:
        unused.set_axis_off()
        unused.legend(handles=list(lines.values()), loc="center left")
        lines.clear()
    fine_print(figure, facts)
    return figure


def draw_sweep(axes: Axes, points: Sequence[Point]) -> dict[str, Line2D]:
    """Draw and return a line per peer (dots, where the variable has no order), and their slopes."""
    sweep = SWEEPS[points[0].sweep]
    numeric = not isinstance(points[0].x, str)
    lines, slopes = {}, []
    for peer in peers_of(points):
        own = [point for point in points if peer in point.seconds]
        times = [point.median(peer) * 1e3 for point in own]
        x = [point.x if numeric else str(point.x) for point in own]
        colour, label = COLOURS.get(peer), heading(sweep, peer)
        (lines[peer],) = axes.plot(
            x, times, "o-" if numeric else "o", markersize=4, color=colour, label=label
        )
        slopes.append(f"{slope(own, peer):.2f}" if sweep.has_slope and len(own) > 1 else "")
    if numeric:
        axes.set_xscale("log")
    if sweep.ticks:
        axes.set_xticks(sweep.ticks, [f"{tick:g}" for tick in sweep.ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if any(slopes):
        axes.legend(list(lines.values()), slopes, title="slope", fontsize=7.5, title_fontsize=7.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    lowest, highest = axes.get_ylim()
    if highest < 100.0 * lowest:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if highest < 10.0 * lowest:  # a small change should look small
        axes.set_ylim(lowest / 3.0, highest * 3.0)
    axes.set_title(sweep.label)
    return lines


def plain(value: float, _: object) -> str:
    """A number as it is said, not as a power of ten."""
    return f"{value:g}"


def draw_ratios(
    axes: Axes, ratios: Sequence[Estimate | None], place: float = 0.0, **style: Any
) -> None:
    """A row each: the median, and its interval as a bar; `place` moves them within their rows."""
    known = [(row + place, ratio) for row, ratio in enumerate(ratios) if ratio is not None]
    below = [ratio.median - ratio.low for _, ratio in known]
    above = [ratio.high - ratio.median for _, ratio in known]
    rows, medians = [row for row, _ in known], [ratio.median for _, ratio in known]
    axes.errorbar(medians, rows, xerr=[below, above], fmt="o", **style)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names beside the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


@styled
def draw_speed(results: Sequence[Result], facts: Record) -> Figure:
    """How many times our time the others take, a row per case; the copy as the floor."""
    shown = [r for r in results if r.group.mode == FRESH and r.group.dtype == "float32"]
    figure = Figure(figsize=(9.0, 1.2 + 0.5 * len(shown)))
    axes = figure.subplots()
    peers = ("eager", "compile", "jax", "copy")
    for index, peer in enumerate(peers):
        # Each on a line of its own within the row: no dot hides another.
        place = 0.6 * (index / (len(peers) - 1) - 0.5)
        ratios = [r.ratio(peer, DEFAULT) if peer in r.seconds else None for r in shown]
        style = {"color": COLOURS[peer], "label": heading_of(peer), "markersize": 4.5}
        draw_ratios(axes, ratios, place, **style)
    axes.axvline(1.0, color=OUR_COLOUR, linewidth=2.0, label=heading_of(DEFAULT))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    name_rows(axes, [f"{r.group.case.name}  {r.group.size}" for r in shown])
    axes.set_title("A step of the loss, float32: how many times our time the others take")
    axes.set_xlabel(
        f"time of the other / time of {heading_of(DEFAULT)}; right of 1, ours is faster"
    )
    figure.legend(loc="outside right center")
    fine_print(figure, facts)
    return figure


@styled
def draw_overhead(subjects: Sequence[Subject], facts: Record) -> Figure:
    """Each comparison's ratio with its interval; left of the line, PGT is no slower."""
    figure = Figure(figsize=(9.0, 1.6 + 0.4 * len(subjects)))
    figure.suptitle("Does PGT cost anything? Below 1, it is the faster one", x=0.01, ha="left")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (over, under) in zip(panels, SHOWN, strict=True):
        ratios = [subject.ratio(over, under) for subject in subjects]
        draw_ratios(axes, ratios, color=OUR_COLOUR, capsize=3)
        axes.axvline(1.0, color=COLOURS["eager"], linewidth=1.5)
        axes.set_title(f"time of {heading_of(over)} / {heading_of(under)}")
        axes.set_xlim(0.0, 1.1 * max(1.0, *(ratio.high for ratio in ratios)))
    name_rows(panels[0], [f"{s.name}  {s.logits}" for s in subjects])
    fine_print(figure, facts)
    return figure
