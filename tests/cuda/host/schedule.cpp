#include "schedule.h"

#include <numeric>

namespace powergrad::host_cuda {
namespace {

constexpr uint32_t bit(int position) { return uint32_t{1} << position; }

}  // namespace

Schedule::Schedule(uint64_t seed)
    : order_(seed == 0   ? Order::forward
             : seed == 1 ? Order::backward
                         : Order::random),
      seed_(seed * 0x9e3779b97f4a7c15 + 1),
      state_(seed_) {
  if (order_ != Order::random) return;
  stays_on_block_ = seed % 2 != 0;
  stays_on_warp_ = seed / 2 % 2 != 0;
}

uint64_t Schedule::cluster(uint64_t done, uint64_t count) const {
  if (order_ == Order::forward) return done;
  if (order_ == Order::backward) return count - 1 - done;
  // Steps that have no divisor in common with the count visit every cluster once.
  uint64_t step = 1 + (seed_ >> 40) % count;
  while (std::gcd(step, count) != 1) ++step;
  return (seed_ % count + done * step) % count;
}

void Schedule::add(const Place& place) {
  blocks_ |= bit(place.block);
  warps_[place.block] |= bit(place.warp);
  lanes_[place.block][place.warp] |= bit(place.lane);
}

void Schedule::remove(const Place& place) {
  lanes_[place.block][place.warp] &= ~bit(place.lane);
  if (lanes_[place.block][place.warp] != 0) return;
  warps_[place.block] &= ~bit(place.warp);
  if (warps_[place.block] == 0) blocks_ &= ~bit(place.block);
}

std::optional<Place> Schedule::choose() {
  if (blocks_ == 0) return std::nullopt;
  Place next;
  next.block = choose_bit(blocks_, last_.block, stays_on_block_);
  const bool same_block = next.block == last_.block;
  next.warp = choose_bit(warps_[next.block], last_.warp, stays_on_warp_ && same_block);
  next.lane = choose_bit(lanes_[next.block][next.warp]);
  last_ = next;
  return next;
}

bool Schedule::lands_early() {
  return order_ == Order::random ? random() % 2 == 0 : order_ == Order::forward;
}

uint64_t Schedule::random() {  // xorshift
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  state_ ^= state_ << 17;
  return state_;
}

int Schedule::choose_bit(uint32_t set) {
  if (order_ == Order::forward) return __builtin_ctz(set);
  if (order_ == Order::backward) return 31 - __builtin_clz(set);
  for (uint64_t skipped = random() % __builtin_popcount(set); skipped > 0; --skipped) {
    set &= set - 1;
  }
  return __builtin_ctz(set);
}

int Schedule::choose_bit(uint32_t set, int last, bool stay) {
  return stay && (set & bit(last)) != 0 ? last : choose_bit(set);
}

}  // namespace powergrad::host_cuda
