// What the class of a layout (RowLayout in plan.h) has to offer to the kernels, checked when
// compiling.
#pragma once

#include <type_traits>
#include <utility>

#include "cuda/plan.h"

namespace powergrad {
namespace {

struct AnyFunction {
  template <class... Arguments>
  __device__ void operator()(Arguments...) const {}
};

// A thread reads only vectors that it has filled itself (PackedRows: that its block has filled), so
// that a copy needs no barrier, only its own wait.
template <class Rows>
constexpr bool meets_rows_contract() {
  using Storage = typename Rows::Element;
  using Packed = typename Rows::template Packed<Storage>;
  using View = typename Rows::template GlobalView<Storage>;
  using Tensor = typename Rows::template SharedTensor<Storage>;
#define POWERGRAD_HAS(type, expression) \
  static_assert(std::is_same_v<type, decltype(expression)>, #expression)
#define POWERGRAD_ROWS std::declval<const Rows&>()
#define POWERGRAD_A(type) std::declval<const type&>()

  POWERGRAD_HAS(const RowLayout, Rows::kLayout);
  // A vector has the classes of one row, or one class of kRows rows.
  static_assert(Rows::kElements >= 1 && (Rows::kRows == 1 || Rows::kRows == Rows::kElements));
  static_assert(sizeof(Packed) == Rows::kElements * sizeof(Storage));
  // Whether so many threads may be on a row that most of them do not hold its maximum.
  POWERGRAD_HAS(const bool, Rows::kManyThreads);

  // The thread's first row. Threads that are not active only join the reductions.
  static_assert(
      std::is_constructible_v<Rows, const Plan&, const Shape&, const void*, const Strides&, int>);
  POWERGRAD_HAS(int64_t, Rows::row);
  POWERGRAD_HAS(bool, Rows::active);
  // One thread of each row.
  POWERGRAD_HAS(bool, POWERGRAD_ROWS.is_leader());

  // A tensor's rows in global memory: at(r, c) is class c of row `row` + r. And with vectors in
  // shared memory.
  POWERGRAD_HAS(View, POWERGRAD_ROWS.global_view(std::declval<Storage*>(), POWERGRAD_A(Strides)));
  POWERGRAD_HAS(Storage*, POWERGRAD_A(View).at(0, int64_t{}));
  POWERGRAD_HAS(Tensor, POWERGRAD_ROWS.shared_tensor(0, std::declval<const Storage*>(),
                                                     POWERGRAD_A(Strides)));
  static_assert(std::is_base_of_v<typename Rows::template GlobalView<const Storage>, Tensor>);

  // How often the vectors are filled for a row. A copy begins; it has landed after wait<kPending>
  // with at most kPending copies begun after it. Elements outside a row become the padding.
  POWERGRAD_HAS(int, POWERGRAD_ROWS.passes());
  POWERGRAD_HAS(void, POWERGRAD_ROWS.copy_in(POWERGRAD_A(Tensor), 0, POWERGRAD_A(Storage)));
  POWERGRAD_HAS(void, POWERGRAD_ROWS.template wait<0>());

  // The class of the first element of a vector, which may lie outside the row.
  POWERGRAD_HAS(int, POWERGRAD_ROWS.first_class(0, 0));
  POWERGRAD_HAS(bool, POWERGRAD_ROWS.contains(0));

  // function(i) for the thread's vectors; function(begin, end) for runs of them, each to be summed
  // on its own, since one chain of thousands of terms would drift. An index may be of a type of its
  // own (SharedWords).
  POWERGRAD_HAS(void, POWERGRAD_ROWS.for_each_vector(0, AnyFunction{}));
  POWERGRAD_HAS(void, POWERGRAD_ROWS.for_each_run(0, AnyFunction{}));

  // function(i, is_whole) for the thread's vectors, to be stored. Not whole are vectors that reach
  // out of the row, and all of them where the tensor is aligned otherwise than the logits.
  POWERGRAD_HAS(void,
                POWERGRAD_ROWS.template for_each_store<1>(0, POWERGRAD_A(View), AnyFunction{}));
  POWERGRAD_HAS(
      void, POWERGRAD_ROWS.store(POWERGRAD_A(View), 0, 0, POWERGRAD_A(Packed), std::true_type{}));
  // A single class, after the thread that owns it has stored its vectors.
  POWERGRAD_HAS(bool, POWERGRAD_ROWS.owns_class(0));
  POWERGRAD_HAS(void, POWERGRAD_ROWS.store_class(POWERGRAD_A(View), 0, 0, POWERGRAD_A(Storage)));
  POWERGRAD_HAS(void, POWERGRAD_ROWS.finish_stores(POWERGRAD_A(View)));

#undef POWERGRAD_HAS
#undef POWERGRAD_ROWS
#undef POWERGRAD_A
  return true;
}

}  // namespace
}  // namespace powergrad
