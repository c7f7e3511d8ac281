"""The progress bar of every script that measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

Found = TypeVar("Found")


def with_progress(tasks: Mapping[str, Callable[[], Found]], console: Console) -> Iterator[Found]:
    """What the tasks return, one by one, with a bar that names the one at work."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(SpinnerColumn(), *columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(tasks))
        for name, task in tasks.items():
            progress.update(bar, description=name, refresh=True)
            yield task()
            progress.advance(bar)
