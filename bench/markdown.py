"""The figures as tables of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from rich.text import Text

from . import linear, overhead
from .cases import BACKWARD, CASES, FORWARD, FRESH, IN_PLACE, OF_LOG_SOFTMAX, Group
from .estimates import estimate
from .memory import Peak
from .peers import COPY, DEFAULT_ALPHA, WITHOUT, heading_of, name_of_ours, others, ours
from .report import TITLES, median_milliseconds, memory_cells, verdict_cells
from .requirements import ALL_OTHERS, ALPHA_ONE, COMPILERS, DEFAULT, LARGE
from .result import Record, Result
from .verdicts import Verdict

IN_SHORT = (
    ("cifar10", "float32"),
    ("imagenet", "float32"),
    ("imagenet-large", "float32"),
    ("llama2", "float32"),
    ("llama3", "float32"),
    ("llama3", "bfloat16"),
)
"""What a reader in a hurry sees."""


def table_in_short(fresh: Sequence[Result], kept: Sequence[Result]) -> str:
    """A row per case, with each kind of memory that was measured."""
    found = {"first touch": fresh, "reused": kept} if kept else {"first touch": fresh}
    by_group = {kind: {r.group: r for r in results} for kind, results in found.items()}
    rows = []
    for name, dtype in IN_SHORT:
        group = Group(CASES[name], dtype, FRESH)
        row = [f"{group.size}, {dtype}"]
        for results in by_group.values():
            times = [median_milliseconds(results[group].seconds, p) for p in ("eager", DEFAULT)]
            row += [*times, f"{results[group].ratio('eager', DEFAULT).median:.1f}"]
        copies = list(by_group.values())[-1][group].ratio(DEFAULT, COPY.name)
        rows.append([*row, f"{copies.median:.1f}"])
    of_each = ("F.cross_entropy, ms", "ours, ms", "times as fast")
    headings = [f"{kind}: {words}" for kind in found for words in of_each]
    return table(["logits", *headings, "reused: ours, in copies of the logits"], rows)


def speed_table(results: Sequence[Result]) -> str:
    peers = (COPY.name, "eager", *COMPILERS, ALPHA_ONE, DEFAULT, name_of_ours(0.25))
    rows = []
    for result in results:
        if result.group.mode != FRESH:
            continue
        times = [median_milliseconds(result.seconds, peer) for peer in peers]
        compiler = result.fastest(COMPILERS)
        ratios = [str(result.ratio(over, DEFAULT)) for over in ("eager", compiler) if over]
        copies = str(result.ratio(DEFAULT, COPY.name))
        rows.append([f"{result.group.size}, {result.group.dtype}", *times, *ratios, copies])
    compilers = f"the faster of {' and '.join(map(heading_of, COMPILERS))}"
    pairs = [(heading_of("eager"), DEFAULT), (compilers, DEFAULT), (heading_of(DEFAULT), COPY.name)]
    ratios_of = [f"{over} / {heading_of(under)}" for over, under in pairs]
    times_of = [f"{heading_of(peer)}, ms" for peer in peers]
    return table(["logits", *times_of, *ratios_of], rows)


def in_place_table(results: Sequence[Result]) -> str:
    pairs = (("eager", DEFAULT), (DEFAULT, COPY.name))
    rows = [
        [
            f"{result.group.size}, {result.group.dtype}",
            median_milliseconds(result.seconds, DEFAULT),
            *(str(result.ratio(*pair)) for pair in pairs),
        ]
        for result in results
        if result.group.mode == IN_PLACE and result.group.case.name in LARGE
    ]
    headings = [f"{heading_of(over)} / {heading_of(under)}" for over, under in pairs]
    return table(["logits", f"{heading_of(DEFAULT)}, ms", *headings], rows)


def copies_table(results: Sequence[Result]) -> str:
    """Of a GPU: a row for each type and shape that fills the device."""
    known = {peer for result in results for peer in result.seconds}
    shown = (
        (FRESH, DEFAULT),
        (FRESH, ALPHA_ONE),
        *((FRESH, peer) for peer in ALL_OTHERS if peer in known),
        (FORWARD, DEFAULT),
        (FORWARD, "eager"),
        (BACKWARD, DEFAULT),
        (BACKWARD, "eager"),
    )
    words = {FRESH: "a step", FORWARD: "the loss alone", BACKWARD: "backward alone"}
    by_group = {(r.group.size, r.group.dtype, r.group.mode): r for r in results}
    rows = []
    for size, dtype in dict.fromkeys(
        (r.group.size, r.group.dtype) for r in results if r.group.case.gpu_rows
    ):
        row = [size, dtype]
        row += [in_copies(by_group.get((size, dtype, mode)), peer) for mode, peer in shown]
        rows.append(row)
    headings = [f"{words[mode]}, {heading_of(peer)}" for mode, peer in shown]
    return table(["logits", "type", *headings], rows)


def options_table(results: Sequence[Result]) -> str:
    """Of a GPU: a row for each other mode, type and shape; nothing where none was measured."""
    ours_of = (DEFAULT, ALPHA_ONE, WITHOUT.name)
    rows = []
    for result in results:
        mode = result.group.mode
        if mode in (FRESH, FORWARD, BACKWARD):
            continue
        torchs = "eager-log-softmax" if mode in OF_LOG_SOFTMAX else "eager"
        about = (TITLES[mode], result.group.size, result.group.dtype)
        rows.append([*about, *(in_copies(result, peer) for peer in (*ours_of, torchs))])
    headings = ["what", "logits", "type", *map(heading_of, ours_of), "torch's own"]
    return table(headings, rows) if rows else ""


def in_copies(result: Result | None, peer: str) -> str:
    """A peer's time in copies of the logits, if it was measured."""
    if result is None or peer not in result.seconds:
        return "-"
    return f"{result.ratio(peer, COPY.name).median:.2f}"


