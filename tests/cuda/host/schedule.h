// Decides which cluster and which thread runs next. A seed names the order: 0 forward, 1 backward,
// any other random, and then it may stay on one warp or one block for as long as that can run.
#pragma once

#include <cstdint>
#include <optional>

namespace powergrad::host_cuda {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaximumClusterSize = 16;
inline constexpr int kPortableClusterSize = 8;
inline constexpr int kMaximumWarps = 32;

// Of a thread in its cluster.
struct Place {
  int block;
  int warp;
  int lane;
};

class Schedule {
 public:
  explicit Schedule(uint64_t seed);

  // The cluster that runs after `done` of `count`.
  uint64_t cluster(uint64_t done, uint64_t count) const;

  void add(const Place& place);
  void remove(const Place& place);
  std::optional<Place> choose();

  // Whether a copy lands at once: the first order's do, the second one's do not.
  bool lands_early();

 private:
  enum class Order { forward, backward, random };

  uint64_t random();
  int choose_bit(uint32_t set);
  int choose_bit(uint32_t set, int last, bool stay);

  Order order_;
  uint64_t seed_;   // spread over all bits
  uint64_t state_;  // of the random numbers
  bool stays_on_block_ = false;
  bool stays_on_warp_ = false;
  Place last_{};

  // The threads that can run: a bit for each block, warp and lane that has one.
  uint32_t blocks_ = 0;
  uint32_t warps_[kMaximumClusterSize] = {};
  uint32_t lanes_[kMaximumClusterSize][kMaximumWarps] = {};
};

}  // namespace powergrad::host_cuda
