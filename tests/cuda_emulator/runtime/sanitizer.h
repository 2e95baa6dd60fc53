// What the address sanitizer has to be told; nothing in a plain build.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulator {

inline void poison([[maybe_unused]] const void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin, bytes);
#endif
}

inline void unpoison([[maybe_unused]] const void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(begin, bytes);
#endif
}

// To be called before and after the switch to another stack. `fake_stack` belongs to the stack that
// is left.
inline void before_switch(
    [[maybe_unused]] void** fake_stack,
    [[maybe_unused]] const void* bottom,
    [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#endif
}

// Reports the bounds of the stack that was left.
inline void after_switch(
    [[maybe_unused]] void* fake_stack,
    [[maybe_unused]] const void** left_bottom,
    [[maybe_unused]] size_t* left_size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, left_bottom, left_size);
#endif
}

}  // namespace cuda_emulator
