// Tensors on the CPU: how they are allocated, and how they are described to the loops.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "../shapes.h"
#include "constants.h"
#include "kernels.h"

namespace fused_lif::cpu {

// A gradient of this size is written around the caches, which would not hold it until it is read.
constexpr size_t kStreamBytes = size_t{4} << 20;

inline size_t size_of(const Tensor& t) { return t.numel() * t.element_size(); }

// Large tensors often lie in fresh pages (glibc: always from 32 MiB on). Faulting them in one small
// page at a time costs more than the kernel itself; huge pages cost a fraction of that.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  if (bytes < (size_t{4} << 20)) return;
  const uintptr_t begin =
      (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may fail
#endif
}

inline Tensor new_empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  Tensor tensor = new_contiguous(sizes, dtype, aoti_torch_device_type_cpu(), 0);
  advise_huge_pages(tensor.data_ptr(), size_of(tensor));
#if defined(FUSED_LIF_POISON)
  if (tensor.numel() > 0) std::memset(tensor.data_ptr(), 0xff, size_of(tensor));  // NaN
#endif
  return tensor;
}

// A thread's scratch memory, aligned to 64 bytes; kept, because a single step is called thousands
// of times.
inline void* scratch(int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  thread_local std::unique_ptr<std::byte[]> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset(new std::byte[bytes + kAlignment]);
    size = bytes;
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace fused_lif::cpu
