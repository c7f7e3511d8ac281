"""Builds wheels that need no compiler where they are installed, for all torches that there are.

    python scripts/wheels.py [--python python3.11 ...] [--torch 2.13 ...] [--output dist] [--test]

One wheel for each Python that is found here; in each the CPU kernels, the CUDA kernels if there is
a CUDA toolkit (TORCH_CUDA_ARCH_LIST names the architectures), and a binding for every minor version
of torch that has a wheel for that Python. A torch's headers and libraries are taken from its wheel,
without what that depends on. All is linked for glibc 2.28 by zig, which serves as a linker only.
Beside them the source distribution. What lies in the tree and is not git's stops it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "powergrad_ext"))

import _build  # noqa: E402
from _build import commit, tools  # noqa: E402

CSRC = REPOSITORY / "csrc"
WORK = REPOSITORY / "build" / "wheels"
OBJECTS = REPOSITORY / "build" / "wheel-objects"
OLDEST_TORCH = (2, 11)
PYTHONS = [f"python3.{minor}" for minor in range(10, 15)]
GLIBC = (2, 28)
PLATFORM = "manylinux_{}_{}_{}".format(*GLIBC, platform.machine())
# An option of CUDA 13's nvcc; the wheel's own compression would leave twice as much. Drivers that
# cannot decompress it are too old for CUDA 13's runtime as well.
SMALL = "--compress-mode=size"
# A constraint that pip may be configured with is none for these wheels.
ENVIRONMENT = os.environ | {"PIP_CONSTRAINT": os.devnull}
# What describes a wheel or a source distribution.
GENERATED = re.compile(r"powergrad_ext/COMMIT|PKG-INFO|setup\.cfg|[^/]+\.(egg|dist)-info/.*")
# What of a torch's wheel a binding is compiled and linked with.
WANTED = re.compile(r"torch/(include/.*|lib/lib(c10|torch_cpu|torch_python)\.so)")
# zig's own: stubs of an old glibc. The C++ library is the compiler's, and torch brings it.
ZIG = [sys.executable, "-m", "ziglang", "cc", "-target"]
ZIG += ["{}-linux-gnu.{}.{}".format(platform.machine(), *GLIBC)]

ABOUT_PYTHON = """
import sys, sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
print("{}.{}".format(*sys.version_info), EXTENSION_SUFFIXES[0], sysconfig.get_path("include"))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Build what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="python3.X")
    parser.add_argument("--torch", nargs="+", metavar="2.X", help="minor versions; default: all")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist")
    parser.add_argument("--test", action="store_true", help="each, beside every torch")
    options = parser.parse_args(arguments)

    pythons = find_pythons(options.python)
    torches = {version: torch_releases(version, options.torch) for version in pythons}
    folders: dict[str, _build.Torch] = {}
    for version, releases in torches.items():
        for minor, release in releases.items():
            if minor not in folders:
                folders[minor] = _build.Torch(unpacked_torch(release, version), minor)

    native = WORK / "native"
    bindings = {
        version: [_build.binding(CSRC, folders[minor], python.build) for minor in torches[version]]
        for version, python in pythons.items()
    }
    shared = [_build.cpu_library(CSRC)]
    if os.environ.get("POWERGRAD_CUDA") != "OFF" and (toolkit := tools.cuda_toolkit()) is not None:
        shared.append(_build.cuda_library(CSRC, toolkit, SMALL))
    everything = [*shared, *(library for some in bindings.values() for library in some)]
    build(everything, native)
    archive = source_distribution(options.output)
    check(archive, [])
    print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB): commit {commit.commit()}")
    wheels: dict[str, Path] = {}
    for version, some in bindings.items():
        files = [native / library.name for library in (*shared, *some)]
        wheels[version] = wheel = pack(version, files, options.output)
        check(wheel, files)
        check_platform(wheel)
        print(f"{wheel} ({wheel.stat().st_size / 1e6:.1f} MB): torch {', '.join(torches[version])}")
    if options.test:
        test_all(
            Pair(wheels[version], pythons[version], minor, newest=minor == [*releases][-1])
            for version, releases in torches.items()
            for minor in releases
        )


class Python(NamedTuple):
    """A Python that wheels are for."""

    path: str
    build: _build.Python


