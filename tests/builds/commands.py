"""Running commands as a user would, each in a process and a folder of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run(
    *command: str | Path, cwd: Path, check: bool = True, **variables: str | Path
) -> subprocess.CompletedProcess[str]:
    """Runs a command with some environment variables set; fails with its output if it fails."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment.pop("PYTHONPATH", None)
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result
