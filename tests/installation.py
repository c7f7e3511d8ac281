"""A wheel installed in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path


class Installed:
    """An environment of its own with the wheel; torch is that of the Python that runs the tests."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        (packages,) = folder.glob("venv/lib/python*/site-packages")
        parents = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "torch.pth").write_text("\n".join(parents))
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet"]
        options = ["--no-deps", "--no-index", "--ignore-installed", "--no-compile"]
        subprocess.run([*pip, *options, wheel.resolve()], check=True, cwd=folder)
        self.package = packages / "powergrad_ext"
        self.native = self.package / "native"

    def run(
        self, code: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program where no compiler is on PATH and nothing of the user's is at hand."""
        environment = {"PATH": str(self.python.parent), "HOME": str(self.folder)} | variables
        command = [self.python, "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done
