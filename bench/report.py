"""The figures as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from rich import box
from rich.table import Table

from .cases import (
    BACKWARD,
    FORWARD,
    FRESH,
    IN_PLACE,
    LOG_SOFTMAX,
    LOG_SOFTMAX_BACKWARD,
    LOG_SOFTMAX_FORWARD,
    PROBABILITIES,
    SMOOTHING,
    UNREDUCED,
    WEIGHTS,
)
from .estimates import Samples
from .memory import Peak
from .peers import COPY, Peer, heading_of, is_ours
from .requirements import ALPHA_ONE, DEFAULT
from .result import Result
from .verdicts import AIM_MET, KEPT, MISSED, NOT_MEASURED, OPEN, Verdict

COLOURS = {AIM_MET: "green", KEPT: "green", OPEN: "yellow", MISSED: "red", NOT_MEASURED: "dim"}
HEADING_WIDTH = 8
TITLES = {
    FORWARD: "Forward",
    BACKWARD: "Backward",
    FRESH: "Forward + backward, fresh gradient",
    IN_PLACE: "Forward + backward, in place",
    UNREDUCED: 'Forward + backward, reduction="none"',
    PROBABILITIES: "Forward + backward, probabilities as targets",
    SMOOTHING: "Forward + backward with label smoothing",
    WEIGHTS: "Forward + backward with class weights",
    LOG_SOFTMAX_FORWARD: "Forward of log-softmax",
    LOG_SOFTMAX_BACKWARD: "Backward of log-softmax",
    LOG_SOFTMAX: "Forward + backward of log-softmax",
}


@dataclass(frozen=True)
class Cells:
    """A table as words, for the console and for the README."""

    headings: list[str]
    rows: list[list[str]]


def time_tables(results: Sequence[Result], peers: Sequence[Peer]) -> list[Table]:
    """Times, then ratios, of each type and mode."""
    kinds = dict.fromkeys((result.group.mode, result.group.dtype) for result in results)
    tables = []
    for mode, dtype in kinds:
        same = [r for r in results if (r.group.mode, r.group.dtype) == (mode, dtype)]
        title = f"{TITLES[mode]}, {dtype}"
        tables += [
            milliseconds_table(f"{title}: milliseconds", same, peers),
            ratio_table(f"{title}: ratios of times", same, peers),
        ]
    return tables


def milliseconds_table(title: str, results: Sequence[Result], peers: Sequence[Peer]) -> Table:
    """Medians in milliseconds, a case per row and a peer per column."""
    present = [peer for peer in peers if any(peer.name in r.seconds for r in results)]
    table = empty_table(title, ["case", "logits", *(peer.heading for peer in present)])
    for result in results:
        times = [median_milliseconds(result.seconds, peer.name) for peer in present]
        table.add_row(result.group.case.name, result.group.size, *times)
    return table


def ratio_table(title: str, results: Sequence[Result], peers: Sequence[Peer]) -> Table:
    """How many times our time the others take, what alpha costs, how far above a copy we are."""
    present = [peer.name for peer in peers if any(peer.name in r.seconds for r in results)]
    others = [name for name in present if not is_ours(name) and name != COPY.name]
    alphas = [name for name in present if is_ours(name)]
    ours = DEFAULT if DEFAULT in alphas else alphas[0]
    pairs = [
        *((name, ours) for name in others),
        *((name, ALPHA_ONE) for name in alphas if name != ALPHA_ONE and ALPHA_ONE in alphas),
        (ours, COPY.name),
    ]
    of_pairs = [f"{heading_of(over)} / {heading_of(under)}" for over, under in pairs]
    speeds_of = [f"{heading_of(name)}, GB/s" for name in (COPY.name, ours)]
    table = empty_table(title, ["case", *of_pairs, "moved, MB", *speeds_of])
    table.caption = (
        "±: half the 95 % interval of the median; moved: the least that has to be read and "
        "written; GB/s: that by the time taken (a copy's: what it moves itself)"
    )
    for result in results:
        known = result.seconds
        ratios = [
            str(result.ratio(over, under)) if over in known and under in known else "-"
            for over, under in pairs
        ]
        speeds = [
            f"{result.bandwidth(peer) / 1e9:.1f}" if peer in known else "-"
            for peer in (COPY.name, ours)
        ]
        moved = in_megabytes(result.group.least_bytes)
        table.add_row(result.group.case.name, *ratios, moved, *speeds)
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Each promise with the group that fares worst."""
    cells = verdict_cells(verdicts)
    table = empty_table("What this project promises of a quiet machine", cells.headings)
    as_words(table, 0, 1, 5, 6)
    for verdict, row in zip(verdicts, cells.rows, strict=True):
        table.add_row(*row[:-1], f"[{COLOURS[verdict.state]}]{row[-1]}[/]")
    return table


