"""The source list and the commands, which every build takes from one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import REPOSITORY

from powergrad_ext import _build
from powergrad_ext._build import ninja, tools

CSRC = REPOSITORY / "csrc"
NVCC = """#!/bin/sh
echo "Cuda compilation tools, release {release}, V{release}.48"
"""


@pytest.fixture(autouse=True)
def no_choice_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of who runs the tests, which `make test-torch` is."""
    for name in ("CUDA_HOME", "CUDA_PATH", "POWERGRAD_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit in the usual place, the only one, and a torch for CUDA."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC.format(release="13.0"))
    nvcc.chmod(0o755)
    monkeypatch.setattr(tools, "DEFAULT_CUDA_FOLDER", str(tmp_path / "cuda"))
    monkeypatch.setattr("torch.version.cuda", "13.0")
    return tmp_path / "cuda"


def names(csrc: Path = CSRC) -> set[str]:
    return {library.name for library in _build.libraries(csrc, in_place=True)}


def test_every_listed_file_exists_and_every_file_is_listed() -> None:
    listed = {path for group in _build.read_sources(CSRC).values() for path in group}
    assert listed == {path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".cu"}}


def test_every_file_is_compiled_once(toolkit: Path) -> None:
    for in_place in (False, True):
        libraries = _build.libraries(CSRC, in_place=in_place)
        compiled = [path for part in libraries for made in part.objects for path in made.sources]
        assert len(compiled) == len(set(compiled))
        listed = {path for group in _build.read_sources(CSRC).values() for path in group}
        assert {CSRC / path.relative_to(_build.SOURCES) for path in compiled} == listed


def test_no_command_names_the_place_of_the_sources(toolkit: Path) -> None:
    """So object files that are copied beside the same sources elsewhere are up to date there."""
    rules = ninja.rules(_build.libraries(CSRC, in_place=False), "made", ["c++"])
    assert str(CSRC) not in rules


def test_groups_and_comments(tmp_path: Path) -> None:
    (tmp_path / "sources.txt").write_text("# kernels\ncpu cpu/a.cpp # one\n\ntorch torch/b.cpp\n")
    assert _build.read_sources(tmp_path) == {
        "cpu": [tmp_path / "cpu/a.cpp"],
        "cuda": [],
        "torch": [tmp_path / "torch/b.cpp"],
        "device": [],
        "module": [],
    }


@pytest.mark.parametrize("line", ["gpu a.cu", "cpu", "cpu a.cpp b.cpp"])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "sources.txt").write_text(line)
    with pytest.raises(ValueError, match=line):
        _build.read_sources(tmp_path)


def test_flags_name_no_instruction_set() -> None:
    for flag in _build.CXX_FLAGS + _build.NVCC_FLAGS:
        assert not flag.startswith("-m")


def test_the_parallel_loop_is_compiled_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++")
    assert tools.openmp_flags() == ["-fopenmp"]


def test_cuda_is_left_out_without_cuda_in_torch(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    assert _build.CUDA_LIBRARY not in names()


def test_cuda_is_left_out_where_the_environment_says_so(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _build.CUDA_LIBRARY in names()
    monkeypatch.setenv("POWERGRAD_CUDA", "OFF")
    assert _build.CUDA_LIBRARY not in names()


def test_cuda_is_left_out_without_nvcc(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (toolkit / "bin" / "nvcc").unlink()
    assert _build.CUDA_LIBRARY not in names()


def test_cuda_is_built_for_the_architectures_that_are_named(
    toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;12.0+PTX")
    library = _build.cuda_library(CSRC, toolkit)
    commands = {path.name: made.command for made in library.objects for path in made.sources}
    assert {flag for flag in commands["cross_entropy_forward.cu"] if "gencode" in flag} == {
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    }
    assert '-DPOWERGRAD_CUDA_ARCHITECTURES="9.0,12.0+PTX"' in commands["library.cpp"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST: .* got 'Hopper'"):
        _build.cuda_library(CSRC, toolkit)


@pytest.mark.parametrize("in_place", [False, True])
def test_machine_code_names_lines_where_it_is_developed(toolkit: Path, in_place: bool) -> None:
    """And not in what is installed, of which they would be most."""
    (library,) = (
        library
        for library in _build.libraries(CSRC, in_place=in_place)
        if library.name == _build.CUDA_LIBRARY
    )
    for made in library.objects:
        if made.sources[0].suffix == ".cu":
            assert ("-lineinfo" in made.command) == in_place


@pytest.mark.parametrize(("release", "newest"), [("12.6", "9.0+PTX"), ("13.0", "12.0+PTX")])
def test_cuda_is_built_for_all_architectures_that_the_toolkit_knows(
    toolkit: Path, release: str, newest: str
) -> None:
    (toolkit / "bin" / "nvcc").write_text(NVCC.format(release=release))
    architectures = tools.cuda_architectures(toolkit)
    assert architectures[0] == "8.0"
    assert architectures[-1] == newest


def test_a_change_of_kernels_is_another_version_and_one_of_the_binding_is_not(
    tmp_path: Path,
) -> None:
    for name in ("powergrad.h", "cuda/a.cu", "torch/b.cpp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def version() -> str:
        _build.build([], tmp_path, tmp_path.with_name("objects"), tmp_path.with_name("out"))
        return tmp_path.with_name("objects").joinpath("sources_version.h").read_text()

    before = version()
    assert re.fullmatch(r'#define POWERGRAD_SOURCES "[0-9a-f]{12}"\n', before)
    (tmp_path / "torch" / "b.cpp").write_text("changed")
    assert version() == before
    (tmp_path / "cuda" / "a.cu").write_text("changed")
    assert version() != before


def test_a_file_of_another_name_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("one")
    (tmp_path / "b.h").write_text("two")
    before = _build.hash_of_files(tmp_path)
    (tmp_path / "b.h").rename(tmp_path / "c.h")
    assert _build.hash_of_files(tmp_path) != before


def test_odd_paths_are_quoted() -> None:
    part = ninja.Object("a b.o", [Path("/a $b: c/d'e.cpp")], ["c++", "-Wl,-rpath,$ORIGIN"])
    rules = ninja.rules([ninja.Library("l.so", [part], [])], "out", ["c++"])
    assert "build a$ b.o: compile /a$ $$b$:$ c/d'e.cpp\n" in rules
    assert "'-Wl,-rpath,$$ORIGIN'" in rules
