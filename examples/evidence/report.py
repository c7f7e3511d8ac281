"""What came out, as Markdown: a table for each network, which a page of results can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .comparison import Estimate, compare, format_estimate, format_interval
from .journal import Journal
from .study import Outcome, Outcomes

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
    parts = []
    for network in dict.fromkeys(arm.network for arm in outcomes):
        alphas = {arm.alpha: outcome for arm, outcome in outcomes.items() if arm.network == network}
        title = f"**{network}**, {len(alphas[BASELINE].metrics)} seeds: "
        parts += [
            title + "mean ± standard error",
            values(alphas, quantities),
            title + "difference to α = 1, seed by seed, its 95 % interval, and how many seeds were "
            "better",
            differences(alphas, quantities),
        ]
    parts.append(
        f"{journal.seconds / 60:.1f} minutes of one processor for {len(journal.results)} runs, "
        f"searches included. {journal.machine}."
    )
    return "\n\n".join(parts)


def values(alphas: Mapping[float, Outcome], quantities: Sequence[Quantity]) -> str:
    """Return each metric at each alpha."""
    rows = [
        ["", *(f"α = {alpha:g}" for alpha in alphas)],
        ["rate", *(f"{outcome.rate:g}" for outcome in alphas.values())],
    ]
    for quantity in quantities:
        estimates = [Estimate.over(outcome.values(quantity.metric)) for outcome in alphas.values()]
        cells = [format_estimate(estimate, quantity.digits) for estimate in estimates]
        rows.append([quantity.title, *cells])
    return markdown(rows)


def differences(alphas: Mapping[float, Outcome], quantities: Sequence[Quantity]) -> str:
    """Return each metric less that of alpha = 1, with intervals."""
    others = {alpha: outcome for alpha, outcome in alphas.items() if alpha != BASELINE}
    rows = [["", *(f"α = {alpha:g}" for alpha in others)]]
    for quantity in quantities:
        cells = []
        for outcome in others.values():
            comparison = compare(
                alphas[BASELINE].values(quantity.metric),
                outcome.values(quantity.metric),
                higher_is_better=quantity.higher_is_better,
            )
            interval = format_interval(comparison.difference, quantity.digits)
            cells.append(f"{interval}, {comparison.better} of {comparison.seeds}")
        rows.append([quantity.title, *cells])
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
