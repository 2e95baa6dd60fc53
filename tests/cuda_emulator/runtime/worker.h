// An OS thread that runs blocks, one after another.
#pragma once

#include <memory>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"
#include "site.h"

namespace cuda_emulator {

class Block;

class Worker {
 public:
  // Of the calling OS thread.
  Worker();
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // A fiber that, when it is resumed, calls Block::run_threads of the worker's block.
  Fiber* take_fiber();

  SharedMemory shared_memory;
  SiteTable sites;
  Block* block = nullptr;  // that it runs

 private:
  struct Entry {
    Worker* worker;
    std::unique_ptr<Fiber> fiber;
  };
  static void fiber_body(void* entry);

  std::vector<std::unique_ptr<Entry>> entries_;
  std::vector<Fiber*> idle_;
};

// Null outside of kernels. A block never moves to another OS thread.
extern constinit thread_local Worker* current_worker;

}  // namespace cuda_emulator
