"""Compiling and linking what has changed, by ninja."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from .tools import find_ninja


class Object(NamedTuple):
    """An object file: what a compiler makes of one source, or of several as if they were one."""

    name: str  # below the folder of object files
    sources: list[Path]
    command: list[str]  # without the names of files


class Library(NamedTuple):
    """A shared library."""

    name: str
    objects: list[Object]
    flags: list[str]  # for the linker


class BuildError(Exception):
    """What the compiler or the linker says."""


def run(folder: Path, *, quiet: bool) -> None:
    """Follows the rules that are written there.

    Raises:
        BuildError: with all that was printed, if quiet.
    """
    jobs = os.environ.get("MAX_JOBS")
    command = [find_ninja() or "ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])]
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise BuildError(done.stdout or "")


def rules(what: list[Library], output: str, linker: list[str]) -> str:
    """How the libraries are made, to be written to build.ninja in the folder of object files."""
    parts = {part.name: part for library in what for part in library.objects}
    return "\n".join(
        [
            "rule compile\n  command = $run\n  depfile = $out.d\n  deps = gcc\n",
            "rule link\n  command = $run\n",
            *map(_compile, parts.values()),
            *(_link(library, output, linker) for library in what),
        ]
    )


def _compile(part: Object) -> str:
    *first, last = part.sources
    included = [word for source in first for word in ("-include", str(source))]
    files = ["-MMD", "-MF", f"{part.name}.d", "-c", str(last), "-o", part.name]
    sources = [str(source) for source in part.sources]
    return _edge("compile", part.name, sources, [*part.command, *included, *files])


def _link(library: Library, output: str, linker: list[str]) -> str:
    path = f"{output}/{library.name}"
    parts = [part.name for part in library.objects]
    named = ["-Wl,--as-needed", f"-Wl,-soname,{library.name}"]
    command = [*linker, "-shared", "-o", path, *parts, *named, *library.flags]
    return _edge("link", path, parts, command)


def _edge(rule: str, made: str, inputs: list[str], command: list[str]) -> str:
    def path(name: str) -> str:
        return re.sub("([$ :])", r"$\1", name)

    run = shlex.join(command).replace("$", "$$")
    return f"build {path(made)}: {rule} {' '.join(map(path, inputs))}\n  run = {run}\n"


def write(path: Path, text: str) -> None:
    """Unless it is there already: what depends on it would be built again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def link(path: Path, folder: Path) -> None:
    """A link to a folder, in place of one to another."""
    path.unlink(missing_ok=True)
    path.symlink_to(folder.resolve())
