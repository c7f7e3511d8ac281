// What a thread has of its rows: its slots in shared memory, how they are filled from device memory
// and how results go back. One class for each layout of plan.h, all of them with
//
//   kElements, kRows        elements of a slot: classes of one row, or one class of kRows rows
//   row, active             the thread's (first) row; false: there is none, it joins the meetings
//   resident(tensor, ...)   a tensor that is copied into slots
//   each_slot(round, f)     f(slot) for this thread's slots; logits outside the row are -infinity
//   each_run(round, f)      f(begin, end) for runs of them, each to be added up on its own: a chain
//                           of thousands of terms would drift, most where all of them are equal
//   each_place<unroll>(round, output, f)
//                           f(slot, is_whole): not whole are slots that reach out of the row, and
//                           all of them where the output's vectors begin elsewhere
//   output(...), store      a tensor that results go to
//
// A thread reads only slots that it has filled itself (chunks: that its block has filled), so a
// copy needs no barrier, only its own wait.
#pragma once

#include "cuda/numbers.cuh"
#include "cuda/plan.h"
#include "row.h"

namespace powergrad {
namespace {

template <class T>
__device__ __forceinline__ T* shared_memory_at(int offset) {
  return reinterpret_cast<T*>(dynamic_shared_memory() + offset);
}

// The slots of one thread, one every `stride`, in bytes. Offsets into shared memory, as the
// compiler loses sight of where a pointer that is kept leads to; and whole words, as it takes
// structs apart.
template <class Packed>
struct Slots {
  int first;
  int stride;
  __device__ __forceinline__ void* at(int i) const {
    return dynamic_shared_memory() + first + i * stride;
  }
  __device__ __forceinline__ Packed get(int i) const {
    return from_word<Packed>(*static_cast<const WordOf<Packed>*>(at(i)));
  }
  __device__ __forceinline__ void set(int i, const Packed& pack) const {
    *static_cast<WordOf<Packed>*>(at(i)) = to_word(pack);
  }
};

// How far into a 16-byte vector an address lies, in elements.
template <class T>
__device__ __forceinline__ int phase_of(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kVectorBytes / sizeof(T));
}

// Of slots with a single class of a row.
template <class Function>
__device__ __forceinline__ void each_run_of(int count, const Function& function) {
  constexpr int kRun = 32;
  for (int begin = 0; begin < count; begin += kRun) function(begin, min(begin + kRun, count));
}

// Rows whose classes are neighbours, cut into the 16-byte vectors of memory that cover them, so
// that rows of any length at any address keep full-width middles. The two ends that are not whole
// are handled element by element, outside the loops.
template <class Storage>
class ResidentRows {
 public:
  using Element = Storage;
  static constexpr Layout kLayout = Layout::rows;
  static constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(Storage));
  static constexpr int kRows = 1;
  template <class T>
  using Packed = Pack<std::remove_const_t<T>, kElements>;

  int64_t row;
  bool active;

  __device__ ResidentRows(const Plan& plan, const Shape& shape, const void* logits,
                          const Strides& strides, int block)
      : plan_(plan), shape_(shape), classes_(static_cast<int>(shape.classes)), part_(0) {
    int unit = block;
    if (plan.parts > 1) {
      unit = static_cast<int>(static_cast<unsigned>(block) / plan.parts);
      part_ = block - unit * plan.parts;
    }
    const unsigned thread = threadIdx.x;
    const unsigned of_block = plan.threads >> plan.row_bits();
    row = int64_t{unit} * of_block + (thread >> plan.row_bits());
    active = row < plan.rows;
    if (!active) row = plan.rows - 1;
    lane_ = static_cast<int>(thread & ((1u << plan.row_bits()) - 1));
    phase_ = phase_of(static_cast<const Storage*>(logits) + row_offset(shape, strides, row));
    packs_ = static_cast<unsigned>(phase_ + classes_ + kElements - 1) / kElements;
    whole_packs_ = static_cast<unsigned>(phase_ + classes_) / kElements;
  }

  // The first of this block's threads on the row.
  __device__ bool leads() const { return active && lane_ == 0 && part_ == 0; }
  __device__ int rounds() const { return plan_.rounds; }

