// torch::autograd::Function inside the transforms of torch.func (functorch).
#pragma once

#include <ATen/FuncTorchTLS.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <type_traits>
#include <utility>

namespace powergrad {

// Whether one is active: a tensor of this call may be seen by another level than the one at work.
inline bool in_transform() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

// Sets the transforms that are active aside, until they are put back or the scope ends.
//
// Function::apply refuses to run inside a transform: a C++ function may read its tensors' memory,
// where the outer transforms would not see it. Those of this package only call operators through
// the dispatcher, as torch's own derivatives do, and there every transform takes its turn. So the
// transforms are aside while apply looks for them, and forward puts them back before anything else,
// together with the mode in which they record: apply turns it off, and not for its own level only.
class TransformsAside {
 public:
  TransformsAside() : transforms_(std::move(at::functorch::functorchTLSAccessor())) {}
  ~TransformsAside() { put_back(); }
  TransformsAside(const TransformsAside&) = delete;
  TransformsAside& operator=(const TransformsAside&) = delete;

  void put_back() {
    if (!transforms_) return;
    at::functorch::functorchTLSAccessor() = std::move(transforms_);
    if (in_transform()) c10::GradMode::set_enabled(records_);
  }

 private:
  bool records_ = c10::GradMode::is_enabled();
  std::decay_t<decltype(at::functorch::functorchTLSAccessor())> transforms_;
};

}  // namespace powergrad
