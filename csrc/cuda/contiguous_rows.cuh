// Rows whose classes are adjacent in memory.
#pragma once

#include "cuda/rows_contract.cuh"
#include "cuda/shared_vectors.cuh"

namespace powergrad {
namespace {

// A row is cut at the 16-byte boundaries of memory, so that whatever its length and address all
// but its first and last vector are whole. Those two are accessed element by element, outside the
// loops.
template <class Storage>
class ContiguousRows {
 public:
  using Element = Storage;
  static constexpr RowLayout kLayout = RowLayout::contiguous;
  static constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(Storage));
  static constexpr int kRows = 1;
  static constexpr bool kManyThreads = true;
  template <class T>
  using Packed = Pack<std::remove_const_t<T>, kElements>;

  int64_t row;
  bool active;

  __device__ ContiguousRows(const Plan& plan, const Shape& shape, const void* logits,
                            const Strides& strides, int block)
      : plan_(plan), shape_(shape), classes_(static_cast<int>(shape.classes)), block_of_row_(0) {
    int group = block;
    if (plan.blocks_per_row > 1) {
      group = static_cast<int>(static_cast<unsigned>(block) / plan.blocks_per_row);
      block_of_row_ = block - group * plan.blocks_per_row;
    }
    const unsigned thread = threadIdx.x;
    const unsigned rows_of_block = plan.threads >> plan.row_threads_log2();
    row = int64_t{group} * rows_of_block + (thread >> plan.row_threads_log2());
    active = row < plan.rows;
    if (!active) row = plan.rows - 1;
    lane_ = static_cast<int>(thread & ((1u << plan.row_threads_log2()) - 1));
    phase_ = phase_of(static_cast<const Storage*>(logits) + row_offset(shape, strides, row));
    vectors_ = static_cast<unsigned>(phase_ + classes_ + kElements - 1) / kElements;
    whole_end_ = static_cast<unsigned>(phase_ + classes_) / kElements;
  }

  __device__ bool is_leader() const { return active && lane_ == 0 && block_of_row_ == 0; }
  __device__ int passes() const { return plan_.passes; }

  template <class T>
  struct GlobalView {
    T* row;
    bool is_aligned;  // its 16-byte boundaries are where the logits' are
    __device__ T* at(int, int64_t c) const { return row + c; }
  };
  template <class T>
  __device__ GlobalView<T> global_view(T* tensor, const Strides& strides) const {
    T* first = tensor == nullptr ? nullptr : tensor + row_offset(shape_, strides, row);
    const auto address = reinterpret_cast<uintptr_t>(first) - phase_ * sizeof(T);
    return {first, address % kVectorBytes == 0};
  }
  template <class T>
  struct SharedTensor : GlobalView<const T> {
    SharedVectors<Packed<T>> vectors;
  };
  template <class T>
  __device__ SharedTensor<T> shared_tensor(int tensor, const T* data,
                                           const Strides& strides) const {
    return {global_view(data, strides), interleaved_vectors<Packed<T>>(plan_, tensor)};
  }

  template <class T>
  __device__ void copy_in(const SharedTensor<T>& tensor, int pass, T padding) const {
    if (tensor.is_aligned) {
      const T* first = tensor.row + first_class(pass, 0);
      const int end = whole_end(pass);
#pragma unroll 4
      for (int i = whole_begin(pass); i < end; ++i) {
        copy_async<kVectorBytes>(tensor.vectors.at(i),
                                 first + (i << plan_.row_threads_log2()) * kElements);
      }
    }
    for_each_partial_vector(pass, tensor.is_aligned,
                            [&](int i) { read_elements(tensor, pass, i, padding); });
    commit_copies();
  }
  template <int kPending>
  __device__ void wait() const {
    wait_for_copies<kPending>();
  }

  __device__ int first_class(int pass, int i) const {
    return (first_vector(pass) + (i << plan_.row_threads_log2())) * kElements - phase_;
  }
  __device__ bool contains(int c) const { return 0 <= c && c < classes_; }

