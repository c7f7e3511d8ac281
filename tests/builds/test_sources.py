"""The source list and the flags, which every build takes from one place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import REPOSITORY

from powergrad_ext import _build


@pytest.fixture(autouse=True)
def no_choice_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of who runs the tests, which `make test-torch` is."""
    monkeypatch.delenv("POWERGRAD_CUDA", raising=False)


def test_every_listed_file_exists_and_every_file_is_listed() -> None:
    csrc = REPOSITORY / "csrc"
    listed = {path for group in _build.read_sources(csrc).values() for path in group}
    assert listed == {path for path in csrc.rglob("*") if path.suffix in {".cpp", ".cu"}}


def test_groups_and_comments(tmp_path: Path) -> None:
    (tmp_path / "sources.txt").write_text("# kernels\ncpu cpu/a.cpp # one\n\ntorch torch/b.cpp\n")
    assert _build.read_sources(tmp_path) == {
        "cpu": [tmp_path / "cpu/a.cpp"],
        "cuda": [],
        "torch": [tmp_path / "torch/b.cpp"],
        "torch_cuda": [],
    }


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("gpu a.cu", "gpu a.cu"),
        ("cpu", "cpu"),
        ("cpu a.cpp b.cpp", "a.cpp b.cpp"),
        ("cpu cpu/a.cpp\ntorch torch/a.cpp", "a.cpp is listed twice"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "sources.txt").write_text(line)
    with pytest.raises(ValueError, match=complaint):
        _build.read_sources(tmp_path)


def test_flags_name_no_instruction_set_and_no_standard() -> None:
    recipe = _build.recipe(REPOSITORY / "csrc")
    for flag in recipe.cxx_flags + recipe.nvcc_flags:
        assert not flag.startswith(("-m", "-std"))


def test_the_parallel_loop_is_compiled_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++")
    assert _build.openmp_flags() == ["-fopenmp"]


def test_cuda_is_left_out_without_cuda_sources_or_without_cuda_in_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.txt").write_text("cpu a.cpp\ncuda b.cu\ntorch_cuda c.cpp\n")
    monkeypatch.setattr("torch.version.cuda", None)
    assert _build.recipe(tmp_path).sources == [tmp_path / "a.cpp"]


def test_cuda_is_left_out_where_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.txt").write_text("cpu a.cpp\ncuda b.cu\ntorch_cuda c.cpp\n")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _build.recipe(tmp_path).with_cuda
    monkeypatch.setenv("POWERGRAD_CUDA", "OFF")
    recipe = _build.recipe(tmp_path)
    assert not recipe.with_cuda
    assert recipe.sources == [tmp_path / "a.cpp"]


def test_cuda_is_built_where_torch_has_it_and_a_toolkit_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.txt").write_text("cpu a.cpp\ncuda b.cu\ntorch_cuda c.cpp\n")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;12.0+PTX")
    recipe = _build.recipe(tmp_path)
    assert recipe.with_cuda
    assert [path.name for path in recipe.sources] == ["a.cpp", "b.cu", "c.cpp"]
    assert "-DPOWERGRAD_WITH_CUDA" in recipe.cxx_flags
    assert "-DPOWERGRAD_CUDA_ARCHITECTURES=9.0,12.0+PTX" in recipe.cxx_flags


@pytest.mark.parametrize(("toolkit", "newest"), [("12.6", "9.0+PTX"), ("13.0", "12.0+PTX")])
def test_cuda_is_built_for_all_architectures_that_the_toolkit_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolkit: str, newest: str
) -> None:
    (tmp_path / "sources.txt").write_text("cuda b.cu\n")
    monkeypatch.setattr("torch.version.cuda", toolkit)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    (macro,) = (flag for flag in _build.recipe(tmp_path).cxx_flags if "ARCHITECTURES" in flag)
    assert macro.split("=")[1].split(",")[:1] == ["8.0"]
    assert macro.endswith(newest)


def test_the_environment_is_settled_only_while_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.txt").write_text("cuda b.cu\n")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(_build, "DEFAULT_CUDA_FOLDER", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    before = dict(os.environ)
    recipe = _build.recipe(tmp_path)
    assert dict(os.environ) == before
    with _build.environment_of(recipe):
        assert os.environ["CUDA_HOME"] == str(tmp_path)
        assert os.environ["TORCH_CUDA_ARCH_LIST"] == _build.DEFAULT_CUDA_ARCHITECTURES
    assert dict(os.environ) == before
