#include "shared_memory.h"

#include <cstdlib>
#include <functional>

#include "sanitizers.h"

namespace powergrad::host_cuda {
namespace {

constexpr std::size_t kAlignment = 128;
constexpr unsigned char kNaN = 0xff;  // in every byte: NaN in every format

unsigned char* allocate(std::size_t size) {
  void* bytes = nullptr;
  if (size > 0 && posix_memalign(&bytes, kAlignment, size) != 0) std::abort();
  return static_cast<unsigned char*>(bytes);
}

}  // namespace

void SharedMemory::Free::operator()(void* bytes) const { std::free(bytes); }

SharedMemory::SharedMemory(std::size_t size) : size_(size), bytes_(allocate(size)) {}

SharedMemory::~SharedMemory() {
  if (bytes_ != nullptr) open();
}

bool SharedMemory::contains(const void* pointer) const {
  const auto* byte = static_cast<const unsigned char*>(pointer);
  return !std::less<>()(byte, begin()) && std::less<>()(byte, begin() + size_);
}

void SharedMemory::close() {
  // Volatile, so that it does not become memset, which ThreadSanitizer takes for a kernel's write.
  volatile unsigned char* bytes = begin();
  for (std::size_t i = 0; i < size_; ++i) bytes[i] = kNaN;
  poison(begin(), size_);
}

void SharedMemory::open() { unpoison(begin(), size_); }

void SharedMemory::close_for_good() {
  report_write(begin(), size_);
  poison(begin(), size_);
}

}  // namespace powergrad::host_cuda
