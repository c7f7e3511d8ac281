#include "torch/last_grad_output.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/hash.h>

#include <map>
#include <mutex>
#include <utility>

#include "torch/cuda_device.h"
#include "torch/libraries.h"

namespace powergrad {
namespace {

constexpr int64_t kEntries = 256;

// The table of a device for one type; null while a graph is captured that would own its memory.
char* table_of(at::ScalarType type, c10::Device device) {
  const OnCudaDevice on(device);
  static std::mutex mutex;
  static auto& all = *new std::map<std::pair<at::ScalarType, c10::DeviceIndex>, at::Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  at::Tensor& tensor = all[{type, device.index()}];
  if (!tensor.defined()) {
    bool is_capturing = false;
    check_cuda(cuda_library().is_capturing(on.stream(), &is_capturing));
    if (is_capturing) return nullptr;
    tensor = at::ones({kEntries}, at::TensorOptions(device).dtype(type));
    // Once: from here on any stream may read it.
    c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
  }
  return static_cast<char*>(tensor.mutable_data_ptr());
}

}  // namespace

void* last_grad_output(const CrossEntropyParams& p, bool is_mean, c10::Device device) {
  const bool is_double = p.dtype == DataType::float64;
  char* first = table_of(is_double ? at::kDouble : at::kFloat, device);
  if (first == nullptr) return nullptr;
  const auto entry = c10::get_hash(p.shape.outer, p.shape.classes, p.shape.inner,
                                   static_cast<int>(p.dtype), is_mean) %
                     kEntries;
  return first + entry * (is_double ? sizeof(double) : sizeof(float));
}

}  // namespace powergrad
