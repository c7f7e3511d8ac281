// Short contiguous rows without gaps between them.
#pragma once

#include "cuda/rows_contract.cuh"
#include "cuda/shared_vectors.cuh"

namespace powergrad {
namespace {

// The index of one more vector of a thread: the elements of a row that share a word of shared
// memory with another row. Two of them are the bounds of a run.
struct SharedWords {
  int passed = 0;
  __device__ bool operator<(SharedWords end) const { return passed < end.passed; }
  __device__ SharedWords& operator++() { return ++passed, *this; }
};

// The vectors of a thread. Where they are pairs, the first element of a row that begins in the
// middle of a word (its head) and the last one of a row that ends there (its tail) are read and
// written on their own, since another thread may be writing the other half of the word.
template <class T, int kElements>
struct PackedVectors : SharedVectors<Pack<T, kElements>> {
  int head;  // offsets of these elements, or kNone
  int tail;
  static constexpr int kNone = -1;
  __device__ __forceinline__ bool has_single() const { return (head & tail) != kNone; }

  using SharedVectors<Pack<T, kElements>>::get;
  __device__ __forceinline__ Pack<T, kElements> get(SharedWords) const {
    auto pair = Pack<T, kElements>::filled(from_number<T>(kLowest<AccumulateOf<T>>));
    if (head != kNone) pair.set(0, *shared_memory_at<T>(head));
    if (tail != kNone) pair.set(1, *shared_memory_at<T>(tail));
    return pair;
  }
  using SharedVectors<Pack<T, kElements>>::set;
  __device__ __forceinline__ void set(SharedWords, const Pack<T, kElements>& pair) const {
    if (head != kNone) *shared_memory_at<T>(head) = pair.get(0);
    if (tail != kNone) *shared_memory_at<T>(tail) = pair.get(1);
  }
};

// A block copies the memory of its rows as it lies, in whole 16-byte vectors; each row is then read
// by a few threads, one class at a time or, in half precision and where no other tensor is in
// shared memory, a word of two. Results replace the logits in shared memory and are copied back the
// same way.
template <class Storage, int kClasses>
class PackedRows {
 public:
  using Element = Storage;
  static constexpr RowLayout kLayout = RowLayout::packed;
  static constexpr int kElements = kClasses;
  static constexpr int kRows = 1;
  static constexpr bool kManyThreads = false;
  template <class T>
  using Packed = Pack<std::remove_const_t<T>, kElements>;

  int64_t row;
  bool active;

  __device__ PackedRows(const Plan& plan, const Shape& shape, const void* logits, const Strides&,
                        int block)
      : plan_(plan), classes_(static_cast<int>(shape.classes)) {
    const int thread = static_cast<int>(threadIdx.x);
    const int rows = plan.threads >> plan.lanes_log2;
    first_row_ = int64_t{block} * rows;
    const int rows_of_block = static_cast<int>(min(plan.rows - first_row_, int64_t{rows}));
    elements_ = rows_of_block * classes_;
    lane_ = thread & (plan.lanes() - 1);
    row_of_block_ = thread >> plan.lanes_log2;
    active = row_of_block_ < rows_of_block;
    if (!active) row_of_block_ = rows_of_block - 1;
    row = first_row_ + row_of_block_;
    phase_ = phase_of(static_cast<const Storage*>(logits) + first_row_ * classes_);
    const int begin = begin_of_row();
    const int end = begin + classes_;
    first_vector_ = vector_of(begin + kElements - 1);
    const int vectors = vector_of(end) - first_vector_;
    count_ = active ? (vectors - lane_ + plan.lanes() - 1) >> plan.lanes_log2 : 0;
    result_ = vectors_of<Storage>(0, phase_);
    if (kElements > 1 && active && classes_ > 0) {
      // Their threads are those that the pairs before and after the row's own would have.
      if (begin % 2 != 0 && owns_vector(-1)) result_.head = offset_of<Storage>(0, begin);
      if (end % 2 != 0 && owns_vector(vectors)) result_.tail = offset_of<Storage>(0, end - 1);
    }
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
    T* first_row = tensor + first_row_ * classes_;
    return {first_row, first_row + row_of_block_ * classes_};
  }
  template <class T>
  struct SharedTensor : GlobalView<const T> {
    int begin;  // of the block's rows in shared memory
    PackedVectors<std::remove_const_t<T>, kElements> vectors;
  };
  template <class T>
  __device__ SharedTensor<T> shared_tensor(int tensor, const T* data,
                                           const Strides& strides) const {
    const GlobalView<const T> from = global_view(data, strides);
    if (tensor == 0) return {from, offset_of<T>(0, phase_), result_};
    const int phase = phase_of(from.first_row);
    return {from, offset_of<T>(tensor, phase), vectors_of<T>(tensor, phase)};
  }

