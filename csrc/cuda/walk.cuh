// Which part of which row a thread works on, and how it reads and writes it. See row_plan.h.
//
// Templates have kPack, the classes of a pack: the elements of a 16-byte vector where neighbouring
// classes are contiguous, 1 where neighbouring rows are. A pack that begins before its row or ends
// after it is read and written element by element; all others are whole vectors, so rows of any
// length at any address keep full-width middles.
#pragma once

#include "cuda/numbers.cuh"
#include "cuda/row_plan.h"
#include "row.h"

#include <type_traits>

namespace powergrad {
namespace {

// A pack in registers: whole 32-bit words, or what a load by the other path could bring would have
// to be merged half by half. Its address is a vector's where it has a vector's size.
template <class T, int kPack>
struct alignas(sizeof(T) * kPack % kVectorBytes == 0 ? kVectorBytes : sizeof(T)) Pack {
  static constexpr bool kHalves = sizeof(T) == 2 && kPack > 1;
  std::conditional_t<kHalves, uint32_t, T> words[kHalves ? kPack / 2 : kPack];

  // `i` is known when compiling.
  __device__ __forceinline__ T get(int i) const {
    if constexpr (kHalves) {
      return {static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)))};
    } else {
      return words[i];
    }
  }
  __device__ __forceinline__ void set(int i, T value) {
    if constexpr (kHalves) {
      const int shift = 16 * (i % 2);
      words[i / 2] = (words[i / 2] & ~(0xffffu << shift)) | uint32_t{value.bits} << shift;
    } else {
      words[i] = value;
    }
  }
  __device__ __forceinline__ static Pack filled(T value) {
    Pack result{};
#pragma unroll
    for (int i = 0; i < kPack; ++i) result.set(i, value);
    return result;
  }
};

// What packs hold, as numbers.
template <class Scalar, int kSteps, int kPack>
struct Numbers {
  Scalar at[kSteps][kPack];
};
template <class Storage, int kPack, int kSteps>
__device__ __forceinline__ Numbers<AccumulateOf<Storage>, kSteps, kPack> numbers(
    const Pack<Storage, kPack> (&packs)[kSteps]) {
  Numbers<AccumulateOf<Storage>, kSteps, kPack> result;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) result.at[s][i] = to_number(packs[s].get(i));
  }
  return result;
}

// How many packs a thread has in flight: enough loads to hide the latency of memory, few enough
// registers for several blocks. Where every class has a mass, that is loaded as well. float64 is
// bound by its arithmetic.
template <class Storage, int kPack, bool kClassMass>
inline constexpr int kStepsAtOnce = std::is_same_v<Storage, double> ? (kPack == 1 ? 2 : 1)
                                    : kPack == 1                    ? (kClassMass ? 4 : 8)
                                                                    : (kClassMass ? 8 : 16) / kPack;

// The place of this thread.
struct RowThread {
  int64_t row;  // of all rows; the last one once more where there are no rows left
  bool active;  // false there: joins the meetings, writes nothing
  int lane;     // among all lanes of the row
  int lanes;

  template <int kPack>
  __device__ static RowThread find(const RowPlan& plan);
};

template <int kPack>
__device__ inline RowThread RowThread::find(const RowPlan& plan) {
  const int thread = static_cast<int>(threadIdx.x);
  const int part = static_cast<int>(blockIdx.x) % plan.parts;
  const int64_t block = static_cast<int>(blockIdx.x) / plan.parts;
  const int rows_of_block = plan.threads / plan.lanes;
  RowThread result{};
  result.lanes = plan.lanes * plan.parts;
  // Lanes of a row are neighbours, or rows are.
  const int place = kPack > 1 ? thread / plan.lanes : thread % rows_of_block;
  result.lane = part * plan.lanes + (kPack > 1 ? thread % plan.lanes : thread / rows_of_block);
  result.row = block * rows_of_block + place;
  result.active = result.row < plan.rows;
  if (!result.active) result.row = plan.rows - 1;
  return result;
}

// The packs of one row as they come to one lane: step j is pack lane + j lanes.
template <int kPack>
struct Walk {
  int classes;
  int lane;
  int lanes;
  int phase;  // the row's first class is this far into pack 0
  int packs;

  // `address` of the row's first class decides where packs begin.
  template <class Storage>
  __device__ Walk(const RowThread& thread, int64_t its_classes, const Storage* address)
      : classes(static_cast<int>(its_classes)), lane(thread.lane), lanes(thread.lanes), phase(0) {
    if constexpr (kPack > 1) {
      phase =
          static_cast<int>(reinterpret_cast<uintptr_t>(address) % kVectorBytes / sizeof(Storage));
    }
    packs = (phase + classes + kPack - 1) / kPack;
  }

  __device__ int pack(int step) const { return lane + step * lanes; }
  __device__ int steps() const { return lane < packs ? (packs - lane + lanes - 1) / lanes : 0; }
  __device__ int first_class(int pack) const { return pack * kPack - phase; }
  __device__ bool is_whole(int pack) const {
    if constexpr (kPack == 1) return pack < packs;
    const int first = first_class(pack);
    return first >= 0 && first + kPack <= classes;
  }
  __device__ bool contains(int c) const { return 0 <= c && c < classes; }
};

// One row of a tensor, cut where the walk cuts it. T may be const.
template <class T, int kPack>
class RowView {
 public:
  using Element = std::remove_const_t<T>;
  using Packed = Pack<Element, kPack>;

  __device__ RowView(T* row, int64_t class_stride, const Walk<kPack>& walk)
      : row_(row),
        class_stride_(class_stride),
        aligned_((reinterpret_cast<uintptr_t>(row) - walk.phase * sizeof(T)) % alignof(Packed) ==
                 0) {}

