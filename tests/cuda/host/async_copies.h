// The asynchronous copies of one thread from global memory to its block's shared memory. A copy may
// land at any time between its issue and the wait that covers it. Until that wait its destination
// must not be accessed: it is filled with NaN and poisoned for AddressSanitizer.
#pragma once

#include <cstddef>
#include <vector>

#include "site.h"

namespace powergrad::host_cuda {

class AsyncCopies {
 public:
  // `early`: it lands at once, otherwise at the wait.
  void issue(void* to, const void* from, std::size_t size, bool early, Site site);
  void commit();
  // For all but the last `pending` commits.
  void wait(std::size_t pending);
  // The line of a copy that was not waited for; null if there is none.
  const Site* outstanding() const;
  void forget();

 private:
  struct Copy {
    unsigned char* to;
    std::size_t size;
    unsigned char bytes[16];
    std::size_t group;  // the number of commits before it
    Site site;
  };

  std::vector<Copy> copies_;  // not yet waited for, oldest first
  std::size_t commits_ = 0;
};

}  // namespace powergrad::host_cuda
