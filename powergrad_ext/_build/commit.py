"""The commit that the package is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

COMMIT_FILE = "COMMIT"
PACKAGE = Path(__file__).resolve().parents[1]


def commit() -> str | None:
    """The commit that this package is of, with a plus where files have been changed since.

    As recorded when it was packed, or of the repository that it lies in; None where nobody knows.
    """
    recorded = PACKAGE / COMMIT_FILE
    if recorded.exists():
        return recorded.read_text(encoding="utf-8").strip()
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != PACKAGE.parent:
            return None
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "csrc", PACKAGE.name)
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    folder = PACKAGE.parent  # from which paths count
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def record_commit(package: Path) -> None:
    """Write the commit, if it is known, into a folder that is to be packed."""
    if known := commit():
        (package / COMMIT_FILE).write_text(f"{known}\n", encoding="utf-8")
