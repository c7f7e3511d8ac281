// Short contiguous rows without gaps between them.
#pragma once

#include "cuda/rows_contract.cuh"
#include "cuda/shared_vectors.cuh"

namespace powergrad {
namespace {

// A block copies the memory of its rows as it lies, in whole 16-byte vectors; each row is then read
// by a few threads, one class at a time. Results replace the logits in shared memory and are copied
// back the same way.
template <class Storage>
class PackedRows {
 public:
  using Element = Storage;
  static constexpr RowLayout kLayout = RowLayout::packed;
  static constexpr int kElements = 1;
  static constexpr int kRows = 1;
  template <class T>
  using Packed = Pack<std::remove_const_t<T>, 1>;

  int64_t row;
  bool active;

  __device__ PackedRows(const Plan& plan, const Shape& shape, const void* logits, const Strides&,
                        int block)
      : plan_(plan), classes_(static_cast<int>(shape.classes)) {
    const int thread = static_cast<int>(threadIdx.x);
    const int rows = plan.threads >> plan.lanes_log2;
    first_row_ = int64_t{block} * rows;
    elements_ = static_cast<int>(min(plan.rows - first_row_, int64_t{rows})) * classes_;
    const int row_of_block = thread >> plan.lanes_log2;
    lane_ = thread & (plan.lanes() - 1);
    row = first_row_ + row_of_block;
    active = row < plan.rows;
    if (!active) row = plan.rows - 1;
    first_element_ = (active ? row_of_block * classes_ : 0) + lane_;
    phase_ = phase_of(static_cast<const Storage*>(logits) + first_row_ * classes_);
    count_ = active && lane_ < classes_ ? (classes_ - lane_ + plan.lanes() - 1) / plan.lanes() : 0;
  }

  __device__ bool is_leader() const { return active && lane_ == 0; }
  __device__ static constexpr int passes() { return 1; }

  template <class T>
  struct GlobalView {
    T* first_row;  // of the block
    T* row;
    __device__ T* at(int, int64_t c) const { return row + c; }
  };
  template <class T>
  __device__ GlobalView<T> global_view(T* tensor, const Strides&) const {
    if (tensor == nullptr) return {};
    return {tensor + first_row_ * classes_, tensor + row * classes_};
  }
  template <class T>
  struct SharedTensor : GlobalView<const T> {
    SharedVectors<Packed<T>> vectors;
  };
  template <class T>
  __device__ SharedTensor<T> shared_tensor(int tensor, const T* data,
                                           const Strides& strides) const {
    const GlobalView<const T> from = global_view(data, strides);
    return {from,
            {offset_of<T>(tensor, phase_of(from.first_row) + first_element_),
             plan_.lanes() * static_cast<int>(sizeof(T))}};
  }

  template <class T>
  __device__ void copy_in(const SharedTensor<T>& tensor, int, T) const {
    const int begin = tensor.vectors.first - first_element_ * static_cast<int>(sizeof(T));
    const auto shared = [&](int i) {
      return shared_memory_at<T>(begin + i * static_cast<int>(sizeof(T)));
    };
    divide_among_threads(
        tensor.first_row, [&](int i) { copy_async<kVectorBytes>(shared(i), tensor.first_row + i); },
        [&](int i) { *shared(i) = tensor.first_row[i]; });
    commit_copies();
  }
  template <int kPending>
  __device__ void wait() const {
    wait_for_copies<kPending>();
    __syncthreads();
  }

  __device__ int first_class(int, int i) const { return lane_ + i * plan_.lanes(); }
  __device__ bool contains(int) const { return true; }

  template <class Function>
  __device__ __forceinline__ void for_each_vector(int, const Function& function) const {
#pragma unroll 4
    for (int i = 0; i < count_; ++i) function(i);
  }
  template <class Function>
  __device__ __forceinline__ void for_each_run(int, const Function& function) const {
    for_each_run_of(count_, function);
  }
  template <int kUnroll, class T, class Function>
  __device__ __forceinline__ void for_each_store(int, const GlobalView<T>&,
                                                 const Function& function) const {
    const int end = count_;
#pragma unroll(kUnroll)
    for (int i = 0; i < end; ++i) function(i, std::true_type{});
  }

  template <class T, class IsWhole>
  __device__ __forceinline__ void store(const GlobalView<T>&, int, int i, const Packed<T>& value,
                                        IsWhole) const {
    *result<T>(first_element_ + i * plan_.lanes()) = value.get(0);
  }
  __device__ bool owns_class(int c) const { return active && (c & (plan_.lanes() - 1)) == lane_; }
  template <class T>
  __device__ void store_class(const GlobalView<T>&, int, int c, T value) const {
    *result<T>(first_element_ + c - lane_) = value;
  }
  template <class T>
  __device__ void finish_stores(const GlobalView<T>& to) const {
    __syncthreads();
    if (phase_of(to.first_row) != phase_) {
      for (int i = static_cast<int>(threadIdx.x); i < elements_; i += plan_.threads) {
        to.first_row[i] = *result<T>(i);
      }
      return;
    }
    using Vector = Pack<T, kVectorBytes / sizeof(T)>;
    divide_among_threads(
        to.first_row,
        [&](int i) {
          store_streaming(to.first_row + i, *reinterpret_cast<const Vector*>(result<T>(i)));
        },
        [&](int i) { to.first_row[i] = *result<T>(i); });
  }

 private:
  // Of an element in the shared copy of a tensor, counted from a 16-byte boundary.
  template <class T>
  __device__ int offset_of(int tensor, int element) const {
    return plan_.scratch_bytes + tensor * plan_.tensor_bytes +
           element * static_cast<int>(sizeof(T));
  }
  // An element of the result, which replaces the logits, the first tensor.
  template <class T>
  __device__ T* result(int element) const {
    return shared_memory_at<T>(offset_of<T>(0, phase_ + element));
  }
  // Divides the block's elements, which begin at `address`, among its threads: on_vector(i) for the
  // whole 16-byte vectors, whose first elements are i, and on_element(i) before and after them.
  template <class T, class OnVector, class OnElement>
  __device__ void divide_among_threads(const T* address, const OnVector& on_vector,
                                       const OnElement& on_element) const {
    constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
    const int thread = static_cast<int>(threadIdx.x);
    const int phase = phase_of(address);
    const int head = min(phase > 0 ? kVector - phase : 0, elements_);
    const int end = elements_ - (elements_ - head) % kVector;
#pragma unroll 4
    for (int i = head + thread * kVector; i < end; i += plan_.threads * kVector) on_vector(i);
    if (thread < head) on_element(thread);
    if (thread < elements_ - end) on_element(end + thread);
  }

  const Plan& plan_;
  int classes_;
  int64_t first_row_;  // of the block
  int elements_;       // of the block
  int lane_;
  int first_element_;  // of the thread, among the block's
  int phase_;          // of the block's logits
  int count_;          // of the thread's classes
};
static_assert(meets_rows_contract<PackedRows<float>>());

}  // namespace
}  // namespace powergrad
