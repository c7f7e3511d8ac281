"""The figures as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from . import machine
from .cases import FRESH
from .estimates import Estimate
from .overhead import SHOWN, Subject
from .peers import heading_of
from .requirements import DEFAULT
from .result import Record, Result
from .sweep import OURS, SWEEPS, Point, heading, peers_of, slope

STYLE = Path(__file__).with_name("plot.mplstyle")
FINE_PRINT = {"fontsize": 7.5, "color": "#6b7480"}
OUR_COLOUR = "#e0542f"
COLOURS = {
    OURS: OUR_COLOUR,
    "eager": "#51637a",
    "compile": "#3a8fb7",
    "jax": "#8a6fb0",
    "hook": "#5f9e6e",
    "scaled": "#b9935a",
    "copy": "#a8b0ba",
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
    """A panel per sweep, time over the variable, both by their logarithm."""
    names = list(dict.fromkeys(point.sweep for point in points))
    across, down = min(len(names), 3), -(-len(names) // 3)
    figure = Figure(figsize=(3.6 * across, 3.4 * down))
    panels = figure.subplots(down, across, squeeze=False).flat
    lines: dict[str, Line2D] = {}
    for name in names:
        of_sweep = [point for point in points if point.sweep == name]
        for peer, line in draw_sweep(next(panels), of_sweep).items():
            lines.setdefault(peer, line)
    for unused in panels:
        unused.set_axis_off()
    figure.legend(handles=list(lines.values()), loc="outside upper right", ncols=2 * across)
    fine_print(figure, facts)
    return figure


def draw_sweep(axes: Axes, points: Sequence[Point]) -> dict[str, Line2D]:
    """Draw a line per peer, which are returned, and their slopes."""
    sweep = SWEEPS[points[0].sweep]
    numeric = not isinstance(points[0].x, str)
    lines, slopes = {}, []
    for peer in peers_of(points):
        own = [point for point in points if peer in point.seconds]
        times = [point.median(peer) * 1e3 for point in own]
        x = [point.x if numeric else str(point.x) for point in own]
        colour, label = COLOURS.get(peer), heading(sweep, peer)
        (lines[peer],) = axes.plot(
            x, times, "o-", markersize=3.5, linewidth=1.8, color=colour, label=label
        )
        slopes.append(f"{slope(own, peer):.2f}" if sweep.has_slope and len(own) > 1 else "")
    if numeric:
        axes.set_xscale("log")
    if any(slopes):
        axes.legend(list(lines.values()), slopes, title="slope", fontsize=7.5, title_fontsize=7.5)
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    if highest < 10.0 * lowest:  # a small change should look small
        axes.set_ylim(lowest / 3.0, highest * 3.0)
    axes.set_title(sweep.label)
    axes.set_ylabel("milliseconds")
    return lines


def draw_ratios(axes: Axes, ratios: Mapping[str, Estimate], **style: Any) -> None:
    """A row per name: the median, and its interval as a bar."""
    medians = [ratio.median for ratio in ratios.values()]
    below = [ratio.median - ratio.low for ratio in ratios.values()]
    above = [ratio.high - ratio.median for ratio in ratios.values()]
    axes.errorbar(medians, list(ratios), xerr=[below, above], fmt="o", **style)


@styled
def draw_speed(results: Sequence[Result], facts: Record) -> Figure:
    """How many times our time the others take, a row per case; the copy as the floor."""
    shown = [r for r in results if r.group.mode == FRESH and r.group.dtype == "float32"]
    figure = Figure(figsize=(9.0, 0.8 + 0.36 * len(shown)))
    axes = figure.subplots()
    for peer in ("copy", "jax", "compile", "eager"):
        ratios = {
            f"{r.group.case.name}  {r.group.size}": r.ratio(peer, DEFAULT)
            for r in shown
            if peer in r.seconds
        }
        draw_ratios(axes, ratios, color=COLOURS[peer], label=heading_of(peer))
    axes.axvline(1.0, color=OUR_COLOUR, linewidth=2.0, label=heading_of(DEFAULT))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_yaxis()
    axes.set_title(f"Forward + backward, float32: time / {heading_of(DEFAULT)}")
    figure.legend(loc="outside right center")
    fine_print(figure, facts)
    return figure


@styled
def draw_overhead(subjects: Sequence[Subject], facts: Record) -> Figure:
    """Each comparison's ratio with its interval; left of the line, PGT is no slower."""
    figure = Figure(figsize=(9.0, 1.2 + 0.4 * len(subjects)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (over, under) in zip(panels, SHOWN, strict=True):
        ratios = {f"{s.name}  {s.logits}": s.ratio(over, under) for s in subjects}
        draw_ratios(axes, ratios, color=OUR_COLOUR, capsize=3)
        axes.axvline(1.0, color=COLOURS["eager"], linewidth=1.5)
        axes.set_title(f"{heading_of(over)} / {heading_of(under)}")
        axes.set_xlim(0.0, 1.1 * max(1.0, *(ratio.high for ratio in ratios.values())))
    panels[0].invert_yaxis()
    fine_print(figure, facts)
    return figure
