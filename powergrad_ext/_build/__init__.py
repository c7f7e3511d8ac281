"""What to compile and how: one answer for setup.py, the build on first import and the wheels.

Three libraries: the CPU kernels, the CUDA kernels, and a binding for one minor version of torch and
one Python, which opens the other two. They end up in one folder.

setup.py imports this package without the one around it, which needs the binding that is yet to be
built. So nothing here imports the outer one, and torch is imported only where it is asked.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

from . import ninja
from .ninja import Library, Object
from .tools import code_for, compiler, cuda_architectures, cuda_toolkit, openmp_flags

# No instruction set is named: each kernel file opens its own target region, so one set of flags
# gives a library for any CPU. No product is fused with a sum but where the source says so: the
# compiler would do it in one copy of a loop and not in another, and a row's bits would depend on
# which of them it falls to.
CXX_FLAGS = ["-O3", "-DNDEBUG", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
# No fast maths, which the promised accuracy has no room for. The threads take an architecture each.
NVCC_FLAGS = ["-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=4"]
STANDARD = "-std=c++17"

NATIVE = "native"  # the folder of the libraries in the package
CPU_LIBRARY = "libpowergrad_kernels.so"
CUDA_LIBRARY = "libpowergrad_cuda.so"
BINDING = re.compile(r"_C_torch(\d+\.\d+)\.")  # how the file name of one begins
# The sources as a link in the folder of object files. So no command, and nothing that is compiled,
# names the place where they lie, and object files can be copied from one such place to another.
SOURCES = Path("sources")
EXPORTS = f"-Wl,--version-script={SOURCES / 'exports.map'}"
SOURCE_GROUPS = ("cpu", "cuda", "torch", "device", "module")


class Torch(NamedTuple):
    """The headers and libraries that a binding is compiled and linked with."""

    folder: Path  # of the package
    minor: str  # such as "2.13"

    @property
    def standard(self) -> str:
        """The oldest C++ that its headers are valid in: a later one needs a later libstdc++."""
        needs_20 = [int(number) for number in self.minor.split(".")] >= [2, 14]
        return "-std=c++20" if needs_20 else STANDARD


class Python(NamedTuple):
    """The Python that a binding is for."""

    include: Path
    suffix: str  # of its extension modules


def source_folder() -> Path:
    """The folder csrc: inside the package when it is installed, beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "csrc"
    return installed if installed.is_dir() else package.parent / "csrc"


def read_sources(csrc: Path) -> dict[str, list[Path]]:
    """The files of each group in csrc/sources.txt, whose lines are `group path` or `# comment`.

    Raises:
        ValueError: a line that is neither.
    """
    groups: dict[str, list[Path]] = {group: [] for group in SOURCE_GROUPS}
    for line in (csrc / "sources.txt").read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in groups:
            raise ValueError(
                f"sources.txt: expected one of {SOURCE_GROUPS} and a path, got {line!r}"
            )
        group, path = words
        groups[group].append(csrc / path)
    return groups


def _linked(csrc: Path, group: str) -> list[Path]:
    """The files of a group, as they are called while compiling."""
    return [SOURCES / path.relative_to(csrc) for path in read_sources(csrc)[group]]


def libraries(csrc: Path, *, in_place: bool) -> list[Library]:
    """Those for the torch and the Python that run this.

    In place, files are changed, compiled again and profiled: so machine code names their lines,
    which make most of its size.
    """
    torch, python = installed_torch(), running_python()
    built = [cpu_library(csrc), binding(csrc, torch, python)]
    toolkit = wanted_toolkit()
    if toolkit is not None and read_sources(csrc)["cuda"]:
        built.append(cuda_library(csrc, toolkit, *(["-lineinfo"] if in_place else [])))
    return built


def wanted_toolkit() -> Path | None:
    """The CUDA toolkit, if there is one and the torch that runs this has CUDA.

    POWERGRAD_CUDA=OFF leaves the CUDA kernels out as well, as for CMake: they take most of the time
    of a build, and a CUDA build of torch may be wanted for its CPU half only.
    """
    import torch

    if torch.version.cuda is None or os.environ.get("POWERGRAD_CUDA") == "OFF":
        return None
    return cuda_toolkit()


def cpu_library(csrc: Path) -> Library:
    """The CPU kernels, which need neither torch nor the C++ library."""
    objects = [_object(source, _cxx()) for source in _linked(csrc, "cpu")]
    return Library(CPU_LIBRARY, objects, [EXPORTS])


