// What every vector type gets from its primitives: partial vectors and single elements. Included
// inside the target region.
#pragma once

namespace powergrad {
namespace {

template <class Storage>
using VectorOf = Vector<AccumulateOf<Storage>>;

template <class Storage>
inline constexpr bool kIsAccumulate = std::is_same_v<Storage, AccumulateOf<Storage>>;

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The first `count` lanes of p; the others are 0. Reads nothing past them.
template <class V, class Storage>
V load_lanes(const Storage* p, int count) {
  return count == V::kWidth ? V::load(p) : V::load_first(p, count);
}

template <class V, class Storage>
void store_lanes(V x, Storage* p, int count) {
  if (count == V::kWidth) {
    x.store(p);
  } else {
    x.store_first(p, count);
  }
}

// In the lanes of the mask sum + term, or a b + sum; sum in the others. An instruction set may have
// one instruction for it.
template <class Mask, class V>
V add_where(Mask mask, V sum, V term) {
  return sum + masked(mask, term);
}
template <class Mask, class V>
V multiply_add_where(Mask mask, V a, V b, V sum) {
  return multiply_add(masked(mask, a), masked(mask, b), sum);  // both: either may be NaN
}

// Two vectors to memory; an instruction set may round both at once.
template <class V, class Storage>
void store_pair(V first, V second, Storage* p) {
  first.store(p);
  second.store(p + V::kWidth);
}

// One element as its accumulate type.
template <class Storage>
AccumulateOf<Storage> load_scalar(const Storage* p) {
  if constexpr (kIsAccumulate<Storage>) {
    return *p;
  } else {
    float lanes[VectorOf<Storage>::kWidth];
    load_lanes<VectorOf<Storage>>(p, 1).store(lanes);
    return lanes[0];
  }
}

template <class Storage>
void store_scalar(AccumulateOf<Storage> x, Storage* p) {
  if constexpr (kIsAccumulate<Storage>) {
    *p = x;
  } else {
    store_lanes(VectorOf<Storage>::broadcast(x), p, 1);
  }
}

}  // namespace
}  // namespace powergrad
