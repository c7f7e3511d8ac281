"""`make gpu` itself: what it skips, remembers and gives up; small commands stand in for steps."""

from __future__ import annotations

import importlib.util
import json
import sys
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
    monkeypatch.setattr(module, "PASSED", tmp_path / "state" / "passed.json")
    monkeypatch.setenv("OUT", str(tmp_path))
    return module


def results(folder: Path) -> dict[str, str]:
    outcomes = json.loads((folder / "results.json").read_text())
    return {outcome["step"]: outcome["result"] for outcome in outcomes}


def test_every_step_runs_whatever_became_of_the_one_before(gpu: ModuleType, tmp_path: Path) -> None:
    todo = [
        gpu.Step("test", "fails", gpu.python("-c", "print('the reason'); exit(3)")),
        gpu.Step("test", "passes", gpu.python("-c", "print('good')")),
        gpu.Step("bench", "lacks a program", ("no-such-program",), programs=("no-such-program",)),
        gpu.Step("bench", "lacks a module", gpu.python(), modules=("no_such_module",)),
    ]
    assert gpu.run_all(todo) == 1
    assert results(tmp_path) == {
        "fails": "failed: exit status 3",
        "passes": "passed",
        "lacks a program": "skipped: no-such-program is not here",
        "lacks a module": "skipped: Python's no_such_module is not here",
    }
    log = (tmp_path / "test.log").read_text()
    assert log.index("the reason") < log.index("good")


def test_what_passed_is_not_done_again(gpu: ModuleType, tmp_path: Path) -> None:
    once = gpu.Step("test", "once", gpu.python("-c", "print('ran')"))
    always = gpu.Step("build", "always", gpu.python("-c", "print('ran')"), always=True)
    for _ in range(2):
        assert gpu.run_all([always, once]) == 0
    assert results(tmp_path) == {"always": "passed", "once": "passed before"}
    assert (tmp_path / "test.log").read_text().count("\nran") == 1
    assert gpu.run_all([once], again=True) == 0
    assert (tmp_path / "test.log").read_text().count("\nran") == 2


def test_changed_sources_are_tested_again(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = gpu.Step("test", "step", gpu.python("-c", ""))
    gpu.run_all([step])
    monkeypatch.setattr(gpu, "fingerprint", lambda: "another")
    gpu.run_all([step])
    assert results(tmp_path) == {"step": "passed"}


def test_a_part_ends_in_time(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PART_SECONDS", 0)
    assert gpu.run_all([gpu.Step("test", "hangs", ("sleep", "600"))]) == 1
    assert results(tmp_path) == {"hangs": "failed: out of time"}


def test_the_scripts_that_it_runs_exist(gpu: ModuleType) -> None:
    for step in gpu.steps():
        for word in step.command:
            if word.startswith(("tests/", "bench/")):
                assert (REPOSITORY / word).exists(), word


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = run("make", "gpu", f"PYTHON={sys.executable}", cwd=REPOSITORY, check=False)
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr


def test_an_unknown_part_is_named() -> None:
    done = run("make", "gpu", "PART=tests", f"PYTHON={sys.executable}", cwd=REPOSITORY, check=False)
    assert "tests is not one of build, test, sanitize, bench" in done.stderr
