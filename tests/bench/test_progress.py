"""What everyone who waits for a measurement sees, and what is kept of one that is cut short."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench.overhead import Subject
from bench.progress import with_progress
from bench.recording import Recording


def test_bar_names_the_task_at_work_and_counts() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    tasks = {"rows 4": lambda: "a", "rows 16": lambda: "b"}
    assert list(with_progress(tasks, console)) == ["a", "b"]
    shown = console.file.getvalue()
    assert "rows 4" in shown
    assert "rows 16" in shown
    assert "2/2" in shown


def test_what_was_found_before_a_failure_is_in_the_file(tmp_path: Path) -> None:
    def failing() -> Subject:
        raise KeyboardInterrupt

    with (tmp_path / "lines").open("w") as lines:
        record = Recording(Console(file=io.StringIO()), {}, lines)
        good = Subject("loss, tiny", "8 x 10", {"eager": [1.0]})
        with pytest.raises(KeyboardInterrupt):
            record.collect({"good": lambda: good, "failing": failing})
    assert "loss, tiny" in (tmp_path / "lines").read_text()
