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

// What forward writes of every row; without rows of numbers where it is not wanted.
struct RowResults {
  at::Tensor losses;      // (rows)
  at::Tensor statistics;  // (options.statistics(), rows), where classes are sharded
  at::Tensor metrics;     // (kMetrics, rows)
};

class RowChunks {
 public:
  RowChunks(const LastLayer& layer, GradientMask wanted);

  // Writes the results. Computes the gradients that are wanted, of the losses' sum divided by
  // `divisor`, a float64 scalar. Except in float16, `divisor` is already divided by logit_scale.
  void forward(const RowResults& results, const at::Tensor& divisor);

  // Computes the gradients for the grad_output of each row, reduction "none", or for a scalar that
  // is divided by `divisor`, reduction "mean". Statistics are those of forward for a shard, which
  // would have to exchange them again; others are computed from the logits that are made again.
  void backward(const at::Tensor& grad_output, Reduction reduction, const at::Tensor& statistics,
                const at::Tensor& divisor);

  LinearGradients gradients() const;

 private:
  // Some rows' logits, and what the loss of them takes besides.
  struct Rows {
    at::Tensor logits;
    at::Tensor target;
    CrossEntropyOptions options;

    int64_t count() const { return logits.size(0); }
    Rows some(int64_t first, int64_t count) const;
  };

  bool wants_gradients() const { return wanted_[0] || wanted_[1] || wanted_[2]; }
  Rows chunk(int64_t first, int64_t count, Reduction reduction) const;
  at::Tensor logits(int64_t first, int64_t count) const;
  // Their losses; their statistics, with those of backward first and metrics last.
  std::tuple<at::Tensor, at::Tensor> reduce(const Rows& rows, bool needs_backward,
                                            bool metrics) const;
  void differentiate(Rows& rows, const at::Tensor& grad_output, const at::Tensor& statistics,
                     const at::Tensor& divisor);
  void add_gradients(const at::Tensor& gradient, int64_t first);
  // body(first row, how many)
  template <class Body>
  void for_each_chunk(const Body& body) const;

  bool is_single_;
  LastLayer layer_;  // its input and target with a dimension of rows
  int64_t chunk_rows_;
  GradientMask wanted_;
  LinearGradients gradients_;
  at::Tensor buffer_;  // a chunk's logits, then the gradient of the layer's output
  at::Tensor capped_;  // the logits of a block of its rows, where they are capped
};

}  // namespace powergrad