  // kSteps packs from step `begin` on; `padding` stands for what is not in the row. All loads are
  // issued before the first is waited for.
  template <int kSteps>
  __device__ void load(const Walk<kPack>& walk, int begin, Element padding,
                       Packed (&packs)[kSteps]) const {
    // What lies between two whole packs is whole.
    if (is_vector(walk, walk.pack(begin)) && is_vector(walk, walk.pack(begin + kSteps - 1))) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) packs[s] = read(walk.first_class(walk.pack(begin + s)));
      return;
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int pack = walk.pack(begin + s);
      packs[s] = is_vector(walk, pack) ? read(walk.first_class(pack)) : Packed::filled(padding);
    }
    if constexpr (kPack > 1) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int pack = walk.pack(begin + s);
        if (pack < walk.packs && !is_vector(walk, pack)) read_elements(walk, pack, packs[s]);
      }
    }
  }

  __device__ void store(const Walk<kPack>& walk, int pack, const Packed& values) const {
    if (pack >= walk.packs) return;
    const int first = walk.first_class(pack);
    if (is_vector(walk, pack)) {
      write(first, values);
      return;
    }
    if constexpr (kPack > 1) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (walk.contains(first + i)) row_[first + i] = values.get(i);
      }
    }
  }

 private:
  __device__ bool is_vector(const Walk<kPack>& walk, int pack) const {
    return walk.is_whole(pack) && (kPack == 1 || aligned_);
  }
  static constexpr int kVectors = static_cast<int>(sizeof(Packed)) / kVectorBytes;

  __device__ Packed read(int first) const {
    if constexpr (kPack == 1) {
      return Packed::filled(row_[first * class_stride_]);
    } else {
      const uint4* p = reinterpret_cast<const uint4*>(row_ + first);
      uint4 vectors[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i) vectors[i] = load_streaming(p + i);
      Packed result;
      memcpy(&result, vectors, sizeof(result));
      return result;
    }
  }
  __device__ void read_elements(const Walk<kPack>& walk, int pack, Packed& values) const {
    const int first = walk.first_class(pack);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (walk.contains(first + i)) values.set(i, row_[first + i]);
    }
  }
  __device__ void write(int first, const Packed& values) const {
    if constexpr (kPack == 1) {
      row_[first * class_stride_] = values.get(0);
    } else {
      uint4* p = reinterpret_cast<uint4*>(row_ + first);
      uint4 vectors[kVectors];
      memcpy(vectors, &values, sizeof(values));
#pragma unroll
      for (int i = 0; i < kVectors; ++i) store_streaming(p + i, vectors[i]);
    }
  }

  T* row_;
  int64_t class_stride_;
  bool aligned_;
};

// The packs that a thread keeps in shared memory from the first pass to the second, each in a slot
// of its own: no other thread reads them.
template <class T, int kPack>
class KeptPacks {
 public:
  __device__ explicit KeptPacks(const RowPlan& plan)
      : slots_(reinterpret_cast<Pack<T, kPack>*>(dynamic_shared_memory() + plan.scratch_bytes) +
               threadIdx.x),
        threads_(plan.threads) {}
  __device__ Pack<T, kPack>& operator[](int step) const { return slots_[step * threads_]; }

 private:
  Pack<T, kPack>* slots_;
  int threads_;
};

// Class 0 of a row of a tensor, or null where there is no such tensor.
template <class T>
__device__ __forceinline__ T* row_of(void* tensor, const Shape& shape, const Strides& strides,
                                     int64_t row) {
  if (tensor == nullptr) return nullptr;
  return static_cast<T*>(tensor) + row_offset(shape, strides, row);
}
template <class T>
__device__ __forceinline__ const T* row_of(const void* tensor, const Shape& shape,
                                           const Strides& strides, int64_t row) {
  return row_of<T>(const_cast<void*>(tensor), shape, strides, row);
}

// The packs of a row that is read once, or twice: from memory in the first pass, which keeps them
// if there is a second and the plan has room, and from where they are in the second, which walks
// backwards.
template <class T, int kPack, bool kTwice>
class RowReader {
 public:
  __device__ RowReader(const RowPlan& plan, const RowView<const T, kPack>& view,
                       const Walk<kPack>& walk, T padding)
      : view_(view),
        walk_(walk),
        padding_(padding),
        kept_(plan),
        keeps_(kTwice && plan.is_resident) {}

  // function(step, packs) for all steps of this lane.
  template <int kSteps, class Function>
  __device__ void first_pass(const Function& function) const {
    const int steps = walk_.steps();
    for (int begin = 0; begin < steps; begin += kSteps) {
      Pack<T, kPack> packs[kSteps];
      view_.load(walk_, begin, padding_, packs);
      if (keeps_) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if (begin + s < steps) kept_[begin + s] = packs[s];
        }
      }
      function(begin, packs);
    }
  }
  template <int kSteps, class Function>
  __device__ void second_pass(const Function& function) const {
    const int steps = walk_.steps();
    for (int begin = (steps - 1) / kSteps * kSteps; begin >= 0; begin -= kSteps) {
      Pack<T, kPack> packs[kSteps];
      if (keeps_) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if (begin + s < steps) packs[s] = kept_[begin + s];
        }
      } else {
        view_.load(walk_, begin, padding_, packs);
      }
      function(begin, packs);
    }
  }

 private:
  const RowView<const T, kPack>& view_;
  const Walk<kPack>& walk_;
  T padding_;
  KeptPacks<T, kPack> kept_;
  bool keeps_;
};

}  // namespace
}  // namespace powergrad
