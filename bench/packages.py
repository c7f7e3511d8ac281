"""What the scripts of this folder import besides their own: named where it is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ALWAYS = ("torch", "numpy", "rich")


def require(*names: str) -> None:
    """End the script with one sentence if a package that it needs is missing."""
    missing = [name for name in (*ALWAYS, *names) if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{Path(sys.argv[0]).name} needs {', '.join(missing)}, not found by {sys.executable}: "
            "run `make bench` and then `. .venv/bin/activate`, or install the extra `bench` of "
            "pyproject.toml: `pip install --no-build-isolation '.[bench]'`"
        )