def cuda_library(csrc: Path, toolkit: Path, *flags: str) -> Library:
    """The CUDA kernels with a CUDA runtime of their own, so that any torch's will do beside it.

    `flags` are further ones for nvcc.
    """
    architectures = cuda_architectures(toolkit)
    names = ",".join(architectures)
    cxx = [*_cxx(toolkit / "include"), f'-DPOWERGRAD_CUDA_ARCHITECTURES="{names}"']
    nvcc = [str(toolkit / "bin" / "nvcc"), STANDARD, *NVCC_FLAGS, *flags, f"-I{SOURCES}"]
    nvcc += [flag for name in architectures for flag in code_for(name)]
    if len(compiler()) == 1:
        nvcc.append(f"--compiler-bindir={compiler()[0]}")
    objects = [
        _object(source, nvcc if source.suffix == ".cu" else cxx)
        for source in _linked(csrc, "cuda")
    ]
    folders = [f"-L{toolkit / name}" for name in ("lib64", "lib")]
    return Library(
        CUDA_LIBRARY,
        objects,
        [*folders, "-lcudart_static", "-lpthread", "-ldl", "-lrt", EXPORTS],
    )


def binding(csrc: Path, torch: Torch, python: Python) -> Library:
    """The operators and the Python module.

    What can be is compiled as one file, which takes a third of the time.
    """
    headers = torch.folder / "include"
    include = (headers, headers / "torch" / "csrc" / "api" / "include")
    command = [*_cxx(*include), torch.standard, *openmp_flags()]  # the last standard counts
    folder = f"torch-{torch.minor}"
    parts = {source.name: [source] for source in _linked(csrc, "device")}
    parts["torch"] = _linked(csrc, "torch")
    objects = [
        Object(f"{folder}/{name}.o", sources, command) for name, sources in parts.items() if sources
    ]
    in_python = [*command, "-isystem", str(python.include)]
    objects += [
        Object(f"{folder}/{source.name}{python.suffix}.o", [source], in_python)
        for source in _linked(csrc, "module")
    ]
    flags = [f"-L{torch.folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch_python", "-ldl"]
    return Library(
        binding_name(torch.minor, python.suffix), objects, [*flags, "-Wl,-rpath,$ORIGIN"]
    )


def binding_name(torch_minor: str, python_suffix: str) -> str:
    """The file name of a binding."""
    return f"_C_torch{torch_minor}{python_suffix}"


def minor_version(version: str) -> str:
    """Of "2.13.0+cpu": "2.13"."""
    return ".".join(re.findall(r"\d+", version)[:2])


def installed_torch() -> Torch:
    """The torch of the Python that runs this."""
    import torch

    return Torch(Path(torch.__path__[0]), minor_version(torch.__version__))


def running_python() -> Python:
    """The Python that runs this."""
    return Python(Path(sysconfig.get_path("include")), EXTENSION_SUFFIXES[0])


def _cxx(*others: Path) -> list[str]:
    """The command of a C++ source; the folder of object files has the generated header."""
    include = [word for folder in others for word in ("-isystem", str(folder))]
    return [*compiler(), STANDARD, *CXX_FLAGS, f"-I{SOURCES}", "-I.", *include]


def _object(source: Path, command: list[str]) -> Object:
    return Object(f"{source.relative_to(SOURCES)}.o", [source], command)


def build(
    what: list[Library],
    csrc: Path,
    objects: Path,
    output: Path,
    *,
    linker: list[str] | None = None,
    quiet: bool = False,
) -> None:
    """Brings the libraries in `output` up to date; MAX_JOBS limits the compilers at work.

    Raises:
        ninja.BuildError: what the compiler or the linker says, if quiet.
    """
    # A hash of all that the libraries of kernels and their binding have in common.
    version = hash_of_files(csrc, leave_out="torch")
    ninja.write(objects / "sources_version.h", f'#define POWERGRAD_SOURCES "{version}"\n')
    ninja.link(objects / SOURCES, csrc)
    rules = ninja.rules(what, os.path.relpath(output, objects), linker or compiler())
    ninja.write(objects / "build.ninja", rules)
    ninja.run(objects, quiet=quiet)


def hash_of_files(folder: Path, leave_out: str | None = None) -> str:
    """A short hash of the files in a folder, without one folder in it."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*.*") if path.suffix != ".pyc"):
        name = path.relative_to(folder)
        if name.parts[0] != leave_out:
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
