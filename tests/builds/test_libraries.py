"""Kernels that do not belong to the binding beside them: made-up libraries stand in."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from commands import REPOSITORY, compile_program, run

from powergrad_ext import _build
from powergrad_ext._build import tools

PROGRAM = """
#include <cstdio>
#include <exception>

#include <c10/util/Exception.h>

#include "torch/libraries.h"

template <class Library>
void open(const char* name, const Library& (*get)()) {
  try {
    get();
    std::printf("%s: opened\\n", name);
  } catch (const c10::NotImplementedError& error) {
    std::printf("%s: not implemented: %s\\n", name, error.what_without_backtrace());
  } catch (const c10::Error& error) {
    std::printf("%s: %s\\n", name, error.what_without_backtrace());
  }
}

int main() {
  open("cpu", powergrad::cpu_library);
  open("cuda", powergrad::cuda_library);
}
"""
# A table begins with what the library was built from; that alone is read here.
KERNELS = """
#include "built_from.h"

namespace powergrad {
constexpr const int64_t* kSizes = kBuiltFrom.struct_sizes;
constexpr BuiltFrom kOther{
    SOURCES, {kSizes[0] + CROSS_ENTROPY, kSizes[1] + LOG_SOFTMAX, kSizes[2] + MERGE}};
}

POWERGRAD_EXPORT const void* FUNCTION() { return &powergrad::kOther; }
"""
STRUCTS = ["CROSS_ENTROPY", "LOG_SOFTMAX", "MERGE"]
RIGHT = {"SOURCES": '"of the test"'} | dict.fromkeys(STRUCTS, "0")
LIBRARIES = {"cpu": _build.CPU_LIBRARY, "cuda": _build.CUDA_LIBRARY}
REFUSED = "{0}: {1} was not built from the sources of the module beside it ({2}, not of the test)"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "kernels.cpp").write_text(KERNELS)
    return compile_program(folder, "open_both", PROGRAM, "libraries.cpp")


class Opener:
    """Runs the program beside the libraries that were made for it."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.sources = program.parent
        self.program = Path(shutil.copy(program, folder))

    def open(self, **changed: str) -> dict[str, str]:
        """What it says of libraries with these macros, by device; both are built alike."""
        for device, name in LIBRARIES.items():
            macros = {"FUNCTION": f"powergrad_{device}_library"} | RIGHT | changed
            command = [*tools.compiler(), _build.STANDARD, "-shared", "-fPIC"]
            command += ["-I.", f"-I{REPOSITORY / 'csrc'}"]
            command += [f"-D{macro}={value}" for macro, value in macros.items()]
            output = self.program.with_name(name)
            run(*command, "kernels.cpp", "-o", output, cwd=self.sources)
        return self.open_none()

    def open_none(self) -> dict[str, str]:
        lines = run(self.program, cwd=self.program.parent).stdout.splitlines()
        return {line.partition(":")[0]: line for line in lines}


@pytest.fixture
def opener(program: Path, tmp_path: Path) -> Opener:
    return Opener(program, tmp_path)


def test_those_of_the_same_sources_are_opened(opener: Opener) -> None:
    assert opener.open() == {"cpu": "cpu: opened", "cuda": "cuda: opened"}


@pytest.mark.parametrize(("position", "struct"), list(enumerate(STRUCTS)))
def test_structs_of_another_size_are_refused(opener: Opener, position: int, struct: str) -> None:
    """As another compiler may lay them out: kernels would read other fields."""
    for device, line in opener.open(**{struct: "8"}).items():
        assert line.startswith(f"{device}: {LIBRARIES[device]} was built by a compiler that lays")
        told = re.search(r"\(sizes \[(.*)\], not \[(.*)\]\): install powergrad_ext again", line)
        assert told is not None
        sizes, expected = ([int(size) for size in group.split(", ")] for group in told.groups())
        expected[position] += 8
        assert sizes == expected


def test_other_sources_are_refused(opener: Opener) -> None:
    for device, line in opener.open(SOURCES='"of another"').items():
        assert line.startswith(REFUSED.format(device, LIBRARIES[device], "of another"))
        assert line.endswith("install powergrad_ext again")


def test_a_library_without_a_table_is_refused(opener: Opener) -> None:
    for device, line in opener.open(FUNCTION="something_else").items():
        assert line.startswith(REFUSED.format(device, LIBRARIES[device], "unknown"))


def test_libraries_that_are_not_there(opener: Opener) -> None:
    """That of CUDA may be missing: a caller tells by the type of the error."""
    said = opener.open_none()
    assert said["cpu"].startswith(f"cpu: {_build.CPU_LIBRARY}: cannot open")
    assert said["cpu"].endswith("install powergrad_ext again")
    assert said["cuda"].startswith(
        "cuda: not implemented: powergrad_ext was built without kernels for cuda ("
        f"{_build.CUDA_LIBRARY}: cannot open"
    )