  // One row of a tensor. T may be const.
  template <class T>
  struct Output {
    T* row;
    bool is_aligned;  // vectors begin where the logits' do
    __device__ T* at(int, int64_t c) const { return row + c; }
  };
  template <class T>
  __device__ Output<T> output(T* tensor, const Strides& strides) const {
    T* first = tensor == nullptr ? nullptr : tensor + row_offset(shape_, strides, row);
    const auto address = reinterpret_cast<uintptr_t>(first) - phase_ * sizeof(T);
    return {first, address % kVectorBytes == 0};
  }
  template <class T>
  struct Resident : Output<const T> {
    Slots<Packed<T>> slots;
  };
  template <class T>
  __device__ Resident<T> resident(int tensor, const T* data, const Strides& strides) const {
    constexpr int kBytes = static_cast<int>(sizeof(Packed<T>));
    const int offset = plan_.scratch_bytes + tensor * plan_.tensor_bytes;
    return {output(data, strides),
            {offset + static_cast<int>(threadIdx.x) * kBytes, plan_.threads * kBytes}};
  }

  template <class T>
  __device__ void copy_in(const Resident<T>& tensor, int round, T padding) const {
    if (tensor.is_aligned) {
      const T* first = tensor.row + first_class(round, 0);
      const int end = whole_end(round);
#pragma unroll 4
      for (int i = whole_begin(round); i < end; ++i) {
        copy_async<kVectorBytes>(tensor.slots.at(i), first + (i << plan_.row_bits()) * kElements);
      }
    }
    each_edge(round, tensor.is_aligned, [&](int i) { read_elements(tensor, round, i, padding); });
    commit_copies();
  }
  template <int kPending>
  __device__ void wait() const {
    wait_for_copies<kPending>();
  }

  __device__ int first_class(int round, int i) const {
    return (first_pack(round) + (i << plan_.row_bits())) * kElements - phase_;
  }
  __device__ bool contains(int c) const { return 0 <= c && c < classes_; }

  template <class Function>
  __device__ __forceinline__ void each_slot(int round, const Function& function) const {
    const int end = count(round);
#pragma unroll 2
    for (int i = 0; i < end; ++i) function(i);
  }
  template <class Function>
  __device__ __forceinline__ void each_run(int round, const Function& function) const {
    each_slot(round, [&](int i) { function(i, i + 1); });
  }
  template <int kUnroll, class T, class Function>
  __device__ __forceinline__ void each_place(int round, const Output<T>& output,
                                             const Function& function) const {
    if (output.is_aligned) {
      const int end = whole_end(round);
#pragma unroll(kUnroll)
      for (int i = whole_begin(round); i < end; ++i) function(i, std::true_type{});
    }
    each_edge(round, output.is_aligned, [&](int i) { function(i, std::false_type{}); });
  }

