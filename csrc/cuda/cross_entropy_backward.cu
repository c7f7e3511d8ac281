// Cross-entropy backward: a map from the logits to the gradient, which may take their place.
//
// Memory: the logits once, the gradient once.
#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"

namespace powergrad {
namespace {

template <class Storage, int kPack, bool kClassMass>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    cross_entropy_backward_kernel(const CrossEntropyParams p, const RowPlan plan) {
  using Scalar = AccumulateOf<Storage>;
  constexpr int kSteps = kStepsAtOnce<Storage, kPack, kClassMass>;
  const RowThread thread = RowThread::find<kPack>(plan);
  if (!thread.active) return;
  const IndexTarget<Scalar> target = checked_target<Scalar>(p, thread.row);
  const Storage* z = row_of<Storage>(p.logits, p.shape, p.logits_strides, thread.row);
  const Walk<kPack> walk(thread, p.shape.classes, z);
  const RowView<const Storage, kPack> logits(z, p.logits_strides.classes, walk);
  const ClassMassIf<kClassMass, Storage, kPack> mass_of(p, thread.row, walk);
  const Scalar* statistics = static_cast<const Scalar*>(p.statistics) + thread.row;
  const int64_t rows = p.shape.rows();
  const SoftmaxRow<Scalar> softmax(statistics[kMaximum * rows], statistics[kAlphaRest * rows],
                                   statistics[kTargetMass * rows]);
  const GradientMap<Storage, kPack, kClassMass> map(p, thread.row, walk, z, target, softmax,
                                                    mass_of);
  if (target.ignored) {
    map.zero();
    return;
  }
  const int steps = walk.steps();
  for (int begin = 0; begin < steps; begin += kSteps) {
    Pack<Storage, kPack> packs[kSteps];
    logits.load(walk, begin, from_number<Storage>(kLowest<Scalar>), packs);
    map(begin, packs);
  }
}

template <class Storage, int kPack, bool kClassMass>
cudaError_t launch(const CrossEntropyParams& params, cudaStream_t stream) {
  return launch_rows(cross_entropy_backward_kernel<Storage, kPack, kClassMass>, params,
                     RowWork::map, 0, sizeof(Pack<Storage, kPack>), stream);
}

}  // namespace

cudaError_t launch_cross_entropy_backward(const CrossEntropyParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0) return cudaSuccess;
  return with_storage(p.dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::Type;
    return with_pack<Storage>(p.logits_strides, [&](auto pack) {
      return with_bool(has_class_mass(p), [&](auto class_mass) {
        return launch<Storage, decltype(pack)::value, decltype(class_mass)::value>(p, stream);
      });
    });
  });
}

}  // namespace powergrad
