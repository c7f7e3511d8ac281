// Rows in parallel over torch's threads; one huge row by its blocks when there are fewer rows than
// threads. The bits are the same either way.
#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "torch/checks.h"
#include "torch/instruction_set.h"
#include "torch/libraries.h"
#include "torch/parallel_sum.h"
#include "torch/run.h"

namespace powergrad {
namespace {

// How much is worth a thread: elements of whole rows, or blocks of one row, which have to be
// merged.
constexpr int64_t kGrain = 8192;
constexpr int64_t kBlockGrain = 8;
// Rows of half-precision logits keep their exponentials in a float32 row of scratch, one a thread.
// Computing them again instead was 1.2 to 1.5 times slower at every size measured, from 1000 to
// 524288 classes, though the scratch of the longest rows is past the L2 cache; the limit only
// bounds the memory.
constexpr int64_t kScratchBytes = 4 * 1024 * 1024;

class OwnedWorkspace : public Workspace {
 public:
  OwnedWorkspace(const Shape& shape, int64_t row_bytes, int64_t tile_bytes)
      : Workspace{}, blocks_(std::max<int64_t>(block_count(shape), 1)) {
    blocks = blocks_.data();
    row_scratch_ = scratch(row_bytes);
    tile_scratch_ = scratch(tile_bytes);
    exponentials = row_scratch_.get();
    tile = tile_scratch_.get();
  }

 private:
  // Lines of the cache: vectors should not lie across two of them.
  struct alignas(64) Line {
    char bytes[64];
  };
  using Scratch = std::unique_ptr<Line[]>;
  static Scratch scratch(int64_t bytes) {
    const int64_t lines = (bytes + int64_t{sizeof(Line)} - 1) / int64_t{sizeof(Line)};
    return lines > 0 ? Scratch(new Line[lines]) : nullptr;
  }

  std::vector<BlockState> blocks_;
  Scratch row_scratch_;
  Scratch tile_scratch_;
};

bool is_double(DataType dtype) { return dtype == DataType::float64; }
bool is_half(DataType dtype) { return dtype == DataType::bfloat16 || dtype == DataType::float16; }

// A kernel that has no losses or output to write works backward.
bool is_forward(const CrossEntropyParams& p) { return p.losses != nullptr; }
bool is_forward(const LogSoftmaxParams& p) { return p.output != nullptr; }

int64_t row_bytes(const CrossEntropyParams& p) {
  const int64_t bytes = p.shape.classes * static_cast<int64_t>(sizeof(float));
  const bool keeps = is_half(p.dtype) && p.logits_strides.classes == 1 && p.gradient != nullptr;
  return keeps && bytes <= kScratchBytes ? bytes : 0;
}
int64_t row_bytes(const LogSoftmaxParams&) { return 0; }

// Where rows are contiguous there are no tiles, and backward reads them only once.
template <class Params>
int64_t tile_bytes(const Params& p) {
  if (p.logits_strides.classes == 1 || !is_forward(p)) return 0;
  const int64_t size = is_double(p.dtype) ? sizeof(double) : sizeof(float);
  return cpu_library().tile_rows(p.shape, size) * p.shape.classes * size;
}

template <class Params>
OwnedWorkspace workspace_for(const Params& p) {
  return OwnedWorkspace(p.shape, row_bytes(p), tile_bytes(p));
}

template <class Params>
void run_rows_in_parallel(const Kernel<Params>& kernel, const Params& p) {
  const int64_t grain = std::max<int64_t>(1, kGrain / p.shape.classes);
  at::parallel_for(0, p.shape.rows(), grain, [&](int64_t begin, int64_t end) {
    OwnedWorkspace workspace = workspace_for(p);
    kernel.rows(p, begin, end, workspace);
  });
}

template <class Params>
void run_blocks_in_parallel(const Kernel<Params>& kernel, const Params& p) {
  OwnedWorkspace workspace = workspace_for(p);
  const int64_t blocks = block_count(p.shape);
  const auto each_block = [&](auto phase, int64_t row) {
    at::parallel_for(0, blocks, kBlockGrain,
                     [&](int64_t begin, int64_t end) { phase(p, row, begin, end, workspace); });
  };
  for (int64_t row = 0; row < p.shape.rows(); ++row) {
    each_block(kernel.reduce, row);
    kernel.merge(p, row, workspace);
    each_block(kernel.map, row);
  }
}

const KernelTable& table_of(DataType dtype) {
  return *active_instruction_set().tables[static_cast<int>(dtype)];
}

// Whether rows are shared among threads by their blocks: a few long ones.
template <class Params>
bool splits_rows(const Params& p) {
  return p.logits_strides.classes == 1 && block_count(p.shape) >= 2 * kBlockGrain &&
         p.shape.rows() < at::get_num_threads();
}

template <class Params, Kernel<Params> KernelTable::* kernel>
void run(const Params& p, c10::Device) {
  if (p.shape.rows() == 0 || p.shape.classes == 0) return;
  const Kernel<Params>& chosen = table_of(p.dtype).*kernel;
  if (splits_rows(p)) {
    run_blocks_in_parallel(chosen, p);
  } else {
    run_rows_in_parallel(chosen, p);
  }
}

// Throws for the first target of [begin, end) that is no class of the whole rows.
template <class Index>
void check_targets_in(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  const auto* target = static_cast<const Index*>(p.target_index);
  const int64_t classes = all_classes(p);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t index = target[row];
    if (index == p.ignore_index || (0 <= index && index < classes)) continue;
    raise_target_out_of_bounds(index, classes, p.ignore_index);
  }
}

template <class Index, class Scalar>
double total_weight_of(const CrossEntropyParams& p) {
  const auto* target = static_cast<const Index*>(p.target_index);
  const auto* weight = static_cast<const Scalar*>(p.weight);
  const auto last = static_cast<uint64_t>(all_classes(p) - 1);
  const auto ignored = static_cast<uint64_t>(p.ignore_index);
  return parallel_sum(p.shape.rows(), [&](int64_t begin, int64_t end) {
    // By sign bits: branches, a sum of doubles, or the comparisons of 64 bits that SSE2 lacks would
    // take a tenth of the time of a loss of few classes.
    uint64_t counted = 0;
    uint64_t outside = 0;
    for (int64_t row = begin; row < end; ++row) {
      const auto index = static_cast<uint64_t>(int64_t{target[row]});
      const uint64_t difference = index ^ ignored;
      const uint64_t counts = difference | (0 - difference);
      counted += counts >> 63;
      outside |= counts & (index | (last - index));
    }
    if (outside >> 63 != 0) check_targets_in<Index>(p, begin, end);
    if (weight == nullptr) return static_cast<double>(counted);
    double sum = 0.0;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t index = target[row];
      if (index != p.ignore_index) sum += weight[index];
    }
    return sum;
  });
}