  template <class T, class IsWhole>
  __device__ __forceinline__ void store(const Output<T>& to, int round, int i,
                                        const Packed<T>& values, IsWhole) const {
    const int first = first_class(round, i);
    if constexpr (IsWhole::value) {
      store_streaming(to.row + first, values);
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        if (contains(first + e)) to.row[first + e] = values.get(e);
      }
    }
  }
  // Written behind what this thread has stored there.
  __device__ bool owns(int c) const {
    const unsigned pack = static_cast<unsigned>(c + phase_) / kElements;
    const unsigned step = pack >> plan_.row_bits();
    return active && pack - (step << plan_.row_bits()) == static_cast<unsigned>(lane_) &&
           step / plan_.steps % plan_.parts == static_cast<unsigned>(part_);
  }
  template <class T>
  __device__ void put(const Output<T>& to, int, int c, T value) const {
    to.row[c] = value;
  }
  template <class T>
  __device__ void finish(const Output<T>&) const {}

 private:
  // Blocks on the row take turns, each with as many packs as it has slots.
  __device__ int first_pack(int round) const {
    return (((round * plan_.parts + part_) * plan_.steps) << plan_.row_bits()) + lane_;
  }
  __device__ int count(int round) const {
    const int left = packs_ - first_pack(round) + (1 << plan_.row_bits()) - 1;
    return active ? min(left >> plan_.row_bits(), plan_.steps) : 0;
  }
  // Slots that hold whole vectors of the row: all but its first and its last, maybe.
  __device__ int whole_begin(int round) const {
    return first_pack(round) == 0 && (phase_ > 0 || whole_packs_ == 0) ? 1 : 0;
  }
  __device__ int whole_end(int round) const {
    const int left = whole_packs_ - first_pack(round) + (1 << plan_.row_bits()) - 1;
    return active ? min(left >> plan_.row_bits(), plan_.steps) : 0;
  }
  template <class Function>
  __device__ __forceinline__ void each_edge(int round, bool is_aligned,
                                            const Function& function) const {
    const int begin = whole_begin(round);
    const int end = whole_end(round);
    for (int i = 0; i < count(round); ++i) {
      if (is_aligned && begin <= i && i < end) i = end;
      if (i < count(round)) function(i);
    }
  }
  template <class T>
  __device__ void read_elements(const Resident<T>& tensor, int round, int i, T padding) const {
    Packed<T> values = Packed<T>::filled(padding);
    const int first = first_class(round, i);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (contains(first + e)) values.set(e, tensor.row[first + e]);
    }
    tensor.slots.set(i, values);
  }

  const Plan& plan_;
  const Shape& shape_;
  int classes_;
  int part_;
  int lane_;   // among the threads of the block on the row
  int phase_;  // the row's first class is this far into its first pack
  int packs_;
  int whole_packs_;  // before this one they are, but for the first, maybe
};

// Several short rows that follow each other: their memory is copied as it lies, and results are
// written over it before they are copied back.
template <class Storage>
class ResidentChunks {
 public:
  using Element = Storage;
  static constexpr Layout kLayout = Layout::chunks;
  static constexpr int kElements = 1;
  static constexpr int kRows = 1;
  template <class T>
  using Packed = Pack<std::remove_const_t<T>, 1>;

  int64_t row;
  bool active;

  __device__ ResidentChunks(const Plan& plan, const Shape& shape, const void* logits,
                            const Strides&, int block)
      : plan_(plan), classes_(static_cast<int>(shape.classes)) {
    const int thread = static_cast<int>(threadIdx.x);
    const int rows = plan.threads >> plan.lanes_bits;
    first_row_ = int64_t{block} * rows;
    count_ = static_cast<int>(min(plan.rows - first_row_, int64_t{rows})) * classes_;
    const int row_of_block = thread >> plan.lanes_bits;
    lane_ = thread & (plan.lanes() - 1);
    row = first_row_ + row_of_block;
    active = row < plan.rows;
    if (!active) row = plan.rows - 1;
    place_ = (active ? row_of_block * classes_ : 0) + lane_;
    phase_ = phase_of(static_cast<const Storage*>(logits) + first_row_ * classes_);
    slots_ = active && lane_ < classes_ ? (classes_ - lane_ + plan.lanes() - 1) / plan.lanes() : 0;
  }

  __device__ bool leads() const { return active && lane_ == 0; }
  __device__ static constexpr int rounds() { return 1; }

  template <class T>
  struct Output {
    T* chunk;
    T* row;
    __device__ T* at(int, int64_t c) const { return row + c; }
  };
  template <class T>
  __device__ Output<T> output(T* tensor, const Strides&) const {
    if (tensor == nullptr) return {};
    return {tensor + first_row_ * classes_, tensor + row * classes_};
  }
  template <class T>
  struct Resident : Output<const T> {
    Slots<Packed<T>> slots;
  };
  template <class T>
  __device__ Resident<T> resident(int tensor, const T* data, const Strides& strides) const {
    const Output<const T> from = output(data, strides);
    return {from,
            {image<T>(tensor, phase_of(from.chunk) + place_),
             plan_.lanes() * static_cast<int>(sizeof(T))}};
  }

