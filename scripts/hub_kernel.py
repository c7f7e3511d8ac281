"""Lays wheels out as a kernel for the Hugging Face hub, which `kernels.get_kernel` loads.

    python scripts/hub_kernel.py OUTPUT dist/*.whl

There is a folder for each minor version of torch and each backend (build/torch213-cxx11-cpu-...),
with the package, the kernels, and the bindings for all Pythons. A CUDA backend's name has the
version of CUDA that torch was built for; the kernels bring their own, so all of them get the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "powergrad_ext"))

import _build

CUDA_VERSIONS = ["130", "132"]
KERNEL = "powergrad_ext"
# The package imports itself by its name, and its operators can be registered once in a process.
INIT = '''"""powergrad_ext as a kernel of the hub: the package that lies beside this file."""

import sys
from pathlib import Path

if "powergrad_ext" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    try:
        import powergrad_ext
    finally:
        sys.path.pop(0)
from powergrad_ext import *  # noqa: F403
from powergrad_ext import __version__
'''


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("wheels", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        for wheel in options.wheels:  # their libraries have names of their own for each Python
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch)
        package = Path(scratch) / "powergrad_ext"
        version = int(options.wheels[0].name.split("-")[1].partition(".")[0])
        native = package / _build.NATIVE
        bindings = (_build.BINDING.match(path.name) for path in native.iterdir())
        for minor in sorted({match[1] for match in bindings if match}):
            backends = ["cpu"]
            if (native / _build.CUDA_LIBRARY).exists():
                backends += [f"cu{cuda}" for cuda in CUDA_VERSIONS]
            for backend in backends:
                lay_out(package, options.output, minor, backend, version)


def lay_out(package: Path, output: Path, torch_minor: str, backend: str, version: int) -> None:
    """One variant, without what other variants need and without sources: nothing is compiled."""
    system = f"{platform.machine()}-{sys.platform}"
    folder = output / "build" / f"torch{torch_minor.replace('.', '')}-cxx11-{backend}-{system}"

    def others(parent: str, names: list[str]) -> list[str]:
        left_out = {"csrc"} | ({_build.CUDA_LIBRARY} if backend == "cpu" else set())
        found = (_build.BINDING.match(name) for name in names)
        left_out |= {match.string for match in found if match and match[1] != torch_minor}
        return [name for name in names if name in left_out]

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(package, folder / "powergrad_ext", ignore=others)
    (folder / "__init__.py").write_text(INIT)
    metadata = {
        "id": f"{KERNEL}_{backend}_{version}",
        "name": KERNEL.replace("_", "-"),
        "version": version,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu" if backend == "cpu" else "cuda"},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


if __name__ == "__main__":
    main()
