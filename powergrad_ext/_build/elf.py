"""Whether a library is a whole file: the system ends a process that reads what is cut off."""

from __future__ import annotations

import os
import struct
from pathlib import Path

# What identifies it, ..., where the table of sections begins, ..., its entries: size, number.
HEADER = struct.Struct("<4s36xQ10x2H2x")


def fault(path: Path) -> str | None:
    """What is wrong with a library, as a predicate; None if nothing is.

    Linkers put the table of sections last, so a file that holds it is whole.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if len(header) < HEADER.size or not header.startswith(b"\x7fELF"):
        return "is not a shared library"
    _, begin, entry_size, entries = HEADER.unpack(header)
    needed: int = begin + entry_size * entries
    return None if size >= needed else f"is incomplete ({size} of {needed} bytes)"
