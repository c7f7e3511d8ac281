#include "cuda/plan.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace powergrad {
namespace {

constexpr int kThreads = 128;  // of a block whose warps are on different rows
constexpr int kMostClassesOfChunks = 512;
constexpr int kRoomOfChunk = 32 * 1024;  // bytes that leave several blocks on a multiprocessor
constexpr int kRoomOfTile = 40 * 1024;
constexpr int kRoomOfRound = 64 * 1024;

// Tries on an H100 (bench/results/gpu-h100): rows of up to so many packs of 16 bytes, and threads.
struct RowThreads {
  int64_t packs;
  int threads;
};
constexpr RowThreads kRowThreads[] = {{4, 2},    {16, 4},    {32, 8},    {256, 16},
                                      {600, 32}, {1100, 64}, {8500, 256}};
constexpr int64_t kPacksOfBlock = 13500;  // of rows that a block takes alone

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t multiple) { return divide_up(a, multiple) * multiple; }

// The exponent of the least power of two that is at least x.
int bits_of(int64_t x) {
  int bits = 0;
  while (int64_t{1} << bits < x) ++bits;
  return bits;
}

int element_bytes(DataType dtype) {
  switch (dtype) {
#define POWERGRAD_BYTES(name, storage, accumulate) \
  case DataType::name:                             \
    return sizeof(storage);
    POWERGRAD_FORALL_TYPES(POWERGRAD_BYTES)
#undef POWERGRAD_BYTES
  }
  return 0;
}

struct Device {
  int major = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // the most that a block may have

  cudaError_t read() {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const auto attribute = [&](int* value, cudaDeviceAttr which) {
      if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, which, device);
    };
    attribute(&major, cudaDevAttrComputeCapabilityMajor);
    attribute(&multiprocessors, cudaDevAttrMultiProcessorCount);
    attribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return error;
  }
  // The most blocks of a cluster. Code that was compiled for an architecture without clusters takes
  // them for blocks on their own.
  cudaError_t largest_cluster(const void* kernel, int* result) const {
    *result = 1;
    if (major < 9) return cudaSuccess;
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess || attributes.ptxVersion < 90) return error;
    *result = major < 12 ? kLargestCluster : kPortableCluster;
    return cudaSuccess;
  }
};

class Planner {
 public:
  Planner(const Shape& shape, const Work& work, const Device& device)
      : shape_(shape), work_(work), device_(device), bytes_(element_bytes(work.dtype)) {
    plan_.rows = shape.rows();
    plan_.parts = plan_.tiles = 1;
  }

  // Shares of about 32 KB are the fastest. Rows that fit into one block are its own, unless there
  // are too few of them for all multiprocessors.
  bool wants_clusters() const {
    if (work_.is_map) return false;
    const int64_t packs = this->packs();
    if (packs * work_.tensors > kPacksOfBlock) return true;
    return packs > kRowThreads[std::size(kRowThreads) - 1].packs &&
           shape_.rows() * 2 <= device_.multiprocessors;
  }

  // `largest`: the most blocks of a cluster; 1 where none is wanted.
  Plan rows(int largest) {
    const int64_t packs = this->packs();
    int threads = kMostThreads;
    for (const RowThreads& choice : kRowThreads) {
      if (packs <= choice.packs) {
        threads = choice.threads;
        break;
      }
    }
    if (work_.is_map) {
      constexpr int kSteps = 8;
      threads = std::min(threads, kWarp);  // small parts waste the least of a row's last one
      plan_.parts = static_cast<int>(divide_up(packs, threads * kSteps));
    } else if (largest > 1) {
      // 16 slots a thread, which are shares of 32 or 64 KB, and one more for the pack on top: twice
      // as many blocks for its sake took 1.58 copies at 262144 bfloat16 classes instead of 1.23.
      constexpr int kSlots = 16;
      const int64_t whole_packs = packs - 1;
      threads = whole_packs <= kPortableCluster * 128 * kSlots ? 128 : 256;
      const int64_t parts =
          std::max<int64_t>(divide_up(whole_packs, threads * kSlots), kPortableCluster);
      plan_.parts = 1 << bits_of(std::min<int64_t>(parts, largest));
      plan_.is_cluster = true;
    }
    if (work_.dtype == DataType::float64) threads = std::min(threads, 256);  // see kMostThreadsOf
    // Warps that meet have a block of their own.
    share_out(threads > kWarp ? threads : kThreads, std::min(threads, kWarp),
              divide_up(threads, kWarp));
    set_slots(divide_up(packs, threads * plan_.parts), kVectorBytes);
    return finished(divide_up(shape_.rows(), plan_.threads / threads));
  }

