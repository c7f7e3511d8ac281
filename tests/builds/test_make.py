"""The README's commands on a machine that lacks something: they say what, and do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import REPOSITORY, run

OLD_PYTHON = """#!/bin/sh
exit 1
"""


@pytest.fixture
def old_python(tmp_path: Path) -> Path:
    """Answers no to every question that is put to it."""
    path = tmp_path / "python3"
    path.write_text(OLD_PYTHON)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("target", ["demo", "test"])
def test_all_that_is_missing_is_named_before_anything_is_done(tmp_path: Path, target: str) -> None:
    venv = tmp_path / "environment"
    options = ["PYTHON=no-such-python", "CXX=no-such-compiler", f"VENV={venv}"]
    result = run("make", target, *options, cwd=REPOSITORY, check=False)
    assert result.returncode == 2
    assert "no-such-python is not found. Install Python 3.10 or later" in result.stderr
    assert "there is no C++ compiler (no-such-compiler). Install g++" in result.stderr
    assert not venv.exists()


def test_an_old_python_is_named(tmp_path: Path, old_python: Path) -> None:
    options = [f"PYTHON={old_python}", f"VENV={tmp_path / 'environment'}"]
    result = run("make", "demo", *options, cwd=REPOSITORY, check=False)
    assert result.returncode == 2
    assert "is older than Python 3.10" in result.stderr


def test_a_python_without_venv_is_named(tmp_path: Path, old_python: Path) -> None:
    old_python.write_text('#!/bin/sh\ncase "$2" in *venv*|*Python.h*) exit 1 ;; esac\n')
    options = [f"PYTHON={old_python}", f"VENV={tmp_path / 'environment'}"]
    result = run("make", "demo", *options, cwd=REPOSITORY, check=False)
    assert result.returncode == 2
    assert "has no venv module" in result.stderr
    assert "has no headers" in result.stderr


def test_make_alone_lists_what_can_be_done() -> None:
    result = run("make", cwd=REPOSITORY)
    targets = "demo check test test-all docs test-torch build lint format core-test bench gpu clean"
    for target in targets.split():
        assert f"make {target} " in result.stdout
