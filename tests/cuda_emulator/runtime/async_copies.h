// The asynchronous copies of one thread.
//
// Hardware copies at some time between the call and the end of the wait. Here it is at the end of
// the wait, and until then the destination is NaN: a kernel that reads too early, or fills a slot
// that is still being read, does not get away with it.
#pragma once

#include <cstddef>
#include <vector>

namespace cuda_emulator {

class AsyncCopies {
 public:
  // Whether a copy to any of these bytes has been issued and not been waited for.
  bool in_flight(const void* to, size_t size) const;
  void issue(void* to, const void* from, size_t size, size_t zero_fill);
  void commit();
  // Performs all committed groups but the last `prior`.
  void wait(size_t prior);
  // What nobody has waited for never happens.
  void clear();

 private:
  struct Copy {
    void* to;
    const void* from;
    size_t size, zero_fill;
  };
  std::vector<Copy> copies_;    // in the order of their calls
  std::vector<size_t> groups_;  // number of copies of each group
  size_t open_ = 0;             // copies that no group has yet
};

}  // namespace cuda_emulator
