// Rows whose classes are sharded over processes. Each process reduces its own classes, and their
// statistics merge as in powergrad.h. The scalar algorithm, for the CPU and for CUDA devices.
#pragma once

#include <cmath>

#include "row.h"

namespace powergrad {

// Shard statistics, which a shard sends to the others, `accumulate` type: the fingerprint of its
// arguments, followed by (kShardStatistics, rows). Those of a row are its statistics, then r, the
// sum of exp(z - m) without the maximum's, and the distance, sum_j target_j (m - z_j). A shard
// without classes has a maximum of -infinity, sums of -1, and zeros.
enum ShardStatistic { kSumexpM1 = kStatistics, kDistance, kShardStatistics };
POWERGRAD_FUNCTION int64_t shard_statistics_size(int64_t rows) {
  return 1 + kShardStatistics * rows;
}

struct MergeParams {
  DataType dtype;
  int64_t shards;
  int64_t rows;
  double alpha;
  const double* alpha_on_device;  // CUDA: read in place of alpha, unless null
  const void* shard_statistics;   // (shards, shard_statistics_size(rows)) accumulate
  void* merged;                   // (kShardStatistics, rows) accumulate: of the whole rows
  void* losses;                   // (rows) accumulate, unreduced
};

namespace {

template <class Scalar>
POWERGRAD_FUNCTION const Scalar* statistics_of_shard(const MergeParams& p, int64_t shard) {
  return static_cast<const Scalar*>(p.shard_statistics) + shard * shard_statistics_size(p.rows);
}

// The first shard whose arguments differ from those of shard 0; -1 if there is none.
template <class Scalar>
POWERGRAD_FUNCTION int64_t find_mismatch(const MergeParams& p) {
  for (int64_t i = 1; i < p.shards; ++i) {
    if (*statistics_of_shard<Scalar>(p, i) != *statistics_of_shard<Scalar>(p, 0)) return i;
  }
  return -1;
}

// exp(factor (a - b)), corrected for the rounding of the exponent. Valid for a <= b, b finite, and
// a of -infinity. Maximum error: 2.1 ulp where the result is normal, 1 ulp of which is std::exp's.
template <class Scalar>
POWERGRAD_FUNCTION Scalar exp_of_difference(Scalar factor, Scalar a, Scalar b) {
  const Scalar difference = a - b;
  const Scalar exponent = factor * difference;
  const Scalar back = difference - a;
  const Scalar lost = (a - (difference - back)) - (b + back);
  const Scalar correction = std::fma(factor, difference, -exponent) + factor * lost;
  // The correction is NaN for an exponent of -infinity.
  return std::exp(exponent) * (1 + (exponent - exponent == 0 ? correction : Scalar(0)));
}

// Adds in the order of the shards, so that every process gets the same bits.
template <class Scalar>
POWERGRAD_FUNCTION void merge_row(const MergeParams& p, int64_t row, Scalar alpha) {
  const auto statistic = [&](int which, int64_t shard) -> Scalar {
    return statistics_of_shard<Scalar>(p, shard)[1 + which * p.rows + row];
  };
  int64_t highest = 0;
  Scalar maximum = statistic(kMaximum, 0);
  for (int64_t i = 1; i < p.shards; ++i) {
    if (statistic(kMaximum, i) <= maximum) continue;
    highest = i;
    maximum = statistic(kMaximum, i);
  }
  // alpha z has its maximum where z has, and its exponential is 1 there too.
  Scalar sumexp_m1 = statistic(kSumexpM1, highest) + nan_if_infinite(maximum);
  Scalar alpha_sumexp_m1 = statistic(kAlphaSumexpM1, highest) + nan_if_infinite(maximum);
  Scalar target_weight = 0;
  Scalar distance = 0;
  for (int64_t i = 0; i < p.shards; ++i) {
    const Scalar of_shard = statistic(kMaximum, i);
    const Scalar its_weight = statistic(kTargetWeight, i);
    target_weight += its_weight;
    distance +=
        statistic(kDistance, i) + its_weight * (reference_of(maximum) - reference_of(of_shard));
    if (i == highest) continue;
    sumexp_m1 += (1 + statistic(kSumexpM1, i)) * exp_of_difference(Scalar(1), of_shard, maximum);
    alpha_sumexp_m1 +=
        (1 + statistic(kAlphaSumexpM1, i)) * exp_of_difference(alpha, of_shard, maximum);
  }
  Scalar* merged = static_cast<Scalar*>(p.merged) + row;
  merged[kMaximum * p.rows] = maximum;
  merged[kAlphaSumexpM1 * p.rows] = alpha_sumexp_m1;
  merged[kTargetWeight * p.rows] = target_weight;
  merged[kSumexpM1 * p.rows] = sumexp_m1;
  merged[kDistance * p.rows] = distance;
  // Both terms are >= 0, so nothing cancels.
  static_cast<Scalar*>(p.losses)[row] = distance + target_weight * std::log1p(sumexp_m1);
}

}  // namespace
}  // namespace powergrad
