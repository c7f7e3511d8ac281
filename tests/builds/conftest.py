"""What the tests of the builds share: copies of the sources, and each expensive build made once.

Without the sources, as in `make test-installed`, nothing here is run.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from commands import REPOSITORY, run
from installation import Installed
from tiny_package import TinyPackage

if not (REPOSITORY / "csrc").exists():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def tiny_package(tmp_path: Path) -> TinyPackage:
    return TinyPackage(tmp_path)


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked source distribution: what is built from it shows that it is complete."""
    folder = tmp_path_factory.mktemp("sources")
    copy = folder / "repository"
    shutil.copytree(REPOSITORY, copy, ignore=_all_but_sources)
    someone = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for command in (["init", "-q"], ["add", "."], [*someone, "commit", "-qm", "of the tests"]):
        run("git", *command, cwd=copy)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder, cwd=copy)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Pythons before 3.11.4 know no filters.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)
    tree = folder / archive.name.removesuffix(".tar.gz")
    # What was compiled already, of the very same sources, is not compiled again.
    objects = Path("build", "objects")
    if (REPOSITORY / objects).is_dir():
        shutil.copytree(REPOSITORY / objects, tree / objects, symlinks=True)
    return tree


def _all_but_sources(folder: str, names: list[str]) -> list[str]:
    of_the_repository = {".git", ".venv", "build", "dist", "demo"}
    return [
        name
        for name in names
        if name.endswith((".so", ".egg-info", "cache", "cache__"))
        or (Path(folder) == REPOSITORY and name in of_the_repository)
    ]


@pytest.fixture(scope="session")
def wheel(source_tree: Path) -> Path:
    """The wheel; its object files are left in build/objects of the source tree."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", "dist"]
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=source_tree)
    (wheel,) = (source_tree / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment where the wheel is installed and this one's torch is seen."""
    return Installed(tmp_path_factory.mktemp("environment"), wheel).python


@pytest.fixture(scope="session")
def extension_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of modules compiled on first import, empty at first."""
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(scope="session")
def cmake_build(source_tree: Path) -> Path:
    """The folder with the operator library and the C++ example."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not found")
    folder = source_tree / "build" / "cmake"
    # The CUDA kernels take minutes, and test_cuda_code.py compiles them; so would optimising.
    options = [f"-DPython3_EXECUTABLE={sys.executable}", "-DPOWERGRAD_CUDA=OFF"]
    options += ["-DCMAKE_BUILD_TYPE=Debug"]
    run("cmake", "-S", ".", "-B", folder, "-G", "Ninja", *options, cwd=source_tree)
    run("cmake", "--build", folder, "--target", "powergrad_example", cwd=source_tree)
    return folder
