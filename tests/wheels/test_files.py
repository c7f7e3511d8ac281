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
BINDING = re.compile(r"_C_torch(\d+\.\d+)\.")
OTHER_SOURCES = b"0123456789ab"


def symbols(library: Path, *options: str) -> set[str]:
    """The names, without versions, that nm prints."""
    command = ["nm", "--dynamic", *options, library]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in printed.splitlines()}


def torches() -> dict[str, Path]:
    """Of each minor version the folder of libraries: of this torch, and those the wheels are of."""
    found = {_build.minor_version(torch.__version__): Path(torch.__path__[0], "lib")}
    for folder in (REPOSITORY / "build" / "wheels").glob("torch-*/torch/lib"):
        found.setdefault(
            _build.minor_version(folder.parents[1].name.removeprefix("torch-")), folder
        )
    return found


def test_no_symbol_of_any_torch_is_missing(installed: Installed) -> None:
    """Of a binding's own torch. In another's some are, or this could not fail."""
    libraries = torches()
    defined = {
        minor: set().union(*(symbols(path, "--defined-only") for path in folder.glob("lib*.so")))
        for minor, folder in libraries.items()
    }
    anything = set().union(*defined.values())
    bindings = {
        match[1]: path for path in installed.native.iterdir() if (match := BINDING.match(path.name))
    }
    assert bindings
    for minor, path in bindings.items():
        if minor in defined:
            needed = symbols(path, "--undefined-only")
            assert needed & anything
            # What torch's namespaces hold, as the compiler writes it: c10, at, torch.
            of_torch = {name for name in needed if re.match(r"_ZN?K?(3c10|2at|5torch)", name)}
            assert of_torch
            assert (needed & anything | of_torch) - defined[minor] == set()


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


def test_kernels_of_other_sources_are_refused(altered: Installed) -> None:
    path = altered.native / _build.CPU_LIBRARY
    version = _version(path)
    path.write_bytes(path.read_bytes().replace(version, OTHER_SOURCES))
    done = altered.run("import powergrad_ext", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
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
