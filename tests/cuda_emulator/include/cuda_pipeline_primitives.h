// Asynchronous copies (cp.async). See runtime/async_copy.h for when they happen.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

inline void __pipeline_memcpy_async(
    void* shared,
    const void* global,
    size_t size_and_alignment,
    size_t zero_fill = 0,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  cuda_emulator::copy_async(shared, global, size_and_alignment, zero_fill, here);
}

inline void __pipeline_commit() { cuda_emulator::commit_copies(); }

inline void __pipeline_wait_prior(
    size_t prior,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  constexpr size_t kMostPrior = 8;  // the toolkit's own limit
  cuda_emulator::wait_for_copies(std::min(prior, kMostPrior), here);
}
