// Rows whose classes lie a stride apart while neighbouring rows are adjacent (segmentation).
#pragma once

#include "cuda/rows_contract.cuh"
#include "cuda/shared_vectors.cuh"

namespace powergrad {
namespace {

// A thread has kPositions neighbouring rows, and shares them with other threads by classes.
template <class Storage, int kPositions>
class StridedRows {
 public:
  using Element = Storage;
  static constexpr RowLayout kLayout = RowLayout::strided;
  static constexpr int kElements = kPositions;
  static constexpr int kRows = kPositions;
  static constexpr bool kManyThreads = false;
  template <class T>
  using Packed = Pack<std::remove_const_t<T>, kPositions>;

  int64_t row;
  bool active;

  __device__ StridedRows(const Plan& plan, const Shape& shape, const void*, const Strides&,
                         int block)
      : plan_(plan), classes_(static_cast<int>(shape.classes)) {
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp;
    // Neighbouring lanes have neighbouring rows, so that a warp's loads fill sectors of memory.
    const int columns = kWarp >> plan.lanes_log2;
    const int column = thread % columns;
    lane_ = (thread % kWarp) / columns + ((warp & (plan.warps() - 1)) << plan.lanes_log2);
    lanes_ = 1 << plan.row_threads_log2();
    const int warp_groups = plan.threads >> (5 + plan.warps_log2);
    outer_ = static_cast<unsigned>(block) / plan.groups_per_outer;
    const int64_t warp_group =
        (block - outer_ * plan.groups_per_outer) * warp_groups + (warp >> plan.warps_log2);
    position_ = (warp_group * columns + column) * kPositions;
    active = position_ < shape.inner;
    if (!active) position_ = shape.inner - kPositions;
    row = outer_ * shape.inner + position_;
    count_ = active && lane_ < classes_ ? (classes_ - lane_ + lanes_ - 1) / lanes_ : 0;
  }

  __device__ bool is_leader() const { return active && lane_ == 0; }
  __device__ int passes() const { return plan_.passes; }

  template <class T>
  struct GlobalView {
    T* row;
    int64_t class_stride;
    __device__ T* at(int r, int64_t c) const { return row + c * class_stride + r; }
  };
  template <class T>
  __device__ GlobalView<T> global_view(T* tensor, const Strides& strides) const {
    if (tensor == nullptr) return {};
    return {tensor + outer_ * strides.outer + position_, strides.classes};
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
  __device__ void copy_in(const SharedTensor<T>& tensor, int pass, T) const {
    const T* from = tensor.at(0, first_class(pass, 0));
    const int64_t stride = lanes_ * tensor.class_stride;
    const int end = count(pass);
#pragma unroll 4
    for (int i = 0; i < end; ++i, from += stride) {
      if constexpr (sizeof(Packed<T>) >= 4) {
        copy_async<sizeof(Packed<T>)>(tensor.vectors.at(i), from);
      } else {
        tensor.vectors.set(i, Packed<T>::filled(*from));  // no asynchronous copy is that small
      }
    }
    commit_copies();
  }
  template <int kPending>
  __device__ void wait() const {
    wait_for_copies<kPending>();
  }

  __device__ int first_class(int pass, int i) const {
    return lane_ + (pass * plan_.vectors_per_thread + i) * lanes_;
  }
  __device__ bool contains(int) const { return true; }

  template <class Function>
  __device__ __forceinline__ void for_each_vector(int pass, const Function& function) const {
    const int end = count(pass);
#pragma unroll 4
    for (int i = 0; i < end; ++i) function(i);
  }
  template <class Function>
  __device__ __forceinline__ void for_each_run(int pass, const Function& function) const {
    for_each_run_of<1>(count(pass), function);
  }
  template <int kUnroll, class T, class Function>
  __device__ __forceinline__ void for_each_store(int pass, const GlobalView<T>&,
                                                 const Function& function) const {
    const int end = count(pass);
#pragma unroll(kUnroll)
    for (int i = 0; i < end; ++i) function(i, std::true_type{});
  }

  template <class T, class IsWhole>
  __device__ void store(const GlobalView<T>& to, int pass, int i, const Packed<T>& values,
                        IsWhole) const {
    store_streaming(to.at(0, first_class(pass, i)), values);
  }
  __device__ bool owns_class(int c) const { return active && (c & (lanes_ - 1)) == lane_; }
  template <class T>
  __device__ void store_class(const GlobalView<T>& to, int r, int c, T value) const {
    *to.at(r, c) = value;
  }
  template <class T>
  __device__ void finish_stores(const GlobalView<T>&) const {}

 private:
  __device__ int count(int pass) const {
    return min(count_ - pass * plan_.vectors_per_thread, plan_.vectors_per_thread);
  }

  const Plan& plan_;
  int classes_;
  int lanes_;  // threads on the same rows
  int lane_;   // among them
  int64_t outer_;
  int64_t position_;
  int count_;  // of the thread's classes
};
static_assert(meets_rows_contract<StridedRows<float, 1>>());
static_assert(meets_rows_contract<StridedRows<float, kMostPositions>>());

}  // namespace
}  // namespace powergrad
