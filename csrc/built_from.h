// What a library of kernels gives to the binding. The two are files of their own, with one exported
// function between them, which returns a table: so kernels know no torch, one binding serves every
// build of torch, and files that do not belong together are told apart before anything is called.
#pragma once

#include <cstdint>

#include "powergrad.h"
#include "shards.h"
#include "sources_version.h"  // generated: POWERGRAD_SOURCES, a hash of all sources outside torch/

#define POWERGRAD_EXPORT extern "C" __attribute__((visibility("default")))

namespace powergrad {

// What a file was built from. Each table begins with it, and its layout never changes: any binding
// can read that of any library.
struct BuiltFrom {
  const char* sources;
  int64_t struct_sizes[3];  // compilers may lay the structs out differently
};

inline constexpr BuiltFrom kBuiltFrom{
    POWERGRAD_SOURCES, {sizeof(CrossEntropyParams), sizeof(LogSoftmaxParams), sizeof(MergeParams)}};

}  // namespace powergrad
