// The pybind11 module: the eager entry points, which skip the cost of Python's operator packets,
// and what the package reports about itself. Loading it registers torch.ops.powergrad.*.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "torch/functorch.h"
#include "torch/instruction_set.h"
#include "torch/libraries.h"
#include "torch/operators.h"

namespace py = pybind11;

namespace powergrad {
namespace {

using Alpha = std::variant<double, at::Tensor>;

at::Tensor as_tensor(const Alpha& alpha) {
  const double* value = std::get_if<double>(&alpha);
  if (value == nullptr) return std::get<at::Tensor>(alpha);
  const auto make = [value] {
    return at::scalar_tensor(*value, at::TensorOptions().dtype(at::kDouble));
  };
  // A fake one, or one that belongs to a transform of torch.func: not to be kept.
  if (c10::impl::TorchDispatchModeTLS::any_modes_set() || in_transform()) return make();
  // Steps come with the same alpha, and making a tensor costs a tenth of a small call.
  thread_local double last_value = std::numeric_limits<double>::quiet_NaN();
  thread_local at::Tensor last;
  if (*value != last_value) {
    const c10::InferenceMode ordinary_tensor(false);  // one that training after evaluation can save
    last = make();
    last_value = *value;
  }
  return last;
}

// The options as Python has them: alpha may be a float.
struct PythonOptions : CrossEntropyOptions {
  using Arguments = ArgumentsWith<const Alpha&>;
  template <class... Each>
  static PythonOptions from(Each&&... each) {
    return {make<const Alpha&, as_tensor>(std::forward<Each>(each)...)};
  }
};

at::Tensor call_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                              const PythonOptions& options, bool inplace_backward) {
  return POWERGRAD_DISPATCHED(cross_entropy)(input, target, options, inplace_backward);
}

at::Tensor call_log_softmax(const at::Tensor& input, int64_t dim, const Alpha& alpha) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("powergrad::log_softmax", "")
                             .typed<at::Tensor(const at::Tensor&, int64_t, const at::Tensor&)>();
  py::gil_scoped_release no_gil;
  return op.call(input, dim, as_tensor(alpha));
}

// What the CUDA kernels that lie beside this file were compiled for; none where there are none.
std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
  try {
    std::istringstream list(cuda_library().architectures);
    for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  } catch (const c10::NotImplementedError&) {
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  try {
    active_instruction_set();
  } catch (const c10::Error& error) {  // a bad POWERGRAD_ISA, other kernels: an ImportError
    throw py::import_error(error.what_without_backtrace());
  }

  m.def("cross_entropy", Flat<&call_cross_entropy>::kernel,
        py::call_guard<py::gil_scoped_release>());
  m.def("log_softmax", &call_log_softmax);

  m.def("isa", [] { return active_instruction_set().name; });
  m.def("set_isa", &set_instruction_set);
  m.def("available_isas", &supported_instruction_sets);
  m.def("cuda_architectures", &cuda_architectures);
}

}  // namespace powergrad
