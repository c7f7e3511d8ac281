// C++ functions as operators of the dispatcher.
//
// A struct of options is one argument of a C++ function and several of an operator: its `Arguments`
// are their types, `from` makes the struct of them, and `arguments` takes it apart again. They may
// contain such structs themselves.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>
#include <type_traits>
#include <utility>

namespace powergrad {

template <class...>
struct Types;

template <class T, class = void>
inline constexpr bool kIsOptions = false;
template <class T>
inline constexpr bool kIsOptions<T, std::void_t<typename std::decay_t<T>::Arguments>> = true;

// `kernel` is what the dispatcher calls, an `Operator` calls the dispatcher.
template <auto function, class Signature = std::remove_pointer_t<decltype(function)>,
          class Before = Types<>, class = void>
struct Flat;

template <auto function, class Options, class Result, class Arguments, class Before, class After>
struct Flattened;

template <auto function, class Result, class First, class... Rest, class... Before>
struct Flat<function, Result(First, Rest...), Types<Before...>,
            std::enable_if_t<!kIsOptions<First>>>
    : Flat<function, Result(Rest...), Types<Before..., First>> {};

template <auto function, class Result, class First, class... Rest, class... Before>
struct Flat<function, Result(First, Rest...), Types<Before...>, std::enable_if_t<kIsOptions<First>>>
    : Flattened<function, std::decay_t<First>, Result, typename std::decay_t<First>::Arguments,
                Types<Before...>, Types<Rest...>> {};

template <auto function, class Result, class... All>
struct Flat<function, Result(), Types<All...>> {
  static constexpr auto kernel = function;

  struct Operator {
    c10::TypedOperatorHandle<Result(All...)> handle;
    Result operator()(All... all) const { return handle.call(std::forward<All>(all)...); }
  };
};

template <auto function, class Options, class Result, class... Arguments, class... Before,
          class... After>
struct Flattened<function, Options, Result, Types<Arguments...>, Types<Before...>,
                 Types<After...>> {
  static Result once(Before... before, Arguments... arguments, After... after) {
    return function(std::forward<Before>(before)...,
                    Options::from(std::forward<Arguments>(arguments)...),
                    std::forward<After>(after)...);
  }
  using Next = Flat<&Flattened::once>;
  static constexpr auto kernel = Next::kernel;

  struct Operator {
    typename Next::Operator next;
    Result operator()(Before... before, const Options& options, After... after) const {
      return std::apply(
          [&](Arguments... arguments) -> Result {
            return next(std::forward<Before>(before)..., std::forward<Arguments>(arguments)...,
                        std::forward<After>(after)...);
          },
          options.arguments());
    }
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
