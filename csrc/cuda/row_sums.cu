// Sums over the rows of a call: the divisor of the mean and the reduced loss. In float64, in an
// order that depends only on the number of rows: each block writes a partial sum, and one block
// adds those.
#include <algorithm>

#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launchers.h"
#include "cuda/reductions.cuh"

namespace powergrad {
namespace {

constexpr int kThreads = 256;
constexpr int kLeastBlocks = 6;                 // per multiprocessor
constexpr int64_t kRowsOfBlock = 4 * kThreads;  // before there is another block

// Loads of a thread that are issued together, to hide their latency.
template <class Term>
constexpr int kRowsAtOnce = 4;

// The sum of term(term.read(row)) over the rows of this block, to finish(block, sum).
template <class Term, class Finish>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    sum_rows_kernel(const int64_t rows, const Term term, const Finish finish) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t stride = int64_t{kThreads} * gridDim.x;
  constexpr int kRows = kRowsAtOnce<Term>;
  double sum = 0.0;
  for (int64_t first = int64_t{blockIdx.x} * kThreads + thread; first < rows;
       first += kRows * stride) {
    decltype(term.read(first)) read[kRows] = {};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first + i * stride < rows) read[i] = term.read(first + i * stride);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first + i * stride < rows) sum += term(read[i]);
    }
  }
  double* sums_of_warps = reinterpret_cast<double*>(dynamic_shared_memory());
  sum = warp_reduce<Addition>(sum);
  if (thread % kWarp == 0) sums_of_warps[thread / kWarp] = sum;
  __syncthreads();
  if (thread >= kWarp) return;
  sum = warp_reduce<Addition>(thread < kThreads / kWarp ? sums_of_warps[thread] : 0.0);
  if (thread == 0) finish(static_cast<int>(blockIdx.x), sum);
}

template <class Term, class Finish>
cudaError_t launch(int blocks, int64_t rows, const Term& term, const Finish& finish,
                   cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kThreads / kWarp * sizeof(double);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, sum_rows_kernel<Term, Finish>, int64_t{rows}, Term(term),
                            Finish(finish));
}

struct PartialSums {
  double* partials;
  __device__ double read(int64_t block) const { return partials[block]; }
  __device__ double operator()(double partial) const { return partial; }
  __device__ void operator()(int block, double sum) const { partials[block] = sum; }
};

template <class Term, class Finish>
cudaError_t sum_rows(int64_t rows, double* partials, const Term& term, const Finish& finish,
                     cudaStream_t stream) {
  const int64_t wanted = (rows + kRowsOfBlock - 1) / kRowsOfBlock;
  const int blocks = static_cast<int>(std::min<int64_t>(wanted, kSumPartials));
  if (blocks <= 1) return launch(1, rows, term, finish, stream);
  const PartialSums parts{partials};
  const cudaError_t error = launch(blocks, rows, term, parts, stream);
  if (error != cudaSuccess) return error;
  return launch(1, blocks, parts, finish, stream);
}

// The weight of a row's target; 0 if the row does not count.
template <class Scalar>
struct TargetWeight {
  CrossEntropyParams params;
  __device__ int64_t read(int64_t row) const { return target_index(params, row); }
  __device__ double operator()(int64_t target) const {
    check_target(params, target);
    if (target == params.ignore_index) return 0.0;
    const Scalar* weight = static_cast<const Scalar*>(params.weight);
    return weight == nullptr ? 1.0 : static_cast<double>(weight[target]);
  }
};

// The same times the row's weight, which must be finite and >= 0. Targets of rows of weight 0 are
// not read.
template <class Scalar>
struct WeightedRow {
  CrossEntropyParams params;
  __device__ int64_t read(int64_t row) const { return row; }
  __device__ double operator()(int64_t row) const {
    const Scalar row_weight = row_weight_of<Scalar>(params, row);
    POWERGRAD_DEVICE_ASSERT(row_weight >= 0 && row_weight - row_weight == 0 &&  // finite
                            "cross_entropy: a row_weight is negative or not finite");
    if (row_weight == 0) return 0.0;
    if (params.target_index == nullptr) return static_cast<double>(row_weight);
    return static_cast<double>(row_weight) *
           TargetWeight<Scalar>{params}(target_index(params, row));
  }
};
template <class Scalar>
constexpr int kRowsAtOnce<WeightedRow<Scalar>> = 2;  // more spill registers

// Also copies the last grad_output, which another stream may change, for all blocks of forward to
// speculate on the same number.
template <class Scalar>
struct StoreTotalWeight {
  double* result;
  const void* last_grad_output;
  void* speculative_grad_output;
  __device__ void operator()(int, double sum) const {
    *result = sum;
    if (speculative_grad_output != nullptr) {
      *static_cast<Scalar*>(speculative_grad_output) =
          *static_cast<const Scalar*>(last_grad_output);
    }
  }
};

template <class Scalar>
struct Loss {
  const Scalar* losses;
  __device__ Scalar read(int64_t row) const { return losses[row]; }
  __device__ double operator()(Scalar loss) const { return loss; }
};

template <class Scalar>
struct StoreLoss {
  Scalar* result;
  const double* divisor;
  __device__ void operator()(int, double sum) const {
    *result = static_cast<Scalar>(divisor == nullptr ? sum : sum / *divisor);
  }
};

struct EveryRow {
  __device__ double read(int64_t) const { return 1.0; }
  __device__ double operator()(double count) const { return count; }
};

template <class Function>
cudaError_t with_accumulate(DataType dtype, const Function& function) {
  return dtype == DataType::float64 ? function(double{}) : function(float{});
}

}  // namespace

cudaError_t launch_total_weight(const CrossEntropyParams& p, double* total_weight,
                                void* speculative_grad_output, double* partials,
                                cudaStream_t stream) {
  return with_accumulate(p.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    const StoreTotalWeight<Scalar> finish{total_weight, p.next_speculation,
                                          speculative_grad_output};
    if (p.row_weight != nullptr) {
      return sum_rows(p.shape.rows(), partials, WeightedRow<Scalar>{p}, finish, stream);
    }
    if (p.target_index == nullptr) {
      return sum_rows(p.shape.rows(), partials, EveryRow{}, finish, stream);
    }
    return sum_rows(p.shape.rows(), partials, TargetWeight<Scalar>{p}, finish, stream);
  });
}

cudaError_t launch_reduce_losses(const CrossEntropyParams& p, const double* divisor, void* loss,
                                 double* partials, cudaStream_t stream) {
  return with_accumulate(p.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    return sum_rows(p.shape.rows(), partials, Loss<Scalar>{static_cast<const Scalar*>(p.losses)},
                    StoreLoss<Scalar>{static_cast<Scalar*>(loss), divisor}, stream);
  });
}

}  // namespace powergrad
