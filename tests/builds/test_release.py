"""The script that makes the wheels: what is compiled once, and what may not be packed."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from commands import REPOSITORY, run

from powergrad_ext import _build

sys.path.append(str(REPOSITORY / "scripts"))
import wheels

sys.path.pop()


def test_what_knows_no_python_is_compiled_once_for_each_torch() -> None:
    """Bindings for two Pythons share all object files but those of module.cpp."""
    csrc = REPOSITORY / "csrc"
    torch = _build.Torch(Path("torch"), "2.13")
    pythons = [_build.Python(Path(f"python{name}"), f".{name}.so") for name in ("a", "b")]
    first, second = (
        {part.name: part for part in _build.binding(csrc, torch, python).objects}
        for python in pythons
    )
    own = {source for name in first.keys() - second.keys() for source in first[name].sources}
    assert {csrc / path.relative_to(_build.SOURCES) for path in own} == set(
        _build.read_sources(csrc)["module"]
    )
    assert all(first[name] == second[name] for name in first.keys() & second.keys())


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_what_git_does_not_know_is_found(tmp_path: Path, kind: str) -> None:
    """Left in the tree by somebody's work."""
    library = Path("native", "libpowergrad_kernels.so")
    known = wheels.known_names([library])
    if "setup.py" not in known:
        pytest.skip("this is no clone")
    archive = tmp_path / f"powergrad_ext-1.0.{kind}"
    if kind == "whl":
        names = [
            "powergrad_ext/alpha.py",
            "powergrad_ext/COMMIT",
            "powergrad_ext/csrc/row.h",
            f"powergrad_ext/{library}",
            "powergrad_ext-1.0.dist-info/METADATA",
        ]
        with zipfile.ZipFile(archive, "w") as wheel:
            for name in [*names, "powergrad_ext/csrc/row.h.orig", "powergrad_ext/native/stub.so"]:
                wheel.writestr(name, "")
        expected = {"powergrad_ext/csrc/row.h.orig", "powergrad_ext/native/stub.so"}
    else:
        names = ["setup.py", "powergrad_ext/COMMIT", "csrc/row.h", "PKG-INFO", "setup.cfg"]
        with tarfile.open(archive, "w:gz") as sources:
            for name in [*names, "powergrad_ext.egg-info/SOURCES.txt", "tests/scratch.py"]:
                sources.addfile(tarfile.TarInfo(f"powergrad_ext-1.0/{name}"), io.BytesIO())
        expected = {"tests/scratch.py"}
    assert wheels.names_in(archive) - known == expected


def test_all_pairs_are_tested_though_one_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And all are told of in the end."""
    monkeypatch.setattr(wheels, "test", lambda pair: pair.torch != "2.12")
    python = wheels.Python("python3", _build.running_python())
    pairs = [
        wheels.Pair(Path("one.whl"), python, minor, newest=False)
        for minor in ("2.11", "2.12", "2.13")
    ]
    with pytest.raises(SystemExit) as stopped:
        wheels.test_all(pairs)
    assert stopped.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "passed: one.whl with torch 2.11",
        "FAILED: one.whl with torch 2.12",
        "passed: one.whl with torch 2.13",
    ]
    wheels.test_all([pairs[0], pairs[2]])


@pytest.mark.parametrize("name", ["csrc/row.h", "powergrad_ext/alpha.py"])
def test_the_commit_tells_of_a_changed_file(tmp_path: Path, name: str) -> None:
    package = tmp_path / "powergrad_ext" / "_build"
    changed = tmp_path / name
    for folder in (package, changed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "powergrad_ext" / "_build" / "commit.py", package)
    changed.touch()
    someone = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for command in (["init", "-q"], ["add", "."], [*someone, "commit", "-qm", "of the test"]):
        run("git", *command, cwd=tmp_path)

    def commit() -> str:
        code = "import commit; print(commit.commit())"
        return run(sys.executable, "-B", "-c", code, cwd=package).stdout.strip()

    before = commit()
    assert re.fullmatch("[0-9a-f]{12}", before)
    changed.write_text("changed")
    assert commit() == f"{before}+"