// Of rows with weights of their own. Targets of rows of weight 0 are not read.
template <class Scalar>
double weighted_total_of(const CrossEntropyParams& p) {
  const auto* weight = static_cast<const Scalar*>(p.weight);
  const int64_t classes = all_classes(p);
  return parallel_sum(p.shape.rows(), [&](int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t row = begin; row < end; ++row) {
      const double row_weight = row_weight_of<Scalar>(p, row);
      if (!(row_weight >= 0.0 && std::isfinite(row_weight))) raise_row_weight(row_weight, row);
      if (row_weight == 0.0) continue;
      if (p.target_index == nullptr) {
        sum += row_weight;
        continue;
      }
      const int64_t index = target_index(p, row);
      if (index == p.ignore_index) continue;
      if (index < 0 || index >= classes) raise_target_out_of_bounds(index, classes, p.ignore_index);
      sum += weight != nullptr ? row_weight * weight[index] : row_weight;
    }
    return sum;
  });
}

template <class Scalar>
double total_weight_of(const CrossEntropyParams& p) {
  if (p.row_weight != nullptr) return weighted_total_of<Scalar>(p);
  if (p.target_index == nullptr) return static_cast<double>(p.shape.rows());
  return p.target_index_is_int32 ? total_weight_of<int32_t, Scalar>(p)
                                 : total_weight_of<int64_t, Scalar>(p);
}

void* no_last_grad_output(const CrossEntropyParams&, bool, c10::Device) { return nullptr; }

void total_weight(const CrossEntropyParams& p, double* total, void*, c10::Device) {
  *total = is_double(p.dtype) ? total_weight_of<double>(p) : total_weight_of<float>(p);
}

void check_targets(const CrossEntropyParams& p, c10::Device device) {
  double unused;
  total_weight(p, &unused, nullptr, device);
}

