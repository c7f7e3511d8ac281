// The instruction set in use in this process.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace powergrad {

// The best supported one, or the one that the environment variable POWERGRAD_ISA names. Raises for
// a value of POWERGRAD_ISA that is unknown or that this processor does not support.
const InstructionSet& active_instruction_set();

// For tests and benchmarks; raises like POWERGRAD_ISA does.
void set_instruction_set(const std::string& name);

std::vector<std::string> supported_instruction_sets();

}  // namespace powergrad
