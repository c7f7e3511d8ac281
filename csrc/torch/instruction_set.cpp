#include "torch/instruction_set.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>

#include "torch/libraries.h"

namespace powergrad {
namespace {

const InstructionSet* checked(const std::string& name, const char* source) {
  const InstructionSet* set = cpu_library().find_instruction_set(name.c_str());
  const std::string supported = c10::Join(", ", supported_instruction_sets());
  TORCH_CHECK_VALUE(set != nullptr, source, "=", name,
                    " is not an instruction set; this processor supports: ", supported);
  TORCH_CHECK(set->supported(), source, "=", name,
              " is not supported by this processor, which supports: ", supported);
  return set;
}

const InstructionSet* initial() {
  const char* name = std::getenv("POWERGRAD_ISA");
  if (name != nullptr && *name != '\0') return checked(name, "POWERGRAD_ISA");
  const InstructionSet* best = nullptr;
  for (const InstructionSet& set : cpu_library().instruction_sets()) {
    if (best == nullptr && set.supported()) best = &set;
  }
  return best;
}

std::atomic<const InstructionSet*>& active() {
  static std::atomic<const InstructionSet*> set{initial()};
  return set;
}

}  // namespace

const InstructionSet& active_instruction_set() { return *active().load(); }

void set_instruction_set(const std::string& name) { active().store(checked(name, "isa")); }

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : cpu_library().instruction_sets()) {
    if (set.supported()) names.emplace_back(set.name);
  }
  return names;
}

}  // namespace powergrad
