#include "async_copies.h"

#include <utility>

#include "sanitizers.h"

namespace powergrad::host_cuda {
namespace {

constexpr unsigned char kNaN = 0xff;  // in every byte: NaN in every format

// Volatile, lest they become functions that a sanitizer watches.
void write(unsigned char* to, const unsigned char* from, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) static_cast<volatile unsigned char*>(to)[i] = from[i];
}

}  // namespace

void AsyncCopies::issue(void* to, const void* from, std::size_t size, bool early, Site site) {
  const auto* source = static_cast<const unsigned char*>(from);
  Copy copy{static_cast<unsigned char*>(to), {source, source + size}, site};
  // By the copy at any time from now on, and by the wait: ordered against neither is a race.
  report_read(from, size);
  report_write(to, size);
  const std::vector<unsigned char> nan(size, kNaN);
  write(copy.to, early ? copy.bytes.data() : nan.data(), size);
  poison(to, size);
  uncommitted_.push_back(std::move(copy));
}

void AsyncCopies::commit() { groups_.push_back(std::exchange(uncommitted_, {})); }

void AsyncCopies::wait(std::size_t pending) {
  for (; groups_.size() > pending; groups_.pop_front()) {
    for (const Copy& copy : groups_.front()) {
      unpoison(copy.to, copy.bytes.size());
      report_write(copy.to, copy.bytes.size());
      write(copy.to, copy.bytes.data(), copy.bytes.size());
    }
  }
}

const Site* AsyncCopies::outstanding() const {
  if (!uncommitted_.empty()) return &uncommitted_.front().site;
  for (const Group& group : groups_) {
    if (!group.empty()) return &group.front().site;
  }
  return nullptr;
}

void AsyncCopies::forget() {
  uncommitted_.clear();
  groups_.clear();
}

}  // namespace powergrad::host_cuda
