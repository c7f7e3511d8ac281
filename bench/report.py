"""The figures as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from .cases import (
    BACKWARD,
    FORWARD,
    FRESH,
    IN_PLACE,
    PROBABILITIES,
    UNREDUCED,
)
from .memory import Peak
from .peers import COPY, Peer
from .requirements import DEFAULT, ORDINARY, Verdict
from .result import Result

COLOURS = {"aim met": "green", "must met": "green", "missed": "red", "not measured": "dim"}
TITLES = {
    FORWARD: "Forward",
    BACKWARD: "Backward",
    FRESH: "Forward + backward, fresh gradient",
    IN_PLACE: "Forward + backward, in place",
    UNREDUCED: 'Forward + backward, reduction="none"',
    PROBABILITIES: "Forward + backward, probabilities as targets",
}


def time_tables(results: Sequence[Result], peers: Sequence[Peer]) -> list[Table]:
    """Times, then ratios, of each type and mode."""
    kinds = dict.fromkeys((result.group.mode, result.group.dtype) for result in results)
    tables = []
    for mode, dtype in kinds:
        same = [r for r in results if (r.group.mode, r.group.dtype) == (mode, dtype)]
        title = f"{TITLES[mode]}, {dtype}"
        tables += [
            milliseconds_table(f"{title}: milliseconds", same, peers),
            ratio_table(f"{title}: ratios", same, peers),
        ]
    return tables


def milliseconds_table(title: str, results: Sequence[Result], peers: Sequence[Peer]) -> Table:
    """Medians in milliseconds, a case per row and a peer per column."""
    present = [peer for peer in peers if any(peer.name in r.seconds for r in results)]
    table = empty_table(title, ["", "", *(peer.heading for peer in present)])
    for result in results:
        times = [milliseconds(result, peer.name) for peer in present]
        table.add_row(result.group.case.name, result.group.size, *times)
    return table


def ratio_table(title: str, results: Sequence[Result], peers: Sequence[Peer]) -> Table:
    """How many times our time the others take, what alpha costs, how far above a copy we are."""
    present = [peer for peer in peers if any(peer.name in r.seconds for r in results)]
    pairs: list[tuple[str, str, str]] = []
    for peer in present:
        if not peer.name.startswith("powergrad") and peer != COPY:
            pairs.append((f"{peer.heading}\n/ ours", peer.name, DEFAULT))
    for peer in present:
        if peer.name.startswith("powergrad") and peer.name != ORDINARY:
            pairs.append((f"{peer.heading}\n/ α=1", peer.name, ORDINARY))
    pairs.append(("ours\n/ copy", DEFAULT, COPY.name))
    headings = ["", *(heading for heading, _, _ in pairs), "copy\nGB/s", "ours\nGB/s"]
    table = empty_table(title, headings)
    table.caption = (
        "ours: α = 0.3; ±: half the 95 % interval of the median; GB/s: the least that has to be "
        "read and written, by the time taken"
    )
    for result in results:
        known = result.seconds
        cells = [
            str(result.ratio(over, under)) if over in known and under in known else "-"
            for _, over, under in pairs
        ]
        speeds = [
            f"{result.bandwidth(peer) / 1e9:.1f}" if peer in known else "-"
            for peer in (COPY.name, DEFAULT)
        ]
        table.add_row(result.group.case.name, *cells, *speeds)
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
            "-" if verdict.ratio is None else str(verdict.ratio),
            f"{sign} {requirement.must:.3g}",
            "-" if requirement.aim is None else f"{sign} {requirement.aim:.3g}",
            f"[{COLOURS[verdict.state]}]{verdict.state}{doubt}[/]",
            verdict.where,
        )
    return table


def skipped_lines(results: Sequence[Result]) -> list[str]:
    """Who did not take part, a line per reason."""
    who: dict[str, dict[str, None]] = {}
    for result in results:
        for peer, reason in result.skipped.items():
            who.setdefault(reason, {})[peer] = None
    return [f"{', '.join(names)} skipped: {reason}" for reason, names in who.items()]


def empty_table(title: str, headings: Sequence[str]) -> Table:
    """Names on the left, figures on the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.columns[0].justify = "left"
    return table


def milliseconds(result: Result, peer: str) -> str:
    return in_milliseconds(result.time(peer).median) if peer in result.seconds else "-"


def in_milliseconds(seconds: float) -> str:
    """Three significant digits, and no more than a microsecond's tenth."""
    value = seconds * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:#.3g}".rstrip(".")


def memory_table(peaks: Sequence[Peak], peers: Sequence[Peer]) -> Table:
    """Peaks in units of the logits' size, a group per row and a peer per column."""
    known = {(peak.group, peak.peer): peak for peak in peaks if peak.bytes is not None}
    present = [peer for peer in peers if any(peer.name == name for _, name in known)]
    headings = ["", "", "", *(peer.heading for peer in present)]
    table = empty_table("Peak memory besides the logits, in units of their size", headings)
    for group in dict.fromkeys(peak.group for peak in peaks):
        cells = [
            f"{known[group, peer.name].of_logits:.2f}" if (group, peer.name) in known else "-"
            for peer in present
        ]
        table.add_row(f"{group.case.name} {group.size}", group.dtype, group.mode, *cells)
    return table
