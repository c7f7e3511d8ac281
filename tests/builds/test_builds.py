"""The three builds of the real extension, all from one source distribution."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, run

from powergrad_ext import _build

pytestmark = pytest.mark.slow

# Uses the operator and says where its module is and whether that counts as installed.
STEP = """
import torch
import powergrad_ext as pg
from powergrad_ext import _native

logits = torch.randn(4, 10, requires_grad=True)
target = torch.arange(4)
pg.cross_entropy(logits, target, alpha=0.3).backward()
expected = torch.softmax(0.3 * logits.detach(), 1) - torch.nn.functional.one_hot(target, 10)
torch.testing.assert_close(logits.grad, expected / 4)
print(_native.INSTALLED, _native._C.__file__)
"""


def step(python: str | Path, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return run(python, "-c", STEP, cwd=folder, TORCH_EXTENSIONS_DIR=cache)


def files_of_csrc() -> set[str]:
    csrc = REPOSITORY / "csrc"
    return {str(path.relative_to(csrc)) for path in csrc.rglob("*") if path.is_file()}


def test_the_source_distribution_is_complete(source_tree: Path) -> None:
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CMakeLists.txt", "Makefile"):
        assert (source_tree / name).is_file()
    for path in files_of_csrc():
        assert (source_tree / "csrc" / path).is_file()
    assert list(source_tree.glob("tests/cpu/*.cpp"))
    assert not list(source_tree.rglob("*.so"))


def test_the_wheel_holds_libraries_sources_and_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        headers = archive.read(metadata).decode().splitlines()
    assert {f"powergrad_ext/csrc/{path}" for path in files_of_csrc()} <= names
    assert {"powergrad_ext/py.typed", "powergrad_ext/_C.pyi"} <= names
    native = {name.split("/")[-1] for name in names if name.startswith("powergrad_ext/native/")}
    minor, suffix = _build.minor_version(torch.__version__), _build.running_python().suffix
    assert native - {_build.CUDA_LIBRARY} == {
        _build.CPU_LIBRARY,
        _build.binding_name(minor, suffix),
    }
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"powergrad_ext"}
    assert {
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.10",
        "Requires-Dist: torch>=2.11",
    } <= set(headers)


def test_files_of_an_earlier_build_are_not_packed(tmp_path: Path) -> None:
    """Such as libraries for another torch, CUDA kernels that are left out now, renamed modules."""
    package = tmp_path / "lib" / "powergrad_ext"
    native = package / _build.NATIVE
    old_module = package / "old_name.py"
    for path in (native / _build.CUDA_LIBRARY, old_module, tmp_path / "built" / _build.CPU_LIBRARY):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    command = ["setup.py", "build", f"--build-lib={package.parent}"]
    command += ["build_ext", f"--built={tmp_path / 'built'}"]
    run(sys.executable, *command, cwd=REPOSITORY)
    assert [path.name for path in native.iterdir()] == [_build.CPU_LIBRARY]
    assert (package / "alpha.py").exists()
    assert not old_module.exists()


def test_the_version_is_the_package_s(wheel: Path) -> None:
    import powergrad_ext

    assert wheel.name.split("-")[1] == powergrad_ext.__version__


def test_the_commit_is_recorded(source_tree: Path, wheel: Path, installed: Path) -> None:
    """From a repository into the source distribution, from there into what is installed."""
    recorded = (source_tree / "powergrad_ext" / "COMMIT").read_text().strip()
    assert re.fullmatch(r"[0-9a-f]{12}", recorded)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("powergrad_ext/COMMIT").decode().strip() == recorded
    report = run(installed, "-m", "powergrad_ext", cwd=installed.parent)
    assert f", commit {recorded}\n" in report.stdout


def test_the_installed_module_is_used(installed: Path, tmp_path: Path) -> None:
    result = step(installed, tmp_path, tmp_path / "cache")
    assert result.stdout.startswith("True ")
    assert str(installed.parents[1]) in result.stdout
    assert result.stderr == ""
    assert not (tmp_path / "cache").exists()


def test_a_source_tree_compiles_itself_once(source_tree: Path, extension_cache: Path) -> None:
    first = step(sys.executable, source_tree, extension_cache)
    assert first.stdout.startswith("False ")
    assert str(extension_cache) in first.stdout
    second = step(sys.executable, source_tree, extension_cache)
    assert second.stdout == first.stdout
    assert second.stderr == ""


def test_an_installed_package_without_its_libraries_is_the_same_source(
    installed: Path, source_tree: Path, extension_cache: Path, tmp_path: Path
) -> None:
    """Its sources lead to the very folder that the source tree's were compiled into."""
    from_source = step(sys.executable, source_tree, extension_cache)
    (native,) = installed.parents[1].rglob("powergrad_ext/native")
    native.rename(tmp_path / "native")
    try:
        from_package = step(installed, tmp_path, extension_cache)
    finally:
        (tmp_path / "native").rename(native)
    assert from_package.stdout == from_source.stdout


def test_cmake_compiles_the_kernels_as_setup_does(cmake_build: Path, source_tree: Path) -> None:
    """Optimisation aside. `make build/core` tests what setup.py compiled."""
    commands = json.loads((cmake_build / "compile_commands.json").read_text())
    by_file = {step["file"]: step["command"].split() for step in commands}
    for source in _build.read_sources(source_tree / "csrc")["cpu"]:
        assert {*_build.CXX_FLAGS} - {"-O3", "-DNDEBUG", "-g0"} <= {*by_file[str(source)]}


def test_a_cpp_program_calls_the_operator(cmake_build: Path) -> None:
    result = run(cmake_build / "powergrad_example", cwd=cmake_build)
    assert "the gradient is softmax(alpha z) - target" in result.stdout


def test_a_second_registration_is_refused_and_does_not_abort(
    cmake_build: Path, installed: Path, tmp_path: Path
) -> None:
    library = cmake_build / "libpowergrad_operators.so"
    code = f"import torch; torch.ops.load_library({str(library)!r}); import powergrad_ext"
    result = run(installed, "-c", code, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert "has already registered torch.ops.powergrad" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("before", "variables", "sentence"),
    [
        ("", {"CXX": "no-such-compiler"}, "a C++ compiler, and no-such-compiler is not found"),
        ("sys.modules['torch'] = None", {}, "pip's build isolation hides it"),
        ("import setuptools; setuptools.__version__ = '66.1'", {}, "setuptools 77.0.3 or later"),
    ],
    ids=["compiler", "torch", "setuptools"],
)
def test_setup_says_what_is_missing(
    source_tree: Path, before: str, variables: dict[str, str], sentence: str
) -> None:
    setup = "sys.argv = ['setup.py', 'bdist_wheel']; runpy.run_path('setup.py')"
    code = f"import runpy, sys\n{before}\n{setup}"
    result = run(sys.executable, "-c", code, cwd=source_tree, check=False, **variables)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
