"""Runs on disk, a line each as soon as it is done: a study that was stopped goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

Key = tuple[Any, ...]
Record = dict[str, Any]


class Journal:
    """What was measured, by what was run.

    The first line holds the settings that all runs share. A journal that was begun with others is
    refused, since its runs are no pairs of the new ones.
    """

    def __init__(
        self,
        path: Path,
        settings: Record,
        machine: str,
        after_run: Callable[[], object] = lambda: None,
    ) -> None:
        self.path = path
        self.after_run = after_run
        self.results: dict[Key, Record] = {}
        self.seconds = 0.0
        """Of processor time, all runs together."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            self._append({"settings": settings, "machine": machine})
        begun, *runs = [json.loads(line) for line in _whole_lines(path)]
        if begun["settings"] != json.loads(json.dumps(settings)):
            sys.exit(f"{path} was begun with other settings, {begun['settings']}: move it away")
        self.machine = begun["machine"]
        for run in runs:
            self.results[tuple(run["run"])] = run["metrics"]
            self.seconds += run["seconds"]

    def once(self, key: Key, measure: Callable[[], Record]) -> Record:
        """Return the metrics of a run: read if it was run before, else measured and written."""
        if key not in self.results:
            began = process_time()
            metrics = measure()
            seconds = process_time() - began
            self._append({"run": key, "seconds": round(seconds, 2), "metrics": metrics})
            self.results[key] = metrics
            self.seconds += seconds
        self.after_run()
        return self.results[key]

    def _append(self, record: Record) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Return the lines, after cutting off a last one that was not written to its end."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return whole.splitlines()