def verdict_cells(verdicts: Sequence[Verdict]) -> Cells:
    """A row per promise."""
    rows = []
    for verdict in verdicts:
        requirement = verdict.requirement
        sign = "≥" if requirement.faster else "≤"
        aim = "-" if requirement.aim is None else f"{sign} {requirement.aim:.3g}"
        rows.append(
            [
                requirement.ratio,
                requirement.where,
                f"{sign} {requirement.promise:.3g}",
                aim,
                "-" if verdict.ratio is None else str(verdict.ratio),
                verdict.worst_case,
                verdict.words,
            ]
        )
    headings = ["ratio of times", "where", "promise", "aim", "worst ratio", "found in", "verdict"]
    return Cells(headings, rows)


def skipped_lines(results: Sequence[Result]) -> list[str]:
    """Who did not take part, a line per reason."""
    who: dict[str, dict[str, None]] = {}
    for result in results:
        for peer, reason in result.skipped.items():
            who.setdefault(reason, {})[heading_of(peer)] = None
    return [f"{', '.join(names)} skipped: {reason}" for reason, names in who.items()]


def empty_table(title: str, headings: Iterable[str]) -> Table:
    """Names on the left, figures on the right; headings in several lines, to be narrow.

    Where even that is too wide, figures break and names do not.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        stacked = "\n".join(wrap(heading, HEADING_WIDTH, break_long_words=False))
        whole = heading == "logits" or not table.columns
        table.add_column(stacked, justify="right", no_wrap=whole, overflow="fold")
    table.columns[0].justify = "left"
    return table


def as_words(table: Table, *columns: int) -> None:
    """Make these columns read as text: from the left, in several lines where there is no room."""
    for column in columns:
        table.columns[column].justify = "left"
        table.columns[column].no_wrap = False


def median_milliseconds(seconds: Mapping[str, Samples], peer: str) -> str:
    """The median of a peer's samples, if it has any."""
    return in_milliseconds(float(np.median(seconds[peer]))) if peer in seconds else "-"


def in_milliseconds(seconds: float) -> str:
    """Three significant digits, and no more than a microsecond's tenth."""
    value = seconds * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:#.3g}".rstrip(".")


def in_megabytes(count: int) -> str:
    """Bytes, to three significant digits or to the megabyte."""
    value = count / 1e6
    return f"{value:.3g}" if value < 1000.0 else f"{value:.0f}"


def memory_table(peaks: Sequence[Peak], peers: Sequence[Peer]) -> Table:
    """Peaks in units of the logits' size, a group per row and a peer per column."""
    cells = memory_cells(peaks, peers)
    table = empty_table("Peak memory besides the logits, in units of their size", cells.headings)
    for row in cells.rows:
        table.add_row(*row)
    return table


def memory_cells(peaks: Sequence[Peak], peers: Sequence[Peer]) -> Cells:
    """A row per group, a column per peer that has a figure."""
    known = {
        (peak.group, peak.peer): f"{peak.of_logits:.2f}" for peak in peaks if peak.bytes is not None
    }
    present = [peer for peer in peers if any(peer.name == name for _, name in known)]
    groups = dict.fromkeys(peak.group for peak in peaks)
    rows = [
        [group.size, group.dtype, group.mode, *(known.get((group, p.name), "-") for p in present)]
        for group in groups
    ]
    return Cells(["logits", "type", "mode", *(peer.heading for peer in present)], rows)
