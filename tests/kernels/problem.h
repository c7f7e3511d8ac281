// The inputs of a cross-entropy or log-softmax problem, for the kernels and for the reference.
#pragma once

#include <optional>
#include <string>

#include "buffers.h"
#include "reference.h"

namespace powergrad::test {

enum class TargetKind { index64, index32, probabilities, wide_probabilities };
enum class GradOutput { none, scalar, per_row };

struct Options {
  Shape shape;
  Arrangement arrangement = Arrangement::packed;
  int64_t lead = 0;  // of the logits, see Block; their gradient has half of it
  double alpha = 1.0;
  TargetKind target = TargetKind::index64;
  bool weighted = false;
  double smoothing = 0.0;
  GradOutput grad_output = GradOutput::none;
  std::optional<double> total_weight;
  int64_t ignore_index = -7;
  bool row_weighted = false;
  double z_loss = 0.0;
  bool metrics = false;  // for index targets

  bool by_index() const { return target == TargetKind::index64 || target == TargetKind::index32; }
  bool has_dense_target() const { return !by_index() || smoothing > 0.0; }

  std::string describe() const {
    static const char* const kTargets[] = {"int64", "int32", "probabilities", "wide probabilities"};
    static const char* const kGradOutputs[] = {"no", "one", "row"};
    char text[320];
    std::snprintf(
        text, sizeof(text),
        "(%lld, %lld, %lld) %s behind %lld, alpha %g, %s, %s, smoothing %g, %s grad_output, "
        "divided by %g, %s, z-loss %g, %s metrics",
        static_cast<long long>(shape.outer), static_cast<long long>(shape.classes),
        static_cast<long long>(shape.inner), name_of(arrangement), static_cast<long long>(lead),
        alpha, kTargets[static_cast<int>(target)], weighted ? "weighted" : "unweighted", smoothing,
        kGradOutputs[static_cast<int>(grad_output)], total_weight.value_or(1.0),
        row_weighted ? "row weights" : "no row weights", z_loss, metrics ? "with" : "without");
    return text;
  }
};

template <class Storage>
struct Problem {
  using Accumulate = AccumulateOf<Storage>;

  Options options;
  Tensor<Storage> logits;
  Block<int64_t> index64;
  Block<int32_t> index32;
  Tensor<Storage> probabilities;
  Tensor<Accumulate> wide_probabilities;
  Block<Accumulate> weight;
  double weight_sum = 0.0;
  Block<Accumulate> row_weight;
  Block<Accumulate> row_grad_output;
  Tensor<Storage> grad_output;  // of log-softmax

  // Draws everything at random; logits are origin + spread * normal. Where targets happen to be
  // close to p', little but rounding errors remains of the gradient, which no relative bound can
  // hold: such a row is drawn again.
  Problem(const Options& its_options, Random& random, double origin, double spread)
      : options(its_options),
        logits(shape(), strides(5), options.lead),
        index64(options.target == TargetKind::index64 ? rows() : 0),
        index32(options.target == TargetKind::index32 ? rows() : 0),
        weight(options.weighted ? classes() : 0),
        row_weight(options.row_weighted ? rows() : 0),
        row_grad_output(options.grad_output == GradOutput::none     ? 0
                        : options.grad_output == GradOutput::scalar ? 1
                                                                    : rows()),
        grad_output(shape(), strides(3)) {
    if (options.target == TargetKind::probabilities) {
      probabilities = Tensor<Storage>(shape(), strides(1));
    } else if (options.target == TargetKind::wide_probabilities) {
      wide_probabilities = Tensor<Accumulate>(shape(), strides(1));
    }
    for (int64_t j = 0; j < weight.count(); ++j) {
      weight[j] = static_cast<Accumulate>(random.one_in(10) ? 0.0 : 0.25 + random.uniform());
    }
    for (int64_t row = 0; row < row_grad_output.count(); ++row) {
      row_grad_output[row] = static_cast<Accumulate>(random.one_in(10) ? 0.0 : random.normal());
    }
    for (int64_t j = 0; j < weight.count(); ++j) weight_sum += weight[j];
    for (int64_t row = 0; row < row_weight.count(); ++row) {
      row_weight[row] = static_cast<Accumulate>(random.one_in(5) ? 0.0 : 0.25 + random.uniform());
    }
    const bool ties = random.one_in(4);
    for (int64_t row = 0; row < rows(); ++row) {
      do {
        draw(row, origin, spread, ties, random);
      } while (classes() > 1 && !is_well_posed(row));
    }
  }

  const Shape& shape() const { return options.shape; }
  int64_t rows() const { return shape().rows(); }
  int64_t classes() const { return shape().classes; }
  Strides strides(int64_t padding) const {
    return strides_of(shape(), options.arrangement, padding);
  }
  std::string describe() const {
    return std::string(Traits<Storage>::name) + ' ' + options.describe();
  }

  void set_target(int64_t row, int64_t index) {
    if (options.target == TargetKind::index64) index64[row] = index;
    if (options.target == TargetKind::index32) index32[row] = static_cast<int32_t>(index);
  }
  // -1 where the target is not an index.
  int64_t target(int64_t row) const {
    if (options.target == TargetKind::index64) return index64[row];
    return options.target == TargetKind::index32 ? index32[row] : -1;
  }
  bool ignored(int64_t row) const {
    return (options.by_index() && target(row) == options.ignore_index) || row_weight_of(row) == 0;
  }
  long double row_weight_of(int64_t row) const {
    return options.row_weighted ? row_weight[row] : 1.0L;
  }
  // 2 z_loss lse, on top of W.
  long double z_loss_weight(const SoftmaxReference& softmax) const {
    return 2 * static_cast<long double>(options.z_loss) * softmax.log_sum_of_exponentials();
  }

