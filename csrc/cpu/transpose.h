// Contiguous rows as vectors across rows: kWidth rows of a tile, transposed into packed columns and
// back. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Columns of a row that are moved at once: 16 bytes.
inline constexpr int kQuadBytes = 16;
template <class Storage>
inline constexpr int kQuadColumns = kQuadBytes / sizeof(Storage);

// Vectors that hold 16 bytes of each of kWidth rows. Vector i has those of rows i, i +
// kQuadVectors, and so on, so that a transposition within 128 bits leaves the rows in their order.
template <class V>
inline constexpr int kQuadVectors = kQuadBytes / sizeof(typename V::Scalar);

// The transposition within 128 bits; it is its own inverse.
inline void transpose(Vector<float> (&x)[4]) {
  const Vector<float> low01 = interleave_low(x[0], x[1]);
  const Vector<float> low23 = interleave_low(x[2], x[3]);
  const Vector<float> high01 = interleave_high(x[0], x[1]);
  const Vector<float> high23 = interleave_high(x[2], x[3]);
  x[0] = low_halves(low01, low23);
  x[1] = high_halves(low01, low23);
  x[2] = low_halves(high01, high23);
  x[3] = high_halves(high01, high23);
}
inline void transpose(Vector<double> (&x)[2]) {
  const Vector<double> low = low_halves(x[0], x[1]);
  x[1] = high_halves(x[0], x[1]);
  x[0] = low;
}

// Rows in memory. Only `count` of kWidth rows exist, and of each only `columns` from the first on.
template <class Storage>
struct RowQuads {
  using V = VectorOf<Storage>;
  static constexpr int kVectors = kQuadVectors<V>;
  int64_t distance;  // between rows, in bytes
  int count;
  int columns;

  bool whole() const { return count == V::kWidth && columns == kQuadColumns<Storage>; }
  int bytes() const { return columns * static_cast<int>(sizeof(Storage)); }
  // How many rows of vector i exist.
  int quads(int i) const { return std::max(0, (count - i + kVectors - 1) / kVectors); }

  void load(const Storage* first, V (&x)[kVectors]) const {
    const char* p = reinterpret_cast<const char*>(first);
    for (int i = 0; i < kVectors; ++i) {
      x[i] = whole()
                 ? V::load_quads(p + i * distance, kVectors * distance)
                 : V::load_quads_first(p + i * distance, kVectors * distance, quads(i), bytes());
    }
    transpose(x);
  }
  void store(V (&x)[kVectors], Storage* first) const {
    transpose(x);
    char* p = reinterpret_cast<char*>(first);
    for (int i = 0; i < kVectors; ++i) {
      if (whole()) {
        x[i].store_quads(p + i * distance, kVectors * distance);
      } else {
        x[i].store_quads_first(p + i * distance, kVectors * distance, quads(i), bytes());
      }
    }
  }
};

// Calls function(first, columns) for all classes, kQuadColumns at a time. The last ones overlap
// those before, which is cheaper than a part of 16 bytes.
template <class Storage, class Function>
void for_each_quad(int64_t classes, const Function& function) {
  constexpr int64_t kColumns = kQuadColumns<Storage>;
  if (classes < kColumns) return function(int64_t{0}, static_cast<int>(classes));
  for (int64_t first = 0; first + kColumns <= classes; first += kColumns) {
    function(first, static_cast<int>(kColumns));
  }
  if (classes % kColumns != 0) function(classes - kColumns, static_cast<int>(kColumns));
}

// Class c of the rows goes to packed + c * kWidth; lanes past the rows are 0.
template <class Storage>
void pack_rows(const Storage* rows, int64_t stride, int64_t count, int64_t classes,
               AccumulateOf<Storage>* packed) {
  using V = VectorOf<Storage>;
  const int64_t distance = stride * static_cast<int64_t>(sizeof(Storage));
  for_each_quad<Storage>(classes, [&](int64_t first, int columns) {
    const RowQuads<Storage> quads{distance, static_cast<int>(count), columns};
    V x[kQuadVectors<V>];
    quads.load(rows + first, x);
    auto* to = packed + first * V::kWidth;
    if constexpr (kIsAccumulate<Storage>) {
      for (int i = 0; i < kQuadVectors<V> && i < columns; ++i) x[i].store(to + i * V::kWidth);
    } else {
      for (int i = 0; i < kQuadVectors<V> && 2 * i < columns; ++i) {
        V::first_of_pairs(rows, x[i]).store(to + 2 * i * V::kWidth);
        if (2 * i + 1 == columns) break;
        V::second_of_pairs(rows, x[i]).store(to + (2 * i + 1) * V::kWidth);
      }
    }
  });
}

// The inverse of pack_rows.
template <class Storage>
void unpack_rows(const AccumulateOf<Storage>* packed, int64_t stride, int64_t count,
                 int64_t classes, Storage* rows) {
  using V = VectorOf<Storage>;
  const int64_t distance = stride * static_cast<int64_t>(sizeof(Storage));
  for_each_quad<Storage>(classes, [&](int64_t first, int columns) {
    const RowQuads<Storage> quads{distance, static_cast<int>(count), columns};
    const auto* from = packed + first * V::kWidth;
    const auto column = [&](int i) {
      return i < columns ? V::load(from + i * V::kWidth) : V::broadcast(0);
    };
    V x[kQuadVectors<V>];
    for (int i = 0; i < kQuadVectors<V>; ++i) {
      if constexpr (kIsAccumulate<Storage>) {
        x[i] = column(i);
      } else {
        x[i] = V::pairs_of(rows, column(2 * i), column(2 * i + 1));
      }
    }
    quads.store(x, rows + first);
  });
}

}  // namespace
}  // namespace powergrad
