// Log-softmax forward: log-probabilities, and what backward needs of every row.
//
// Memory: the logits once, the output once (row_plan.h says up to which number of classes).
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/softmax_accumulator.cuh"

namespace powergrad {
namespace {

template <class Storage, int kPack, class Kind>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    log_softmax_forward_kernel(const LogSoftmaxParams p, const RowPlan plan) {
  using Scalar = AccumulateOf<Storage>;
  using Merge = SoftmaxMerge<Kind, Scalar, false>;
  constexpr int kSteps = kStepsAtOnce<Storage, kPack, false>;
  const RowThread thread = RowThread::find<kPack>(plan);
  const Storage* z = row_of<Storage>(p.logits, p.shape, p.logits_strides, thread.row);
  const Walk<kPack> walk(thread, p.shape.classes, z);
  const RowView<const Storage, kPack> logits(z, p.logits_strides.classes, walk);
  const RowReader<Storage, kPack, true> reader(plan, logits, walk,
                                               from_number<Storage>(kLowest<Scalar>));
  const Merge merge{Evaluator<Kind, Scalar>(alpha_of(p))};

  SoftmaxAccumulator<Kind, Scalar, false> accumulator(merge);
  if (thread.active) {
    reader.template first_pass<kSteps>(
        [&](int, const Pack<Storage, kPack>(&packs)[kSteps]) { accumulator.add(numbers(packs)); });
  }
  auto state = accumulator.state();
  meet<kPack>(plan, state, merge);

  if (thread.active) {
    if (thread.lane == 0 && p.statistics != nullptr) {
      Scalar* statistics = static_cast<Scalar*>(p.statistics) + thread.row;
      statistics[kMaximum * plan.rows] = state.maximum;
      statistics[kAlphaRest * plan.rows] = state.alpha_rest + poison(state.maximum);
    }
    const Scalar log_sum = log1p(state.rest + poison(state.maximum));
    const RowView<Storage, kPack> output(
        row_of<Storage>(p.output, p.shape, p.output_strides, thread.row), p.output_strides.classes,
        walk);
    reader.template second_pass<kSteps>([&](int begin, const Pack<Storage, kPack>(&packs)[kSteps]) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        Pack<Storage, kPack> values{};
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          // z - maximum first: it is exact or nearly so, however far from 0 the row lies.
          const Scalar z_i = to_number(packs[s].get(i));
          values.set(i, from_number<Storage>((z_i - state.maximum) - log_sum));
        }
        output.store(walk, walk.pack(begin + s), values);
      }
    });
  }
  leave(plan);
}

template <class Storage, int kPack, class Kind>
cudaError_t launch(const LogSoftmaxParams& params, cudaStream_t stream) {
  using State = SoftmaxState<AccumulateOf<Storage>, false>;
  return launch_rows(log_softmax_forward_kernel<Storage, kPack, Kind>, params,
                     RowWork::reduce_and_map, sizeof(State), sizeof(Pack<Storage, kPack>), stream);
}

}  // namespace

cudaError_t launch_log_softmax_forward(const LogSoftmaxParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0 || p.shape.classes == 0) return cudaSuccess;
  return with_storage(p.dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::Type;
    return with_pack<Storage>(p.logits_strides, [&](auto pack) {
      constexpr int kPack = decltype(pack)::value;
      return with_kind<Storage, kPack>(
          p, [&](auto kind) { return launch<Storage, kPack, decltype(kind)>(p, stream); });
    });
  });
}

}  // namespace powergrad
