"""Compiling on first import: the cache, several processes at once, and what is said when it fails.

A tiny module stands in for the extension; test_builds.py compiles the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, run
from tiny_package import TinyPackage

from powergrad_ext import _build

# How the name of a binding begins.
BINDING = f"_C_torch{_build.minor_version(torch.__version__)}."

NO_NINJA = """
import shutil
which = shutil.which
shutil.which = lambda name, *rest, **options: (
    None if name == "ninja" else which(name, *rest, **options)
)
"""
NO_COMPILER = NO_NINJA.replace('"ninja"', '"c++"')
NO_HEADERS = """
import sysconfig
sysconfig.get_path = lambda *_: "nowhere"
"""
NAMESPACE_TAKEN = """
import torch
library = torch.library.Library("powergrad", "DEF")
library.define("cross_entropy(Tensor input) -> Tensor")
"""


def test_says_once_that_it_compiles_and_is_silent_from_the_cache(tiny_package: TinyPackage) -> None:
    first = tiny_package.import_it()
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith("powergrad_ext has to be compiled, which is done once")
    assert str(tiny_package.cache) in first.stderr
    # A torch for CUDA has a line of its own where there is no GPU.
    lines = [line for line in first.stderr.splitlines() if "No CUDA runtime is found" not in line]
    assert len(lines) == 1

    second = tiny_package.import_it()
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    assert second.stdout == first.stdout


def test_the_cache_needs_no_compiler(tiny_package: TinyPackage) -> None:
    assert tiny_package.import_it().returncode == 0
    assert tiny_package.import_it(NO_COMPILER).returncode == 0


def test_another_compiler_compiles_for_itself(tiny_package: TinyPackage) -> None:
    """What one compiler made is not given out as another's."""
    wrapper = tiny_package.folder / "other"
    wrapper.write_text('#!/bin/sh\nexec c++ "$@"\n')
    wrapper.chmod(0o755)
    first = tiny_package.import_it()
    second = tiny_package.import_it(CXX=str(wrapper))
    assert "compiled" in second.stderr
    assert second.stdout != first.stdout
    assert tiny_package.import_it(CXX=str(wrapper)).stdout == second.stdout


