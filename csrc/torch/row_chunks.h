// The last layer and the loss, a chunk of rows at a time.
#pragma once

#include <array>
#include <tuple>

#include "torch/last_layer.h"

namespace powergrad {

// Which gradients are wanted, those of input, linear_weight and linear_bias; and they themselves,
// the latter two of the accumulate type, empty where not wanted.
using GradientMask = std::array<bool, 3>;
using LinearGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

class RowChunks {
 public:
  RowChunks(const LastLayer& layer, GradientMask wanted);

  // Writes the losses (rows) and, where classes are sharded, the statistics (kStatistics, rows).
  // Computes the gradients that are wanted, of the losses' sum divided by `divisor`, a float64
  // scalar. Except in float16, `divisor` is already divided by logit_scale.
  void forward(const at::Tensor& losses, const at::Tensor& statistics, const at::Tensor& divisor);

  // Computes the gradients for the grad_output of each row, reduction "none", or for a scalar that
  // is divided by `divisor`, reduction "mean". Statistics are those of forward for a shard, which
  // would have to exchange them again; others are computed from the logits that are made again.
  void backward(const at::Tensor& grad_output, Reduction reduction, const at::Tensor& statistics,
                const at::Tensor& divisor);

  LinearGradients gradients() const;

 private:
  bool wants_gradients() const { return wanted_[0] || wanted_[1] || wanted_[2]; }
  at::Tensor logits(int64_t first, int64_t count) const;
  std::tuple<at::Tensor, at::Tensor> reduce(const at::Tensor& logits, const at::Tensor& target,
                                            bool needs_backward) const;
  void differentiate(at::Tensor& logits, const at::Tensor& grad_output, const at::Tensor& target,
                     const at::Tensor& statistics, const at::Tensor& divisor,
                     const CrossEntropyOptions& options);
  void add_gradients(const at::Tensor& gradient, int64_t first, int64_t count);
  // body(first row, how many)
  template <class Body>
  void for_each_chunk(const Body& body) const;

  bool is_single_;
  LastLayer layer_;  // its input and target with a dimension of rows
  int64_t chunk_rows_;
  GradientMask wanted_;
  LinearGradients gradients_;
  at::Tensor buffer_;  // a chunk's logits, then the gradient of the layer's output
  at::Tensor tanh_;    // of a block of its rows, where logits are capped
};

}  // namespace powergrad
