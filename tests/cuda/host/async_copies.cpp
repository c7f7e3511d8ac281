#include "async_copies.h"

#include "machine.h"
#include "sanitizers.h"

namespace powergrad::host_cuda {
namespace {

constexpr unsigned char kNaN = 0xff;  // in every byte: NaN in every format

// Volatile, so that it does not become a call that a sanitizer intercepts.
void write(unsigned char* to, const unsigned char* from, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) static_cast<volatile unsigned char*>(to)[i] = from[i];
}

// The container belongs to the host: ThreadSanitizer would otherwise report that unordered threads
// move its elements and reuse its memory.
class Bookkeeping {
 public:
  Bookkeeping() : thread_(current_identity()) { assume_identity(machine().host_identity()); }
  ~Bookkeeping() { assume_identity(thread_); }

 private:
  void* thread_;
};

}  // namespace

void AsyncCopies::issue(void* to, const void* from, std::size_t size, bool early, Site site) {
  // The copy accesses both at any time from here to the wait: unordered accesses are races.
  report_read(from, size);
  report_write(to, size);
  Copy copy{static_cast<unsigned char*>(to), size, {}, commits_, site};
  write(copy.bytes, static_cast<const unsigned char*>(from), size);
  unsigned char nan[sizeof(copy.bytes)];
  for (unsigned char& byte : nan) byte = kNaN;
  write(copy.to, early ? copy.bytes : nan, size);
  poison(to, size);
  const Bookkeeping bookkeeping;
  copies_.push_back(copy);
}

void AsyncCopies::commit() { ++commits_; }

void AsyncCopies::wait(std::size_t pending) {
  auto copy = copies_.begin();
  for (; copy != copies_.end() && copy->group + pending < commits_; ++copy) {
    unpoison(copy->to, copy->size);
    report_write(copy->to, copy->size);
    write(copy->to, copy->bytes, copy->size);
  }
  const Bookkeeping bookkeeping;
  copies_.erase(copies_.begin(), copy);
}

const Site* AsyncCopies::outstanding() const {
  return copies_.empty() ? nullptr : &copies_.front().site;
}

void AsyncCopies::forget() {
  copies_.clear();
  commits_ = 0;
}

}  // namespace powergrad::host_cuda
