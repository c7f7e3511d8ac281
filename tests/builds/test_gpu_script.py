"""`make gpu` itself: what runs beside what, what it gives up; small commands stand in for steps."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from commands import REPOSITORY, run


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, writing to a folder of the test."""
    spec = importlib.util.spec_from_file_location("gpu", REPOSITORY / "scripts" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUILT", tmp_path / "built")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return module


def results(folder: Path) -> dict[str, str]:
    outcomes = json.loads((folder / "out" / "results.json").read_text())
    return {outcome["step"]: outcome["result"] for outcome in outcomes}


def test_every_step_runs_whatever_became_of_the_one_before(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    todo = [
        gpu.Step("test", "fails", gpu.python("-c", "print('FAILED it'); exit(3)"), alone=False),
        gpu.Step("test", "dies", gpu.python("-c", "import os; print('last'); os.abort()")),
        gpu.Step("test", "passes", gpu.python("-c", "print('good')")),
        gpu.Step("test", "has no test", gpu.python("-c", "exit(5)")),
        gpu.Step("bench", "lacks a program", ("no-such-program",), programs=("no-such-program",)),
        gpu.Step("bench", "lacks a module", gpu.python(), modules=("no_such_module",)),
    ]
    assert gpu.run_all(todo) == 1
    found = results(tmp_path)
    assert found == {
        "fails": "failed: exit status 3",
        "dies": "failed: exit status -6",
        "passes": "passed",
        "has no test": "passed",
        "lacks a program": "skipped: no-such-program is not here",
        "lacks a module": "skipped: Python's no_such_module is not here",
    }
    printed = capsys.readouterr().out
    assert "FAILED it" in printed
    assert "last" in printed
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        log = archive.extractfile("logs/test-passes.log")
        assert log is not None
        assert log.read() == b"good\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"logs.tar.gz", "results.json"}


def test_steps_that_are_not_alone_run_together(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two waits for a file that the other one makes."""
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 2)
    meet = (
        "import pathlib, sys, time; own, other = map(pathlib.Path, sys.argv[1:]); own.touch()\n"
        "while not other.exists(): time.sleep(.01)"
    )
    paths = [str(tmp_path / name) for name in ("a", "b")]
    todo = [
        gpu.Step("test", name, gpu.python("-c", meet, *order), alone=False)
        for name, order in (("one", paths), ("two", paths[::-1]))
    ]
    assert gpu.run_all(todo) == 0


def test_a_part_ends_in_time(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LIMITS", {"test": 2.0, "bench": 60.0})
    begun = time.monotonic()
    todo = [
        gpu.Step("test", "hangs", ("sleep", "600")),
        gpu.Step("test", "is late", ("touch", str(tmp_path / "late"))),
        gpu.Step("bench", "goes on", gpu.python("-c", "")),
    ]
    assert gpu.run_all(todo) == 1
    out_of_time = "failed: out of time"
    assert results(tmp_path) == {"hangs": out_of_time, "is late": out_of_time, "goes on": "passed"}
    assert not (tmp_path / "late").exists()
    assert time.monotonic() - begun < 300


def test_the_module_is_built_once(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> set[str]:
        return {step.name for step in gpu.steps()}

    assert "extension" in names()
    assert gpu.run_all([gpu.Step("build", "extension", gpu.python("-c", ""))]) == 0
    assert "extension" not in names()
    monkeypatch.setattr(gpu, "sources", lambda: "other sources")
    assert "extension" in names()


def test_every_test_file_is_a_step_of_its_own(gpu: ModuleType) -> None:
    steps = [step for step in gpu.steps() if step.part == "test"]
    named = {word for step in steps for word in step.command if word.startswith("tests/")}
    folders = ("gpu", *gpu.SHARED_TESTS)
    there = {
        str(p.relative_to(REPOSITORY))
        for f in folders
        for p in (REPOSITORY / "tests" / f).glob("test_*.py")
    }
    assert named == there
    assert len(steps) == len(there)
    assert [step.name for step in steps if step.alone] == ["gpu/test_large_indices.py"]


def test_the_scripts_that_it_runs_exist(gpu: ModuleType) -> None:
    for step in gpu.steps():
        for word in step.command:
            if word.startswith(("tests/", "bench/")):
                assert (REPOSITORY / word).exists(), word


needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@needs_gcc
def test_a_compiler_whose_exceptions_end_python_is_found_out(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    static = "g++ -static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL"
    monkeypatch.setattr(gpu, "survives_exceptions", lambda compiler: compiler != static)
    monkeypatch.setenv("CXX", static)
    gpu.use_compiler()
    assert gpu.os.environ["CXX"] == gpu.os.environ["CUDAHOSTCXX"] == "g++"
    assert static in capsys.readouterr().out
    monkeypatch.setattr(gpu, "survives_exceptions", lambda compiler: False)
    with pytest.raises(SystemExit, match="by every compiler here end Python"):
        gpu.use_compiler()


@needs_gcc
@pytest.mark.parametrize(
    ("options", "survives"),
    [
        ("", True),
        # Numbers are missing in the words.
        ("-static-libstdc++", False),
        # What torch throws ends the process.
        ("-static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL", False),
        ("--no-such-option", False),
    ],
    ids=["shared", "static", "static and hidden", "broken"],
)
def test_what_exceptions_do_is_tried(
    gpu: ModuleType, tmp_path: Path, options: str, survives: bool
) -> None:
    wrapper = tmp_path / "wrapped-g++"
    wrapper.write_text(f'#!/bin/sh\nexec g++ {options} "$@"\n')
    wrapper.chmod(0o755)
    assert gpu.survives_exceptions(str(wrapper)) == survives


def test_exceptions_of_the_module_that_is_there_are_tried(gpu: ModuleType) -> None:
    (step,) = (step for step in gpu.steps() if step.name == "exceptions")
    run(*step.command, cwd=REPOSITORY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = run("make", "gpu", f"PYTHON={sys.executable}", cwd=REPOSITORY, check=False)
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr


def test_an_unknown_part_is_named() -> None:
    done = run("make", "gpu", "PART=tests", f"PYTHON={sys.executable}", cwd=REPOSITORY, check=False)
    assert "tests is not one of build, test, sanitize, bench" in done.stderr
