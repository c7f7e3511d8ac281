"""One name for everyone, wherever it is read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from bench.cases import CASES, FRESH, LOG_SOFTMAX_FORWARD, WEIGHTS, Group
from bench.markdown import copies_table, options_table
from bench.peers import COPY, DEFAULT_ALPHA, WITHOUT, WITHOUT_PGT, heading_of, ours
from bench.report import empty_table, in_megabytes, skipped_lines
from bench.result import Result


@pytest.mark.parametrize(
    "peer", [COPY, WITHOUT, *WITHOUT_PGT, ours(DEFAULT_ALPHA)], ids=lambda p: p.name
)
def test_name_in_a_file_is_read_as_the_heading(peer) -> None:
    assert heading_of(peer.name) == peer.heading


def test_unknown_name_in_a_file_is_kept() -> None:
    assert heading_of("somebody") == "somebody"


def test_skipped_are_told_one_line_per_reason() -> None:
    result = Result(Group(CASES["tiny"], "float32", FRESH))
    result.skipped = {
        "liger": "only for a GPU",
        "quack": "only for a GPU",
        "jax": "jax cannot be imported",
    }
    assert skipped_lines([result, result]) == [
        "Liger, quack skipped: only for a GPU",
        "jitted JAX skipped: jax cannot be imported",
    ]


def test_tables_of_a_gpu_count_copies() -> None:
    def measured(mode: str, **seconds: float) -> Result:
        samples = {"copy": 2.0, "powergrad-0.3": 3.0} | seconds
        rounds = {peer.replace("_", "-"): np.full(3, value) for peer, value in samples.items()}
        return Result(Group(CASES["llama2"], "bfloat16", mode, "cuda"), rounds)

    step = measured(FRESH, eager=8.0, quack_dx=2.5)
    options = [measured(WEIGHTS, eager=9.0), measured(LOG_SOFTMAX_FORWARD, eager_log_softmax=5.0)]
    headings, _, row = copies_table([step, *options]).splitlines()
    assert "quack, return_dx" in headings
    assert "Liger" not in headings
    cells = row.strip("| ").split(" | ")
    assert cells == ["8192 x 32000", "bfloat16", "1.50", "-", "4.00", "1.25", *["-"] * 4]
    _, _, *rows = options_table([step, *options]).splitlines()
    assert [row.strip("| ").split(" | ")[3:] for row in rows] == [
        ["1.50", "-", "-", "4.50"],
        ["1.50", "-", "-", "2.50"],
    ]
    assert options_table([step]) == ""


def test_narrow_table_keeps_names_and_figures() -> None:
    table = empty_table("Title", ["case", "logits", "F.cross_entropy", "ours, α=0.3"])
    table.add_row("imagenet-large", "4096 x 1000", "10.3", "1.35")
    console = Console(file=io.StringIO(), width=46)
    console.print(table)
    printed = console.file.getvalue()
    assert all(word in printed for word in ("imagenet-large", "4096 x 1000", "10.3", "1.35"))
    assert "…" not in printed


@pytest.mark.parametrize(
    ("count", "text"), [(640, "0.00064"), (32_768_000, "32.8"), (1_646_821_376, "1647")]
)
def test_megabytes_are_read_as_numbers(count: int, text: str) -> None:
    assert in_megabytes(count) == text
