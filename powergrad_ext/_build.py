"""What to compile and how: one answer for setup.py and for the build on first import.

setup.py loads this file by its path, since importing the package needs the module that setup.py is
about to build. So nothing here imports the package, and torch is imported only where it is asked.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

# No instruction set is named: each kernel file opens its own target region, so one set of flags
# gives a module for any CPU. No C++ standard either: torch passes the one its headers need.
# No product is fused with a sum but where the source says so: the compiler would do it in one copy
# of a loop and not in another, and a row's bits would depend on which of them it falls to.
CXX_FLAGS = ["-O3", "-DNDEBUG", "-g0", "-fvisibility=hidden", "-ffp-contract=off"]
# No fast maths, which the promised accuracy has no room for. Lines, for profilers and sanitizers.
# The threads take an architecture each.
NVCC_FLAGS = ["-O3", "-lineinfo", "-Xcompiler=-fvisibility=hidden", "--threads=4"]

COMMIT_FILE = "COMMIT"
SOURCE_GROUPS = ("cpu", "cuda", "torch", "torch_cuda")
DEFAULT_CUDA_FOLDER = "/usr/local/cuda"
# The last one also as PTX, for what comes after it.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
OLD_TOOLKIT_ARCHITECTURES = "8.0;9.0+PTX"  # before CUDA 12.8


class Recipe(NamedTuple):
    """Everything a compiler has to be told."""

    sources: list[Path]
    include_folder: Path
    cxx_flags: list[str]
    nvcc_flags: list[str]
    with_cuda: bool
    environment: dict[str, str]  # variables that torch's build reads, and would guess otherwise


def source_folder() -> Path:
    """The folder csrc: inside the package when it is installed, beside it in a source tree."""
    package = Path(__file__).resolve().parent
    installed = package / "csrc"
    return installed if installed.is_dir() else package.parent / "csrc"


def commit() -> str | None:
    """The commit that this package is of, with a plus where files have been changed since.

    As recorded when it was packed, or of the repository that it lies in; None where nobody knows.
    """
    package = Path(__file__).resolve().parent
    recorded = package / COMMIT_FILE
    if recorded.exists():
        return recorded.read_text(encoding="utf-8").strip()
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != package.parent:
            return None
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "csrc", package.name)
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    folder = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def record_commit(package: Path) -> None:
    """Write the commit, if it is known, into a folder that is to be packed."""
    if known := commit():
        (package / COMMIT_FILE).write_text(f"{known}\n", encoding="utf-8")


def read_sources(csrc: Path) -> dict[str, list[Path]]:
    """The files of each group in csrc/sources.txt, whose lines are `group path` or `# comment`.

    Raises:
        ValueError: a line that is neither, or two files of one name (the build on first import
            puts all object files into one folder).
    """
    groups: dict[str, list[Path]] = {group: [] for group in SOURCE_GROUPS}
    names: set[str] = set()
    for line in (csrc / "sources.txt").read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in groups:
            raise ValueError(
                f"sources.txt: expected one of {SOURCE_GROUPS} and a path, got {line!r}"
            )
        group, path = words
        if Path(path).name in names:
            raise ValueError(f"sources.txt: {Path(path).name} is listed twice")
        names.add(Path(path).name)
        groups[group].append(csrc / path)
    return groups


def recipe(csrc: Path) -> Recipe:
    """How to build the sources in csrc for the torch that is installed."""
    groups = read_sources(csrc)
    cuda = _cuda_environment() if groups["cuda"] else None
    sources = groups["cpu"] + groups["torch"]
    macros = []
    if cuda is not None:
        sources += groups["cuda"] + groups["torch_cuda"]
        architectures = ",".join(re.split("[ ;]+", cuda["TORCH_CUDA_ARCH_LIST"]))
        macros = ["-DPOWERGRAD_WITH_CUDA", f"-DPOWERGRAD_CUDA_ARCHITECTURES={architectures}"]
    environment = _ninja_environment() | (cuda or {})
    return Recipe(sources, csrc, CXX_FLAGS + macros, NVCC_FLAGS, cuda is not None, environment)


@contextmanager
def environment_of(recipe: Recipe) -> Iterator[None]:
    """The recipe's environment, while it is built; afterwards the process has its own again."""
    before = {name: os.environ.get(name) for name in recipe.environment}
    os.environ.update(recipe.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def compiler() -> list[str]:
    """The C++ compiler that torch will call, as the words of a command."""
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
    if shutil.which("ninja") is None and _ninja_folder() is None:
        return "ninja, which is not found: pip install ninja"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return (
            "Python's headers, which are not found: install them (on Debian and Ubuntu: "
            "apt-get install python3-dev)"
        )
    return None


def _ninja_folder() -> str | None:
    """Where ninja is beside a Python that was not activated; None if it is on PATH or nowhere."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("ninja") is None and shutil.which("ninja", path=scripts) is not None
    return scripts if found else None


def _ninja_environment() -> dict[str, str]:
    folder = _ninja_folder()
    if folder is None:
        return {}
    return {"PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}


def _cuda_environment() -> dict[str, str] | None:
    """Where the toolkit is and what to compile for; None if torch or the machine has no CUDA.

    None as well where POWERGRAD_CUDA=OFF says so, as to CMake: the CUDA kernels take most of the
    time of a build, and a CUDA build of torch may be wanted for its CPU half only. To be set before
    torch.utils.cpp_extension is imported: torch takes the folder of the first nvcc on PATH for the
    toolkit, which a wrapper script misleads, and without an architecture list it fails on a machine
    that has no GPU.
    """
    import torch

    if torch.version.cuda is None or os.environ.get("POWERGRAD_CUDA") == "OFF":
        return None
    newer = [int(number) for number in torch.version.cuda.split(".")] >= [12, 8]
    default = DEFAULT_CUDA_ARCHITECTURES if newer else OLD_TOOLKIT_ARCHITECTURES
    settled = {"TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or default}
    if os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return settled
    if Path(DEFAULT_CUDA_FOLDER).is_dir():
        return settled | {"CUDA_HOME": DEFAULT_CUDA_FOLDER}
    return settled if shutil.which("nvcc") is not None else None
