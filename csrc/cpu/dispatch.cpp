// Which instruction sets this processor has.
#include <cstring>
#include <iterator>

#include "cpu/kernels.h"

namespace powergrad {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
// The builtins also ask the operating system whether it saves the wide registers. F16C, which
// not every compiler can ask for, came before AVX2.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
#if defined(POWERGRAD_SIMDE)
  return has_avx2();  // the AVX-512 file was compiled to AVX2 by SIMDe
#else
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
}

#if !defined(POWERGRAD_SIMDE)
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
#endif

using Tables = std::array<const KernelTable*, kDataTypes>;

constexpr Tables all_of(const KernelTable (&tables)[kDataTypes]) {
  Tables result{};
  for (int type = 0; type < kDataTypes; ++type) result[type] = &tables[type];
  return result;
}

#if defined(__x86_64__) && !defined(POWERGRAD_SIMDE)
constexpr Tables with_bfloat16(Tables tables, const KernelTable& table) {
  tables[static_cast<int>(DataType::bfloat16)] = &table;
  return tables;
}
#endif

constexpr InstructionSet kInstructionSets[] = {
#if defined(__x86_64__)
#if !defined(POWERGRAD_SIMDE)
    {"avx512_bf16", has_avx512_bf16, with_bfloat16(all_of(avx512_kernels), avx512_bf16_kernels)},
#endif
    {"avx512", has_avx512, all_of(avx512_kernels)},
    {"avx2", has_avx2, all_of(avx2_kernels)},
#endif
    {"scalar", always, all_of(scalar_kernels)},
};

}  // namespace

InstructionSets instruction_sets() {
  return {std::begin(kInstructionSets), std::end(kInstructionSets)};
}

const InstructionSet* find_instruction_set(const char* name) {
  for (const InstructionSet& set : instruction_sets()) {
    if (std::strcmp(set.name, name) == 0) return &set;
  }
  return nullptr;
}

}  // namespace powergrad
