// The arguments of linear cross-entropy as one: the last layer of a model and the loss.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "torch/options.h"

namespace powergrad {

// How many classes other processes hold before and after those of the logits. Between them an
// input may have none.
struct OtherClasses {
  int64_t before = 0;
  int64_t after = 0;
};

// Which classes of a layer this process has.
struct ClassShard {
  std::string group;  // the name of the process group that has all; empty: this process has all
  int64_t ranks;
  OtherClasses others;

  bool is_sharded() const { return !group.empty(); }
};

// What the loss reads: softcap * tanh(scale * z / softcap) of the layer's output z, or scale * z.
struct LogitFunction {
  double scale = 1.0;
  std::optional<double> softcap;

  // z is multiplied by it, before tanh if there is one.
  double factor() const { return softcap.has_value() ? scale / *softcap : scale; }

  using Arguments = Types<double, std::optional<double>>;
  static LogitFunction from(double scale, std::optional<double> softcap) {
    return {scale, softcap};
  }
  std::tuple<double, std::optional<double>> arguments() const { return {scale, softcap}; }
};

// The layer in the schema of a raw operator, and in that of one for users.
#define POWERGRAD_LAST_LAYER                                                                   \
  "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, " POWERGRAD_OPTIONS \
  ", int chunk_rows, float logit_scale, float? softcap, str group, int ranks, "                \
  "int classes_before, int classes_after"
#define POWERGRAD_LAST_LAYER_WITH_DEFAULTS                               \
  "Tensor input, Tensor linear_weight, Tensor target, Tensor? "          \
  "linear_bias=None, " POWERGRAD_OPTIONS_WITH_DEFAULTS                   \
  ", int chunk_rows=0, float logit_scale=1.0, float? softcap=None, str " \
  "group=\"\", int ranks=1, int classes_before=0, int classes_after=0"

struct LastLayer {
  at::Tensor input;          // (H) or (N, H)
  at::Tensor linear_weight;  // (C, H)
  at::Tensor target;
  OptionalTensor linear_bias;  // (C)
  CrossEntropyOptions options;
  int64_t chunk_rows;  // how many rows of logits exist at a time; 0: the operator chooses
  LogitFunction function;
  ClassShard shard;

  // As arguments of an operator.
  using Arguments = Types<const at::Tensor&, const at::Tensor&, const at::Tensor&,
                          const OptionalTensor&, const CrossEntropyOptions&, int64_t,
                          const LogitFunction&, std::string_view, int64_t, int64_t, int64_t>;
  static LastLayer from(const at::Tensor& input, const at::Tensor& linear_weight,
                        const at::Tensor& target, const OptionalTensor& linear_bias,
                        const CrossEntropyOptions& options, int64_t chunk_rows,
                        const LogitFunction& function, std::string_view group, int64_t ranks,
                        int64_t before, int64_t after) {
    return {input,   linear_weight, target,   linear_bias,
            options, chunk_rows,    function, {std::string(group), ranks, {before, after}}};
  }
  std::tuple<const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
             const CrossEntropyOptions&, int64_t, const LogitFunction&, std::string_view, int64_t,
             int64_t, int64_t>
  arguments() const {
    return {
        input,    linear_weight, target,      linear_bias,         options,           chunk_rows,
        function, shard.group,   shard.ranks, shard.others.before, shard.others.after};
  }
};

}  // namespace powergrad
