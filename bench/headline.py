"""The README's picture: milliseconds of a step, for a light and for a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import matplotlib.style
from matplotlib.figure import Figure

from .cases import FRESH
from .peers import COPY, heading_of
from .plots import COLOURS, OUR_COLOUR, STYLE, fine_print, name_rows
from .requirements import DEFAULT
from .result import Record, Result

CASES = ("imagenet-large", "llama2", "llama3")
DTYPE = "float32"
PEERS = ("eager", "compile", "jax", DEFAULT)
INK = {"light": "#1f2630", "dark": "#e6e9ee"}
THEMES = tuple(INK)


def draw_headline(results: Sequence[Result], facts: Record, theme: str) -> Figure:
    """Draw a panel for each case, a bar for each peer, and the time of a copy as the floor.

    The background is transparent and every mark readable in its theme. Colours differ in lightness
    too, and each bar carries its name and its time.
    """
    ink = INK[theme]
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    with matplotlib.style.context([STYLE, dict.fromkeys(inked, ink)]):
        figure = Figure(figsize=(9.0, 2.9))
        title = f"A training step of the loss, {DTYPE}, in ms (dashed: a memcpy of the logits)"
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        shown = [r for r in results if (r.group.mode, r.group.dtype) == (FRESH, DTYPE)]
        by_name = {r.group.case.name: r for r in shown}
        panels = figure.subplots(1, len(CASES), sharey=True)
        for axes, name in zip(panels, CASES, strict=True):
            result = by_name[name]
            times = [_milliseconds(result, peer) for peer in PEERS]
            colours = [OUR_COLOUR if peer == DEFAULT else COLOURS[peer] for peer in PEERS]
            bars = axes.barh(range(len(PEERS)), times, color=colours)
            axes.bar_label(bars, [f"{time:.3g}" for time in times], padding=3, color=ink)
            floor = _milliseconds(result, COPY.name)
            axes.axvline(floor, color=ink, linestyle="--", linewidth=1.2)
            axes.set_xlim(0.0, 1.18 * max(times))
            axes.set_title(f"{result.group.size.replace(' x ', ' × ')}", fontsize=10)
            axes.grid(visible=False)
            axes.spines["bottom"].set_visible(False)
            axes.set_xticks([])
        name_rows(panels[0], [heading_of(peer) for peer in PEERS])
        for axes in panels:
            axes.tick_params(left=False)
            axes.spines["left"].set_color(ink)
        fine_print(figure, facts)
        figure.patch.set_alpha(0.0)
        for axes in panels:
            axes.patch.set_alpha(0.0)
        return figure


def _milliseconds(result: Result, peer: str) -> float:
    return 1e3 * median(result.seconds[peer])
