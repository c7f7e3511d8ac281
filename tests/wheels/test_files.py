"""The libraries of a wheel: what they need, and what is said where they do not belong together."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from installation import Installed

from powergrad_ext import _build

REPOSITORY = Path(__file__).resolve().parents[2]
OTHER_SOURCES = b"0123456789ab"


def symbols(library: Path | str, *options: str) -> set[str]:
    """The names, without versions, that nm prints; of undefined ones those that must be found."""
    command = ["nm", "--dynamic", *options, library]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split()[-2:] for line in printed.splitlines()]
    return {name.partition("@")[0] for kind, name in rows if kind != "w"}


def torches() -> dict[str, Path]:
    """Of each minor version the folder of libraries: of this torch, and those the wheels are of."""
    found = {_build.minor_version(torch.__version__): Path(torch.__path__[0], "lib")}
    for folder in (REPOSITORY / "build" / "wheels").glob("torch-*/torch/lib"):
        found.setdefault(
            _build.minor_version(folder.parents[1].name.removeprefix("torch-")), folder
        )
    return found


@pytest.fixture(scope="module")
def of_the_system() -> set[str]:
    """What the libraries define that are mapped into this process beside torch's."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "r-xp" in line}
    names = r"/(lib(c|m|dl|gcc_s|stdc\+\+|gomp)|ld-linux-.*)[.-][^/]*$"
    found = {path for path in paths if re.search(names, path)}
    assert any("libstdc++" in path for path in found)
    return set().union(*(symbols(path, "--defined-only") for path in found))


def test_no_symbol_of_any_torch_is_missing(installed: Installed, of_the_system: set[str]) -> None:
    """Of those that a binding needs of its own torch."""
    found = (_build.BINDING.match(path.name) for path in installed.native.iterdir())
    bindings = {match[1]: installed.native / match.string for match in found if match}
    folders = torches()
    assert bindings.keys() & folders.keys()
    for minor in bindings.keys() & folders.keys():
        needed = symbols(bindings[minor], "--undefined-only") - of_the_system
        needed = {name for name in needed if not re.match("_?Py", name)}  # of who loads it
        assert needed
        for library in folders[minor].glob("lib*.so*"):
            needed -= symbols(library, "--defined-only")
        assert needed == set(), minor


def test_kernels_need_the_c_library_only(installed: Installed) -> None:
    command = ["readelf", "--dynamic", installed.native / _build.CPU_LIBRARY]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*)\]", printed)) <= {"libc.so.6", "libm.so.6"}


@pytest.mark.parametrize("library", [_build.CPU_LIBRARY, _build.CUDA_LIBRARY])
def test_a_library_gives_away_one_function(installed: Installed, library: str) -> None:
    path = installed.native / library
    if not path.exists():
        pytest.skip("the wheel has no CUDA kernels")
    name = "powergrad_cpu_library" if library == _build.CPU_LIBRARY else "powergrad_cuda_library"
    assert symbols(path, "--defined-only") == {name}


def binding_of(installed: Installed) -> Path:
    """That of the torch that runs the tests."""
    minor, suffix = _build.minor_version(torch.__version__), _build.running_python().suffix
    return installed.native / _build.binding_name(minor, suffix)


def last_line_of_importing(installed: Installed) -> str:
    done = installed.run("import powergrad_ext", check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_wheel_without_this_torch_is_explained(altered: Installed) -> None:
    for path in altered.native.iterdir():
        if _build.BINDING.match(path.name):
            path.unlink()
    binding_of(altered).with_name("_C_torch2.99.so").touch()
    line = last_line_of_importing(altered)
    assert line.startswith(
        "ImportError: powergrad_ext was installed with bindings for torch 2.99; "
    )
    assert "has to be compiled, which needs a C++ compiler" in line


def test_a_binding_of_another_torch_is_explained(altered: Installed) -> None:
    """Under the name of this one's, whether or not this torch lacks a symbol that it needs."""
    own = binding_of(altered)
    suffix = _build.running_python().suffix
    others = [path.read_bytes() for path in altered.native.glob(f"_C_torch*{suffix}")]
    others.remove(own.read_bytes())
    # One that needs the same symbols, as those of two later versions may.
    renamed = _build.binding_name("9.99", suffix)
    others.append(own.read_bytes().replace(own.name.encode(), renamed.encode()))
    for other in others:
        own.write_bytes(other)
        line = last_line_of_importing(altered)
        assert line.startswith(f"ImportError: {own.name} was built for another PyTorch than ")
        assert "install powergrad_ext again" in line


@pytest.mark.parametrize("kept", [0.3, 0.999])
@pytest.mark.parametrize("library", ["", _build.CPU_LIBRARY, _build.CUDA_LIBRARY])
def test_a_library_that_is_cut_off_is_named(altered: Installed, library: str, kept: float) -> None:
    path = altered.native / library if library else binding_of(altered)
    if not path.exists():
        pytest.skip("the wheel has no CUDA kernels")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    line = last_line_of_importing(altered)
    assert line.startswith(f"ImportError: {path} is incomplete (")
    assert "install powergrad_ext again" in line


def test_kernels_of_other_sources_are_refused(altered: Installed) -> None:
    path = altered.native / _build.CPU_LIBRARY
    version = _version(path)
    path.write_bytes(path.read_bytes().replace(version, OTHER_SOURCES))
    assert last_line_of_importing(altered) == (
        "ImportError: libpowergrad_kernels.so was not built from the sources of the module beside "
        f"it ({OTHER_SOURCES.decode()}, not {version.decode()}): install powergrad_ext again"
    )


def test_cuda_kernels_of_other_sources_are_refused(altered: Installed) -> None:
    path = altered.native / _build.CUDA_LIBRARY
    if not path.exists():
        pytest.skip("the wheel has no CUDA kernels")
    path.write_bytes(path.read_bytes().replace(_version(path), OTHER_SOURCES))
    done = altered.run("from powergrad_ext._native import _C; _C.cuda_architectures()", check=False)
    assert done.returncode == 1
    assert "libpowergrad_cuda.so was not built from the sources of the module" in done.stderr


def _version(path: Path) -> bytes:
    """The hash that the library carries."""
    found = set(re.findall(rb"(?<=\0)[0-9a-f]{12}(?=\0)", path.read_bytes()))
    assert len(found) == 1
    return bytes(found.pop())


def test_the_cuda_kernels_load_without_a_driver(installed: Installed) -> None:
    if not (installed.native / _build.CUDA_LIBRARY).exists():
        pytest.skip("the wheel has no CUDA kernels")
    code = "from powergrad_ext._native import _C; print(*_C.cuda_architectures())"
    assert installed.run(code).stdout.split()