  Plan chunks() {
    int lanes = 1;
    for (int more = 2; more <= 16; more *= 2) {
      if (chunk_bytes(lanes) > kRoomOfChunk || cost_of(more) < cost_of(lanes)) lanes = more;
    }
    share_out(kThreads, lanes, 1);
    plan_.steps = static_cast<int>(divide_up(shape_.classes, lanes));
    plan_.rounds = 1;
    plan_.tensor_bytes = static_cast<int>(chunk_bytes(lanes)) / work_.tensors;
    return finished(divide_up(shape_.rows(), kThreads / lanes));
  }

  Plan tiles() {
    // As many threads on a position's classes as keep a tile small; more than four are in several
    // warps, so that neighbouring positions still fill a sector of memory.
    const int slot_bytes = work_.positions * bytes_ * work_.tensors;
    const auto steps = [&](int threads) { return divide_up(shape_.classes, threads); };
    int threads = 1;
    while (threads < 16 && steps(threads) * kThreads * slot_bytes > kRoomOfTile) threads *= 2;
    const int lanes = std::min(threads, 4);
    share_out(kThreads, lanes, threads / lanes);
    set_slots(steps(threads), work_.positions * bytes_);
    const int64_t positions = int64_t{kThreads} / threads * work_.positions;  // of a block
    plan_.tiles = static_cast<int>(divide_up(shape_.inner, positions));
    return finished(shape_.outer * plan_.tiles);
  }

 private:
  // Of a row, which may start in the middle of one.
  int64_t packs() const { return divide_up(shape_.classes, kVectorBytes / bytes_) + 1; }

  void share_out(int threads, int lanes, int64_t warps) {
    plan_.threads = threads;
    plan_.lanes_bits = bits_of(lanes);
    plan_.warps_bits = bits_of(warps);
    const int64_t bytes = 2 * plan_.meeting_bytes(work_.maxima_bytes) +
                          plan_.meeting_bytes(work_.sums_bytes) + work_.state_bytes;
    plan_.scratch_bytes = static_cast<int>(round_up(bytes, kVectorBytes));
  }

  // `wanted` slots a thread, in several rounds where there is no room.
  void set_slots(int64_t wanted, int slot_bytes) {
    const int64_t step = int64_t{plan_.threads} * slot_bytes * work_.tensors;
    const auto fit = [&](int room) {
      return std::max<int64_t>((room - plan_.scratch_bytes) / step, 1);
    };
    int64_t steps = std::min(wanted, fit(device_.shared_bytes));
    if (steps < wanted) steps = std::min(steps, fit(kRoomOfRound));
    plan_.steps = static_cast<int>(steps);
    plan_.rounds = static_cast<int>(divide_up(wanted, steps));
    plan_.tensor_bytes = plan_.steps * plan_.threads * slot_bytes;
  }

  int64_t chunk_bytes(int lanes) const {
    const int64_t elements = kThreads / lanes * shape_.classes;
    // It may start in the middle of a vector.
    return work_.tensors * (round_up(elements * bytes_, kVectorBytes) + kVectorBytes);
  }

  // How long a row's threads take, in about an instruction's time: in every step each has a class,
  // and those of a warp that lie in one bank of shared memory have to wait for each other: chunks
  // lie there as they do in device memory, and rows of 32 words, or a multiple, all begin in one
  // bank.
  int64_t cost_of(int lanes) const {
    constexpr int kBanks = 32;
    constexpr int kOfStep = 24;
    constexpr int kOfConflict = 6;
    constexpr int kOfThread = 60;
    constexpr int kOfMeeting = 16;
    int words[kBanks] = {};
    int64_t last = -1;
    for (int thread = 0; thread < kWarp; ++thread) {
      const int64_t word = (thread / lanes * shape_.classes + thread % lanes) * bytes_ / 4;
      if (word != last) ++words[word % kBanks];
      last = word;
    }
    const int conflicts = *std::max_element(words, words + kBanks) - 1;
    const int64_t steps = divide_up(shape_.classes, lanes);
    return lanes *
           (steps * (kOfStep + kOfConflict * conflicts) + kOfThread + kOfMeeting * bits_of(lanes));
  }

