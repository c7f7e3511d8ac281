// Cross-entropy forward: the loss of every row, what backward needs of it, and, where it is asked
// for, the gradient while the row is at hand.
//
// Memory: the logits once, and the gradient once if there is one (row_plan.h says up to which
// number of classes).
#include "cuda/cross_entropy_gradient.cuh"
#include "cuda/launch.cuh"
#include "cuda/launchers.h"
#include "cuda/softmax_accumulator.cuh"

namespace powergrad {
namespace {

template <class Storage, int kPack, class Kind, bool kClassMass>
struct ForwardRow {
  using Scalar = AccumulateOf<Storage>;
  using State = SoftmaxState<Scalar, kClassMass>;
  using Merge = SoftmaxMerge<Kind, Scalar, kClassMass>;
  using Accumulator = SoftmaxAccumulator<Kind, Scalar, kClassMass>;
  static constexpr int kSteps = kStepsAtOnce<Storage, kPack, kClassMass>;

  // One thread's share of the row.
  template <class Reader>
  __device__ static State reduce(const Reader& reader, const Merge& merge, const Walk<kPack>& walk,
                                 const ClassMassIf<kClassMass, Storage, kPack>& mass_of) {
    Accumulator accumulator(merge);
    reader.template first_pass<kSteps>([&](int begin, const Pack<Storage, kPack>(&packs)[kSteps]) {
      const Numbers<Scalar, kSteps, kPack> z = numbers(packs);
      accumulator.add(z);
      if constexpr (kClassMass) add_mass(begin, z, walk, mass_of, accumulator);
    });
    return accumulator.state();
  }

  // Classes outside the row have no mass, but a logit of -infinity.
  __device__ static void add_mass(int begin, const Numbers<Scalar, kSteps, kPack>& z,
                                  const Walk<kPack>& walk, const ClassMass<Storage, kPack>& mass_of,
                                  Accumulator& accumulator) {
    Numbers<Scalar, kSteps, kPack> mass;
    mass_of.load(begin, mass);
    const Scalar reference = accumulator.reference();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int pack = walk.pack(begin + s);
      const bool is_whole = walk.is_whole(pack);
      Scalar masses = 0;
      Scalar distances = 0;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const bool is_inside = is_whole || walk.contains(walk.first_class(pack) + i);
        masses += mass.at[s][i];
        distances += is_inside ? mass.at[s][i] * (reference - z.at[s][i]) : Scalar(0);
      }
      accumulator.add_mass(masses, distances);
    }
  }
};

template <class Scalar>
__device__ void write_row(const CrossEntropyParams& p, int64_t row, Scalar loss, Scalar maximum,
                          Scalar alpha_rest, Scalar mass) {
  static_cast<Scalar*>(p.losses)[row] = loss;
  if (p.statistics == nullptr) return;
  Scalar* statistics = static_cast<Scalar*>(p.statistics) + row;
  const int64_t rows = p.shape.rows();
  statistics[kMaximum * rows] = maximum;
  statistics[kAlphaRest * rows] = alpha_rest;
  statistics[kTargetMass * rows] = mass;
}

template <class Storage, int kPack, class Kind, bool kClassMass, bool kGradient>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    cross_entropy_forward_kernel(const CrossEntropyParams p, const RowPlan plan) {
  using Row = ForwardRow<Storage, kPack, Kind, kClassMass>;
  using Scalar = typename Row::Scalar;
  const RowThread thread = RowThread::find<kPack>(plan);
  const IndexTarget<Scalar> target = checked_target<Scalar>(p, thread.row);
  const Storage* z = row_of<Storage>(p.logits, p.shape, p.logits_strides, thread.row);
  const Walk<kPack> walk(thread, p.shape.classes, z);
  const RowView<const Storage, kPack> logits(z, p.logits_strides.classes, walk);
  const RowReader<Storage, kPack, kGradient> reader(plan, logits, walk,
                                                    from_number<Storage>(kLowest<Scalar>));
  const ClassMassIf<kClassMass, Storage, kPack> mass_of(p, thread.row, walk);
  const typename Row::Merge merge{Evaluator<Kind, Scalar>(alpha_of(p))};

  typename Row::State state;
  if (thread.active && !target.ignored) state = Row::reduce(reader, merge, walk, mass_of);
  meet<kPack>(plan, state, merge);

  const Scalar alpha_rest = state.alpha_rest + poison(state.maximum);
  Scalar mass = target.point_mass;
  Scalar distance = 0;
  if constexpr (kClassMass) {
    mass += p.target_probabilities != nullptr ? state.mass : static_cast<Scalar>(smoothing_mass(p));
    distance = state.distance;
  }
  if (thread.active && thread.lane == 0) {
    if (target.ignored) {
      write_row<Scalar>(p, thread.row, 0, 0, 0, 0);
    } else {
      if (target.index >= 0) {
        const Scalar z_target = to_number(z[target.index * p.logits_strides.classes]);
        distance += target.point_mass * (state.maximum - z_target);
      }
      // Both terms are >= 0, so nothing cancels.
      const Scalar rest = state.rest + poison(state.maximum);
      const Scalar loss = distance + mass * log1p(rest);
      write_row(p, thread.row, loss, state.maximum, alpha_rest, mass);
    }
  }

  if constexpr (kGradient) {
    if (thread.active) {
      const SoftmaxRow<Scalar> softmax(state.maximum, alpha_rest, mass);
      const GradientMap<Storage, kPack, kClassMass> map(p, thread.row, walk, z, target, softmax,
                                                        mass_of);
      if (target.ignored) {
        map.zero();
      } else {
        reader.template second_pass<Row::kSteps>(map);
      }
    }
  }
  leave(plan);
}

template <class Storage, int kPack, class Kind, bool kClassMass, bool kGradient>
cudaError_t launch(const CrossEntropyParams& params, cudaStream_t stream) {
  using State = typename ForwardRow<Storage, kPack, Kind, kClassMass>::State;
  return launch_rows(cross_entropy_forward_kernel<Storage, kPack, Kind, kClassMass, kGradient>,
                     params, kGradient ? RowWork::reduce_and_map : RowWork::reduce, sizeof(State),
                     sizeof(Pack<Storage, kPack>), stream);
}

}  // namespace

cudaError_t launch_cross_entropy_forward(const CrossEntropyParams& p, cudaStream_t stream) {
  if (p.shape.rows() == 0) return cudaSuccess;
  return with_storage(p.dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::Type;
    return with_pack<Storage>(p.logits_strides, [&](auto pack) {
      constexpr int kPack = decltype(pack)::value;
      return with_kind<Storage, kPack>(p, [&](auto kind) {
        return with_bool(has_class_mass(p), [&](auto class_mass) {
          using Kind = decltype(kind);
          constexpr bool kClassMass = decltype(class_mass)::value;
          if constexpr (!std::is_same_v<Kind, NoAlpha>) {
            if (p.gradient != nullptr) {
              return launch<Storage, kPack, Kind, kClassMass, true>(p, stream);
            }
          }
          return launch<Storage, kPack, Kind, kClassMass, false>(p, stream);
        });
      });
    });
  });
}

}  // namespace powergrad