  template <class T>
  __device__ void copy_in(const Resident<T>& tensor, int, T) const {
    const int begin = tensor.slots.first - place_ * static_cast<int>(sizeof(T));
    share_out(
        tensor.chunk,
        [&](int i) {
          copy_async<kVectorBytes>(shared_memory_at<T>(begin + i * static_cast<int>(sizeof(T))),
                                   tensor.chunk + i);
        },
        [&](int i) {
          *shared_memory_at<T>(begin + i * static_cast<int>(sizeof(T))) = tensor.chunk[i];
        });
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
  __device__ __forceinline__ void each_slot(int, const Function& function) const {
#pragma unroll 4
    for (int i = 0; i < slots_; ++i) function(i);
  }
  template <class Function>
  __device__ __forceinline__ void each_run(int, const Function& function) const {
    each_run_of(slots_, function);
  }
  template <int kUnroll, class T, class Function>
  __device__ __forceinline__ void each_place(int, const Output<T>&,
                                             const Function& function) const {
    const int end = slots_;
#pragma unroll(kUnroll)
    for (int i = 0; i < end; ++i) function(i, std::true_type{});
  }

  template <class T, class IsWhole>
  __device__ __forceinline__ void store(const Output<T>&, int, int i, const Packed<T>& value,
                                        IsWhole) const {
    *result<T>(place_ + i * plan_.lanes()) = value.get(0);
  }
  __device__ bool owns(int c) const { return active && (c & (plan_.lanes() - 1)) == lane_; }
  template <class T>
  __device__ void put(const Output<T>&, int, int c, T value) const {
    *result<T>(place_ + c - lane_) = value;
  }
  template <class T>
  __device__ void finish(const Output<T>& to) const {
    __syncthreads();
    if (phase_of(to.chunk) != phase_) {
      for (int i = static_cast<int>(threadIdx.x); i < count_; i += plan_.threads) {
        to.chunk[i] = *result<T>(i);
      }
      return;
    }
    share_out(
        to.chunk,
        [&](int i) {
          store_streaming(to.chunk + i, *reinterpret_cast<const Vector<T>*>(result<T>(i)));
        },
        [&](int i) { to.chunk[i] = *result<T>(i); });
  }

 private:
  template <class T>
  using Vector = Pack<T, kVectorBytes / sizeof(T)>;

  // Where in shared memory an element of a tensor's copy is, counted from where a vector begins.
  template <class T>
  __device__ int image(int tensor, int element) const {
    return plan_.scratch_bytes + tensor * plan_.tensor_bytes +
           element * static_cast<int>(sizeof(T));
  }
  // An element of the result: over the logits, the first tensor.
  template <class T>
  __device__ T* result(int element) const {
    return shared_memory_at<T>(image<T>(0, phase_ + element));
  }
  // The elements of a chunk that begins at `address` among the threads of the block: whole vectors,
  // by their first element, and what is before and behind them.
  template <class T, class OfVector, class OfElement>
  __device__ void share_out(const T* address, const OfVector& of_vector,
                            const OfElement& of_element) const {
    constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
    const int thread = static_cast<int>(threadIdx.x);
    const int phase = phase_of(address);
    const int head = min(phase > 0 ? kVector - phase : 0, count_);
    const int end = count_ - (count_ - head) % kVector;
#pragma unroll 4
    for (int i = head + thread * kVector; i < end; i += plan_.threads * kVector) of_vector(i);
    if (thread < head) of_element(thread);
    if (thread < count_ - end) of_element(end + thread);
  }

  const Plan& plan_;
  int classes_;
  int64_t first_row_;
  int count_;  // elements of the chunk
  int lane_;
  int place_;  // of the thread's first class in the chunk
  int phase_;  // of the logits' chunk
  int slots_;
};

// Neighbouring rows, kPositions to a thread, whose classes lie a stride apart.
template <class Storage, int kPositions>
class ResidentTiles {
 public:
  using Element = Storage;
  static constexpr Layout kLayout = Layout::tiles;
  static constexpr int kElements = kPositions;
  static constexpr int kRows = kPositions;
  template <class T>
  using Packed = Pack<std::remove_const_t<T>, kPositions>;

  int64_t row;
  bool active;

