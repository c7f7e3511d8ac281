#include "cuda/plan.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace powergrad {
namespace {

constexpr int kThreads = 128;  // of a block whose warps work on different rows
constexpr int kMostPackedClasses = 512;
// Shared memory in bytes that leaves room for several blocks on a multiprocessor.
constexpr int kPackedBytes = 32 * 1024;
constexpr int kStridedBytes = 40 * 1024;
constexpr int kBytesOfPass = 64 * 1024;

// Measured on an H100 (bench/results/gpu-h100): the threads for rows of up to so many vectors.
struct RowThreads {
  int64_t vectors;
  int threads;
};
constexpr RowThreads kRowThreads[] = {{4, 2},    {16, 4},    {32, 8},    {256, 16},
                                      {600, 32}, {1100, 64}, {8500, 256}};
constexpr int64_t kVectorsOfBlock = 13500;  // longer rows go to a cluster

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t multiple) { return divide_up(a, multiple) * multiple; }

// The least n with 2^n >= x.
int log2_ceil(int64_t x) {
  int n = 0;
  while (int64_t{1} << n < x) ++n;
  return n;
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
  // The most blocks of a cluster. Code compiled for an architecture without clusters would treat
  // its blocks as independent.
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
    plan_.blocks_per_row = plan_.groups_per_outer = 1;
  }

  // A row that fits into one block gets one, unless there are too few rows for all multiprocessors.
  bool wants_clusters() const {
    if (work_.is_elementwise) return false;
    const int64_t vectors = this->vectors();
    if (vectors * work_.tensors > kVectorsOfBlock) return true;
    return vectors > kRowThreads[std::size(kRowThreads) - 1].vectors &&
           shape_.rows() * 2 <= device_.multiprocessors;
  }

  // `largest`: the most blocks of a cluster; 1 where none is wanted.
  Plan contiguous(int largest) {
    const int64_t vectors = this->vectors();
    int threads = kMostThreads;
    for (const RowThreads& choice : kRowThreads) {
      if (vectors <= choice.vectors) {
        threads = choice.threads;
        break;
      }
    }
    if (work_.is_elementwise) {
      constexpr int kVectors = 8;          // of a thread
      threads = std::min(threads, kWarp);  // small blocks idle least at the end of a row
      plan_.blocks_per_row = static_cast<int>(divide_up(vectors, threads * kVectors));
    } else if (largest > 1) {
      // 16 vectors a thread (32 or 64 KB a block, the fastest), and one more for the vector that
      // an unaligned row adds: twice as many blocks instead took 1.58 copies at 262144 bfloat16
      // classes, not 1.23.
      constexpr int kVectors = 16;
      const int64_t aligned_vectors = vectors - 1;
      threads = aligned_vectors <= kPortableCluster * 128 * kVectors ? 128 : 256;
      const int64_t blocks =
          std::max<int64_t>(divide_up(aligned_vectors, threads * kVectors), kPortableCluster);
      plan_.blocks_per_row = 1 << log2_ceil(std::min<int64_t>(blocks, largest));
      plan_.is_cluster = true;
    }
    if (work_.dtype == DataType::float64) threads = std::min(threads, 256);  // see kMostThreadsOf
    // A row of several warps has a block to itself.
    set_threads(threads > kWarp ? threads : kThreads, std::min(threads, kWarp),
                divide_up(threads, kWarp));
    set_vectors(divide_up(vectors, threads * plan_.blocks_per_row), kVectorBytes);
    return finished(divide_up(shape_.rows(), plan_.threads / threads));
  }

  Plan packed() {
    int lanes = 1;
    for (int more = 2; more <= 16; more *= 2) {
      if (packed_bytes(lanes) > kPackedBytes || packed_cost(more) < packed_cost(lanes)) {
        lanes = more;
      }
    }
    set_threads(kThreads, lanes, 1);
    plan_.vectors_per_thread = static_cast<int>(divide_up(shape_.classes, lanes * work_.classes));
    plan_.passes = 1;
    plan_.tensor_bytes = static_cast<int>(packed_bytes(lanes)) / work_.tensors;
    return finished(divide_up(shape_.rows(), kThreads / lanes));
  }

  Plan strided() {
    // As many threads on a row as keep the block's shared memory small. More than four are spread
    // over several warps, so that a warp's loads still fill a sector of memory.
    const int vector_bytes = work_.positions * bytes_;
    const auto vectors_of = [&](int threads) { return divide_up(shape_.classes, threads); };
    const auto bytes_of_block = [&](int threads) {
      return vectors_of(threads) * kThreads * vector_bytes * work_.tensors;
    };
    int threads = 1;
    while (threads < 16 && bytes_of_block(threads) > kStridedBytes) threads *= 2;
    const int lanes = std::min(threads, 4);
    set_threads(kThreads, lanes, threads / lanes);
    set_vectors(vectors_of(threads), vector_bytes);
    const int64_t rows_of_block = int64_t{kThreads} / threads * work_.positions;
    plan_.groups_per_outer = static_cast<int>(divide_up(shape_.inner, rows_of_block));
    return finished(shape_.outer * plan_.groups_per_outer);
  }

 private:
  // Of a row; one more for a row that begins in the middle of one.
  int64_t vectors() const { return divide_up(shape_.classes, kVectorBytes / bytes_) + 1; }

  void set_threads(int threads, int lanes, int64_t warps) {
    plan_.threads = threads;
    plan_.lanes_log2 = log2_ceil(lanes);
    plan_.warps_log2 = log2_ceil(warps);
    const int64_t bytes = 2 * plan_.reduction_bytes(work_.maxima_bytes) +
                          plan_.reduction_bytes(work_.sums_bytes) + work_.state_bytes;
    plan_.scratch_bytes = static_cast<int>(round_up(bytes, kVectorBytes));
  }

  // `wanted` vectors a thread, in several passes where shared memory has no room for them.
  void set_vectors(int64_t wanted, int vector_bytes) {
    const int64_t bytes_of_each = int64_t{plan_.threads} * vector_bytes * work_.tensors;
    const auto fit = [&](int room) {
      return std::max<int64_t>((room - plan_.scratch_bytes) / bytes_of_each, 1);
    };
    int64_t vectors = std::min(wanted, fit(device_.shared_bytes));
    if (vectors < wanted) vectors = std::min(vectors, fit(kBytesOfPass));
    plan_.vectors_per_thread = static_cast<int>(vectors);
    plan_.passes = static_cast<int>(divide_up(wanted, vectors));
    plan_.tensor_bytes = plan_.vectors_per_thread * plan_.threads * vector_bytes;
  }

  int64_t packed_bytes(int lanes) const {
    const int64_t elements = kThreads / lanes * shape_.classes;
    // One more vector, since the rows may begin in the middle of one.
    return work_.tensors * (round_up(elements * bytes_, kVectorBytes) + kVectorBytes);
  }

  // Roughly the instructions of a row's threads. Each reads a vector of one or two classes at a
  // time; those of a warp that hit the same bank of shared memory wait for each other. Rows keep
  // their pitch, so that rows of a multiple of 32 words all begin in the same bank.
  int64_t packed_cost(int lanes) const {
    constexpr int kBanks = 32;
    constexpr int kOfVector[] = {24, 28};
    constexpr int kOfConflict = 6;
    constexpr int kOfThread = 60;
    constexpr int kOfShuffle = 16;
    int words[kBanks] = {};
    int64_t last = -1;
    for (int thread = 0; thread < kWarp; ++thread) {
      const int64_t element = thread / lanes * shape_.classes + thread % lanes * work_.classes;
      const int64_t word = element * bytes_ / 4;
      if (word != last) ++words[word % kBanks];
      last = word;
    }
    const int conflicts = *std::max_element(words, words + kBanks) - 1;
    const int64_t vectors = divide_up(shape_.classes, lanes * work_.classes);
    return lanes * (vectors * (kOfVector[work_.classes - 1] + kOfConflict * conflicts) + kOfThread +
                    kOfShuffle * log2_ceil(lanes));
  }

  // No blocks where the grid would be too large.
  Plan finished(int64_t row_groups) {
    constexpr int64_t kMost = std::numeric_limits<int>::max();
    plan_.row_groups = static_cast<int>(std::min(row_groups, kMost));
    int64_t resident_groups = row_groups;
    if (work_.is_persistent) {
      constexpr int64_t kBlocksOfMultiprocessor = 4;
      const int64_t blocks = kBlocksOfMultiprocessor * device_.multiprocessors;
      resident_groups = std::min(row_groups, divide_up(blocks, plan_.blocks_per_row));
    }
    const int64_t blocks = resident_groups * plan_.blocks_per_row;
    plan_.blocks = row_groups <= kMost && blocks <= kMost ? static_cast<int>(blocks) : 0;
    return plan_;
  }

  const Shape& shape_;
  const Work& work_;
  const Device& device_;
  int bytes_;
  Plan plan_{};
};

