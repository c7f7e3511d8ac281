#include "cpu/library.h"

namespace powergrad {
namespace {

constexpr CpuLibrary kLibrary{kBuiltFrom, instruction_sets, find_instruction_set, tile_rows};

}  // namespace
}  // namespace powergrad

const powergrad::CpuLibrary* powergrad_cpu_library() { return &powergrad::kLibrary; }
