// Where in the kernels' source a thread is.
#pragma once

namespace powergrad::host_cuda {

struct Site {
  const char* file = "start of the kernel";
  int line = 0;

  // As a default argument: the line of the call.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator!=(const Site& other) const { return file != other.file || line != other.line; }
};

}  // namespace powergrad::host_cuda