  template <class Function>
  __device__ __forceinline__ void for_each_vector(int pass, const Function& function) const {
    const int end = count(pass);
#pragma unroll 2
    for (int i = 0; i < end; ++i) function(i);
  }
  template <class Function>
  __device__ __forceinline__ void for_each_run(int pass, const Function& function) const {
    for_each_vector(pass, [&](int i) { function(i, i + 1); });
  }
  template <int kUnroll, class T, class Function>
  __device__ __forceinline__ void for_each_store(int pass, const GlobalView<T>& to,
                                                 const Function& function) const {
    if (to.is_aligned) {
      const int end = whole_end(pass);
#pragma unroll(kUnroll)
      for (int i = whole_begin(pass); i < end; ++i) function(i, std::true_type{});
    }
    for_each_partial_vector(pass, to.is_aligned, [&](int i) { function(i, std::false_type{}); });
  }

  template <class T, class IsWhole>
  __device__ __forceinline__ void store(const GlobalView<T>& to, int pass, int i,
                                        const Packed<T>& values, IsWhole) const {
    const int first = first_class(pass, i);
    if constexpr (IsWhole::value) {
      store_streaming(to.row + first, values);
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        if (contains(first + e)) to.row[first + e] = values.get(e);
      }
    }
  }
  __device__ bool owns_class(int c) const {
    const unsigned vector = static_cast<unsigned>(c + phase_) / kElements;
    const unsigned step = vector >> plan_.row_threads_log2();
    return active && vector - (step << plan_.row_threads_log2()) == static_cast<unsigned>(lane_) &&
           step / plan_.vectors_per_thread % plan_.blocks_per_row ==
               static_cast<unsigned>(block_of_row_);
  }
  template <class T>
  __device__ void store_class(const GlobalView<T>& to, int, int c, T value) const {
    to.row[c] = value;
  }
  template <class T>
  __device__ void finish_stores(const GlobalView<T>&) const {}

 private:
  // The row's blocks alternate, each taking as many vectors as it has room for.
  __device__ int first_vector(int pass) const {
    return (((pass * plan_.blocks_per_row + block_of_row_) * plan_.vectors_per_thread)
            << plan_.row_threads_log2()) +
           lane_;
  }
  __device__ int count(int pass) const {
    const int left = vectors_ - first_vector(pass) + (1 << plan_.row_threads_log2()) - 1;
    return active ? min(left >> plan_.row_threads_log2(), plan_.vectors_per_thread) : 0;
  }
  // The thread's vectors that lie in the row as a whole.
  __device__ int whole_begin(int pass) const {
    return first_vector(pass) == 0 && (phase_ > 0 || whole_end_ == 0) ? 1 : 0;
  }
  __device__ int whole_end(int pass) const {
    const int left = whole_end_ - first_vector(pass) + (1 << plan_.row_threads_log2()) - 1;
    return active ? min(left >> plan_.row_threads_log2(), plan_.vectors_per_thread) : 0;
  }
  // All vectors of the thread where those of the tensor are not aligned.
  template <class Function>
  __device__ __forceinline__ void for_each_partial_vector(int pass, bool is_aligned,
                                                          const Function& function) const {
    const int begin = whole_begin(pass);
    const int end = whole_end(pass);
    for (int i = 0; i < count(pass); ++i) {
      if (is_aligned && begin <= i && i < end) i = end;
      if (i < count(pass)) function(i);
    }
  }
  template <class T>
  __device__ void read_elements(const SharedTensor<T>& tensor, int pass, int i, T padding) const {
    Packed<T> values = Packed<T>::filled(padding);
    const int first = first_class(pass, i);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (contains(first + e)) values.set(e, tensor.row[first + e]);
    }
    tensor.vectors.set(i, values);
  }

  const Plan& plan_;
  const Shape& shape_;
  int classes_;
  int block_of_row_;
  int lane_;       // among the block's threads on the row
  int phase_;      // of the row's first class in its first vector
  int vectors_;    // of the row
  int whole_end_;  // vectors before this one are whole, but maybe the first
};
static_assert(meets_rows_contract<ContiguousRows<float>>());

}  // namespace
}  // namespace powergrad
