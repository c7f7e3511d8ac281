// No instruction set assumed: four floats or two doubles in the compiler's own vector type, which
// becomes SSE2 on x86-64 and NEON on 64-bit Arm.
#pragma once

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
  static constexpr double kUnderflow = -160.0;  // 2^x is 0
  static constexpr double kTiny = 1e-35;
  static constexpr int kStepDigits = 15;  // with 8 digits of n they make a float's 24
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
  void store_first(Storage* p, int count) const {
    for (int i = 0; i < count; ++i) from_float(v[i], p + i);
  }
};

template <>
struct Vector<double> : PortableVector<double, int64_t> {
  static constexpr double kUnderflow = -1100.0;
  static constexpr double kTiny = 1e-300;
  static constexpr int kStepDigits = 41;  // with 11 digits of n
  static Vector broadcast(double x) { return {{Lanes{x, x}}}; }
  static Vector load(const double* p) { return {{Lanes{p[0], p[1]}}}; }
  static Vector load_first(const double* p, int count) {
    return {{Lanes{p[0], count > 1 ? p[1] : 0.0}}};
  }
  void store(double* p) const {
    p[0] = v[0];
    p[1] = v[1];
  }
  void store_first(double* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = v[i];
  }
};

template <class V>
using MaskOf = typename V::Mask;

#define POWERGRAD_PORTABLE_OPERATORS(S, magic)                                             \
  inline Vector<S> operator+(Vector<S> a, Vector<S> b) { return {{a.v + b.v}}; }           \
  inline Vector<S> operator-(Vector<S> a, Vector<S> b) { return {{a.v - b.v}}; }           \
  inline Vector<S> operator*(Vector<S> a, Vector<S> b) { return {{a.v * b.v}}; }           \
  inline Vector<S> operator/(Vector<S> a, Vector<S> b) { return {{a.v / b.v}}; }           \
  inline Vector<S> multiply_add(Vector<S> a, Vector<S> b, Vector<S> c) {                   \
    return {{a.v * b.v + c.v}};                                                            \
  }                                                                                        \
  /* b where either is NaN. */                                                             \
  inline Vector<S> maximum(Vector<S> a, Vector<S> b) { return {{a.v > b.v ? a.v : b.v}}; } \
  /* For |a| small against the magic number, whose last bit is worth 1. */                 \
  inline Vector<S> round(Vector<S> a) {                                                    \
    const Vector<S> shifted = a + Vector<S>::broadcast(magic);                             \
    return shifted - Vector<S>::broadcast(magic);                                          \
  }                                                                                        \
  inline MaskOf<Vector<S>> equal(Vector<S> a, Vector<S> b) { return a.v == b.v; }          \
  inline MaskOf<Vector<S>> less(Vector<S> a, Vector<S> b) { return a.v < b.v; }            \
  inline Vector<S> select(MaskOf<Vector<S>> mask, Vector<S> yes, Vector<S> no) {           \
    return {{mask ? yes.v : no.v}};                                                        \
  }
POWERGRAD_PORTABLE_OPERATORS(float, 12582912.0f)
POWERGRAD_PORTABLE_OPERATORS(double, 6755399441055744.0)
#undef POWERGRAD_PORTABLE_OPERATORS

// a * 2^n for integral n and a near 1; 0 where that is not a normal number.
inline Vector<float> scale_by_power_of_two(Vector<float> a, Vector<float> n) {
  using Mask = Vector<float>::Mask;
  using Bits = Vector<float>::Bits;
  // Above 1 there are only lanes past the end of a row, of which nothing is used.
  const Mask normal =
      (n.v >= Vector<float>::broadcast(-125.0f).v) & (n.v <= Vector<float>::broadcast(1.0f).v);
  const Mask nan = n.v != n.v;
  // Where it is not used, 0 keeps the conversion to an integer defined.
  const Mask exponent = __builtin_convertvector(normal ? n.v : Vector<float>::Lanes{}, Mask);
  const Bits bits = (Bits)a.v + ((Bits)exponent << 23);
  return {{(Vector<float>::Lanes)((bits & (Bits)normal) | (Bits)nan)}};
}
inline Vector<double> scale_by_power_of_two(Vector<double> a, Vector<double> n) {
  using Mask = Vector<double>::Mask;
  using Bits = Vector<double>::Bits;
  const Mask normal = n.v >= Vector<double>::broadcast(-1021.0).v;
  const Mask nan = n.v != n.v;
  const Bits integer = (Bits)(n.v + Vector<double>::broadcast(6755399441055744.0).v);
  const Bits bits = (Bits)a.v + (integer << 52);
  return {{(Vector<double>::Lanes)((bits & (Bits)normal) | (Bits)nan)}};
}
// floor(log2(a)) for positive a.
inline Vector<float> exponent(Vector<float> a) {
  using Mask = Vector<float>::Mask;
  return {{__builtin_convertvector(((Mask)a.v >> 23) - 127, Vector<float>::Lanes)}};
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

}  // namespace
}  // namespace powergrad
