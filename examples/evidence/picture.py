"""One picture for an experiment: how each alpha differs from alpha = 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .comparison import Estimate
from .report import BASELINE, Quantity
from .study import Arm, Outcomes
from .style import BASELINE_COLOUR, FINE_PRINT, OUR_COLOUR, house_style

LOOKS = ((OUR_COLOUR, "o", 0.96), (BASELINE_COLOUR, "s", 1.04))
"""Colour and marker of each network, and how far aside it is drawn."""


def draw(outcomes: Outcomes, quantities: Sequence[Quantity], title: str, path: Path) -> Path:
    """Draw a panel for each quantity, write it as a PNG; return where."""
    networks = list(dict.fromkeys(arm.network for arm in outcomes))
    with house_style():
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(quantities)))
        for axes, quantity in zip(panels, quantities, strict=True):
            for network, look in zip(networks, LOOKS, strict=False):
                differences(axes, outcomes, network, quantity, look)
            axes.axhline(0, color=FINE_PRINT, linewidth=1)
            better = "higher" if quantity.higher_is_better else "lower"
            axes.set_title(f"{quantity.title}\n{better} is better", fontsize=11)
            alphas = sorted({arm.alpha for arm in outcomes})
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(alphas))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FixedFormatter([f"{alpha:g}" for alpha in alphas]))
            axes.set_xlabel("α")
        panels[0].set_ylabel("difference to α = 1")
        if len(networks) > 1:
            panels[0].legend(frameon=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
        figure.savefig(path, dpi=160)
    return path


def differences(
    axes: Axes,
    outcomes: Outcomes,
    network: str,
    quantity: Quantity,
    look: tuple[str, str, float],
) -> None:
    """Draw one network's differences: every seed as a dot, the mean and its 95 % interval."""
    colour, marker, aside = look
    baseline = outcomes[Arm(network, BASELINE)].values(quantity.metric)
    places, estimates = [], []
    for arm, outcome in outcomes.items():
        if arm.network == network and arm.alpha != BASELINE:
            each = np.subtract(outcome.values(quantity.metric), baseline)
            places.append(arm.alpha * aside)
            estimates.append(Estimate.over(each.tolist()))
            axes.scatter([places[-1]] * len(each), each, color=colour, s=9, alpha=0.35, linewidth=0)
    means = np.array([estimate.mean for estimate in estimates])
    ends = np.array([estimate.interval for estimate in estimates]).T
    reach = np.abs(ends - means)
    axes.errorbar(
        places, means, reach, fmt=marker, color=colour, markersize=7, capsize=4, label=network
    )
