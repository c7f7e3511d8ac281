// Tests of the host layer: toy kernels pass in every order of threads, and each planted bug is
// found: by the layer's own checks, by the sanitizer of this build, or, if it depends on the order
// of threads, by a wrong result under one of a few seeds.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "child_process.h"
#include "toy_kernels.h"

namespace powergrad::test {
namespace {

using host_cuda::configure;
using host_cuda::failure;
using host_cuda::kSm80;
using host_cuda::kSm90;

constexpr uint64_t kSeeds = 8;

#if defined(POWERGRAD_SANITIZE_THREAD)
constexpr bool kFindsRaces = true;
#else
constexpr bool kFindsRaces = false;
#endif

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("failed: %s\n", what.c_str());
}

// A launch configuration that owns its attribute.
struct Configuration {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster{};

  Configuration(dim3 grid, dim3 block, std::size_t shared_memory, unsigned cluster_size = 0) {
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_memory;
    if (cluster_size == 0) return;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {cluster_size, 1, 1};
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  Configuration(const Configuration&) = delete;
};

// Empty where the sums of all rows are right.
std::string run_row_sums(Bug bug, unsigned cluster_size) {
  constexpr int kRows = 6;
  constexpr int kColumns = 301;
  constexpr unsigned kThreads = 64;
  const std::vector<float> rows(kRows * kColumns, 1.0f);
  std::vector<float> sums(kRows);
  const Configuration launch(kRows * std::max(cluster_size, 1u), kThreads,
                             (kThreads / 32 + 1) * sizeof(float), cluster_size);
  const RowSums p{bug, rows.data(), kColumns, kColumns, 3.0f, sums.data(), kRows};
  if (cudaLaunchKernelEx(&launch.config, row_sums, p) != cudaSuccess) return failure();
  const bool right = sums == std::vector<float>(kRows, 3.0f * kColumns);
  return right ? "" : "wrong sums";
}

// Row 5 begins 5 * 2^30 elements after `rows`; there is no other.
std::string run_far_row(Bug bug) {
  constexpr int kStride = 1 << 30;
  constexpr int kRow = 5;
  const std::vector<float> row(32, 1.0f);
  std::vector<float> sums(kRow + 1);
  const auto address = reinterpret_cast<uintptr_t>(row.data());
  const auto* rows = reinterpret_cast<const float*>(address - sizeof(float) * kStride * kRow);
  configure({kSm90, 0, kRow});
  const Configuration launch(dim3(1 << 30), 32, 2 * sizeof(float));
  const RowSums p{bug, rows, kStride, 32, 1.0f, sums.data(), kRow + 1};
  if (cudaLaunchKernelEx(&launch.config, row_sums, p) != cudaSuccess) return failure();
  const bool right = sums == std::vector<float>{0, 0, 0, 0, 0, 32};
  return right ? "" : "wrong sums";
}

std::string run_copied_sums(Bug bug) {
  constexpr int kThreads = 64;
  // At a multiple of the largest copy.
  std::unique_ptr<float[], decltype(&std::free)> rows(
      static_cast<float*>(std::aligned_alloc(16, kThreads * kCopied * sizeof(float))), &std::free);
  std::fill_n(rows.get(), kThreads * kCopied, 1.0f);
  std::vector<float> sums(kThreads);
  const Configuration launch(1, kThreads, kThreads * kCopied * sizeof(float));
  const float* from = rows.get();
  if (cudaLaunchKernelEx(&launch.config, copied_sums, bug, from, sums.data()) != cudaSuccess) {
    return failure();
  }
  return sums == std::vector<float>(kThreads, 2.0f * kCopied) ? "" : "wrong sums";
}

std::string run_alternating_exchanges(Bug bug) {
  constexpr int kThreads = 64;
  std::vector<float> sums(kThreads);
  const Configuration launch(1, kThreads, 2 * sizeof(float));
  if (cudaLaunchKernelEx(&launch.config, alternating_exchanges, bug, sums.data()) != cudaSuccess) {
    return failure();
  }
  return sums == std::vector<float>(kThreads, 6.0f) ? "" : "wrong sums";
}

std::string run_toy(Bug bug) {
  if (bug == Bug::one_place_for_exchanges) return run_alternating_exchanges(bug);
  return bug >= Bug::read_before_wait ? run_copied_sums(bug) : run_row_sums(bug, 4);
}

std::string run_seeds(Bug bug) {
  if (bug == Bug::offset_of_32_bits) return run_far_row(bug);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    configure({kSm90, seed, {}});
    const std::string wrong = run_toy(bug);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

void check_right_kernels() {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    for (const unsigned cluster_size : {0, 1, 2, 8, 16}) {
      configure({cluster_size == 0 ? kSm80 : kSm90, seed, {}});
      if (cluster_size > 8) {
        cudaFuncSetAttribute(row_sums, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      }
      const std::string wrong = run_row_sums(Bug::none, cluster_size);
      expect(wrong.empty(), "right sums, seed " + std::to_string(seed) + ": " + wrong);
    }

    configure({kSm90, seed, {}});
    expect(run_copied_sums(Bug::none).empty(), "copied sums, seed " + std::to_string(seed));
    expect(run_alternating_exchanges(Bug::none).empty(), "exchanges, seed " + std::to_string(seed));
    std::vector<int> visits(7 * 2 * 3 * 60);
    const Configuration grid({7, 2, 3}, {5, 4, 3}, 0);
    expect(cudaLaunchKernelEx(&grid.config, count_visits, visits.data()) == cudaSuccess &&
               visits == std::vector<int>(visits.size(), 1),
           "every thread runs once, seed " + std::to_string(seed));

    bool right[32] = {};
    const Configuration warp(1, 32, 0);
    expect(cudaLaunchKernelEx(&warp.config, check_shuffles, right) == cudaSuccess &&
               std::all_of(right, right + 32, [](bool lane) { return lane; }),
           "shuffles, seed " + std::to_string(seed));
  }
  expect(run_far_row(Bug::none).empty(), "one far row: " + run_far_row(Bug::none));
}

void check_after_failure() {
  configure({});
  expect(run_row_sums(Bug::assertion, 4).find("assertion") != std::string::npos, "an assertion");
  expect(cudaGetLastError() == cudaErrorAssert && cudaGetLastError() == cudaSuccess, "its error");
  const std::string wrong = run_row_sums(Bug::none, 4);
  expect(wrong.empty(), "right sums after an assertion: " + wrong);
}

void check_refusals() {
  struct Refusal {
    const char* expected;
    host_cuda::Device device;
    dim3 grid;
    dim3 block;
    std::size_t shared_memory;
    unsigned cluster_size;
  };
  const Refusal refusals[] = {
      {"invalid size of the grid", kSm90, 0, 32, 0, 0},
      {"invalid size of the grid", kSm90, dim3(1, 65536), 32, 0, 0},
      {"a block has 1 to 1024 threads", kSm90, 1, 1025, 0, 0},
      {"this device has no clusters", kSm80, 8, 32, 0, 2},
      {"a cluster has 1, 2, 4 or 8 blocks", kSm90, 9, 32, 0, 3},
      {"a cluster has 1, 2, 4 or 8 blocks", kSm90, 16, 32, 0, 16},
      {"not a multiple of the cluster", kSm90, 6, 32, 0, 4},
      {"has not opted in to 49153 bytes", kSm90, 1, 32, 48 * 1024 + 1, 0},
  };
  for (const Refusal& refusal : refusals) {
    configure({refusal.device, 0, {}});
    const Configuration launch(refusal.grid, refusal.block, refusal.shared_memory,
                               refusal.cluster_size);
    bool none[32];
    const cudaError_t error = cudaLaunchKernelEx(&launch.config, check_shuffles, none);
    expect(error != cudaSuccess && cudaGetLastError() == error &&
               failure().find(refusal.expected) != std::string::npos,
           std::string(refusal.expected) + ": " + failure());
  }
}

void check_opt_in() {
  configure({kSm80, 0, {}});
  int limit = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  expect(cudaFuncSetAttribute(check_shuffles, kAttribute, limit + 1) != cudaSuccess,
         "more shared memory than there is");
  expect(cudaFuncSetAttribute(check_shuffles, kAttribute, limit) == cudaSuccess, "opting in");
  bool right[32] = {};
  const Configuration launch(1, 32, limit);
  expect(cudaLaunchKernelEx(&launch.config, check_shuffles, right) == cudaSuccess, "opted in");
}

struct PlantedBug {
  Bug bug;
  const char* name;
  const char* address;  // how it is found under AddressSanitizer
  const char* thread;   // and under ThreadSanitizer; null: not looked for
};

constexpr char kRace[] = "data race";
constexpr char kWrong[] = "wrong sums";
constexpr char kOverflow[] = "heap-buffer-overflow";

#define POWERGRAD_BUG(name) Bug::name, #name
constexpr PlantedBug kPlantedBugs[] = {
    {POWERGRAD_BUG(missing_warp_barrier), kWrong, kRace},
    {POWERGRAD_BUG(missing_block_barrier), kWrong, kRace},
    {POWERGRAD_BUG(barriers_at_two_lines), "of one barrier meet at", "of one barrier meet at"},
    {POWERGRAD_BUG(exit_before_barrier), "exited before the barrier", "exited before the barrier"},
    {POWERGRAD_BUG(exit_during_barrier), "a thread exits while", "a thread exits while"},
    {POWERGRAD_BUG(exit_before_shuffle), "lane 31, in the mask", "lane 31, in the mask"},
    {POWERGRAD_BUG(shuffle_in_two_branches), "different shuffles", "different shuffles"},
    {POWERGRAD_BUG(caller_outside_mask), "called by lane", "called by lane"},
    {POWERGRAD_BUG(source_outside_mask), "reads lane", "reads lane"},
    {POWERGRAD_BUG(missing_first_cluster_barrier), "use-after-poison", kRace},
    {POWERGRAD_BUG(missing_last_cluster_barrier), "use-after-poison", kRace},
    {POWERGRAD_BUG(rank_outside_cluster), "there is no block 4", "there is no block 4"},
    {POWERGRAD_BUG(peer_of_global_memory), "not into this block's", "not into this block's"},
    {POWERGRAD_BUG(shared_memory_past_end), kOverflow, nullptr},
    {POWERGRAD_BUG(shared_memory_unwritten), kWrong, kWrong},
    {POWERGRAD_BUG(read_past_end), kOverflow, nullptr},
    {POWERGRAD_BUG(write_past_end), kOverflow, nullptr},
    {POWERGRAD_BUG(offset_of_32_bits), "signed integer overflow", "signed integer overflow"},
    {POWERGRAD_BUG(write_by_all_threads), nullptr, kRace},
    {POWERGRAD_BUG(write_to_neighbours_row), kWrong, kRace},
    {POWERGRAD_BUG(barrier_against_barrier), "deadlock: 0 threads", "deadlock: 0 threads"},
    {POWERGRAD_BUG(read_before_wait), "use-after-poison", kWrong},
    {POWERGRAD_BUG(neighbours_copy_without_barrier), kWrong, kRace},
    {POWERGRAD_BUG(wait_for_too_few), "use-after-poison", kRace},
    {POWERGRAD_BUG(missing_commit), "use-after-poison", "without having waited"},
    {POWERGRAD_BUG(missing_wait), "without having waited", "without having waited"},
    {POWERGRAD_BUG(copy_misaligned), "is from an address that is", "is from an address that is"},
    {POWERGRAD_BUG(copy_past_end), "reads what it may not", nullptr},
    {POWERGRAD_BUG(copy_outside_shared_memory), "does not lead into", "does not lead into"},
    {POWERGRAD_BUG(one_place_for_exchanges), kWrong, kRace},
    {POWERGRAD_BUG(assertion), "assertion failed: thread != 7", "assertion failed: thread != 7"},
};
#undef POWERGRAD_BUG

void check_planted_bugs() {
  for (const PlantedBug& planted : kPlantedBugs) {
    const char* expected = kFindsRaces ? planted.thread : planted.address;
    if (expected == nullptr) continue;
    const Outcome outcome = run_in_child([&] {
      const std::string found = run_seeds(planted.bug);
      std::puts(found.c_str());
      return found.empty() ? 0 : 1;
    });
    expect(
        !outcome.succeeded && outcome.output.find(expected) != std::string::npos,
        std::string(planted.name) + " was to be found as \"" + expected + "\":\n" + outcome.output);
  }
}

int run() {
  check_right_kernels();
  check_after_failure();
  check_refusals();
  check_opt_in();
  check_planted_bugs();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace powergrad::test

int main() { return powergrad::test::run(); }
