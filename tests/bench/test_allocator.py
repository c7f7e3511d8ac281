"""The choice of an allocator: a process of its own, whose large tensors find memory or do not."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

from bench import allocator
from bench.allocator import ALLOCATORS, DEFAULT, KEPT, LIBRARIES, keeps_memory
from bench.result import machine_of, read

REPOSITORY = Path(__file__).resolve().parents[2]
FAULTS = """
import resource, sys
from bench import allocator
allocator.use(sys.argv[1])
import torch
def allocate():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(16): allocate()  # glibc takes a while to find that what is free is one block
print(sum(allocate() for _ in range(4)))
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != allocator.CHOICE}
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ALLOCATORS)
def test_freed_memory_is_kept_or_not(name: str, tmp_path: Path) -> None:
    """A fresh page is a fault of the process, and 256 MB are 65536 pages of 4 KB."""
    if name in LIBRARIES and not (find_library(name) or find_library(f"{name}_minimal")):
        pytest.skip(f"{name} is not installed")
    script = tmp_path / "faults.py"
    script.write_text(FAULTS)
    done = run(script, name)
    assert done.returncode == 0, done.stderr
    few = 65536 // 100
    assert int(done.stdout) < few if keeps_memory(name) else int(done.stdout) >= few


def test_the_choice_stands_in_the_record(tmp_path: Path) -> None:
    lines = tmp_path / "results.jsonl"
    options = ["--case", "tiny", "--peer", "eager", "--budget", "0", "--output", lines]
    done = run("bench/run.py", *options, "--dtype", "float32", "--allocator", KEPT)
    assert done.returncode == 0, done.stderr
    assert machine_of(read(lines))["allocator"] == KEPT
    assert f"memory from {KEPT}" in done.stdout
    assert "C ≥ 32000" in done.stdout


def test_one_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "find_library", lambda name: None)
    with pytest.raises(SystemExit, match=r"jemalloc is not found .* libjemalloc2"):
        allocator.use("jemalloc")


def test_nothing_is_started_anew_without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(allocator.CHOICE, raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started anew"))
    allocator.use(DEFAULT)
