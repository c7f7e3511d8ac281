"""A sentence instead of a traceback where a package is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EVIDENCE = "pip install --no-build-isolation --editable '.[evidence]'"


@contextmanager
def needed_by(example: str, install: str = EVIDENCE) -> Iterator[None]:
    """Import inside; what is missing ends the program with how to install it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        sys.exit(f"{example} needs {package}, which is not installed: run  {install}")