template <class Scalar>
double sum_of(const Scalar* losses, int64_t count) {
  // Several sums, as each addition waits for the one before.
  constexpr int kSums = 8;
  double sums[kSums] = {};
  int64_t row = 0;
  for (; row + kSums <= count; row += kSums) {
    for (int i = 0; i < kSums; ++i) sums[i] += losses[row + i];
  }
  for (; row < count; ++row) sums[0] += losses[row];
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

template <class Scalar>
double sum_of_losses(const CrossEntropyParams& p) {
  const auto* losses = static_cast<const Scalar*>(p.losses);
  return parallel_sum(p.shape.rows(), [losses](int64_t begin, int64_t end) {
    return sum_of(losses + begin, end - begin);
  });
}

void reduce(double sum, const double* divisor, DataType dtype, void* loss) {
  if (divisor != nullptr) sum /= *divisor;
  if (is_double(dtype)) {
    *static_cast<double*>(loss) = sum;
  } else {
    *static_cast<float*>(loss) = static_cast<float>(sum);
  }
}

void reduce_losses(const CrossEntropyParams& p, const double* divisor, void* loss, c10::Device) {
  const double sum = is_double(p.dtype) ? sum_of_losses<double>(p) : sum_of_losses<float>(p);
  reduce(sum, divisor, p.dtype, loss);
}

// How many rows are worked on before their losses are summed: these stay in the L1 cache, which for
// masks saves a fourth of what a step reads and writes. Whole tiles or vectors of rows, and about
// as many in every block.
constexpr int64_t kMostSummedRows = 4096;
int64_t summed_rows(const CrossEntropyParams& p) {
  constexpr int64_t kLanes = 16;
  const int64_t most = std::clamp<int64_t>(kGrain / p.shape.classes, 1, kMostSummedRows);
  const int64_t blocks = (p.shape.rows() + most - 1) / most;
  const int64_t rows = (p.shape.rows() + blocks - 1) / blocks;
  const int64_t step = p.logits_strides.classes == 1 ? std::min(rows, kLanes) : kTileRows;
  return (rows + step - 1) / step * step;
}

template <class Scalar>
double forward_sum_of(const CrossEntropyParams& p) {
  const int64_t rows = p.shape.rows();
  if (rows == 0 || p.shape.classes == 0) return 0.0;
  const Kernel<CrossEntropyParams>& kernel = table_of(p.dtype).cross_entropy_forward;
  const int64_t size = summed_rows(p);
  const auto end_of = [&](int64_t begin) { return std::min(rows, begin + size); };
  if (splits_rows(p)) {
    std::vector<Scalar> losses(rows);
    CrossEntropyParams part = p;
    part.losses = losses.data();
    run_blocks_in_parallel(kernel, part);
    double sum = 0.0;  // in the order that other numbers of threads have
    for (int64_t begin = 0; begin < rows; begin += size) {
      sum += sum_of(&losses[begin], end_of(begin) - begin);
    }
    return sum;
  }
  const auto sum_blocks = [&](int64_t first, int64_t last, double* sums) {
    alignas(64) Scalar losses[kMostSummedRows];
    CrossEntropyParams part = p;
    part.losses = losses;
    OwnedWorkspace workspace = workspace_for(part);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * size;
      part.losses = losses - begin;  // which a kernel adds the number of each row to
      kernel.rows(part, begin, end_of(begin), workspace);
      sums[block] = sum_of(losses, end_of(begin) - begin);
    }
  };
  return parallel_sum_of_blocks((rows + size - 1) / size, sum_blocks);
}

void forward_reduced(const CrossEntropyParams& p, const double* divisor, void* loss, c10::Device) {
  const double sum = is_double(p.dtype) ? forward_sum_of<double>(p) : forward_sum_of<float>(p);
  reduce(sum, divisor, p.dtype, loss);
}

template <class Scalar>
void merge_shards_of(const MergeParams& p) {
  const int64_t mismatch = find_mismatch<Scalar>(p);
  TORCH_CHECK(
      mismatch < 0, "vocab_parallel_cross_entropy(): ranks 0 and ", mismatch,
      " of the group were called with arguments that differ (the type of 'input', the number",
      " of rows or classes, 'ignore_index', 'reduction', 'label_smoothing', a float 'alpha',",
      " whether there is a 'weight'), or one of them raised an error of its own");
  at::parallel_for(0, p.rows, kGrain / p.shards + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) merge_row(p, row, static_cast<Scalar>(p.alpha));
  });
}

void merge_shards(const MergeParams& p, c10::Device) {
  (is_double(p.dtype) ? merge_shards_of<double> : merge_shards_of<float>)(p);
}

}  // namespace

const DeviceFunctions& cpu_functions() {
  static constexpr DeviceFunctions functions{
      run<CrossEntropyParams, &KernelTable::cross_entropy_forward>,
      forward_reduced,
      run<CrossEntropyParams, &KernelTable::cross_entropy_backward>,
      run<LogSoftmaxParams, &KernelTable::log_softmax_forward>,
      run<LogSoftmaxParams, &KernelTable::log_softmax_backward>,
      no_last_grad_output,
      total_weight,
      check_targets,
      reduce_losses,
      merge_shards,
  };
  return functions;
}

}  // namespace powergrad
