"""Two files of results: which times have changed by more than noise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# As `python bench/compare.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require()

from rich.table import Table

from bench import command_line
from bench.cases import Group
from bench.estimates import Estimate, estimate_ratio_of_medians
from bench.peers import heading_of
from bench.report import as_words, empty_table, in_milliseconds
from bench.result import Record, machine_of, read, results_of

CONFIDENCE = 0.99
"""Many times are compared: at 95 %, one in twenty would seem changed with nothing done."""
ALWAYS_DIFFERENT = ("load", "commit")


@dataclass(frozen=True)
class Change:
    """One peer's time in both files."""

    group: Group
    peer: str
    before: Estimate
    after: Estimate
    ratio: Estimate

    def is_beyond_noise(self, least: float) -> bool:
        """Whether all of the interval is that far from 1."""
        return self.ratio.low > 1.0 + least or self.ratio.high < 1.0 / (1.0 + least)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what has changed; all that both files have, with --all."""
    parser = command_line.parser(__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--least", type=float, default=0.03, help="changes below do not count")
    parser.add_argument("--all", action="store_true", help="show also what has not changed")
    options = parser.parse_args(arguments)
    for path in (options.before, options.after):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    console = command_line.console()
    before, after = read(options.before), read(options.after)
    console.print(*different_machines(before, after), sep="\n", soft_wrap=True)
    found = changes(before, after)
    if not found:
        raise SystemExit("No time is in both files: compare two that bench/run.py wrote")
    beyond = [change for change in found if change.is_beyond_noise(options.least)]
    console.print(table(found if options.all else beyond, options.least))
    console.print(f"{len(beyond)} of {len(found)} times changed beyond noise")


def different_machines(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """A line for each fact that differs: the times are not about the code alone then."""
    old, new = machine_of(before), machine_of(after)
    return [
        f"Different {fact}: {old.get(fact)}, then {new.get(fact)}"
        for fact in old
        if fact not in ALWAYS_DIFFERENT and old.get(fact) != new.get(fact)
    ]


def changes(before: Sequence[Record], after: Sequence[Record]) -> list[Change]:
    """Every time that both files have."""
    old = {result.group: result for result in results_of(before)}
    return [
        Change(
            new.group,
            peer,
            old[new.group].time(peer),
            new.time(peer),
            estimate_ratio_of_medians(seconds, old[new.group].seconds[peer], CONFIDENCE),
        )
        for new in results_of(after)
        if new.group in old
        for peer, seconds in new.seconds.items()
        if peer in old[new.group].seconds
    ]


def table(found: Sequence[Change], least: float) -> Table:
    """A line per change, the greatest first."""
    headings = [
        "case",
        "whose time",
        "before, ms",
        "after, ms",
        f"after / before [{CONFIDENCE:.0%} interval]",
        "verdict",
    ]
    changed = empty_table("What takes another time", headings)
    as_words(changed, 1, 5)
    for change in sorted(found, key=lambda change: -abs(change.ratio.median - 1.0)):
        word = "slower" if change.ratio.median > 1.0 else "faster"
        colour = "red" if word == "slower" else "green"
        changed.add_row(
            str(change.group),
            heading_of(change.peer),
            in_milliseconds(change.before.median),
            in_milliseconds(change.after.median),
            change.ratio.with_interval,
            f"[{colour}]{word}[/]" if change.is_beyond_noise(least) else "noise",
        )
    return changed


if __name__ == "__main__":
    main()
