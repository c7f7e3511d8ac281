#include "torch/libraries.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <cstring>

namespace powergrad {
namespace {

// Null if it cannot be opened; dlerror() says why. It is found beside this file, whose RUNPATH is
// $ORIGIN, and never closed.
template <class Library>
const Library* open(const char* file, const char* function) {
  void* handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return nullptr;
  const auto get = reinterpret_cast<const Library* (*)()>(dlsym(handle, function));
  const char* sources = get == nullptr ? "unknown" : get()->built_from.sources;
  TORCH_CHECK(std::strcmp(sources, kBuiltFrom.sources) == 0, file,
              " was not built from the sources of the module beside it (", sources, ", not ",
              kBuiltFrom.sources, "): install powergrad_ext again");
  const c10::IntArrayRef sizes(get()->built_from.struct_sizes), expected(kBuiltFrom.struct_sizes);
  TORCH_CHECK(sizes == expected, file,
              " was built by a compiler that lays out structs differently from that of the module"
              " beside it (sizes ",
              sizes, ", not ", expected, "): install powergrad_ext again");
  return get();
}

}  // namespace

const CpuLibrary& cpu_library() {
  static const CpuLibrary& library = []() -> const CpuLibrary& {
    const auto* opened = open<CpuLibrary>("libpowergrad_kernels.so", "powergrad_cpu_library");
    TORCH_CHECK(opened != nullptr, dlerror(), ": install powergrad_ext again");
    return *opened;
  }();
  return library;
}

const CudaLibrary& cuda_library() {
  static const CudaLibrary& library = []() -> const CudaLibrary& {
    const auto* opened = open<CudaLibrary>("libpowergrad_cuda.so", "powergrad_cuda_library");
    TORCH_CHECK_NOT_IMPLEMENTED(
        opened != nullptr, "powergrad_ext was built without kernels for cuda (", dlerror(),
        "); move the tensors to the CPU, or install a build with CUDA kernels",
        " (python -m powergrad_ext shows what was built)");
    return *opened;
  }();
  return library;
}

}  // namespace powergrad
