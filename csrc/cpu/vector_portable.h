// No instruction set assumed: four floats or two doubles in the compiler's own vector type, which
// becomes SSE2 on x86-64 and NEON on 64-bit Arm.
#pragma once

#include "exp2_polynomial.h"

namespace powergrad {
namespace {

template <class Scalar>
struct Vector;

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x0400u) {
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {  // zero or subnormal: magnitude * 2^-24 is exact in float
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &value, sizeof(bits));
    bits |= sign;
  }
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline void from_float(float x, float* p) { *p = x; }

inline void from_float(float x, BFloat16* p) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  // Round to nearest even: add 0x7fff plus the lowest bit that is kept; NaN keeps its payload.
  bits = x != x ? bits | 0x00400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  p->bits = static_cast<uint16_t>(bits >> 16);
}

inline void from_float(float x, Float16* p) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  uint16_t half;
  if (bits > 0x7f800000u) {  // NaN
    half = static_cast<uint16_t>(0x7e00u | ((bits >> 13) & 0x3ffu));
  } else if (bits >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (bits >= 0x38800000u) {  // normal: rebias, round to nearest even
    half = static_cast<uint16_t>((bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13);
  } else {  // subnormal: adding 0.5 aligns the last bit that is kept with float's last bit
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(bits));
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    half = static_cast<uint16_t>(bits - 0x3f000000u);
  }
  p->bits = static_cast<uint16_t>(half | sign);
}

template <class S, class Integer>
struct PortableVector {
  using Scalar = S;
  static constexpr int kWidth = 16 / sizeof(Scalar);
  typedef Scalar Lanes __attribute__((vector_size(16)));
  typedef Integer Mask __attribute__((vector_size(16)));
  typedef std::make_unsigned_t<Integer> Bits __attribute__((vector_size(16)));  // may wrap around
  Lanes v;

  // A vector is one quad of 16 bytes; those of other instruction sets are several.
  static Lanes quad(const void* p) {
    Lanes lanes;
    std::memcpy(&lanes, p, sizeof(lanes));
    return lanes;
  }
  // Its first `bytes` bytes, or none of them; the rest is 0.
  static Lanes quad_first(const char* p, int quads, int bytes) {
    char buffer[16] = {};
    for (int i = 0; i < bytes * quads; i += 2) std::memcpy(buffer + i, p + i, 2);
    return quad(buffer);
  }
  void store_quads(char* p, int64_t) const { std::memcpy(p, &v, sizeof(v)); }
  void store_quads_first(char* p, int64_t, int quads, int bytes) const {
    char buffer[16];
    std::memcpy(buffer, &v, sizeof(v));
    for (int i = 0; i < bytes * quads; i += 2) std::memcpy(p + i, buffer + i, 2);
  }
  template <class Index>
  static Vector<Scalar> from_integers(const Index* p, int count, int64_t origin) {
    Vector<Scalar> result{};
    for (int i = 0; i < count; ++i) result.v[i] = static_cast<Scalar>(p[i] - origin);
    return result;
  }
  template <class Index>
  static Mask equal_integers(const Index* p, int count, int64_t value) {
    Mask mask{};
    for (int i = 0; i < count; ++i) mask[i] = p[i] == value ? -1 : 0;
    return mask;
  }
  static Mask first_lanes(int count) {
    Mask mask;
    for (int i = 0; i < kWidth; ++i) mask[i] = i < count ? -1 : 0;
    return mask;
  }
  // The first lanes without one of them.
  static Mask other_lanes(int count, int without) {
    Mask mask = first_lanes(count);
    mask[without] = 0;
    return mask;
  }
};

template <>
struct Vector<float> : PortableVector<float, int32_t> {
  static constexpr float kStepOrigin = 0x1.8p23f;
  static constexpr float kExp2Slope[] = {POWERGRAD_EXP2_SLOPE};
  static constexpr float kHalfExp2Slope[] = {0.6932829f, 0.24221097f, 0.055008933f};  // 1.1e-4
  static constexpr double kUnderflow = -127.0;  // power_of_two is 0
  static constexpr int kOctaveDigits = 16;      // with a step's 7 digits they make a float's 24
  static Vector broadcast(float x) { return {{Lanes{x, x, x, x}}}; }
  template <class Storage>
  static Vector load(const Storage* p) {
    return {{Lanes{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}}};
  }
  template <class Storage>
  static Vector load_first(const Storage* p, int count) {
    Vector result = broadcast(0.0f);
    for (int i = 0; i < count; ++i) result.v[i] = to_float(p[i]);
    return result;
  }
  template <class Storage>
  void store(Storage* p) const {
    for (int i = 0; i < kWidth; ++i) from_float(v[i], p + i);
  }
  template <class Storage>
  void stream(Storage* p) const {
    store(p);
  }
  template <class Storage>
  void store_first(Storage* p, int count) const {
    for (int i = 0; i < count; ++i) from_float(v[i], p + i);
  }
  static Vector load_quads(const char* p, int64_t) { return {{quad(p)}}; }
  static Vector load_quads_first(const char* p, int64_t, int quads, int bytes) {
    return {{quad_first(p, quads, bytes)}};
  }
  // data[offset] for each lane; offsets are integers.
  static Vector gather(const float* data, Vector offsets) {
    Vector result;
    for (int i = 0; i < kWidth; ++i) result.v[i] = data[static_cast<int64_t>(offsets.v[i])];
    return result;
  }

