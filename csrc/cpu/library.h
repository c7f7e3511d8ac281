// The table of libpowergrad_kernels.so.
#pragma once

#include "cpu/kernels.h"
#include "built_from.h"

namespace powergrad {

struct CpuLibrary {
  BuiltFrom built_from;
  InstructionSets (*instruction_sets)();
  const InstructionSet* (*find_instruction_set)(const char* name);
  int64_t (*tile_rows)(const Shape& shape, int64_t accumulate_size);
};

}  // namespace powergrad

POWERGRAD_EXPORT const powergrad::CpuLibrary* powergrad_cpu_library();
