// Log-softmax backward: dz = g - p' sum(g).
//
// Memory: the upstream gradient g once (row_plan.h says up to which number of classes), the logits
// once, the gradient once.
#include "cuda/compensated_sum.cuh"
#include "cuda/exponentials.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/meeting.cuh"
#include "cuda/walk.cuh"

namespace powergrad {
namespace {

template <class Storage, int kPack>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    log_softmax_backward_kernel(const LogSoftmaxParams p, const RowPlan plan) {
  using Scalar = AccumulateOf<Storage>;
  constexpr int kSteps = kStepsAtOnce<Storage, kPack, true>;
  const RowThread thread = RowThread::find<kPack>(plan);
  const Storage* z = row_of<Storage>(p.logits, p.shape, p.logits_strides, thread.row);
  const Walk<kPack> walk(thread, p.shape.classes, z);
  const RowView<const Storage, kPack> logits(z, p.logits_strides.classes, walk);
  const RowView<const Storage, kPack> upstream(
      row_of<Storage>(p.upstream, p.shape, p.upstream_strides, thread.row),
      p.upstream_strides.classes, walk);
  const RowReader<Storage, kPack, true> reader(plan, upstream, walk,
                                               from_number<Storage>(Scalar(0)));

  CompensatedSum<Scalar> total;
  if (thread.active) {
    reader.template first_pass<kSteps>([&](int, const Pack<Storage, kPack>(&packs)[kSteps]) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        Scalar sum = 0;
#pragma unroll
        for (int i = 0; i < kPack; ++i) sum += to_number(packs[s].get(i));
        total.add(sum);
      }
    });
  }
  Sum<Scalar> sum{total.value};
  meet<kPack>(plan, sum, MergeSums{});

  if (thread.active) {
    const Scalar* statistics = static_cast<const Scalar*>(p.statistics) + thread.row;
    // Cross-entropy's gradient with the upstream for a target, and -1 for a scale.
    const SoftmaxRow<Scalar> softmax(statistics[kMaximum * plan.rows],
                                     statistics[kAlphaRest * plan.rows], sum.value);
    const PoweredExponential<Scalar> powered(alpha_of(p));
    const RowView<Storage, kPack> gradient(
        row_of<Storage>(p.gradient, p.shape, p.gradient_strides, thread.row),
        p.gradient_strides.classes, walk);
    reader.template second_pass<kSteps>([&](int begin, const Pack<Storage, kPack>(&packs)[kSteps]) {
      Pack<Storage, kPack> row[kSteps];
      logits.load(walk, begin, from_number<Storage>(kLowest<Scalar>), row);
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        Pack<Storage, kPack> values{};
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          const Scalar z_i = to_number(row[s].get(i));
          const Scalar g = to_number(packs[s].get(i));
          const Scalar value = softmax.minus_mass_from(powered(z_i - softmax.maximum), z_i, g);
          values.set(i, from_number<Storage>(-value));
        }
        gradient.store(walk, walk.pack(begin + s), values);
      }
    });
  }
  leave(plan);
}

template <class Storage, int kPack>
cudaError_t launch(const LogSoftmaxParams& params, cudaStream_t stream) {
  return launch_rows(log_softmax_backward_kernel<Storage, kPack>, params, RowWork::reduce_and_map,
                     sizeof(Sum<AccumulateOf<Storage>>), sizeof(Pack<Storage, kPack>), stream);
}

}  // namespace

cudaError_t launch_log_softmax_backward(const LogSoftmaxParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0 || p.shape.classes == 0) return cudaSuccess;
  return with_storage(p.dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::Type;
    return with_pack<Storage>(p.logits_strides, [&](auto pack) {
      return launch<Storage, decltype(pack)::value>(p, stream);
    });
  });
}

}  // namespace powergrad
