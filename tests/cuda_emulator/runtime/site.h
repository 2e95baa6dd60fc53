// Places in kernels where threads wait: what messages name, and what a test can take out.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "cuda_emulator/machine.h"

namespace cuda_emulator {

struct Site {
  const std::string name;  // "kernels.cu:12 __syncthreads"
  std::atomic<bool> executed = false;
  std::atomic<bool> skipped = false;

  // To be called by a barrier: notes that it is executed. Whether it shall be skipped.
  bool enter() {
    if (!executed.load(std::memory_order_relaxed)) executed.store(true, std::memory_order_relaxed);
    return skipped.load(std::memory_order_relaxed);
  }
};

// Names of the barriers that were executed, in alphabetical order.
std::string executed_barriers(const char* separator);
void forget_executed_barriers();
// Skips this barrier from now on, and no other one; an empty name stands for none.
void skip_barrier(const std::string& name);

// Finds sites. One for every OS thread: it needs no lock for those that it has seen.
class SiteTable {
 public:
  Site& find(const char* primitive, Location where);

 private:
  struct Entry {
    const char* primitive;
    const char* file;
    uint32_t line;
    Site* site;
  };
  std::array<Entry, 256> recent_{};
};

// "kernels.cu:12"
std::string describe(Location where);

}  // namespace cuda_emulator
