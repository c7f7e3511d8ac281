"""The figures as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from .cases import FRESH, Group
from .measure import Estimate, Result
from .peers import COPY, OTHERS, OURS, PEERS, ours
from .requirements import DEFAULT, Verdict

COLOURS = {"aim met": "green", "must met": "green", "missed": "red", "not measured": "dim"}


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """Where this was measured, in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['isa']} (torch: {machine['torch_isa']}), huge pages: {machine['huge_pages']}, "
        f"load {machine['load']:.1f}",
        f"{versions}, commit {machine['commit']}",
    ]


def tables(results: Sequence[Result]) -> list[Table]:
    """Times, then ratios, of each type and mode."""
    kinds = dict.fromkeys((result.group.mode, result.group.dtype) for result in results)
    found = []
    for mode, dtype in kinds:
        same = [r for r in results if (r.group.mode, r.group.dtype) == (mode, dtype)]
        gradient = "fresh gradient" if mode == FRESH else "in place"
        title = f"Forward + backward, {dtype}, {gradient}"
        found += [time_table(f"{title}: milliseconds", same), ratio_table(f"{title}: ratios", same)]
    return found


def time_table(title: str, results: Sequence[Result]) -> Table:
    """Medians in milliseconds, a case per row and a peer per column."""
    peers = [peer for peer in PEERS if any(peer.name in r.seconds for r in results)]
    table = empty_table(title, ["", "", *(peer.heading for peer in peers)])
    for result in results:
        times = [milliseconds(result, peer.name) for peer in peers]
        table.add_row(result.group.case.name, result.group.case.shape, *times)
    return table


def ratio_table(title: str, results: Sequence[Result]) -> Table:
    """How many times our time the others take, what alpha costs, how far above a copy we are."""
    others = [peer for peer in OTHERS if any(peer.name in r.seconds for r in results)]
    pairs = [
        *((f"{other.heading}\n/ ours", other.name, DEFAULT) for other in others),
        *((f"{peer.heading}\n/ α=1", peer.name, ours(1.0)) for peer in OURS[1:]),
        ("ours\n/ copy", DEFAULT, COPY.name),
    ]
    table = empty_table(title, ["", *(heading for heading, _, _ in pairs)])
    table.caption = "ours: α = 0.3; ±: half the 95 % interval of the median"
    for result in results:
        known = result.seconds
        cells = [
            ratio(result.ratio(over, under)) if over in known and under in known else "-"
            for _, over, under in pairs
        ]
        table.add_row(result.group.case.name, *cells)
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Each requirement with the group that fares worst."""
    headings = ["requirement", "ratio", "must", "aim", "verdict", "at worst in"]
    table = empty_table("Requirements of a quiet machine, ours at α = 0.3", headings)
    table.caption = "?: a bound lies within the ratio's interval"
    table.columns[-2].justify = table.columns[-1].justify = "left"
    table.columns[0].no_wrap = table.columns[-1].no_wrap = False
    for verdict in verdicts:
        requirement = verdict.requirement
        sign = "≥" if requirement.faster else "≤"
        doubt = "?" if verdict.unsure else ""
        table.add_row(
            requirement.text,
            "-" if verdict.ratio is None else ratio(verdict.ratio),
            f"{sign} {requirement.must:g}",
            "-" if requirement.aim is None else f"{sign} {requirement.aim:g}",
            f"[{COLOURS[verdict.state]}]{verdict.state}{doubt}[/]",
            verdict.where,
        )
    return table


def skipped_lines(results: Sequence[Result]) -> list[str]:
    """Who did not take part, a line per peer and reason."""
    groups: dict[tuple[str, str], list[Group]] = {}
    for result in results:
        for peer, reason in result.skipped.items():
            groups.setdefault((peer, reason), []).append(result.group)
    return [
        f"{peer} skipped: {reason} ({len(where)} of {len(results)} groups)"
        for (peer, reason), where in groups.items()
    ]


def empty_table(title: str, headings: Sequence[str]) -> Table:
    """Names on the left, figures on the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.columns[0].justify = "left"
    return table


def milliseconds(result: Result, peer: str) -> str:
    """Three significant digits, and no more than a microsecond's tenth."""
    if peer not in result.seconds:
        return "-"
    value = result.time(peer).median * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:#.3g}".rstrip(".")


def ratio(value: Estimate) -> str:
    error = ">99%" if value.error > 0.99 else f"{value.error:.0%}"
    return f"{value.median:.2f} ±{error}"