  // Pairs of half-precision numbers, one in each lane.
  template <class Half>
  static Vector first_of_pairs(const Half*, Vector pairs) {
    return of_pairs<Half>(pairs, 0);
  }
  template <class Half>
  static Vector second_of_pairs(const Half*, Vector pairs) {
    return of_pairs<Half>(pairs, 1);
  }
  template <class Half>
  static Vector pairs_of(const Half*, Vector first, Vector second) {
    Half halves[2 * kWidth];
    for (int i = 0; i < kWidth; ++i) {
      from_float(first.v[i], halves + 2 * i);
      from_float(second.v[i], halves + 2 * i + 1);
    }
    return {{quad(halves)}};
  }

 private:
  template <class Half>
  static Vector of_pairs(Vector pairs, int which) {
    Half halves[2 * kWidth];
    std::memcpy(halves, &pairs.v, sizeof(pairs.v));
    Vector result;
    for (int i = 0; i < kWidth; ++i) result.v[i] = to_float(halves[2 * i + which]);
    return result;
  }
};

template <>
struct Vector<double> : PortableVector<double, int64_t> {
  static constexpr double kStepOrigin = 0x1.8p52;
  static constexpr double kExp2Slope[] = {POWERGRAD_EXP2_SLOPE_DOUBLE};
  static constexpr double kUnderflow = -1023.0;
  static constexpr int kOctaveDigits = 42;  // with a step's 10
  static Vector broadcast(double x) { return {{Lanes{x, x}}}; }
  static Vector load(const double* p) { return {{Lanes{p[0], p[1]}}}; }
  static Vector load_first(const double* p, int count) {
    return {{Lanes{p[0], count > 1 ? p[1] : 0.0}}};
  }
  void store(double* p) const {
    p[0] = v[0];
    p[1] = v[1];
  }
  void stream(double* p) const { store(p); }
  void store_first(double* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = v[i];
  }
  static Vector load_quads(const char* p, int64_t) { return {{quad(p)}}; }
  static Vector load_quads_first(const char* p, int64_t, int quads, int bytes) {
    return {{quad_first(p, quads, bytes)}};
  }
  static Vector gather(const double* data, Vector offsets) {
    return {{Lanes{data[static_cast<int64_t>(offsets.v[0])],
                   data[static_cast<int64_t>(offsets.v[1])]}}};
  }
};

// Half-precision numbers as the integers of the same bits, which are in the same order from 0 on.
template <>
struct Vector<int16_t> : PortableVector<int16_t, int16_t> {
  static Vector broadcast(int16_t x) { return {{Lanes{x, x, x, x, x, x, x, x}}}; }
  template <class Half>
  static Vector load(const Half* p) {
    return {{quad(p)}};
  }
  template <class Half>
  static Vector load_first(const Half* p, int count) {
    return {{quad_first(reinterpret_cast<const char*>(p), 1, 2 * count)}};
  }
  void store(int16_t* p) const { std::memcpy(p, &v, sizeof(v)); }
};

template <class V>
using MaskOf = typename V::Mask;

