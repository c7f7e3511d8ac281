// Cross-entropy with the PowerGrad Transform from a C++ program.
//
// Nothing of powergrad is included: linking the operator library registers its operators, and a
// program calls them by name through torch's dispatcher, autograd included. Built by the
// CMakeLists.txt at the top of the repository; ends with 0 if the gradient is the one defined.
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/softmax.h>

#include <cstdlib>
#include <iostream>
#include <optional>
#include <string_view>

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& target,
                         const at::Tensor& alpha) {
  using Signature =
      at::Tensor(const at::Tensor& input, const at::Tensor& target,
                 const std::optional<at::Tensor>& weight, int64_t ignore_index,
                 std::string_view reduction, double label_smoothing, const at::Tensor& alpha,
                 const std::optional<at::Tensor>& row_weight, double z_loss, bool inplace_backward);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("powergrad::cross_entropy", "")
                             .typed<Signature>();
  return op.call(logits, target, std::nullopt, -100, "mean", 0.0, alpha, std::nullopt, 0.0, false);
}

int main() {
  constexpr int64_t kRows = 4;
  constexpr int64_t kClasses = 10;
  const at::Tensor logits = at::randn({kRows, kClasses}).requires_grad_();
  const at::Tensor target = at::arange(kRows);
  const at::Tensor alpha = at::scalar_tensor(0.3, at::kDouble);

  const at::Tensor loss = cross_entropy(logits, target, alpha);
  loss.backward();

  const at::Tensor powered = at::softmax(logits.detach() * alpha, 1);
  const at::Tensor expected = (powered - at::one_hot(target, kClasses)) / kRows;
  const bool right = at::allclose(logits.grad(), expected, 1e-5, 1e-6);
  std::cout << "loss " << loss.item<float>() << ", the gradient is "
            << (right ? "softmax(alpha z) - target" : "wrong") << '\n';
  return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