bool are_packed(const Shape& shape, const Strides& strides) {
  if (shape.inner == 1) return shape.outer == 1 || strides.outer == shape.classes;
  return strides.inner == shape.classes &&
         (shape.outer == 1 || strides.outer == shape.classes * shape.inner);
}

}  // namespace

LayoutChoice choose_layout(const Shape& shape, DataType dtype,
                           std::initializer_list<Extent> tensors) {
  const auto all = [&](const auto& holds) {
    return std::all_of(tensors.begin(), tensors.end(), [&](const Extent& tensor) {
      return tensor.data == nullptr || holds(tensor);
    });
  };
  if (tensors.begin()->strides.classes == 1) {
    const bool packed = shape.classes <= kMostPackedClasses && all([&](const Extent& tensor) {
                          return are_packed(shape, tensor.strides);
                        });
    return {packed ? RowLayout::packed : RowLayout::contiguous, 1};
  }
  // Vectors of several rows take more shared memory: too much for many classes of four bytes.
  // Halves need them, since no asynchronous copy is as small as one.
  constexpr int64_t kMostClassesOfFloats = 512;
  const int bytes = element_bytes(dtype);
  const bool has_vectors =
      (bytes == 2 || (bytes == 4 && shape.classes <= kMostClassesOfFloats)) &&
      shape.inner % kMostPositions == 0 && all([&](const Extent& tensor) {
        const auto address = reinterpret_cast<uintptr_t>(tensor.data);
        return address % (kMostPositions * bytes) == 0 &&
               tensor.strides.classes % kMostPositions == 0 &&
               (shape.outer == 1 || tensor.strides.outer % kMostPositions == 0);
      });
  return {RowLayout::strided, has_vectors ? kMostPositions : 1};
}

cudaError_t most_shared_bytes(int* bytes) {
  Device device;
  const cudaError_t error = device.read();
  *bytes = device.shared_bytes;
  return error;
}

cudaError_t make_plan(RowLayout layout, const Shape& shape, const Work& work, const void* kernel,
                      int largest_cluster, Plan* plan) {
  Device device;
  cudaError_t error = device.read();
  if (error != cudaSuccess) return error;
  // Kernels count classes and vectors in ints, past the end of a row too.
  if (shape.classes > std::numeric_limits<int>::max() / 2) return cudaErrorInvalidValue;
  Planner planner(shape, work, device);
  switch (layout) {
    case RowLayout::contiguous: {
      int largest = 1;
      if (planner.wants_clusters()) error = device.largest_cluster(kernel, &largest);
      if (error != cudaSuccess) return error;
      *plan = planner.contiguous(std::min(largest, largest_cluster));
      break;
    }
    case RowLayout::packed:
      *plan = planner.packed();
      break;
    case RowLayout::strided:
      *plan = planner.strided();
      break;
  }
  return plan->blocks > 0 ? cudaSuccess : cudaErrorInvalidConfiguration;
}

}  // namespace powergrad