def find_pythons(names: Iterable[str]) -> dict[str, Python]:
    """By its version, each Python that is here, on PATH or among pyenv's, and has headers."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found: dict[str, Python] = {}
    for name in names:
        candidates = [shutil.which(name), *map(str, root.glob(f"versions/*/bin/{name}"))]
        for path in filter(None, candidates):
            told = subprocess.run([path, "-c", ABOUT_PYTHON], capture_output=True, text=True)
            if told.returncode == 0:
                version, suffix, include = told.stdout.strip().split(" ", 2)
                if Path(include, "Python.h").exists():
                    found.setdefault(version, Python(path, _build.Python(Path(include), suffix)))
    return found


def torch_releases(python: str, wanted: list[str] | None) -> dict[str, str]:
    """For each minor version of torch its newest release with a wheel for a Python."""
    told = pip("index", "versions", "torch", f"--python-version={python}", "--only-binary=:all:")
    line = re.search(r"^Available versions: (.*)$", told, re.MULTILINE)
    newest: dict[str, str] = {}
    for release in line[1].split(", ") if line else []:  # the newest first
        public = release.partition("+")[0]  # a local build has the same headers
        newest.setdefault(_build.minor_version(release), public)
    return {
        minor: release
        for minor, release in sorted(newest.items(), key=lambda item: as_numbers(item[0]))
        if as_numbers(minor) >= OLDEST_TORCH and (wanted is None or minor in wanted)
    }


def as_numbers(version: str) -> tuple[int, ...]:
    """Of "2.13": (2, 13)."""
    return tuple(map(int, version.split(".")))


def pip(*words: str) -> str:
    """What pip prints."""
    command = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def unpacked_torch(release: str, python: str) -> Path:
    """The folder of a torch's headers and libraries, which any Python's wheel of it has alike."""
    folder = WORK / f"torch-{release}"
    if not folder.exists():
        download = WORK / "download"
        shutil.rmtree(download, ignore_errors=True)
        what = [f"torch=={release}", f"--python-version={python}", f"--dest={download}"]
        pip("download", "--quiet", "--no-deps", "--only-binary=:all:", *what)
        (wheel,) = download.glob("torch-*.whl")
        scratch = WORK / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, filter(WANTED.fullmatch, archive.namelist()))
        shutil.rmtree(download)
        scratch.rename(folder)
    return folder / "torch"


def build(libraries: list[_build.ninja.Library], output: Path) -> None:
    """Compile and link for an old glibc, without symbols that nobody asks for."""
    extra = [str(REPOSITORY / "scripts" / "single_threaded.c"), "-lm", "-lpthread", "-s"]
    # The compiler's own. In zig's place of libgcc no processor has any instruction set.
    extra += [told_by_compiler("-print-file-name=libstdc++.so")]
    extra += [told_by_compiler("-print-libgcc-file-name")]
    portable = [library._replace(flags=[*library.flags, *extra]) for library in libraries]
    _build.build(portable, CSRC, OBJECTS, output, linker=ZIG)


def told_by_compiler(option: str) -> str:
    """Its answer to a question."""
    command = [*tools.compiler(), option]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def pack(python: str, files: Iterable[Path], output: Path) -> Path:
    """The wheel for a Python."""
    native, scratch = WORK / "of-one", WORK / "packing"
    for folder in (native, scratch):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for path in files:
        os.link(path, native / path.name)
    interpreter = "cp" + python.replace(".", "")
    command = [sys.executable, "setup.py", "--quiet", "build", f"--build-base={scratch}"]
    command += ["build_ext", f"--built={native}", "bdist_wheel", "--skip-build"]
    command += [f"--tag={interpreter}-{interpreter}-{PLATFORM}", f"--dist-dir={output}"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    (wheel,) = output.glob(f"powergrad_ext-*-{interpreter}-{interpreter}-{PLATFORM}.whl")
    return wheel


def source_distribution(output: Path) -> Path:
    """Of which anyone may build."""
    command = [sys.executable, "setup.py", "--quiet", "sdist", f"--dist-dir={output}"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return max(output.glob("powergrad_ext-*.tar.gz"), key=lambda path: path.stat().st_mtime)


def check(archive: Path, libraries: Iterable[Path]) -> None:
    """Stop where the index would refuse it, or it holds files that are not of the repository."""
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", archive], check=True)
    if stray := names_in(archive) - known_names(libraries):
        sys.exit(f"{archive.name} holds what git does not know: {', '.join(sorted(stray))}")


def names_in(archive: Path) -> set[str]:
    """The files in a wheel or a source distribution, without those that describe it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = wheel.namelist()
    else:
        with tarfile.open(archive) as sources:
            names = [file.name.partition("/")[2] for file in sources if file.isfile()]
    return {name for name in names if not GENERATED.fullmatch(name)}


def known_names(libraries: Iterable[Path]) -> set[str]:
    """What git tracks, under the names that it has in both, and the libraries of a wheel."""
    command = ["git", "ls-files"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    tracked = listed.stdout.splitlines()
    packed = {f"powergrad_ext/{name}" for name in tracked if name.startswith("csrc/")}
    native = {f"powergrad_ext/{_build.NATIVE}/{path.name}" for path in libraries}
    return {*tracked, *packed, *native}


def check_platform(wheel: Path) -> None:
    """Stop where a wheel's platform is not what its name says."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r'"manylinux_(\d+)_(\d+)_\w+"', told)
    if match is None or (int(match[1]), int(match[2])) > GLIBC:
        sys.exit(f"{wheel.name} is for a later platform than its name says:\n{told}")


class Pair(NamedTuple):
    """A wheel and a minor version of torch that it serves."""

    wheel: Path
    python: Python
    torch: str
    newest: bool  # the newest torch that the wheel serves


def test_all(pairs: Iterable[Pair]) -> None:
    """Test each of them, say after each how it went, and stop in the end if any failed."""
    failed = False
    for pair in pairs:
        passed = test(pair)
        failed = failed or not passed
        verdict = "passed" if passed else "FAILED"
        print(f"{verdict}: {pair.wheel.name} with torch {pair.torch}", flush=True)
    if failed:
        sys.exit(1)


def test(pair: Pair) -> bool:
    """Whether tests/wheels pass in a new environment, which is removed if they do.

    A torch for CUDA takes over 5 GB with what it depends on. With the newest torch those run too
    that are marked slow, since they compile.
    """
    folder = WORK / "tested" / f"{pair.wheel.stem}-torch-{pair.torch}"
    shutil.rmtree(folder, ignore_errors=True)
    command = ["make", "test-installed", f"WHEEL={pair.wheel}", f"PYTHON={pair.python.path}"]
    command += [f"TORCH=torch~={pair.torch}.0", f"INSTALLED={folder}"]
    for level in ("test", "rest") if pair.newest else ("test",):
        tests = f"TESTS=tests/wheels --level={level}"
        if subprocess.run([*command, tests], cwd=REPOSITORY, env=ENVIRONMENT).returncode != 0:
            return False
    shutil.rmtree(folder)
    return True


if __name__ == "__main__":
    main()
