// The options of cross-entropy as one argument: of every function that takes them, of the schemas
// and of autograd. What they are called one by one is written here and in check_cross_entropy.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace torch::autograd {
struct AutogradContext;
}

namespace powergrad {

using OptionalTensor = std::optional<at::Tensor>;

enum class Reduction : int64_t { none, mean, sum };

// ValueError for an unknown name.
Reduction parse_reduction(std::string_view name);
std::string_view name_of(Reduction reduction);

// Autograd saves no tensor that inference mode has made, as the alpha of a schedule may be.
inline at::Tensor savable(const at::Tensor& alpha) {
  return alpha.is_inference() ? alpha.clone() : alpha;
}

// In the order of torch.nn.functional.cross_entropy.
struct CrossEntropyOptions {
  OptionalTensor weight;
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing;
  at::Tensor alpha;

  bool has_weight() const { return weight.has_value() && weight->defined(); }
  CrossEntropyOptions with(Reduction other) const;

  // Saves the options for backward, with `tensors`.
  void save(torch::autograd::AutogradContext* context, std::vector<at::Tensor> tensors) const;
  // Takes the options' tensors from the end of what was saved.
  static CrossEntropyOptions load(torch::autograd::AutogradContext* context,
                                  std::vector<at::Tensor>& saved);
  // The saved reduction alone, whether or not the tensors can still be used.
  static Reduction load_reduction(torch::autograd::AutogradContext* context);
};

// The options in the schema of a raw operator, and in that of one for users.
#define POWERGRAD_OPTIONS \
  "Tensor? weight, int ignore_index, str reduction, float label_smoothing, Tensor alpha"
#define POWERGRAD_OPTIONS_WITH_DEFAULTS                                  \
  "Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\", " \
  "float label_smoothing=0.0, *, Tensor alpha"

template <class...>
struct Types;

// A C++ function as an operator. To the dispatcher each of its CrossEntropyOptions is an argument
// of its own: `kernel` puts them together, an `Operator` takes them apart.
template <auto function, class Signature = std::remove_pointer_t<decltype(function)>,
          class Before = Types<>>
struct Flat;

template <auto function, class Result, class First, class... Rest, class... Before>
struct Flat<function, Result(First, Rest...), Types<Before...>>
    : Flat<function, Result(Rest...), Types<Before..., First>> {};

template <auto function, class Result, class... After, class... Before>
struct Flat<function, Result(const CrossEntropyOptions&, After...), Types<Before...>> {
  // as_tensor: what makes a tensor of alpha, where it comes as another type.
  template <class Alpha, auto as_tensor>
  static Result kernel_for(Before... before, const OptionalTensor& weight, int64_t ignore_index,
                           std::string_view reduction, double label_smoothing, Alpha alpha,
                           After... after) {
    return function(std::forward<Before>(before)...,
                    CrossEntropyOptions{weight, ignore_index, parse_reduction(reduction),
                                        label_smoothing, as_tensor(alpha)},
                    std::forward<After>(after)...);
  }
  static const at::Tensor& itself(const at::Tensor& alpha) { return alpha; }
  static constexpr auto kernel = kernel_for<const at::Tensor&, itself>;

  struct Operator {
    c10::TypedOperatorHandle<std::remove_pointer_t<decltype(kernel)>> handle;
    Result operator()(Before... before, const CrossEntropyOptions& options, After... after) const {
      return handle.call(std::forward<Before>(before)..., options.weight, options.ignore_index,
                         name_of(options.reduction), options.label_smoothing, options.alpha,
                         std::forward<After>(after)...);
    }
  };
};

template <auto function, class Result, class... All>
struct Flat<function, Result(), Types<All...>> {
  static constexpr auto kernel = function;

  struct Operator {
    c10::TypedOperatorHandle<Result(All...)> handle;
    Result operator()(All... all) const { return handle.call(std::forward<All>(all)...); }
  };
};

// The operator that is named after a C++ function, through the dispatcher.
#define POWERGRAD_DISPATCHED(name)                                                        \
  ([]() -> const auto& {                                                                  \
    using Operator = ::powergrad::Flat<&name>::Operator;                                  \
    static const Operator op{                                                             \
        c10::Dispatcher::singleton()                                                      \
            .findSchemaOrThrow("powergrad::" #name, "")                                   \
            .typed<std::remove_pointer_t<decltype(::powergrad::Flat<&name>::kernel)>>()}; \
    return op;                                                                            \
  }())

}  // namespace powergrad
