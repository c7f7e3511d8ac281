// The dynamic shared memory of one block: a heap block of exactly the asked size, so that
// AddressSanitizer guards its ends.
#pragma once

#include <cstddef>
#include <memory>

namespace powergrad::host_cuda {

class SharedMemory {
 public:
  explicit SharedMemory(std::size_t size);
  ~SharedMemory();
  SharedMemory(SharedMemory&&) = default;

  unsigned char* begin() const { return bytes_.get(); }
  bool contains(const void* pointer) const;

  // No other block may touch the memory of one that has not begun or has ended.
  void close();  // before the block begins: full of NaN
  void open();   // the block begins
  void
  close_for_good();  // the block has ended, in a thread that is ordered after all of its others

 private:
  struct Free {
    void operator()(void* bytes) const;
  };
  std::size_t size_;
  std::unique_ptr<unsigned char[], Free> bytes_;
};

}  // namespace powergrad::host_cuda
