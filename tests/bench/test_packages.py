"""A script in a Python that lacks something: one sentence says what, and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import packages, sweep

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["run", "overhead", "sweep", "compare", "readme"])
def test_script_names_what_is_missing(script: str) -> None:
    bare = [sys.executable, "-S", "-E", f"bench/{script}.py"]  # no packages are seen so
    result = subprocess.run(bare, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith(f"{script}.py needs torch, numpy, rich")
    assert "make bench" in sentence
    assert "'.[bench]'" in sentence


def test_what_is_there_is_not_named() -> None:
    packages.require()
    with pytest.raises(SystemExit, match=r"needs no_such_package, not"):
        packages.require("no_such_package")


def test_plot_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sweep.parse(["--sweep", "rows"])
    with pytest.raises(SystemExit, match="needs matplotlib"):
        sweep.parse(["--plot", "somewhere"])
