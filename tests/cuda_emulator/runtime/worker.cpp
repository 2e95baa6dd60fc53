#include "worker.h"

#include "block.h"

namespace cuda_emulator {

constinit thread_local Worker* current_worker = nullptr;

Worker::Worker() { current_worker = this; }

Worker::~Worker() { current_worker = nullptr; }

Fiber* Worker::take_fiber() {
  if (idle_.empty()) {
    Entry& entry = *entries_.emplace_back(std::make_unique<Entry>());
    entry.worker = this;
    entry.fiber = std::make_unique<Fiber>(&Worker::fiber_body, &entry);
    return entry.fiber.get();
  }
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return fiber;
}

void Worker::fiber_body(void* argument) {
  Entry& entry = *static_cast<Entry*>(argument);
  for (;;) {
    entry.worker->block->run_threads(entry.fiber.get());
    entry.worker->idle_.push_back(entry.fiber.get());
    entry.fiber->suspend();
  }
}

}  // namespace cuda_emulator
