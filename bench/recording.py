"""What every script that measures does around its measurements: it shows and writes them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO, TypeVar

import torch
from rich.console import Console

from . import allocator, command_line, machine
from .progress import with_progress
from .result import Record, write


class Measured(Protocol):
    """What a task finds."""

    def as_json(self) -> list[Record]:
        """Its lines in a file."""
        ...


Found = TypeVar("Found", bound=Measured)


@dataclass(frozen=True)
class Recording:
    """A console, the machine's facts, and the file that the samples go to."""

    console: Console
    facts: Record
    lines: TextIO

    def collect(self, tasks: Mapping[str, Callable[[], Found]]) -> list[Found]:
        """Do the tasks in turn behind a progress bar, and write what each finds as it comes."""
        found = []
        for measured in with_progress(tasks, self.console):
            write(self.lines, measured.as_json())
            found.append(measured)
        return found


@contextmanager
def recording(options: argparse.Namespace) -> Iterator[Recording]:
    """Use the allocator and threads asked for; show and write where this is measured, with what.

    Raises:
        SystemExit: there is no GPU to measure on, or no such allocator.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs a GPU that this PyTorch sees")
    allocator.use(options.allocator)
    command_line.use_threads(options.threads)
    console = command_line.console()
    facts = machine.describe(options.device)
    console.print(*machine.lines(facts), sep="\n", soft_wrap=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    with open(options.output or os.devnull, "w") as lines:
        write(lines, [facts])
        yield Recording(console, facts, lines)
