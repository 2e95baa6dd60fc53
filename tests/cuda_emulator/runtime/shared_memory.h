// The shared memory of a block: the thread-local variables of the OS thread that runs it.
#pragma once

#include <cstddef>

namespace cuda_emulator {

inline constexpr size_t kMostShared = 227 << 10;  // bytes per block, on any GPU

class SharedMemory {
 public:
  // That of the calling OS thread.
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Makes everything NaN, static variables too, and inaccessible what is beyond `dynamic_bytes`
  // (with the address sanitizer). To be called by the OS thread whose it is.
  void begin_block(size_t dynamic_bytes);
  // Other blocks that still read get NaN, or a report of the address sanitizer.
  void end_block();

  bool contains(const void* address, size_t bytes = 1) const;
  // The address of the same variable in `other`.
  void* translate(void* address, const SharedMemory& other) const;

 private:
  void fill_with_nan();

  std::byte* dynamic_;
  size_t dynamic_bytes_ = 0;
  std::byte *begin_, *end_;  // all thread-local variables of this library
};

}  // namespace cuda_emulator
