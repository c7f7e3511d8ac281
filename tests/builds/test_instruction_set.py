"""The choice of an instruction set on a processor that lacks one: three made-up sets stand in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from commands import compile_program

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
    return compile_program(folder, "choose", PROGRAM, "instruction_set.cpp")


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
