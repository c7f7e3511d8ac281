"""The compilers, and what else a build needs of the machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

DEFAULT_CUDA_FOLDER = "/usr/local/cuda"
# The last one also as PTX, for what comes after it.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
OLD_TOOLKIT_ARCHITECTURES = "8.0;9.0+PTX"  # before CUDA 12.8


def compiler() -> list[str]:
    """The C++ compiler, as the words of a command."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def openmp_flags() -> list[str]:
    """What makes at::parallel_for parallel: it is a template, and serial unless OpenMP is on.

    The flag is for compiling only. The symbols it asks for are found at run time in the GNU OpenMP
    library that torch has loaded, so threads are torch's own. Clang calls another library, whose
    threads torch's would not recognise: there the kernels stay on one thread.
    """
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True)
    if "Free Software Foundation" in version.stdout:
        return ["-fopenmp"]
    print(
        f"powergrad_ext: {' '.join(compiler())} is not GCC: the CPU kernels will use one thread",
        file=sys.stderr,
    )
    return []


def missing_tool() -> str | None:
    """What is needed to compile and is not here, and how to get it; None if all is here."""
    program = compiler()[0]
    if shutil.which(program) is None:
        return (
            f"a C++ compiler, and {program} is not found: install g++ (on Debian and Ubuntu: "
            "apt-get install g++) or set CXX"
        )
    if find_ninja() is None:
        return "ninja, which is not found: pip install ninja"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return (
            "Python's headers, which are not found: install them (on Debian and Ubuntu: "
            "apt-get install python3-dev)"
        )
    return None


def find_ninja() -> str | None:
    """The path of ninja; it may lie beside a Python that was not activated."""
    return shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))


def cuda_toolkit() -> Path | None:
    """The folder of the CUDA toolkit; None if there is none.

    The usual place goes before the first nvcc on PATH, which a wrapper script may be.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    candidates = [Path(named)] if named else [Path(DEFAULT_CUDA_FOLDER)]
    if not named and on_path is not None:
        candidates.append(Path(on_path).resolve().parents[1])
    return next((folder for folder in candidates if (folder / "bin" / "nvcc").exists()), None)


def cuda_architectures(toolkit: Path) -> list[str]:
    """What to compile for: as TORCH_CUDA_ARCH_LIST says, or all that are in use.

    Raises:
        ValueError: a name in the list that is not one like 9.0, 9.0a or 9.0+PTX.
    """
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not named:
        command = [str(toolkit / "bin" / "nvcc"), "--version"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        release = re.search(r"release (\d+)\.(\d+)", told)
        newer = release is not None and (int(release[1]), int(release[2])) >= (12, 8)
        named = DEFAULT_CUDA_ARCHITECTURES if newer else OLD_TOOLKIT_ARCHITECTURES
    names = re.split("[ ;,]+", named.strip(" ;,"))
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST: expected names like 9.0 or 9.0+PTX, got {name!r}"
            )
    return names


def code_for(architecture: str) -> list[str]:
    """The flags for one architecture, and for what comes after it if it ends in +PTX."""
    number = architecture.removesuffix("+PTX").replace(".", "")
    kinds = ["sm", "compute"] if architecture.endswith("+PTX") else ["sm"]
    return [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
