"""Running commands as a user would, each in a process and a folder of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from powergrad_ext import _build
from powergrad_ext._build import tools

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


def compile_program(folder: Path, name: str, main: str, source: str) -> Path:
    """A program of `main` and of one file of csrc/torch, which needs torch's libc10."""
    (folder / "main.cpp").write_text(main)
    (folder / "sources_version.h").write_text('#define POWERGRAD_SOURCES "of the test"\n')
    libraries = Path(torch.__file__).parent / "lib"
    run(
        *tools.compiler(),
        _build.STANDARD,
        "-I.",
        f"-I{REPOSITORY / 'csrc'}",
        *(f"-I{path}" for path in include_paths()),
        "main.cpp",
        str(REPOSITORY / "csrc" / "torch" / source),
        f"-L{libraries}",
        f"-Wl,-rpath,$ORIGIN:{libraries}",
        "-lc10",
        "-ldl",
        "-o",
        name,
        cwd=folder,
    )
    return folder / name