  template <class T>
  __device__ void copy_in(const SharedTensor<T>& tensor, int, T) const {
    const auto shared = [&](int i) {
      return shared_memory_at<T>(tensor.begin + i * static_cast<int>(sizeof(T)));
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

  __device__ int first_class(int, int i) const {
    return (first_vector_ + lane_ + i * plan_.lanes()) * kElements - begin_of_row();
  }
  __device__ bool contains(int) const { return true; }

  template <class Function>
  __device__ __forceinline__ void for_each_vector(int, const Function& function) const {
#pragma unroll 2
    for (int i = 0; i < count_; ++i) function(i);
    if constexpr (kElements > 1) {
      if (result_.has_single()) function(SharedWords{});
    }
  }
  template <class Function>
  __device__ __forceinline__ void for_each_run(int, const Function& function) const {
    for_each_run_of<kElements>(count_, function);
    if constexpr (kElements > 1) {
      if (result_.has_single()) function(SharedWords{0}, SharedWords{1});
    }
  }
  template <int kUnroll, class T, class Function>
  __device__ __forceinline__ void for_each_store(int, const GlobalView<T>&,
                                                 const Function& function) const {
    const int end = count_;
#pragma unroll(kUnroll)
    for (int i = 0; i < end; ++i) function(i, std::true_type{});
    if constexpr (kElements > 1) {
      if (result_.has_single()) function(SharedWords{}, std::false_type{});
    }
  }

  template <class T, class Index, class IsWhole>
  __device__ __forceinline__ void store(const GlobalView<T>&, int, Index i, const Packed<T>& values,
                                        IsWhole) const {
    result_.set(i, values);
  }
  __device__ bool owns_class(int c) const {
    return active && owns_vector(vector_of(begin_of_row() + c) - first_vector_);
  }
  template <class T>
  __device__ void store_class(const GlobalView<T>&, int, int c, T value) const {
    *result<T>(row_of_block_ * classes_ + c) = value;
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
  // The vector that has an element; both are counted from a 16-byte boundary.
  __device__ static int vector_of(int element) {
    return static_cast<int>(static_cast<unsigned>(element) / kElements);
  }
  __device__ int begin_of_row() const { return phase_ + row_of_block_ * classes_; }
  __device__ bool owns_vector(int of_row) const { return (of_row & (plan_.lanes() - 1)) == lane_; }
  // The thread's vectors in a tensor whose rows begin at `phase`: that of the logits for pairs.
  template <class T>
  __device__ PackedVectors<T, kElements> vectors_of(int tensor, int phase) const {
    const int first = (first_vector_ + lane_) * kElements + phase - phase_;
    using Vectors = PackedVectors<T, kElements>;
    return {{offset_of<T>(tensor, first), plan_.lanes() * static_cast<int>(sizeof(Packed<T>))},
            Vectors::kNone,
            Vectors::kNone};
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
    const int rest = (elements_ - head) % kVector;
    const int end = elements_ - rest;
#pragma unroll 1
    for (int i = head + thread * kVector; i < end; i += plan_.threads * kVector) on_vector(i);
    if (thread < head + rest) on_element(thread < head ? thread : end + thread - head);
  }

  const Plan& plan_;
  int classes_;
  int64_t first_row_;  // of the block
  int elements_;       // of the block
  int lane_;
  int row_of_block_;  // the thread's
  int phase_;         // of the block's logits
  int first_vector_;  // of the row, among those in shared memory
  int count_;         // of the thread's vectors
  PackedVectors<Storage, kElements> result_;
};
static_assert(meets_rows_contract<PackedRows<float, 1>>());
static_assert(meets_rows_contract<PackedRows<BFloat16, 2>>());

// The class of the same layout for a kernel that copies no other tensor into shared memory: the
// words of two tensors may lie differently.
template <class Rows>
struct InPairs {
  using Type = Rows;
};
template <class Storage>
struct InPairs<PackedRows<Storage, 1>> {
  using Type = PackedRows<Storage, sizeof(Storage) == 2 ? 2 : 1>;
};

}  // namespace
}  // namespace powergrad
