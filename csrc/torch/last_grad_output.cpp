#include "torch/last_grad_output.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/hash.h>

#include <map>
#include <mutex>
#include <utility>

namespace powergrad {
namespace {

constexpr int64_t kEntries = 256;

// The table of a device for one type; null while a graph is captured that would own its memory.
char* table_of(at::ScalarType type, c10::Device device) {
  static std::mutex mutex;
  static auto& all = *new std::map<std::pair<at::ScalarType, c10::DeviceIndex>, at::Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  at::Tensor& tensor = all[{type, device.index()}];
  if (!tensor.defined()) {
    if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
      return nullptr;
    }
    tensor = at::ones({kEntries}, at::TensorOptions(device).dtype(type));
    // Once: from here on any stream may read it.
    C10_CUDA_CHECK(cudaStreamSynchronize(c10::cuda::getCurrentCUDAStream()));
  }
  return static_cast<char*>(tensor.mutable_data_ptr());
}

}  // namespace

void* last_grad_output(const CrossEntropyParams& p, bool is_mean, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  const bool is_double = p.dtype == DataType::float64;
  char* first = table_of(is_double ? at::kDouble : at::kFloat, device);
  if (first == nullptr) return nullptr;
  const auto entry = c10::get_hash(p.shape.outer, p.shape.classes, p.shape.inner,
                                   static_cast<int>(p.dtype), is_mean) %
                     kEntries;
  return first + entry * (is_double ? sizeof(double) : sizeof(float));
}

}  // namespace powergrad
