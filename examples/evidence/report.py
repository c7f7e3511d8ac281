"""What came out, as Markdown: a table for each network, which a page of results can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .comparison import Estimate, compare, format_estimate, format_interval
from .journal import Journal
from .study import Arm, Outcomes

BASELINE = 1.0
"""Ordinary cross-entropy."""
BEGIN, END = "<!-- results -->", "<!-- /results -->"


@dataclass(frozen=True)
class Quantity:
    """A metric, as a page shows it."""

    metric: str
    title: str
    digits: int
    higher_is_better: bool


def tables(outcomes: Outcomes, quantities: Sequence[Quantity], journal: Journal) -> str:
    """Return two tables for each network, and what they rest on."""
    networks = list(dict.fromkeys(arm.network for arm in outcomes))
    parts = []
    for network in networks:
        alphas = {arm.alpha: outcome for arm, outcome in outcomes.items() if arm.network == network}
        seeds = len(next(iter(alphas.values())).metrics)
        title = f"**{network}**, {seeds} seeds: " if len(networks) > 1 else f"{seeds} seeds: "
        parts += [title + "mean ± standard error", values(outcomes, network, quantities)]
        parts += [
            title + "difference to α = 1, seed by seed, with its 95 % interval, and how many "
            "seeds were better",
            differences(outcomes, network, quantities),
        ]
    parts.append(
        f"{journal.seconds / 60:.0f} minutes for {len(journal.results)} runs, searches included. "
        f"{journal.machine}."
    )
    return "\n\n".join(parts)


def values(outcomes: Outcomes, network: str, quantities: Sequence[Quantity]) -> str:
    """Return each metric at each alpha."""
    rows = [["α", "rate", *(quantity.title for quantity in quantities)]]
    for arm, outcome in outcomes.items():
        if arm.network == network:
            estimates = [
                format_estimate(Estimate.over(outcome.values(quantity.metric)), quantity.digits)
                for quantity in quantities
            ]
            rows.append([f"{arm.alpha:g}", f"{outcome.rate:g}", *estimates])
    return markdown(rows)


def differences(outcomes: Outcomes, network: str, quantities: Sequence[Quantity]) -> str:
    """Return each metric less that of alpha = 1, with intervals."""
    rows = [["α", *(quantity.title for quantity in quantities)]]
    baseline = outcomes[Arm(network, BASELINE)]
    for arm, outcome in outcomes.items():
        if arm.network == network and arm.alpha != BASELINE:
            cells = []
            for quantity in quantities:
                comparison = compare(
                    baseline.values(quantity.metric),
                    outcome.values(quantity.metric),
                    higher_is_better=quantity.higher_is_better,
                )
                interval = format_interval(comparison.difference, quantity.digits)
                cells.append(f"{interval}, {comparison.better} of {comparison.seeds}")
            rows.append([f"{arm.alpha:g}", *cells])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of them headings, as a table of Markdown."""
    heading, *body = rows
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_into_page(page: Path, text: str) -> None:
    """Put the text between the marks of a page, if the folder has a page."""
    if page.exists():
        before, _, rest = page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
