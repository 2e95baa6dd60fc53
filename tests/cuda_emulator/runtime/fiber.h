// Fibers: functions that can be left in the middle and resumed later, on stacks of their own.
#pragma once

#include <cstddef>

namespace cuda_emulator {

class Fiber {
 public:
  // `body` is called at the first resume() and must not return.
  Fiber(void (*body)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the fiber until it suspends itself. Always from the same OS thread, by no fiber.
  void resume();
  // To be called by the fiber itself.
  void suspend();

 private:
  // Where a stack goes on.
  struct Side {
    void* stack_pointer = nullptr;
    const void* bottom = nullptr;
    size_t size = 0;
    void* fake_stack = nullptr;  // the address sanitizer's
  };

  static void start(void* fiber);
  static void switch_sides(Side& from, Side& to);

  void (*body_)(void*);
  void* argument_;
  void* stack_;
  Side fiber_, resumer_;
};

}  // namespace cuda_emulator
