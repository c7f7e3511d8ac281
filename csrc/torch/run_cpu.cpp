// Rows in parallel over torch's threads; one huge row by its chunks when there are fewer rows than
// threads. The bits are the same either way.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "torch/instruction_set.h"
#include "torch/run.h"

namespace powergrad {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;
// Rows of half-precision logits keep their exponentials in a float32 row of scratch, one a thread.
// Computing them again instead was 1.2 to 1.5 times slower at every size measured, from 1000 to
// 524288 classes, though the scratch of the longest rows is past the L2 cache; the limit only
// bounds the memory.
constexpr int64_t kScratchBytes = 4 * 1024 * 1024;

class OwnedWorkspace : public Workspace {
 public:
  OwnedWorkspace(const Shape& shape, int64_t scratch_bytes)
      : Workspace{}, chunks_(std::max<int64_t>(chunk_count(shape), 1)) {
    if (scratch_bytes > 0) scratch_ = std::unique_ptr<char[]>(new char[scratch_bytes]);
    chunks = chunks_.data();
    exponentials = scratch_.get();
  }

 private:
  std::vector<ChunkState> chunks_;
  std::unique_ptr<char[]> scratch_;
};

bool is_half(DataType dtype) { return dtype == DataType::bfloat16 || dtype == DataType::float16; }

int64_t scratch_bytes(const CrossEntropyParams& p) {
  const int64_t bytes = p.shape.classes * static_cast<int64_t>(sizeof(float));
  return is_half(p.dtype) && p.gradient != nullptr && bytes <= kScratchBytes ? bytes : 0;
}
int64_t scratch_bytes(const LogSoftmaxParams&) { return 0; }

template <class Params>
void run_rows_in_parallel(const Kernel<Params>& kernel, const Params& p) {
  const int64_t grain = std::max<int64_t>(1, kGrain / p.shape.classes);
  at::parallel_for(0, p.shape.rows(), grain, [&](int64_t begin, int64_t end) {
    OwnedWorkspace workspace(p.shape, scratch_bytes(p));
    kernel.rows(p, begin, end, workspace);
  });
}

template <class Params>
void run_chunks_in_parallel(const Kernel<Params>& kernel, const Params& p) {
  OwnedWorkspace workspace(p.shape, scratch_bytes(p));
  const int64_t chunks = chunk_count(p.shape);
  const int64_t grain = std::max<int64_t>(1, kGrain / kChunk);
  const auto each_chunk = [&](auto phase, int64_t row) {
    at::parallel_for(0, chunks, grain,
                     [&](int64_t begin, int64_t end) { phase(p, row, begin, end, workspace); });
  };
  for (int64_t row = 0; row < p.shape.rows(); ++row) {
    each_chunk(kernel.reduce, row);
    kernel.merge(p, row, workspace);
    each_chunk(kernel.map, row);
  }
}

template <class Params>
void run(Kernel<Params> KernelTable::* kernel, const Params& p) {
  if (p.shape.rows() == 0 || p.shape.classes == 0) return;
  const KernelTable& table = active_instruction_set().tables[static_cast<int>(p.dtype)];
  const bool contiguous_rows = p.logits_strides.classes == 1;
  if (contiguous_rows && p.shape.rows() < at::get_num_threads() && p.shape.classes >= 2 * kGrain) {
    run_chunks_in_parallel(table.*kernel, p);
  } else {
    run_rows_in_parallel(table.*kernel, p);
  }
}

}  // namespace

void check_device_has_kernels(c10::Device device) {
  TORCH_CHECK_NOT_IMPLEMENTED(device.is_cpu(), "powergrad_ext was built without kernels for ",
                              device, "; move the tensors to the CPU, or install a build with",
                              " CUDA kernels (python -m powergrad_ext shows what was built)");
}

void run_cross_entropy_forward(const CrossEntropyParams& params, c10::Device) {
  run(&KernelTable::cross_entropy_forward, params);
}
void run_cross_entropy_backward(const CrossEntropyParams& params, c10::Device) {
  run(&KernelTable::cross_entropy_backward, params);
}
void run_log_softmax_forward(const LogSoftmaxParams& params, c10::Device) {
  run(&KernelTable::log_softmax_forward, params);
}
void run_log_softmax_backward(const LogSoftmaxParams& params, c10::Device) {
  run(&KernelTable::log_softmax_backward, params);
}

}  // namespace powergrad
