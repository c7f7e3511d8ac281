// Heap blocks of exactly the size needed, and tensors in them of every layout that kernels accept.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "numbers.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

namespace powergrad::test {

// AddressSanitizer detects accesses past a block's ends; without it a band of canaries does.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr std::size_t kBand = 0;
#else
inline constexpr std::size_t kBand = 64;
#endif

// All ones is NaN in every format: reading what was never written, or padding, gives NaN, and
// writing there is detected.
inline constexpr unsigned char kCanary = 0xff;

template <class T>
class Block {
 public:
  // It begins `lead` elements after an address that is aligned for every vector.
  explicit Block(int64_t count = 0, int64_t lead = 0)
      : count_(count), lead_(lead), bytes_(new unsigned char[bytes()]) {
    std::memset(bytes_.get(), kCanary, bytes());
  }
  Block(const Block& other) : Block(other.count_, other.lead_) {
    std::memcpy(bytes_.get(), other.bytes_.get(), bytes());
  }
  Block(Block&&) = default;
  Block& operator=(Block&&) = default;

  int64_t count() const { return count_; }
  T* data() { return reinterpret_cast<T*>(bytes_.get() + before()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.get() + before()); }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }

  bool untouched(int64_t begin, int64_t end) const {
    const auto* first = bytes_.get() + before();
    return std::all_of(first + begin * sizeof(T), first + end * sizeof(T),
                       [](unsigned char byte) { return byte == kCanary; });
  }
  bool band_untouched() const {
    const auto is_canary = [](unsigned char byte) { return byte == kCanary; };
    const auto* last = bytes_.get() + before() + count_ * sizeof(T);
    return std::all_of(bytes_.get(), bytes_.get() + before(), is_canary) &&
           std::all_of(last, last + kBand, is_canary);
  }

 private:
  std::size_t before() const { return kBand + lead_ * sizeof(T); }
  std::size_t bytes() const { return before() + count_ * sizeof(T) + kBand; }

  int64_t count_;
  int64_t lead_;
  std::unique_ptr<unsigned char[]> bytes_;
};

// The same bits, or both NaN, whose bits depend on the order of operands.
template <class T>
bool same_number(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0 || (std::isnan(widen(a)) && std::isnan(widen(b)));
}
template <class T>
bool same_numbers(const Block<T>& a, const Block<T>& b) {
  if (a.count() != b.count()) return false;
  if (a.count() == 0 || std::memcmp(a.data(), b.data(), a.count() * sizeof(T)) == 0) return true;
  return std::equal(a.data(), a.data() + a.count(), b.data(), same_number<T>);
}

enum class Arrangement {
  packed,  // rows without gaps
  padded,  // rows have a stride larger than C
  nested,  // contiguous rows under two indices
  inner,   // strided rows: neighbouring rows are adjacent, classes a stride apart
};
inline constexpr int kArrangements = 4;
inline const char* name_of(Arrangement a) {
  static const char* const kNames[kArrangements] = {"packed", "padded", "nested", "inner"};
  return kNames[static_cast<int>(a)];
}

// At least `padding` elements follow each contiguous run; of strided rows a multiple of 4, where
// that keeps vectors of 4 rows aligned.
inline Strides strides_of(const Shape& shape, Arrangement arrangement, int64_t padding) {
  if (arrangement == Arrangement::packed) padding = 0;
  if (arrangement == Arrangement::inner) {
    if (shape.inner % 4 == 0) padding = (padding + 3) / 4 * 4;
    const int64_t run = shape.inner + padding;
    return {shape.classes * run, run, 1};
  }
  const int64_t run = shape.classes + padding;
  return {shape.inner * run, 1, run};
}

template <class T>
struct Tensor {
  Shape shape{};
  Strides strides{};
  Block<T> block;

  Tensor() = default;
  Tensor(const Shape& its_shape, const Strides& its_strides, int64_t lead = 0)
      : shape(its_shape),
        strides(its_strides),
        block((shape.outer - 1) * strides.outer + (shape.classes - 1) * strides.classes +
                  (shape.inner - 1) * strides.inner + 1,
              lead) {}

  int64_t offset(int64_t row, int64_t column) const {
    return row / shape.inner * strides.outer + row % shape.inner * strides.inner +
           column * strides.classes;
  }
  T& at(int64_t row, int64_t column) { return block[offset(row, column)]; }
  const T& at(int64_t row, int64_t column) const { return block[offset(row, column)]; }

  bool padding_untouched() const {
    const bool contiguous = strides.classes == 1;
    const int64_t run = contiguous ? shape.classes : shape.inner;
    const int64_t step = contiguous ? strides.inner : strides.classes;
    for (int64_t begin = 0; begin + step <= block.count(); begin += step) {
      if (!block.untouched(begin + run, begin + step)) return false;
    }
    return block.band_untouched();
  }
};

}  // namespace powergrad::test
