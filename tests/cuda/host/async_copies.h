// The asynchronous copies of one thread, from device memory into its block's shared memory. A copy
// may land at any time between its issue and the wait that covers it; until that wait nobody may
// look at its destination, which is full of NaN, and closed to AddressSanitizer.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "site.h"

namespace powergrad::host_cuda {

class AsyncCopies {
 public:
  // `early`: it lands at once, and no later than the wait otherwise.
  void issue(void* to, const void* from, std::size_t size, bool early, Site site);
  void commit();
  // For all but the last `pending` commits.
  void wait(std::size_t pending);
  // The line of a copy that nobody has waited for; null if there is none.
  const Site* outstanding() const;
  void forget();

 private:
  struct Copy {
    unsigned char* to;
    std::size_t size;
    unsigned char bytes[16];
    Site site;
  };
  using Group = std::vector<Copy>;

  Group uncommitted_;
  std::deque<Group> groups_;
};

}  // namespace powergrad::host_cuda
