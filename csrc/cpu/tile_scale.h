// The factors of the gradients of a tile's rows: grad_output_of_row, lane by lane. Included inside
// the target region.
#pragma once

namespace powergrad {
namespace {

template <class V>
class TileScale {
 public:
  using Scalar = typename V::Scalar;

  explicit TileScale(const CrossEntropyParams& p) : p_(p) {
    const auto divisor =
        p.total_weight != nullptr ? static_cast<Scalar>(*p.total_weight) : Scalar(1);
    divisor_ = V::broadcast(divisor);
    const bool is_scalar = p.grad_output != nullptr && p.grad_output_stride == 0;
    const Scalar common = is_scalar ? *static_cast<const Scalar*>(p.grad_output) : Scalar(1);
    common_ = V::broadcast(common / divisor);
    is_common_ = (p.grad_output == nullptr || is_scalar) && p.row_weight == nullptr;
  }

  V operator()(const RowLanes<V>& rows) const { return is_common_ ? common_ : of_each(rows); }

 private:
  V of_each(const RowLanes<V>& rows) const {
    const bool is_common = p_.grad_output == nullptr || p_.grad_output_stride == 0;
    if (p_.row_weight == nullptr) return rows.load(p_.grad_output) / divisor_;
    const V weights = rows.load(p_.row_weight);
    return is_common ? common_ * weights : rows.load(p_.grad_output) * weights / divisor_;
  }

  const CrossEntropyParams& p_;
  V divisor_;
  V common_;  // of all rows, but for grad_outputs and weights of their own
  bool is_common_;
};

}  // namespace
}  // namespace powergrad
