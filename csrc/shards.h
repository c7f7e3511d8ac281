// Rows whose classes are sharded over processes. Each process reduces its own classes, and their
// statistics merge as in powergrad.h. The scalar algorithm, for the CPU and for CUDA devices.
#pragma once

#include <cmath>

#include "row.h"

namespace powergrad {

// Shard statistics, which a shard sends to the others, `accumulate` type: the fingerprint of its
// arguments, followed by those of rows, (kShardStatistics, rows). Those of a row are its
// statistics, then r, the sum of exp(z - m) without the maximum's, and the distance, sum_j target_j
// (m - z_j); where metrics are asked for, two more: the target's logit, 0 where another shard has
// it, in place of kLogProb (label smoothing hides it in the distance), and the sum of
// exp(z_j - m) (m - z_j) in place of kEntropy. A shard without classes has a maximum of -infinity,
// sums of -1, and zeros. A row that does not count has r = -1, and zeros.
enum ShardStatistic {
  kSumexpM1 = kStatistics,
  kDistance,
  kShardStatistics,
  kTargetLogit = kShardStatistics,
  kEntropySum,
  kShardStatisticsWithMetrics
};
POWERGRAD_FUNCTION int64_t shard_statistics_size(int64_t rows, bool has_metrics) {
  return 1 + (has_metrics ? kShardStatisticsWithMetrics : kShardStatistics) * rows;
}

struct MergeParams {
  DataType dtype;
  int64_t shards;
  int64_t rows;
  double alpha;
  const double* alpha_on_device;  // CUDA: read in place of alpha, unless null
  const void* row_weight;         // as in CrossEntropyParams, as is the next
  double z_loss;
  const void* shard_statistics;  // (shards, shard_statistics_size(rows, has_metrics)) accumulate
  void* merged;                  // (kShardStatistics, rows) accumulate: of the whole rows
  void* losses;                  // (rows) accumulate, unreduced
  void* metrics;  // (kMetrics, rows) accumulate: of the whole rows; null: not asked for

  POWERGRAD_FUNCTION bool has_metrics() const { return metrics != nullptr; }
};

namespace {

template <class Scalar>
POWERGRAD_FUNCTION const Scalar* statistics_of_shard(const MergeParams& p, int64_t shard) {
  return static_cast<const Scalar*>(p.shard_statistics) +
         shard * shard_statistics_size(p.rows, p.has_metrics());
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

// Of the whole row: the sum of exp(z_j - m) (m - z_j), and the target's logit. Those of a shard are
// relative to its own maximum.
template <class Scalar>
struct MergedMetrics {
  Scalar entropy_sum = 0;
  Scalar target_logit = 0;

  POWERGRAD_FUNCTION void add(Scalar its_entropy_sum, Scalar its_target_logit, Scalar its_sumexp_m1,
                              Scalar its_maximum, Scalar maximum) {
    target_logit += its_target_logit;
    // Exponentials that underflow add nothing; their product with the difference could be inf * 0.
    const Scalar factor = exp_of_difference(Scalar(1), its_maximum, maximum);
    if (factor == 0) return;
    entropy_sum += (its_entropy_sum + (1 + its_sumexp_m1) * (maximum - its_maximum)) * factor;
  }
};

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
  MergedMetrics<Scalar> metrics;
  for (int64_t i = 0; i < p.shards; ++i) {
    const Scalar of_shard = statistic(kMaximum, i);
    const Scalar its_weight = statistic(kTargetWeight, i);
    target_weight += its_weight;
    distance +=
        statistic(kDistance, i) + its_weight * (reference_of(maximum) - reference_of(of_shard));
    if (p.has_metrics()) {
      metrics.add(statistic(kEntropySum, i), statistic(kTargetLogit, i), statistic(kSumexpM1, i),
                  of_shard, maximum);
    }
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
  Scalar& loss = static_cast<Scalar*>(p.losses)[row];
  if (sumexp_m1 == -1) {  // the row does not count
    loss = 0;
    if (p.has_metrics()) write_metrics<Scalar>(p, p.rows, row, 0, 0, 0);
    return;
  }
  const Scalar log_sum = std::log1p(sumexp_m1);
  // Both terms are >= 0, so nothing cancels.
  loss = weighted_loss<Scalar>(p, row, distance + target_weight * log_sum, maximum, log_sum);
  if (!p.has_metrics()) return;
  compute_metrics(p, p.rows, row, maximum, metrics.target_logit, sumexp_m1, log_sum,
                  metrics.entropy_sum);
}

}  // namespace
}  // namespace powergrad
