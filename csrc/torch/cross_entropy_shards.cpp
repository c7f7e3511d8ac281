// The raw operators of cross-entropy whose classes are sharded over processes (shards.h).
// Between the first two every process gathers the shard statistics of all.
#include <ATen/ops/full.h>

#include "torch/cross_entropy_call.h"

namespace powergrad {
namespace {

constexpr double kNoFingerprint = -1.0;  // of a rank that has raised an error

MergeParams merge_params(const at::Tensor& shard_statistics, bool metrics) {
  const int64_t header = shard_statistics_size(0, metrics);
  const int64_t of_row = shard_statistics_size(1, metrics) - header;
  const bool is_float = shard_statistics.scalar_type() == at::kFloat;
  TORCH_CHECK(shard_statistics.dim() == 2 && shard_statistics.size(0) > 0 &&
                  shard_statistics.is_contiguous() && shard_statistics.size(1) % of_row == header &&
                  (is_float || shard_statistics.scalar_type() == at::kDouble),
              "cross_entropy_merge_shards(): argument 'shard_statistics' must hold what",
              " cross_entropy_shard_forward returned for every shard, got ",
              shard_statistics.scalar_type(), " of shape ", shard_statistics.sizes());
  MergeParams params{};
  params.dtype = is_float ? DataType::float32 : DataType::float64;
  params.shards = shard_statistics.size(0);
  params.rows = shard_statistics.size(1) / of_row;
  params.shard_statistics = shard_statistics.const_data_ptr();
  return params;
}

// The shard statistics of all ranks, (ranks, size).
at::Tensor all_gather(const at::Tensor& own, const ClassShard& shard) {
  if (shard.ranks == 1) return own.unsqueeze(0);
  // Boxed, since the type of a group's name differs between versions of torch.
  const auto call = [](const char* name, std::vector<c10::IValue> arguments) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
    op.callBoxed(&arguments);
    return arguments.front().toTensor();
  };
  const at::Tensor gathered =
      call("_c10d_functional::all_gather_into_tensor", {own, shard.ranks, shard.group});
  return call("_c10d_functional::wait_tensor", {gathered}).view({shard.ranks, -1});
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> cross_entropy_shard_forward(
    const at::Tensor& input, const at::Tensor& target, const CrossEntropyOptions& options,
    int64_t classes_before, int64_t classes_after, int64_t fingerprint, bool metrics) {
  CrossEntropyCall call(input, target, options, {classes_before, classes_after});
  const at::Tensor own = call.expect_shard_statistics(fingerprint, metrics);
  call.forward();
  return {own, call.total_weight()};
}

std::tuple<at::Tensor, at::Tensor> cross_entropy_merge_shards(const at::Tensor& shard_statistics,
                                                              const at::Tensor& total_weight,
                                                              const CrossEntropyOptions& options,
                                                              bool metrics) {
  const DeviceFunctions& functions = functions_of(shard_statistics.device());
  check_total_weight(total_weight, shard_statistics.device());
  MergeParams params = merge_params(shard_statistics, metrics);
  check_alpha(shard_statistics, options.alpha, "cross_entropy_merge_shards");
  const Alpha alpha(options.alpha);
  alpha.fill(params);
  at::Tensor row_weight;
  if (options.has_row_weight()) {
    row_weight = options.row_weight->to(shard_statistics.scalar_type()).contiguous();
    TORCH_CHECK(row_weight.numel() == params.rows,
                "cross_entropy_merge_shards(): argument 'row_weight' must have a number for each",
                " of the ", params.rows, " rows, got shape ", row_weight.sizes());
    params.row_weight = row_weight.const_data_ptr();
  }
  params.z_loss = options.z_loss;
  const at::Tensor merged = at::empty({kShardStatistics + (metrics ? kMetrics : 0), params.rows},
                                      shard_statistics.options());
  const at::Tensor losses = at::empty({params.rows}, shard_statistics.options());
  params.merged = merged.mutable_data_ptr();
  params.losses = losses.mutable_data_ptr();
  if (metrics) params.metrics = merged.narrow(0, kShardStatistics, kMetrics).mutable_data_ptr();
  functions.merge_shards(params, shard_statistics.device());
  if (options.reduction == Reduction::none) return {losses, merged};
  const at::Tensor divisor = total_weight.to(at::kDouble);
  CrossEntropyParams rows{};
  rows.dtype = params.dtype;
  rows.shape = {params.rows, 1, 1};
  rows.losses = params.losses;
  const at::Tensor loss = at::empty({}, shard_statistics.options());
  const bool is_mean = options.reduction == Reduction::mean;
  functions.reduce_losses(rows, is_mean ? divisor.const_data_ptr<double>() : nullptr,
                          loss.mutable_data_ptr(), shard_statistics.device());
  return {loss, merged};
}

std::tuple<at::Tensor, at::Tensor> cross_entropy_of_shards(const at::Tensor& input,
                                                           const at::Tensor& target,
                                                           const CrossEntropyOptions& options,
                                                           const ClassShard& shard, bool metrics) {
  at::Tensor own, total_weight;
  try {
    std::tie(own, total_weight) =
        cross_entropy_shard_forward(input, target, options, shard.others.before, shard.others.after,
                                    /*fingerprint=*/0, metrics);
  } catch (...) {
    const auto type = input.options().dtype(accumulate_type(input));
    all_gather(at::full({shard_statistics_size(target.numel(), metrics)}, kNoFingerprint, type),
               shard);
    throw;
  }
  return cross_entropy_merge_shards(all_gather(own, shard), total_weight, options, metrics);
}

}  // namespace powergrad
