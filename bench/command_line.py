"""What the scripts of this folder have in common: choices, threads, and a console."""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from . import allocator
from .peers import Peer

REDIRECTED_WIDTH = 144


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults as they would be typed."""

    def _expand_help(self, action: argparse.Action) -> str:
        if isinstance(action.default, (list, tuple)):
            action = copy.copy(action)
            action.default = " ".join(map(str, action.default))
        return super()._expand_help(action)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help says what it does and all defaults."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)


def choose(
    parser: argparse.ArgumentParser,
    name: str,
    choices: Sequence[str],
    default: Sequence[str] | None,
    what: str,
) -> None:
    """Add an option that takes some of the choices."""
    parser.add_argument(
        name,
        nargs="*",
        choices=choices,
        default=default,
        metavar=name.strip("-").upper(),
        help=f"{what}, of: {', '.join(choices)}",
    )


def choose_peers(parser: argparse.ArgumentParser, peers: Sequence[Peer]) -> None:
    """Add the option that takes some of these, all unless it is given."""
    names = [peer.name for peer in peers]
    headings = "; ".join(f"{p.name}: {p.heading}" for p in peers if p.name != p.heading.lower())
    choose(parser, "--peer", names, names, f"whom to compare with besides a copy ({headings})")


def add_measuring_options(parser: argparse.ArgumentParser, budget: float, per: str) -> None:
    """Where to run, with how many threads, for how long, and where to write."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads that all may use"
    )
    parser.add_argument(
        "--budget", type=float, default=budget, help=f"seconds per {per}, more or less"
    )
    parser.add_argument(
        "--allocator",
        choices=allocator.ALLOCATORS,
        default=allocator.DEFAULT,
        help="who hands out memory: all but the first keep what is freed for the next large tensor",
    )
    parser.add_argument("--output", type=Path, help="write all samples there, as lines of JSON")


def use_threads(count: int) -> None:
    """Give everyone as many threads; JAX makes its pool, of this size, when it is imported."""
    torch.set_num_threads(count)
    os.environ["NPROC"] = str(count)


def console() -> Console:
    """As wide as the terminal, and wide enough for the tables in a file."""
    return Console(width=None if sys.stdout.isatty() else REDIRECTED_WIDTH)
