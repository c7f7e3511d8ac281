// How the checks run the CUDA kernels: a machine is a device that the host layer emulates, and an
// execution an order of its threads. All executions must give the same bits on one machine.
#pragma once

#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "buffers.h"
#include "cuda/launchers.h"
#include "cuda/plan.h"

namespace powergrad::test {

struct Machine {
  const char* name;
  host_cuda::Device device;
  int turns = 1;  // it checks one of so many problems
};

inline int turns_of(const Machine& machine) { return machine.turns; }
inline bool flushes_denormals(const Machine&, DataType) { return false; }

// With clusters and without; and with so little shared memory that all but short rows take several
// passes, in clusters of at most 8 blocks and without.
inline constexpr host_cuda::Device kSmallSm80{8, 108, 24 * 1024};
inline constexpr host_cuda::Device kSmallSm90{9, 132, 24 * 1024, 9, 8};
inline const Machine kMachines[] = {{"sm_80", host_cuda::kSm80},
                                    {"sm_90", host_cuda::kSm90},
                                    {"a small sm_80", kSmallSm80, 8},
                                    {"a small sm_90", kSmallSm90, 8}};

// More classes than a warp reduces at once in any type.
inline constexpr int64_t kPiece = 2048;
// Several of those, the last one partial.
inline constexpr int64_t kLongRow = 9001;
// One class and two; around the sizes of vectors (2, 4 and 8 classes); packed rows up to the last
// size; several rows a warp; a row for 2 warps to 16; clusters.
inline constexpr int64_t kSizes[] = {1, 2, 7, 8, 9, 31, 65, 99, 511, 513, 1000, 4099, 12001, 40009};

// The kernels do not split exponents in two floats, and one float holds an exponent below -25 to
// less than 4e-6: 6.6e-6 was seen at -75.
inline constexpr long double kRemoteFactor = 2.5L;

// One of so many problems is checked, a prime, so that it meets every value of every option:
// ThreadSanitizer takes ten times as long.
#if defined(POWERGRAD_SANITIZE_THREAD)
inline constexpr int kEvery = 11;
#else
inline constexpr int kEvery = 1;
#endif

inline constexpr bool kScratchIsOptional = false;
inline constexpr bool kStatisticsAreOptional = false;

struct Execution {
  const char* name;
  uint64_t seed;
  bool alpha_on_device = false;  // and nowhere else
  std::optional<uint64_t> only_block = std::nullopt;
};

inline Execution whole() { return {"whole", 0}; }

inline std::vector<Execution> splits(const Shape&, const Strides&) {
  return {{"threads backwards", 1}, {"threads in random order", 2}};
}

inline void configure(const Machine& machine, const Execution& execution) {
  host_cuda::configure({machine.device, execution.seed, execution.only_block});
}

// Runs a launcher; returns a description of what went wrong, else nothing.
#define POWERGRAD_RUN(name, Params)                                                           \
  inline std::string run_##name(const Machine& machine, Params p, const Execution& execution, \
                                bool) {                                                       \
    configure(machine, execution);                                                            \
    const double alpha = p.alpha;                                                             \
    if (execution.alpha_on_device) {                                                          \
      p.alpha_on_device = &alpha;                                                             \
      p.alpha = NAN;                                                                          \
    }                                                                                         \
    const cudaError_t error = launch_##name(p, nullptr);                                      \
    return error == cudaSuccess ? "" : "launch failed: " + host_cuda::failure();              \
  }
POWERGRAD_RUN(cross_entropy_forward, CrossEntropyParams)
POWERGRAD_RUN(cross_entropy_backward, CrossEntropyParams)
POWERGRAD_RUN(log_softmax_forward, LogSoftmaxParams)
POWERGRAD_RUN(log_softmax_backward, LogSoftmaxParams)
POWERGRAD_RUN(merge_shards, MergeParams)
#undef POWERGRAD_RUN

inline int64_t elements_of_vector(DataType dtype) {
  return dtype == DataType::float64 ? 2 : dtype == DataType::float32 ? 4 : 8;
}

// For targets at the ends of what kernels divide a row into. All classes of two short rows, of
// which the second has strided rows in tiles of four, several threads a row and, on the small
// machines, several passes. The first and the last class of blocks of elementwise kernels, and, on
// the small machines alone, of passes, with clusters and without. The long rows begin at a multiple
// of 16 bytes.
inline constexpr int64_t kVectorsOfBlocks = 1026;
inline constexpr int64_t kVectorsOfPasses = 12000;
inline std::vector<int64_t> sizes_of_parts(DataType dtype) {
  const int64_t elements = elements_of_vector(dtype);
  return {33, 96, kVectorsOfBlocks * elements, kVectorsOfPasses * elements};
}

inline std::vector<int64_t> ends_of_parts(const Machine& machine, DataType dtype, int64_t classes) {
  std::set<int64_t> ends;
  const auto add_part = [&](int64_t first, int64_t size) {
    if (first >= classes) return;
    ends.insert(first);
    ends.insert(std::min(first + size, classes) - 1);
  };
  const int64_t elements = elements_of_vector(dtype);
  if (classes < kVectorsOfBlocks * elements) {
    for (int64_t j = 0; j < classes; ++j) ends.insert(j);
    return {ends.begin(), ends.end()};
  }
  const bool is_elementwise = classes < kVectorsOfPasses * elements;
  if (!is_elementwise && machine.turns == 1) return {};
  configure(machine, whole());
  const int bytes = std::max(kVectorBytes / static_cast<int>(elements), 4);
  Work work{};
  work.dtype = dtype;
  work.is_elementwise = is_elementwise;
  work.maxima_bytes = bytes;
  work.sums_bytes = 3 * bytes;
  work.state_bytes = 5 * bytes;
  Plan plan{};
  const Shape shape{16, classes, 1};
  if (make_plan(RowLayout::contiguous, shape, work, nullptr, kLargestCluster, &plan) !=
      cudaSuccess) {
    return {0};
  }
  // The row's blocks alternate: the first two parts, the first one of the second pass, the last
  // one.
  const int64_t part = (int64_t{plan.vectors_per_thread} << plan.row_threads_log2()) * elements;
  for (const int64_t i :
       {int64_t{0}, int64_t{1}, int64_t{plan.blocks_per_row}, (classes - 1) / part}) {
    add_part(i * part, part);
  }
  return {ends.begin(), ends.end()};
}

}  // namespace powergrad::test