def linear_table(measurements: Sequence[linear.Measurement]) -> str:
    cells = linear.cells(measurements)
    return table(cells.headings, cells.rows)


def linear_table_in_short(measurements: Sequence[linear.Measurement]) -> str:
    """A row per case, time and memory together."""
    peaks = {m.case: m for m in measurements if m.bytes}
    shown = ("eager", "compile", "chunked", DEFAULT)
    rows = []
    for timed in (m for m in measurements if m.seconds):
        of_each = [
            (timed.ratio(peer, linear.FLOOR).median, peaks[timed.case].beyond(peer))
            for peer in shown
        ]
        rows.append([timed.case.size, *(f"{time:.2f}, {memory:.2f}" for time, memory in of_each)])
    return table(["rows x features x classes", *map(linear.heading, shown)], rows)


def language_model_table(records: Sequence[Record]) -> str:
    """A row for each loss of bench/language_model.py."""
    seconds = {record["peer"]: np.array(record["seconds"]) for record in records}
    library = next(iter(seconds.values()))  # the library's own loss is the first
    rows = [
        [
            record["peer"],
            f"{record['sequences'] * record['length'] / float(np.median(of_peer)):.0f}",
            f"{estimate(library / of_peer).median:.2f}",
            f"{record['bytes'] / 2**20:.0f}",
        ]
        for record, of_peer in zip(records, seconds.values(), strict=True)
    ]
    return table(["loss", "tokens a second", "times as fast", "peak memory, MiB"], rows)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    cells = verdict_cells(verdicts)
    return table(cells.headings, cells.rows)


def overhead_table(subjects: Sequence[overhead.Subject]) -> str:
    rows = []
    for subject in subjects:
        row = [subject.name, subject.logits]
        for pair in overhead.SHOWN:
            ratio = subject.ratio(*pair)
            row += [ratio.with_interval, Text.from_markup(overhead.verdict(ratio)).plain]
        rows.append(row)
    headings = ["what is timed", "logits"]
    for over, under in overhead.SHOWN:
        headings += [f"{heading_of(over)} / {heading_of(under)}", "verdict"]
    return table(headings, rows)


def memory_table(peaks: Sequence[Peak]) -> str:
    alphas = (DEFAULT_ALPHA,)
    cells = memory_cells(peaks, (*others(alphas), *map(ours, alphas)))
    return table(cells.headings, cells.rows)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [map(code, headings), ["---"] * len(headings), *(map(code, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(words: str) -> str:
    """With the names of functions as code."""
    return re.sub(r"(?<!`)(F\.cross_entropy|torch\.compile)", r"`\1`", words)