  void set_probability(int64_t row, int64_t column, double q) {
    if (options.target == TargetKind::probabilities) {
      probabilities.at(row, column) = narrow<Storage>(q);
    } else if (options.target == TargetKind::wide_probabilities) {
      wide_probabilities.at(row, column) = static_cast<Accumulate>(q);
    }
  }
  void set_one_hot(int64_t row, int64_t index) {
    set_target(row, index);
    for (int64_t j = 0; j < classes(); ++j) set_probability(row, j, j == index ? 1.0 : 0.0);
  }

  Row logits_row(int64_t row) const { return read(logits, row); }
  std::vector<SoftmaxReference> softmax_rows() const {
    std::vector<SoftmaxReference> result;
    for (int64_t row = 0; row < rows(); ++row) {
      result.emplace_back(logits_row(row), options.alpha);
    }
    return result;
  }
  Row log_softmax_grad_output_row(int64_t row) const { return read(grad_output, row); }

  // w_j ((1 - s) q_j + s / C)
  Row weighted_target_row(int64_t row) const {
    Row q(classes(), 0.0L);
    if (options.by_index()) {
      q[target(row)] = 1;
    } else {
      q = options.target == TargetKind::probabilities ? read(probabilities, row)
                                                      : read(wide_probabilities, row);
    }
    const long double s = options.smoothing;
    for (int64_t j = 0; j < classes(); ++j) {
      q[j] = weight_of(j) * ((1 - s) * q[j] + s / static_cast<long double>(classes()));
    }
    return q;
  }

  // The factor of a row's gradient.
  long double scale(int64_t row) const {
    long double result = 1;
    if (options.grad_output != GradOutput::none) {
      result = row_grad_output[options.grad_output == GradOutput::scalar ? 0 : row];
    }
    return result * row_weight_of(row) / options.total_weight.value_or(1.0);
  }

  CrossEntropyParams cross_entropy() const {
    CrossEntropyParams p{};
    p.dtype = Traits<Storage>::dtype;
    p.shape = shape();
    p.alpha = options.alpha;
    p.logits = logits.block.data();
    p.logits_strides = logits.strides;
    p.ignore_index = options.ignore_index;
    p.label_smoothing = options.smoothing;
    p.z_loss = options.z_loss;
    if (options.row_weighted) p.row_weight = row_weight.data();
    switch (options.target) {
      case TargetKind::index64:
        p.target_index = index64.data();
        break;
      case TargetKind::index32:
        p.target_index = index32.data();
        p.target_index_is_int32 = true;
        break;
      case TargetKind::probabilities:
        p.target_probabilities = probabilities.block.data();
        p.target_strides = probabilities.strides;
        break;
      case TargetKind::wide_probabilities:
        p.target_probabilities = wide_probabilities.block.data();
        p.target_strides = wide_probabilities.strides;
        p.target_is_accumulate_type = true;
        break;
    }
    if (options.weighted) {
      p.weight = weight.data();
      p.weight_sum = &weight_sum;
    }
    if (options.grad_output != GradOutput::none) p.grad_output = row_grad_output.data();
    p.grad_output_stride = options.grad_output == GradOutput::per_row ? 1 : 0;
    if (options.total_weight) p.total_weight = &*options.total_weight;
    return p;
  }

  LogSoftmaxParams log_softmax() const {
    LogSoftmaxParams p{};
    p.dtype = Traits<Storage>::dtype;
    p.shape = shape();
    p.alpha = options.alpha;
    p.logits = logits.block.data();
    p.logits_strides = logits.strides;
    p.grad_output = grad_output.block.data();
    p.grad_output_strides = grad_output.strides;
    return p;
  }

 private:
  long double weight_of(int64_t j) const { return options.weighted ? weight[j] : 1.0L; }

  template <class T>
  Row read(const Tensor<T>& tensor, int64_t row) const {
    Row result(classes());
    for (int64_t j = 0; j < classes(); ++j) result[j] = widen(tensor.at(row, j));
    return result;
  }

  // Probabilities sum to about 1; a third of the classes have none.
  void draw(int64_t row, double origin, double spread, bool ties, Random& random) {
    for (int64_t j = 0; j < classes(); ++j) {
      const double z = origin + spread * random.normal();
      logits.at(row, j) = narrow<Storage>(ties ? std::round(z) : z);
      grad_output.at(row, j) = narrow<Storage>(random.normal());
      const double q = 3.0 * random.uniform() / static_cast<double>(classes());
      set_probability(row, j, random.one_in(3) ? 0.0 : q);
    }
    set_target(row, random.one_in(6) ? options.ignore_index : random.below(classes()));
  }

  bool is_well_posed(int64_t row) const {
    const SoftmaxReference softmax(logits_row(row), options.alpha);
    const long double largest_share = 1 / (1 + softmax.alpha_sumexp_m1);
    const auto is_large = [&](const Row& target, long double more_weight) {
      return 8 * largest_magnitude(softmax.gradient(target, more_weight)) >=
             largest_magnitude(target) + std::fabs(more_weight) * largest_share;
    };
    return is_large(log_softmax_grad_output_row(row), 0) &&
           (ignored(row) || is_large(weighted_target_row(row), z_loss_weight(softmax)));
  }
};

}  // namespace powergrad::test