  __device__ ResidentTiles(const Plan& plan, const Shape& shape, const void*, const Strides&,
                           int block)
      : plan_(plan), classes_(static_cast<int>(shape.classes)) {
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp;
    const int columns = kWarp >> plan.lanes_bits;  // of a warp; threads on the same row are apart
    const int column = thread % columns;
    lane_ = (thread % kWarp) / columns + ((warp & (plan.warps() - 1)) << plan.lanes_bits);
    lanes_ = 1 << plan.row_bits();
    const int groups = plan.threads >> (5 + plan.warps_bits);
    outer_ = static_cast<unsigned>(block) / plan.tiles;
    const int64_t group = (block - outer_ * plan.tiles) * groups + (warp >> plan.warps_bits);
    position_ = (group * columns + column) * kPositions;
    active = position_ < shape.inner;
    if (!active) position_ = shape.inner - kPositions;
    row = outer_ * shape.inner + position_;
    slots_ = active && lane_ < classes_ ? (classes_ - lane_ + lanes_ - 1) / lanes_ : 0;
  }

  __device__ bool leads() const { return active && lane_ == 0; }
  __device__ int rounds() const { return plan_.rounds; }

  template <class T>
  struct Output {
    T* row;
    int64_t class_stride;
    __device__ T* at(int r, int64_t c) const { return row + c * class_stride + r; }
  };
  template <class T>
  __device__ Output<T> output(T* tensor, const Strides& strides) const {
    if (tensor == nullptr) return {};
    return {tensor + outer_ * strides.outer + position_, strides.classes};
  }
  template <class T>
  struct Resident : Output<const T> {
    Slots<Packed<T>> slots;
  };
  template <class T>
  __device__ Resident<T> resident(int tensor, const T* data, const Strides& strides) const {
    constexpr int kBytes = static_cast<int>(sizeof(Packed<T>));
    const int offset = plan_.scratch_bytes + tensor * plan_.tensor_bytes;
    return {output(data, strides),
            {offset + static_cast<int>(threadIdx.x) * kBytes, plan_.threads * kBytes}};
  }

  template <class T>
  __device__ void copy_in(const Resident<T>& tensor, int round, T) const {
    const T* from = tensor.at(0, first_class(round, 0));
    const int64_t stride = lanes_ * tensor.class_stride;
    const int end = count(round);
#pragma unroll 4
    for (int i = 0; i < end; ++i, from += stride) {
      if constexpr (sizeof(Packed<T>) >= 4) {
        copy_async<sizeof(Packed<T>)>(tensor.slots.at(i), from);
      } else {
        tensor.slots.set(i, Packed<T>::filled(*from));  // no copy is that small
      }
    }
    commit_copies();
  }
  template <int kPending>
  __device__ void wait() const {
    wait_for_copies<kPending>();
  }

  __device__ int first_class(int round, int i) const {
    return lane_ + (round * plan_.steps + i) * lanes_;
  }
  __device__ bool contains(int) const { return true; }

  template <class Function>
  __device__ __forceinline__ void each_slot(int round, const Function& function) const {
    const int end = count(round);
#pragma unroll 4
    for (int i = 0; i < end; ++i) function(i);
  }
  template <class Function>
  __device__ __forceinline__ void each_run(int round, const Function& function) const {
    each_run_of(count(round), function);
  }
  template <int kUnroll, class T, class Function>
  __device__ __forceinline__ void each_place(int round, const Output<T>&,
                                             const Function& function) const {
    const int end = count(round);
#pragma unroll(kUnroll)
    for (int i = 0; i < end; ++i) function(i, std::true_type{});
  }

  template <class T, class IsWhole>
  __device__ void store(const Output<T>& to, int round, int i, const Packed<T>& values,
                        IsWhole) const {
    store_streaming(to.at(0, first_class(round, i)), values);
  }
  __device__ bool owns(int c) const { return active && (c & (lanes_ - 1)) == lane_; }
  template <class T>
  __device__ void put(const Output<T>& to, int r, int c, T value) const {
    *to.at(r, c) = value;
  }
  template <class T>
  __device__ void finish(const Output<T>&) const {}

 private:
  __device__ int count(int round) const { return min(slots_ - round * plan_.steps, plan_.steps); }

  const Plan& plan_;
  int classes_;
  int lanes_;
  int lane_;
  int64_t outer_;
  int64_t position_;
  int slots_;
};

}  // namespace
}  // namespace powergrad
