"""The choice of an instruction set on a processor that lacks one: three made-up sets stand in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, run
from torch.utils.cpp_extension import include_paths

from powergrad_ext import _build
from powergrad_ext._build import tools

PROGRAM = """
#include <cstdio>
#include <cstring>
#include <exception>

#include "torch/instruction_set.h"
#include "torch/libraries.h"

namespace powergrad {
bool no() { return false; }
bool yes() { return true; }
// The best first.
const InstructionSet kSets[] = {{"lacking", no, {}}, {"present", yes, {}}, {"slow", yes, {}}};
InstructionSets instruction_sets() { return {kSets, kSets + 3}; }
const InstructionSet* find_instruction_set(const char* name) {
  for (const InstructionSet& set : kSets) {
    if (std::strcmp(set.name, name) == 0) return &set;
  }
  return nullptr;
}
const CpuLibrary& cpu_library() {
  static constexpr CpuLibrary library{kBuiltFrom, instruction_sets, find_instruction_set, nullptr};
  return library;
}
}  // namespace powergrad

int main() {
  try {
    std::puts(powergrad::active_instruction_set().name);
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instruction_set")
    (folder / "main.cpp").write_text(PROGRAM)
    (folder / "sources_version.h").write_text('#define POWERGRAD_SOURCES "of the test"\n')
    libraries = Path(torch.__file__).parent / "lib"
    command = [
        *tools.compiler(),
        _build.STANDARD,
        "-I.",
        f"-I{REPOSITORY / 'csrc'}",
        *(f"-I{path}" for path in include_paths()),
        "main.cpp",
        str(REPOSITORY / "csrc" / "torch" / "instruction_set.cpp"),
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
        "-lc10",
        "-o",
        "choose",
    ]
    run(*command, cwd=folder)
    return folder / "choose"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "present"),
        ("present", "present"),
        ("slow", "slow"),
        ("lacking", "POWERGRAD_ISA=lacking is not supported by this processor, which supports: pr"),
        (
            "sse2",
            "POWERGRAD_ISA=sse2 is not an instruction set; this processor supports: present, s",
        ),
    ],
)
def test_choice(program: Path, value: str, said: str) -> None:
    environment = os.environ | {"POWERGRAD_ISA": value}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said)
