#include "async_copies.h"

#include <algorithm>
#include <cstring>

namespace cuda_emulator {

bool AsyncCopies::in_flight(const void* to, size_t size) const {
  const char* begin = static_cast<const char*>(to);
  return std::any_of(copies_.begin(), copies_.end(), [&](const Copy& copy) {
    const char* other = static_cast<const char*>(copy.to);
    return begin < other + copy.size && other < begin + size;
  });
}

void AsyncCopies::issue(void* to, const void* from, size_t size, size_t zero_fill) {
  // Shows the address sanitizer what will be read, while the stack tells who asked for it.
  const size_t reads = size - zero_fill;
  for (size_t k = 0; k < reads; ++k) static_cast<const volatile char*>(from)[k];
  std::memset(to, 0xff, size);
  copies_.push_back({to, from, size, zero_fill});
  ++open_;
}

void AsyncCopies::commit() {
  groups_.push_back(open_);
  open_ = 0;
}

void AsyncCopies::wait(size_t prior) {
  if (groups_.size() <= prior) return;
  const auto end_of_groups = groups_.end() - static_cast<std::ptrdiff_t>(prior);
  auto copy = copies_.begin();
  for (auto group = groups_.begin(); group != end_of_groups; ++group) {
    for (size_t k = 0; k < *group; ++k, ++copy) {
      const size_t reads = copy->size - copy->zero_fill;
      std::memcpy(copy->to, copy->from, reads);
      std::memset(static_cast<char*>(copy->to) + reads, 0, copy->zero_fill);
    }
  }
  copies_.erase(copies_.begin(), copy);
  groups_.erase(groups_.begin(), end_of_groups);
}

void AsyncCopies::clear() {
  copies_.clear();
  groups_.clear();
  open_ = 0;
}

}  // namespace cuda_emulator
