// Tiles: neighbouring rows that are worked on together, a vector lane for each row. Whatever is
// done once a row is done for a whole vector of rows then. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// None of its rows lies beyond an outer index.
struct Tile {
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
    function(Tile{row, row / shape.inner, inner, rows});
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
void for_each_vector_of(const Tile& tile, const Function& function) {
  int number = 0;
  for_each_vector<V>(
      tile.rows, [&](int64_t first, int lanes) { function(TileVector{number++, first, lanes}); });
}

// Calls function(vector, c, number) for all of a tile, `number` being c in every lane: exact in
// float up to 2^24. Inlined as for_each_vector is.
template <class V, class Function>
__attribute__((always_inline)) inline void for_each_class_of(const Tile& tile, int64_t classes,
                                                             const Function& function) {
  const V one = V::broadcast(1);
  V number = V::broadcast(0);
  for (int64_t c = 0; c < classes; ++c) {
    for_each_vector_of<V>(tile, [&](const TileVector& vector) { function(vector, c, number); });
    number = number + one;
  }
}

// A number for each row of a tile.
template <class V>
struct TileLanes {
  typename V::Scalar lane[kTileRows];
  V at(const TileVector& vector) const { return V::load(lane + vector.first); }
  void set(const TileVector& vector, V value) { value.store(lane + vector.first); }
};

// The numbers of a vector's rows in a tensor of one number a row.
template <class V>
struct RowLanes {
  int64_t row;
  int lanes;
  RowLanes(const Tile& tile, const TileVector& vector)
      : row(tile.row + vector.first), lanes(vector.lanes) {}
  V load(const void* rows) const {
    return load_lanes<V>(static_cast<const typename V::Scalar*>(rows) + row, lanes);
  }
  void store(V value, void* rows) const {
    store_lanes(value, static_cast<typename V::Scalar*>(rows) + row, lanes);
  }
};

// One of the statistics, for all rows.
template <class Scalar, class Params>
Scalar* statistic_of_rows(const Params& p, Statistic which) {
  return static_cast<Scalar*>(p.statistics) + which * p.shape.rows();
}

}  // namespace
}  // namespace powergrad