// Fused where the processor does that, as 64-bit Arm does.
template <class Scalar>
Vector<Scalar> multiply_add(Vector<Scalar> a, Vector<Scalar> b, Vector<Scalar> c) {
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
  for (int i = 0; i < a.kWidth; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
  return c;
#else
  return {{a.v * b.v + c.v}};
#endif
}

#define POWERGRAD_PORTABLE_OPERATORS(S)                                                    \
  inline Vector<S> operator+(Vector<S> a, Vector<S> b) { return {{a.v + b.v}}; }           \
  inline Vector<S> operator-(Vector<S> a, Vector<S> b) { return {{a.v - b.v}}; }           \
  inline Vector<S> operator*(Vector<S> a, Vector<S> b) { return {{a.v * b.v}}; }           \
  inline Vector<S> operator/(Vector<S> a, Vector<S> b) { return {{a.v / b.v}}; }           \
  /* b where either is NaN. */                                                             \
  inline Vector<S> maximum(Vector<S> a, Vector<S> b) { return {{a.v > b.v ? a.v : b.v}}; } \
  inline MaskOf<Vector<S>> equal(Vector<S> a, Vector<S> b) { return a.v == b.v; }          \
  inline MaskOf<Vector<S>> less(Vector<S> a, Vector<S> b) { return a.v < b.v; }            \
  inline MaskOf<Vector<S>> not_equal(Vector<S> a, Vector<S> b) { return a.v != b.v; }      \
  inline Vector<S> select(MaskOf<Vector<S>> mask, Vector<S> yes, Vector<S> no) {           \
    return {{mask ? yes.v : no.v}};                                                        \
  }                                                                                        \
  /* x in the lanes of the mask, else 0. */                                                \
  inline Vector<S> masked(MaskOf<Vector<S>> mask, Vector<S> x) {                           \
    return {{(Vector<S>::Lanes)(mask & (MaskOf<Vector<S>>)x.v)}};                          \
  }
POWERGRAD_PORTABLE_OPERATORS(float)
POWERGRAD_PORTABLE_OPERATORS(double)
POWERGRAD_PORTABLE_OPERATORS(int16_t)
#undef POWERGRAD_PORTABLE_OPERATORS

// 2^step of kStepOrigin + step; 0 for step = kUnderflow.
inline Vector<float> power_of_two(Vector<float> shifted) {
  using Bits = Vector<float>::Bits;
  const Bits one = (Bits)Vector<float>::broadcast(1.0f).v;
  return {{(Vector<float>::Lanes)(one + ((Bits)shifted.v << 23))}};
}
inline Vector<double> power_of_two(Vector<double> shifted) {
  using Bits = Vector<double>::Bits;
  const Bits one = (Bits)Vector<double>::broadcast(1.0).v;
  return {{(Vector<double>::Lanes)(one + ((Bits)shifted.v << 52))}};
}
// floor(log2(a)) for positive a.
inline Vector<float> exponent(Vector<float> a) {
  using Mask = Vector<float>::Mask;
  return {{__builtin_convertvector(((Mask)a.v >> 23) - 127, Vector<float>::Lanes)}};
}
inline Vector<double> exponent(Vector<double> a) {
  using Mask = Vector<double>::Mask;
  return {{__builtin_convertvector(((Mask)a.v >> 52) - 1023, Vector<double>::Lanes)}};
}
inline Vector<float> interleave_low(Vector<float> a, Vector<float> b) {
  return {{Vector<float>::Lanes{a.v[0], b.v[0], a.v[1], b.v[1]}}};
}
inline Vector<float> interleave_high(Vector<float> a, Vector<float> b) {
  return {{Vector<float>::Lanes{a.v[2], b.v[2], a.v[3], b.v[3]}}};
}
inline Vector<float> low_halves(Vector<float> a, Vector<float> b) {
  return {{Vector<float>::Lanes{a.v[0], a.v[1], b.v[0], b.v[1]}}};
}
inline Vector<float> high_halves(Vector<float> a, Vector<float> b) {
  return {{Vector<float>::Lanes{a.v[2], a.v[3], b.v[2], b.v[3]}}};
}
inline Vector<double> low_halves(Vector<double> a, Vector<double> b) {
  return {{Vector<double>::Lanes{a.v[0], b.v[0]}}};
}
inline Vector<double> high_halves(Vector<double> a, Vector<double> b) {
  return {{Vector<double>::Lanes{a.v[1], b.v[1]}}};
}
template <class Scalar>
double sum_of_lanes(Vector<Scalar> a) {
  double sum = 0.0;
  for (int i = 0; i < a.kWidth; ++i) sum += a.v[i];
  return sum;
}
template <class Scalar>
Scalar largest_of_lanes(Vector<Scalar> a) {
  Scalar largest = a.v[0];
  for (int i = 1; i < a.kWidth; ++i) largest = largest > a.v[i] ? largest : a.v[i];
  return largest;
}
template <class Mask>
int first_set(Mask mask) {
  for (int i = 0; i < static_cast<int>(sizeof(mask) / sizeof(mask[0])); ++i) {
    if (mask[i]) return i;
  }
  return -1;
}

// The most classes for which contiguous rows are transposed: beyond, reducing them one by one was
// faster (least times of a step of 512 rows).
template <class Storage>
inline constexpr int64_t kMostFewClasses = 80;
template <>
inline constexpr int64_t kMostFewClasses<double> = 32;

inline void finish_streams() {}  // there are none

}  // namespace
}  // namespace powergrad
