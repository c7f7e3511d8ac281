// Where a tile's tensors are read and written, in either of two layouts.
//
// Strided classes (segmentation, transposed logits): a vector across rows lies in memory as it is.
// The stride is often a power of two, where the classes of a few rows share one set of the cache
// and drive each other out: a tile that is read more than once is packed into dense scratch first.
//
// Contiguous rows of few classes: a tile is one vector of rows, transposed into dense scratch and
// back.
//
// Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// The scratch that the tiles of a kernel are worked on in, one after the other.
template <class Scalar>
struct TileScratch {
  bool transposes;  // rows are contiguous
  int64_t width;    // rows of a tile
  Scalar* logits;   // (classes, width): logits, then what is computed of them; null: in place
  Scalar* other;    // (classes, width): contiguous rows of another tensor
};

// GCC takes a function that does nothing but prefetch for one without effect, and drops its calls
// unless it has been inlined before.
#define POWERGRAD_PREFETCH_FUNCTION __attribute__((always_inline)) void

// Walks over a tile's classes in memory ask for what they will read in a while, the first classes
// of the next tile after the last ones of this: the hardware's prefetchers follow no strides of a
// page and more.
struct ClassWalk {
  int64_t classes;
  int64_t stride;
  int64_t width;  // to the next tile
  int64_t ahead;

  ClassWalk(int64_t its_classes, int64_t its_stride, int64_t its_width)
      : classes(its_classes),
        stride(its_stride),
        width(its_width),
        ahead(std::min<int64_t>(its_classes, 8)) {}
  template <class Storage>
  POWERGRAD_PREFETCH_FUNCTION prefetch(const Storage* here, int64_t c) const {
    const bool in_tile = c + ahead < classes;
    __builtin_prefetch(here + (in_tile ? ahead * stride : width - (classes - ahead) * stride));
  }
};

// The classes of one vector of rows.
template <class V, class T>
struct Column {
  const T* data;
  int64_t stride;
  int lanes;
  V operator[](int64_t c) const { return load_lanes<V>(data + c * stride, lanes); }
};

// A tile's rows of a tensor, class by class: in place, or packed with room for whole vectors.
template <class T, bool kPacked>
class TileColumns {
 public:
  using V = VectorOf<T>;
  TileColumns(const T* data, int64_t classes, int64_t stride)
      : data_(data), walk_(classes, stride, kTileRows) {}
  Column<V, T> of(const TileVector& vector) const {
    return {data_ + vector.first, walk_.stride, kPacked ? V::kWidth : vector.lanes};
  }
  // For one pass over all classes.
  V next(const TileVector& vector, int64_t c) const {
    if (!kPacked) walk_.prefetch(data_ + c * walk_.stride + vector.first, c);
    return of(vector)[c];
  }

 private:
  const T* data_;
  ClassWalk walk_;
};

// The logits of a tile.
template <class Storage>
class TileLogits {
 public:
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;
  using Packed = TileColumns<Scalar, true>;
  using InPlace = TileColumns<Storage, false>;

  TileLogits(const Tile& tile, const void* data, const Shape& shape, const Strides& strides,
             const TileScratch<Scalar>& scratch)
      : data_(static_cast<const Storage*>(data) + tile.offset(strides)),
        rows_(tile.rows),
        classes_(shape.classes),
        strides_(strides),
        scratch_(scratch) {
    if (scratch.transposes) {
      // Contiguous rows follow each other: a vector of this memory for each class.
      next_ = data_ + rows_ * strides.inner;
      next_stride_ = V::kWidth;
      transpose_again();
    } else if (scratch.logits != nullptr) {
      if (fits()) {
        next_ = data_ + width();
        next_stride_ = strides.classes;
      }
      pack();
    }
  }

  Scalar* packed() const { return scratch_.logits; }
  int64_t width() const { return scratch_.width; }
  // Calls function(columns).
  template <class Function>
  auto with_columns(const Function& function) const {
    if (packed() == nullptr) return function(InPlace(data_, classes_, strides_.classes));
    return function(Packed(packed(), classes_, width()));
  }
  // The same where exponentials may have taken the place of the packed logits.
  template <class Function>
  auto with_columns_again(const Function& function) const {
    if (!scratch_.transposes) return function(InPlace(data_, classes_, strides_.classes));
    transpose_again();
    return function(Packed(packed(), classes_, width()));
  }

