// What the kernels compute, and the structs that hold their arguments.
//
// For one row of logits z (C classes), a target distribution q, class weights w and a power
// alpha > 0, with target_j = w_j q_j and W = sum_j target_j:
//
//     p    = softmax(z),   p' = p^alpha / sum_j p_j^alpha = softmax(alpha z)
//     loss = -sum_j target_j log p_j                          (ordinary cross-entropy)
//     dz_j = p'_j W - target_j                                (p' where cross-entropy has p)
//
// With a row weight r and z-loss, which keeps lse = log sum_j exp(z_j) near 0:
//
//     loss = r (-sum_j target_j log p_j + z_loss lse^2)
//     dz_j = r (p'_j (W + 2 z_loss lse) - target_j)
//
// PowerGrad Transform: arXiv 2111.12495. alpha = 1 is ordinary cross-entropy.
//
// Sums are kept as "1 + r". With m = max z, sum_j exp(z_j - m) is exactly 1 (the maximum's term)
// plus r, the sum of all other terms. r loses nothing when a row is confident and r is far below an
// ulp of 1:
//
//     loss of the maximum     = log(1 + r)       = log1p(r)
//     p'_max - 1              = -r' / (1 + r')
//
// are both accurate to a few ulp in every precision. Two states merge as a monoid: for m1 >= m2,
// (m1, r1) + (m2, r2) = (m1, r1 + (1 + r2) exp(m2 - m1)).
//
// Nothing here depends on a framework, on threads or on an allocator.
#pragma once

#include <cstdint>

// For the CPU and for CUDA devices.
#if defined(__CUDACC__)
#define POWERGRAD_FUNCTION __host__ __device__ inline
#else
#define POWERGRAD_FUNCTION inline
#endif

namespace powergrad {

// The one list of element types: POWERGRAD_FORALL_TYPES(X) expands X(name, storage, accumulate).
#define POWERGRAD_FORALL_TYPES(X) \
  X(float32, float, float)        \
  X(bfloat16, BFloat16, float)    \
  X(float16, Float16, float)      \
  X(float64, double, double)

// The bits of a half-precision number; kernels convert on loads and stores.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class DataType : int32_t {
#define POWERGRAD_ENUMERATOR(name, storage, accumulate) name,
  POWERGRAD_FORALL_TYPES(POWERGRAD_ENUMERATOR)
#undef POWERGRAD_ENUMERATOR
};
inline constexpr int kDataTypes = 4;

template <class Storage>
struct StorageTraits;
#define POWERGRAD_STORAGE_TRAITS(name, storage, accumulate) \
  template <>                                               \
  struct StorageTraits<storage> {                           \
    using Accumulate = accumulate;                          \
    static constexpr DataType dtype = DataType::name;       \
  };
POWERGRAD_FORALL_TYPES(POWERGRAD_STORAGE_TRAITS)
#undef POWERGRAD_STORAGE_TRAITS

template <class Storage>
using AccumulateOf = typename StorageTraits<Storage>::Accumulate;

// Every tensor of logits is viewed as (outer, classes, inner), with softmax over the middle. The
// row of each (outer, inner) has the number outer * shape.inner + inner.
struct Shape {
  int64_t outer;
  int64_t classes;
  int64_t inner;
  POWERGRAD_FUNCTION int64_t rows() const { return outer * inner; }
};

// In elements. Kernels read tensors in place with classes == 1 (a row is contiguous) or inner == 1
// (neighbouring rows are adjacent); the caller copies all others.
struct Strides {
  int64_t outer;
  int64_t classes;
  int64_t inner;
};

// What backward needs of each row, (kStatistics, rows) `accumulate`, contiguous: the maximum m, the
// sum r' of exp(alpha (z - m)) without the maximum's, and the target weight W.
enum Statistic { kMaximum, kAlphaSumexpM1, kTargetWeight, kStatistics };
inline constexpr int kLogSoftmaxStatistics = kTargetWeight;  // log-softmax has no target

// Per-row metrics of softmax(z), whatever alpha is, for index targets: log p of the target, -sum_j
// p_j log p_j, and 1 where the target's logit is the maximum of a row that is not NaN, else 0. All
// are 0 for rows that do not count.
enum Metric { kLogProb, kEntropy, kCorrect, kMetrics };

// "storage" is the logits' own type; "accumulate" is float, or double for float64 logits.
struct CrossEntropyParams {
  DataType dtype;
  Shape shape;
  // Of rows whose classes are sharded: how many classes other shards have before and after these.
  int64_t classes_before;
  int64_t classes_after;
  double alpha;
  const double* alpha_on_device;  // CUDA: read in place of alpha, unless null

  const void* logits;  // (outer, classes, inner) storage
  Strides logits_strides;

  // Exactly one kind of target.
  const void* target_index;  // (rows) int64 or int32, counting all shards' classes; or null
  bool target_index_is_int32;
  int64_t ignore_index;
  const void* target_probabilities;  // (outer, classes, inner), or null
  Strides target_strides;
  bool target_is_accumulate_type;  // probabilities are `accumulate`, else storage

  const void* weight;        // (all shards' classes) accumulate; null: all ones
  const double* weight_sum;  // scalar, the sum over these classes; null: all ones
  double label_smoothing;    // q becomes (1 - s) q + s / (all shards' classes)
  const void* row_weight;    // (rows) accumulate; null: all ones. Rows of weight 0 do not count
  double z_loss;

  // Forward.
  void* losses;      // (rows) accumulate, unreduced; null in backward
  void* statistics;  // (kStatistics, rows) accumulate; written by forward, read by backward; null:
                     // no backward follows, and without a gradient the alpha sum is skipped. A
                     // CUDA device needs them for a gradient
  void* sumexp_m1;   // (rows) accumulate, r of "1 + r", for z-loss and for shards; written by
                     // forward and, where z_loss is not 0, read by backward. Or null
  void* metrics;     // (kMetrics, rows) accumulate; null: none are asked for
  bool is_shard;     // the logits are a shard of their rows, which are merged after forward
                     // (shards.h): losses are only sum_j target_j (m - z_j), with m = 0 for a row
                     // of -infinity, which is not NaN yet; metrics only what ShardStatistic says

  // Backward, and forward with gradient.
  void* gradient;  // (outer, classes, inner) storage; may be the logits in backward; or null
  Strides gradient_strides;
  const void* grad_output;     // accumulate, (rows) or a scalar; null: ones
  int64_t grad_output_stride;  // 1 or 0
  const double* total_weight;  // scalar that divides every gradient (the mean); null: 1

  // Backward over a gradient that forward has computed for a speculative grad_output (CUDA): the
  // gradient is valid if *grad_output has the bits of *speculative_grad_output, and stays.
  const void* speculative_grad_output;  // accumulate, a scalar; null: no speculation
  void* next_speculation;  // accumulate, a scalar: what the next forward speculates on, which
                           // backward sets to *grad_output if that differed; or null
};

struct LogSoftmaxParams {
  DataType dtype;
  Shape shape;
  double alpha;
  const double* alpha_on_device;  // as above

  const void* logits;  // (outer, classes, inner) storage
  Strides logits_strides;
  void* output;  // forward: (outer, classes, inner) storage
  Strides output_strides;
  void* statistics;  // (kLogSoftmaxStatistics, rows) accumulate; null: no backward will follow

  const void* grad_output;  // backward: (outer, classes, inner) storage
  Strides grad_output_strides;
  void* gradient;  // backward: (outer, classes, inner) storage
  Strides gradient_strides;
};

}  // namespace powergrad