  Plan finished(int64_t units) {
    constexpr int64_t kMost = std::numeric_limits<int>::max();
    plan_.units = static_cast<int>(std::min(units, kMost));
    int64_t at_once = units;
    if (work_.is_persistent) {
      constexpr int kBlocksOfMultiprocessor = 4;
      at_once = std::min(
          units,
          divide_up(int64_t{kBlocksOfMultiprocessor} * device_.multiprocessors, plan_.parts));
    }
    const bool fits = units <= kMost && at_once * plan_.parts <= kMost;
    plan_.blocks = fits ? static_cast<int>(at_once * plan_.parts) : 0;
    return plan_;
  }

  const Shape& shape_;
  const Work& work_;
  const Device& device_;
  int bytes_;
  Plan plan_{};
};

bool follow_each_other(const Shape& shape, const Strides& strides) {
  if (shape.inner == 1) return shape.outer == 1 || strides.outer == shape.classes;
  return strides.inner == shape.classes &&
         (shape.outer == 1 || strides.outer == shape.classes * shape.inner);
}

}  // namespace

Arrangement arrangement_of(const Shape& shape, DataType dtype,
                           std::initializer_list<Extent> tensors) {
  const auto all = [&](const auto& holds) {
    return std::all_of(tensors.begin(), tensors.end(), [&](const Extent& tensor) {
      return tensor.data == nullptr || holds(tensor);
    });
  };
  if (tensors.begin()->strides.classes == 1) {
    const bool in_chunks = shape.classes <= kMostClassesOfChunks && all([&](const Extent& tensor) {
                             return follow_each_other(shape, tensor.strides);
                           });
    return {in_chunks ? Layout::chunks : Layout::rows, 1};
  }
  // Of many classes in four bytes a tile of fours would be too large; halves have no asynchronous
  // copy of a single one.
  constexpr int64_t kMostClassesOfFours = 512;
  const int bytes = element_bytes(dtype);
  const bool in_fours = (bytes == 2 || (bytes == 4 && shape.classes <= kMostClassesOfFours)) &&
                        shape.inner % kMostPositions == 0 && all([&](const Extent& tensor) {
                          const auto address = reinterpret_cast<uintptr_t>(tensor.data);
                          return address % (kMostPositions * bytes) == 0 &&
                                 tensor.strides.classes % kMostPositions == 0 &&
                                 (shape.outer == 1 || tensor.strides.outer % kMostPositions == 0);
                        });
  return {Layout::tiles, in_fours ? kMostPositions : 1};
}

cudaError_t most_shared_bytes(int* bytes) {
  Device device;
  const cudaError_t error = device.read();
  *bytes = device.shared_bytes;
  return error;
}

cudaError_t make_plan(Layout layout, const Shape& shape, const Work& work, const void* kernel,
                      int largest_cluster, Plan* plan) {
  Device device;
  cudaError_t error = device.read();
  if (error != cudaSuccess) return error;
  // Class and pack numbers are ints, also of those just past a row's end.
  if (shape.classes > std::numeric_limits<int>::max() / 2) return cudaErrorInvalidValue;
  Planner planner(shape, work, device);
  switch (layout) {
    case Layout::rows: {
      int largest = 1;
      if (planner.wants_clusters()) error = device.largest_cluster(kernel, &largest);
      if (error != cudaSuccess) return error;
      *plan = planner.rows(std::min(largest, largest_cluster));
      break;
    }
    case Layout::chunks:
      *plan = planner.chunks();
      break;
    case Layout::tiles:
      *plan = planner.tiles();
      break;
  }
  return plan->blocks > 0 ? cudaSuccess : cudaErrorInvalidConfiguration;
}

}  // namespace powergrad