  // One class of each row, by its number; of class 0 where that is below 0.
  V gather(const TileVector& vector, V numbers) const {
    const V class_numbers = maximum(numbers, V::broadcast(0));
    Scalar lanes[V::kWidth];
    if (packed() != nullptr) {
      for (int i = 0; i < V::kWidth; ++i) lanes[i] = static_cast<Scalar>(i);
      const V offsets =
          multiply_add(class_numbers, V::broadcast(static_cast<Scalar>(width())), V::load(lanes));
      return V::gather(packed() + vector.first, offsets);
    }
    class_numbers.store(lanes);
    for (int i = 0; i < vector.lanes; ++i) {
      const int64_t c = static_cast<int64_t>(lanes[i]);
      lanes[i] = load_scalar(data_ + c * strides_.classes + vector.first + i);
    }
    return V::load(lanes);
  }

  // To be called for all classes while this tile is worked on: asks for the tile that comes next.
  POWERGRAD_PREFETCH_FUNCTION prefetch_next(const TileVector& vector, int64_t c) const {
    constexpr int kIntoL2 = 2;
    __builtin_prefetch(next_ + c * next_stride_ + vector.first, 0, kIntoL2);
  }

 private:
  bool fits() const {  // into the L2 cache
    return classes_ * width() * static_cast<int64_t>(sizeof(Scalar)) <= kTileBytes;
  }
  void transpose_again() const {
    pack_rows(data_, strides_.inner, rows_, classes_, scratch_.logits);
  }
  void pack() {
    const ClassWalk walk(classes_, strides_.classes, width());
    const bool prefetches = !fits();
    for (int64_t c = 0; c < classes_; ++c) {
      for_each_vector<V>(rows_, [&](int64_t first, int lanes) {
        const Storage* from = data_ + c * strides_.classes + first;
        if (prefetches) walk.prefetch(from, c);
        load_lanes<V>(from, lanes).store(packed() + c * width() + first);
      });
    }
  }

  const Storage* data_;
  int64_t rows_;
  int64_t classes_;
  Strides strides_;
  const TileScratch<Scalar>& scratch_;
  const Storage* next_ = data_;  // what is in the cache, where nothing is to be asked for
  int64_t next_stride_ = 0;
};

// Where a tile's results go: contiguous rows by way of the packed logits, which are not needed any
// more; strided classes where they belong, and past the caches if they are larger than those: their
// lines need not be read before they are written.
template <class Storage>
class TileOutput {
 public:
  using V = VectorOf<Storage>;
  using Scalar = AccumulateOf<Storage>;

  TileOutput(const Tile& tile, void* data, const Shape& shape, const Strides& strides,
             const TileScratch<Scalar>& scratch)
      : data_(static_cast<Storage*>(data) + tile.offset(strides)),
        stride_(strides.classes),
        packed_(scratch.transposes ? scratch.logits : nullptr) {
    constexpr int64_t kBytes = V::kWidth * sizeof(Storage);
    const int64_t bytes = shape.rows() * shape.classes * static_cast<int64_t>(sizeof(Storage));
    streams_ = bytes >= kStreamedBytes && reinterpret_cast<uintptr_t>(data_) % kBytes == 0 &&
               stride_ % V::kWidth == 0;
    if (packed_ == nullptr) return;
    next_ = data_ + tile.rows * strides.inner;
    unpack_stride_ = strides.inner;
    rows_ = tile.rows;
    classes_ = shape.classes;
  }
  void write(const TileVector& vector, int64_t c, V value) const {
    if (packed_ != nullptr) {
      __builtin_prefetch(next_ + c * V::kWidth);
      value.store(packed_ + c * V::kWidth);
      return;
    }
    Storage* to = data_ + c * stride_ + vector.first;
    if (streams_ && vector.lanes == V::kWidth) {
      value.stream(to);
    } else {
      store_lanes(value, to, vector.lanes);
    }
  }
  // To be called once all is written.
  void finish() const {
    if (packed_ != nullptr) unpack_rows(packed_, unpack_stride_, rows_, classes_, data_);
  }

 private:
  static constexpr int64_t kStreamedBytes = 16 * 1024 * 1024;

  Storage* data_;
  int64_t stride_;
  bool streams_;
  Scalar* packed_;
  Storage* next_ = nullptr;  // of the next tile, as in TileLogits
  int64_t unpack_stride_ = 0;
  int64_t rows_ = 0;
  int64_t classes_ = 0;
};

}  // namespace
}  // namespace powergrad