def test_the_environment_of_the_process_stays(tiny_package: TinyPackage) -> None:
    """Also the part that is set while compiling."""
    before = "import os; before = dict(os.environ)"
    after = "assert dict(os.environ) == before"
    done = tiny_package.import_it(before, after, PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert "compiled" in done.stderr


def test_a_changed_source_is_compiled_again(tiny_package: TinyPackage) -> None:
    first = tiny_package.import_it()
    with tiny_package.source.open("a") as source:
        source.write("// changed\n")
    second = tiny_package.import_it()
    assert "compiled" in second.stderr
    assert second.stdout != first.stdout


def test_two_processes_compile_once(tiny_package: TinyPackage) -> None:
    with ThreadPoolExecutor() as threads:
        both = [threads.submit(tiny_package.import_it) for _ in range(2)]
        results = [one.result() for one in both]
    assert [result.returncode for result in results] == [0, 0], results
    assert results[0].stdout == results[1].stdout
    assert sum("has to be compiled" in result.stderr for result in results) == 1


def test_a_killed_build_is_no_obstacle(tiny_package: TinyPackage) -> None:
    slow_compiler = tiny_package.folder / "slow"
    slow_compiler.write_text('#!/bin/sh\ncase "$*" in *-shared*) sleep 600;; esac\nexec c++ "$@"\n')
    slow_compiler.chmod(0o755)
    building = subprocess.Popen(
        [sys.executable, "-c", "import powergrad_ext._native"],
        cwd=tiny_package.folder,
        env=os.environ | {"CXX": str(slow_compiler), "TORCH_EXTENSIONS_DIR": tiny_package.cache},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(tiny_package.cache.rglob("*module.cpp*.o")):
        assert building.poll() is None
        time.sleep(0.05)
    os.killpg(building.pid, signal.SIGKILL)
    building.wait()
    assert list(tiny_package.cache.rglob("build.ninja"))

    after = tiny_package.import_it()
    assert after.returncode == 0, after.stderr


def test_ninja_is_found_beside_a_python_that_was_not_activated(tiny_package: TinyPackage) -> None:
    result = tiny_package.import_it(PATH="/usr/bin:/bin")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("before", "variables", "sentence"),
    [
        ("", {"CXX": "no-such-compiler"}, "a C++ compiler, and no-such-compiler is not found"),
        (NO_NINJA, {}, "ninja, which is not found: pip install ninja"),
        (NO_HEADERS, {}, "Python's headers, which are not found"),
        (
            "import sys; sys.modules['torch'] = None",
            {},
            "PyTorch 2.11 or later, which is not",
        ),
        ("import torch; torch.__version__ = '2.10.1+cpu'", {}, "2.11 or later, this is 2.10.1+cpu"),
        (NAMESPACE_TAKEN, {}, "another library in this process has already registered"),
        ("", {"TORCH_EXTENSIONS_DIR": os.devnull}, "set TORCH_EXTENSIONS_DIR to a folder that can"),
    ],
    ids=["compiler", "ninja", "headers", "torch", "old torch", "namespace", "cache"],
)
def test_what_is_missing_is_one_sentence(
    tiny_package: TinyPackage, before: str, variables: dict[str, str], sentence: str
) -> None:
    result = tiny_package.import_it(before, **variables)
    assert result.returncode == 1
    last_line = result.stderr.splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert sentence in last_line
    assert result.stderr.count("Traceback") == 1, "the sentence stands alone, without a cause"


def test_the_whole_package_says_that_torch_is_missing() -> None:
    code = "import sys; sys.modules['torch'] = None; import powergrad_ext"
    result = run(sys.executable, "-c", code, cwd=REPOSITORY, check=False)
    assert result.stderr.splitlines()[-1].startswith("ImportError: powergrad_ext needs PyTorch")


def test_what_the_compiler_says_is_passed_on(tiny_package: TinyPackage) -> None:
    tiny_package.source.write_text("#error this is the reason\n")
    result = tiny_package.import_it()
    assert result.returncode == 1
    assert "ImportError: powergrad_ext could not be compiled" in result.stderr
    assert "#error this is the reason" in result.stderr.splitlines()[-1]
    assert result.stderr.count("Traceback") == 1


def test_an_installed_binding_goes_before_the_cache(tiny_package: TinyPackage) -> None:
    installed = tiny_package.install()
    assert tiny_package.import_it(CXX="no-such-compiler").stdout.strip() == str(installed)


def test_without_sources_nothing_is_compiled(tiny_package: TinyPackage) -> None:
    """As in a kernel of the Hugging Face hub, for a Python that it has no binding for."""
    binding = tiny_package.install()
    binding.unlink()
    tiny_package.source.parent.rename(tiny_package.folder / "elsewhere")
    result = tiny_package.import_it()
    assert result.stderr.splitlines()[-1] == (
        f"ImportError: {tiny_package.package} has no {binding.name}, and no sources to compile it "
        "from: pip install powergrad_ext"
    )


@pytest.fixture
def installed(tiny_package: TinyPackage) -> Path:
    """The binding of an installed package, whose sources lie in it."""
    binding = tiny_package.install()
    tiny_package.source.parent.rename(tiny_package.package / "csrc")
    return binding


def test_for_another_torch_the_binding_alone_is_compiled(
    tiny_package: TinyPackage, installed: Path
) -> None:
    other = installed.with_name(installed.name.replace(BINDING, "_C_torch9.9."))
    installed.rename(other)
    first = tiny_package.import_it()
    assert first.returncode == 0, first.stderr
    assert "was installed with bindings for torch 9.9; that for torch " in first.stderr
    assert "has to be compiled, which is done once" in first.stderr
    compiled = Path(first.stdout.strip())
    assert compiled.name == installed.name
    kernels = compiled.with_name("libpowergrad_kernels.so")
    assert kernels.resolve() == installed.with_name(kernels.name)

    elsewhere = tiny_package.folder / "elsewhere"
    without = tiny_package.import_it(CXX="no-such-compiler", TORCH_EXTENSIONS_DIR=elsewhere)
    assert without.stderr.splitlines()[-1].startswith(
        "ImportError: powergrad_ext was installed with bindings for torch 9.9; that for torch "
    )
    assert "a C++ compiler, and no-such-compiler is not found" in without.stderr.splitlines()[-1]


def test_a_binding_of_another_torch_is_explained(
    tiny_package: TinyPackage, installed: Path
) -> None:
    source = tiny_package.folder / "gone.cpp"
    source.write_text(
        'void gone();\nextern "C" __attribute__((visibility("default"))) void* PyInit__C() {\n'
        "  gone();\n  return nullptr;\n}\n"
    )
    name = f"-Wl,-soname,{installed.name}"
    run("c++", "-shared", "-fPIC", name, source, "-o", installed, cwd=tiny_package.folder)
    result = tiny_package.import_it()
    assert "undefined symbol" in result.stderr.splitlines()[-1]
    assert "was built for another PyTorch" in result.stderr.splitlines()[-1]
    assert "install powergrad_ext again" in result.stderr.splitlines()[-1]


def test_a_renamed_binding_is_explained(tiny_package: TinyPackage, installed: Path) -> None:
    """Though this torch has all symbols that it needs: what it takes them for may have changed."""
    installed.write_bytes(installed.read_bytes().replace(BINDING.encode(), b"_C_torch9.99."))
    result = tiny_package.import_it()
    assert result.stderr.splitlines()[-1].startswith(
        f"ImportError: {installed.name} was built for another PyTorch than "
    )
    assert "install powergrad_ext again" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("library", ["", "libpowergrad_kernels.so", "libpowergrad_cuda.so"])
@pytest.mark.parametrize(
    ("kept", "sentence"), [(0.9, "is incomplete ("), (0.0, "is not a shared library")]
)
def test_a_library_that_is_cut_off_is_named(
    tiny_package: TinyPackage, installed: Path, library: str, kept: float, sentence: str
) -> None:
    """Before it is opened, which would end the process."""
    path = installed.with_name(library or installed.name)
    content = installed.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    result = tiny_package.import_it()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"ImportError: {path} {sentence}")
    assert "install powergrad_ext again" in result.stderr.splitlines()[-1]


def test_kernels_that_are_missing_are_named(tiny_package: TinyPackage, installed: Path) -> None:
    path = installed.with_name("libpowergrad_kernels.so")
    path.unlink()
    result = tiny_package.import_it()
    assert result.stderr.splitlines()[-1].startswith(f"ImportError: {path} cannot be read (No such")
