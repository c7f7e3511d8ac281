// Layouts whose neighbouring rows are contiguous (segmentation, transposed logits): vectors run
// across rows, and a row's classes are a stride apart. Rows are worked on in tiles, so that every
// class is read and written in a burst. The stride is often a power of two, where the classes of a
// few rows share one set of the cache and drive each other out: a tile that is read more than once
// is packed into dense scratch first. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Neighbouring rows that are worked on together, none of them beyond an outer index.
struct InnerTile {
  int64_t row;  // the first one
  int64_t outer;
  int64_t inner;
  int64_t rows;

  int64_t offset(const Strides& strides) const {
    return outer * strides.outer + inner * strides.inner;
  }
};

// Calls function(tile) for the rows [begin, end), `width` of them at a time. Tiles end at multiples
// of the width, which keeps their bursts aligned.
template <class Function>
void for_each_tile(const Shape& shape, int64_t width, int64_t begin, int64_t end,
                   const Function& function) {
  for (int64_t row = begin; row < end;) {
    const int64_t inner = row % shape.inner;
    const int64_t left = std::min(end - row, shape.inner - inner);
    const int64_t rows = std::min(left, width - inner % width);
    function(InnerTile{row, row / shape.inner, inner, rows});
    row += rows;
  }
}

// One vector of a tile's rows: `lanes` of them from `first` on.
struct TileVector {
  int number;
  int64_t first;
  int lanes;
};
template <class V>
inline constexpr int kTileVectors = static_cast<int>(kTileRows / V::kWidth);

template <class V, class Function>
void for_each_vector_of(const InnerTile& tile, const Function& function) {
  int number = 0;
  for_each_vector<V>(
      tile.rows, [&](int64_t first, int lanes) { function(TileVector{number++, first, lanes}); });
}

// A number for each row of a tile.
template <class V>
struct TileLanes {
  typename V::Scalar lane[kTileRows];
  V at(const TileVector& vector) const { return V::load(lane + vector.first); }
  void set(const TileVector& vector, V value) { value.store(lane + vector.first); }
  // Zeroes the lanes past the tile, which are computed with, but never stored as a result.
  void clear_past(const InnerTile& tile) {
    V::broadcast(0).store(lane + (tile.rows - 1) / V::kWidth * V::kWidth);
  }
};

// GCC takes a function that does nothing but prefetch for one without effect, and drops its calls
// unless it has been inlined before.
#define POWERGRAD_PREFETCH_FUNCTION __attribute__((always_inline)) void

// Walks over a tile's classes ask for what they will read in a while, the first classes of the next
// tile after the last ones of this: the hardware's prefetchers follow no strides of a page and
// more.
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
template <class V, class Storage>
struct Column {
  const Storage* data;
  int64_t stride;
  int lanes;
  V operator[](int64_t c) const { return load_lanes<V>(data + c * stride, lanes); }
};

// The logits of a tile for passes that read them several times: packed into scratch if there is
// some, else in place.
template <class Storage>
class TileLogits {
 public:
  using Scalar = AccumulateOf<Storage>;
  using V = Vector<Scalar>;

  TileLogits(const InnerTile& tile, const Storage* data, const Shape& shape, int64_t stride,
             const Workspace& workspace)
      : data_(data),
        stride_(stride),
        width_(tile_width(shape, workspace)),
        packed_(static_cast<Scalar*>(workspace.tile)),
        fits_(shape.classes * width_ * static_cast<int64_t>(sizeof(Scalar)) <= kTileBytes) {
    if (packed_ != nullptr) pack(tile, shape.classes);
  }

  // Rows of the tiles that such logits are read in.
  static int64_t tile_width(const Shape& shape, const Workspace& workspace) {
    return workspace.tile != nullptr ? tile_rows(shape, sizeof(Scalar)) : V::kWidth;
  }

  Scalar* packed() const { return packed_; }
  int64_t width() const { return width_; }

  Scalar at(int64_t c, int64_t row) const {
    return packed_ != nullptr ? packed_[c * width_ + row] : load_scalar(data_ + c * stride_ + row);
  }
  Column<V, Storage> in_place(const TileVector& vector) const {
    return {data_ + vector.first, stride_, vector.lanes};
  }
  // Calls function(column). Lanes past the tile are packed, too.
  template <class Function>
  auto with_column(const TileVector& vector, const Function& function) const {
    if (packed_ == nullptr) return function(in_place(vector));
    return function(Column<V, Scalar>{packed_ + vector.first, width_, V::kWidth});
  }

  // The same class in the tile that comes next, while this one is worked on.
  POWERGRAD_PREFETCH_FUNCTION prefetch_next(const TileVector& vector, int64_t c) const {
    if (!fits_) return;
    constexpr int kIntoL2 = 2;
    __builtin_prefetch(data_ + c * stride_ + width_ + vector.first, 0, kIntoL2);
  }

 private:
  void pack(const InnerTile& tile, int64_t classes) {
    const ClassWalk walk(classes, stride_, width_);
    for (int64_t c = 0; c < classes; ++c) {
      for_each_vector<V>(tile.rows, [&](int64_t first, int lanes) {
        const Storage* from = data_ + c * stride_ + first;
        if (!fits_) walk.prefetch(from, c);
        load_lanes<V>(from, lanes).store(packed_ + c * width_ + first);
      });
    }
  }

  const Storage* data_;
  int64_t stride_;
  int64_t width_;
  Scalar* packed_;
  bool fits_;  // into the L2 cache
};

// Where a tile's results go. Whatever is larger than caches goes past them: its lines need not be
// read before they are written.
template <class Storage>
class TileOutput {
 public:
  using V = VectorOf<Storage>;

  TileOutput(const InnerTile& tile, void* data, const Shape& shape, const Strides& strides)
      : data_(static_cast<Storage*>(data) + tile.offset(strides)), stride_(strides.classes) {
    constexpr int64_t kBytes = V::kWidth * sizeof(Storage);
    const int64_t bytes = shape.rows() * shape.classes * static_cast<int64_t>(sizeof(Storage));
    streams_ = bytes >= kStreamedBytes && reinterpret_cast<uintptr_t>(data_) % kBytes == 0 &&
               stride_ % V::kWidth == 0;
  }
  void write(const TileVector& vector, int64_t c, V value) const {
    Storage* to = data_ + c * stride_ + vector.first;
    if (streams_ && vector.lanes == V::kWidth) {
      value.stream(to);
    } else {
      store_lanes(value, to, vector.lanes);
    }
  }

 private:
  static constexpr int64_t kStreamedBytes = 16 * 1024 * 1024;

  Storage* data_;
  int64_t stride_;
  bool streams_;
};

}  // namespace
}  // namespace powergrad
