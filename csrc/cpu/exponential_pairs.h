// Pairs (exp(t), exp(alpha t)) for t = z - max(z) <= 0, to be summed: the last multiplication of a
// power is fused with the sum's addition. The D-th power of Exponential has D times its relative
// error. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// root = exp(t / kDenominator); everything else is a power of it.
template <int kNumerator, int kDenominator, class V>
struct PowersOfRoot {
  V root;
  V powered() const { return power<kNumerator>(root); }
  void add_to(V& plain_sum, V& powered_sum) const {
    if constexpr (kDenominator == 1) {
      plain_sum = plain_sum + root;
    } else {
      const auto [first, second] = factors_of_power<kDenominator>(root);
      plain_sum = multiply_add(first, second, plain_sum);
    }
    powered_sum = powered_sum + powered();
  }
  template <class Mask>
  void add_to_where(Mask mask, V& plain_sum, V& powered_sum) const {
    if constexpr (kDenominator == 1) {
      plain_sum = add_where(mask, plain_sum, root);
    } else {
      const auto [first, second] = factors_of_power<kDenominator>(root);
      plain_sum = multiply_add_where(mask, first, second, plain_sum);
    }
    powered_sum = add_where(mask, powered_sum, powered());
  }
};
template <class Mask, int kNumerator, int kDenominator, class V>
PowersOfRoot<kNumerator, kDenominator, V> select(
    Mask mask, const PowersOfRoot<kNumerator, kDenominator, V>& yes,
    const PowersOfRoot<kNumerator, kDenominator, V>& no) {
  return {select(mask, yes.root, no.root)};
}

template <class V>
struct TwoExponentials {
  V plain;
  V powered_;
  V powered() const { return powered_; }
  void add_to(V& plain_sum, V& powered_sum) const {
    plain_sum = plain_sum + plain;
    powered_sum = powered_sum + powered_;
  }
  template <class Mask>
  void add_to_where(Mask mask, V& plain_sum, V& powered_sum) const {
    plain_sum = add_where(mask, plain_sum, plain);
    powered_sum = add_where(mask, powered_sum, powered_);
  }
};
template <class Mask, class V>
TwoExponentials<V> select(Mask mask, const TwoExponentials<V>& yes, const TwoExponentials<V>& no) {
  return {select(mask, yes.plain, no.plain), select(mask, yes.powered_, no.powered_)};
}

// For a forward pass without backward: the powered sum stays 0.
template <class V>
struct PlainExponential {
  V plain;
  V powered() const { return V::broadcast(0); }
  void add_to(V& plain_sum, V&) const { plain_sum = plain_sum + plain; }
  template <class Mask>
  void add_to_where(Mask mask, V& plain_sum, V&) const {
    plain_sum = add_where(mask, plain_sum, plain);
  }
};
template <class Mask, class V>
PlainExponential<V> select(Mask mask, const PlainExponential<V>& yes,
                           const PlainExponential<V>& no) {
  return {select(mask, yes.plain, no.plain)};
}

// The evaluators of alpha.h, over Exponential or ExactExponential. kSecondOfLargest is the second
// number of the pair of a row's largest logit; the first is 1.
template <int kNumerator, int kDenominator, class Exp>
struct Evaluator<RationalAlpha<kNumerator, kDenominator>, Exp> {
  static constexpr int kSecondOfLargest = 1;
  Exp root;
  explicit Evaluator(double) : root(1.0L / kDenominator) {}
  template <class V>
  PowersOfRoot<kNumerator, kDenominator, V> operator()(V z, V reference) const {
    return {root(z, reference)};
  }
};

template <class Exp>
struct Evaluator<AnyAlpha, Exp> {
  static constexpr int kSecondOfLargest = 1;
  Exp plain;
  Exp powered;
  explicit Evaluator(double alpha) : plain(1.0), powered(alpha) {}
  template <class V>
  TwoExponentials<V> operator()(V z, V reference) const {
    return {plain(z, reference), powered(z, reference)};
  }
};

template <class Exp>
struct Evaluator<NoAlpha, Exp> {
  static constexpr int kSecondOfLargest = 1;
  Exp plain;
  explicit Evaluator(double) : plain(1.0) {}
  template <class V>
  PlainExponential<V> operator()(V z, V reference) const {
    return {plain(z, reference)};
  }
};

// The pair (exp(t), t exp(t)), of which the maximum's second is 0.
template <class Exp>
struct Evaluator<EntropyTerms, Exp> {
  static constexpr int kSecondOfLargest = 0;
  Exp plain;
  explicit Evaluator(double) : plain(1.0) {}
  template <class V>
  TwoExponentials<V> operator()(V z, V reference) const {
    const V exponential = plain(z, reference);
    return {exponential, plain.exponent(z, reference) * exponential};
  }
};

}  // namespace
}  // namespace powergrad
