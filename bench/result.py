"""What a group gave, in memory and as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .cases import Group
from .estimates import Estimate, Samples, estimate

Record = dict[str, Any]
MISSING = "cannot be imported"
"""How the reason ends why somebody was not measured who could have been."""


@dataclass
class Result:
    """Seconds of every round by peer, or why a peer has none."""

    group: Group
    seconds: dict[str, Samples] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def time(self, peer: str) -> Estimate:
        return estimate(self.seconds[peer])

    def ratio(self, over: str, under: str, less: str | None = None) -> Estimate:
        """The time of `over`, less that of somebody, divided by that of `under`, round by round."""
        seconds = self.seconds[over] - (self.seconds[less] if less else 0.0)
        return estimate(seconds / self.seconds[under])

    def fastest(self, peers: Sequence[str]) -> str | None:
        """The one of these with the shortest median, None if none was measured."""
        measured = [peer for peer in peers if peer in self.seconds]
        return min(measured, key=lambda peer: float(np.median(self.seconds[peer])), default=None)

    def bandwidth(self, peer: str) -> float:
        """The least traffic in bytes per second; of a copy, its own."""
        moved = 2 * self.group.logits_bytes if peer == "copy" else self.group.least_bytes
        return moved / self.time(peer).median

    def as_json(self) -> list[Record]:
        """A line per peer: all its rounds, so that any figure can be drawn from the file."""
        return [
            {"kind": "time", **self.group.as_json(), "peer": peer, "seconds": rounded(seconds)}
            for peer, seconds in self.seconds.items()
        ] + [
            {"kind": "skipped", **self.group.as_json(), "peer": peer, "reason": reason}
            for peer, reason in self.skipped.items()
        ]


def rounded(seconds: Samples) -> list[float]:
    """To five digits, more than any clock here is good for."""
    return [float(f"{value:.4e}") for value in seconds]


def write(lines: TextIO, records: Iterable[Record]) -> None:
    """Append records, each on a line of its own."""
    lines.writelines(json.dumps(record) + "\n" for record in records)
    lines.flush()


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def machine_of(records: Iterable[Record]) -> Record:
    """Where the records of a file were taken."""
    return next(record for record in records if record["kind"] == "machine")


def results_of(records: Iterable[Record]) -> list[Result]:
    """The groups of a file, in its order."""
    results: dict[Group, Result] = {}
    for record in records:
        if record["kind"] not in ("time", "skipped"):
            continue
        group = Group.from_json(record)
        result = results.setdefault(group, Result(group))
        if record["kind"] == "time":
            result.seconds[record["peer"]] = np.array(record["seconds"])
        else:
            result.skipped[record["peer"]] = record["reason"]
    return list(results.values())
