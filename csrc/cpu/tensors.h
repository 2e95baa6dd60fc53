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

#include "../checks.h"
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
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1))
    strides[d] = stride;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  advise_huge_pages(tensor.data_ptr(), size_of(tensor));
#if defined(FUSED_LIF_POISON)
  if (tensor.numel() > 0) std::memset(tensor.data_ptr(), 0xff, size_of(tensor));  // NaN
#endif
  return tensor;
}

inline std::vector<int64_t> to_vector(Sizes sizes) { return {sizes.begin(), sizes.end()}; }

// x is [T, *step], or [*step] for a single step. M is the number of columns: neurons of all batch
// rows.
struct Shape {
  std::vector<int64_t> step;
  int64_t T, M;

  Shape(const Tensor& x, int64_t step_dims)
      : step(x.sizes().end() - step_dims, x.sizes().end()),
        T(x.dim() == step_dims ? 1 : x.size(0)),
        M(product(step, 0, step.size())) {}

  // Sizes of the kept states: potential and current, or the potential only, of `rows` steps.
  std::vector<int64_t> states(bool synapse, int64_t rows) const {
    std::vector<int64_t> sizes = {synapse ? 2 : 1, rows};
    sizes.insert(sizes.end(), step.begin(), step.end());
    return sizes;
  }
};

inline DType to_dtype(ScalarType t) {
  switch (t) {
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: return DType::kFloat;
  }
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

// Describes a sequence for the loops: as it lies if it is contiguous, repeats one step, or its last
// dimensions are contiguous rows of some length (batch-first views); through a copy otherwise,
// which `keep_alive` then holds.
inline Sequence describe_sequence(const Tensor& x, const Shape& shape, Tensor& keep_alive) {
  constexpr int64_t kShortestRow = 64;
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t M = shape.M, T = shape.T, stride_t = T == 1 ? 0 : strides[0];
  const size_t first = sizes.size() - shape.step.size();  // dimension of `step`
  // Dimensions from `d` on are one contiguous row.
  size_t d = sizes.size();
  int64_t row = 1;
  while (d > first && (sizes[d - 1] == 1 || strides[d - 1] == row)) row *= sizes[--d];
  if (row == M) return {x.data_ptr(), std::max<int64_t>(M, 1), 0, stride_t};
  // The dimensions before it must be evenly spaced.
  const auto evenly_spaced = [&] {
    for (size_t k = d - 1; k > first; --k)
      if (strides[k - 1] != strides[k] * sizes[k]) return false;
    return true;
  };
  if (row >= kShortestRow && evenly_spaced()) return {x.data_ptr(), row, strides[d - 1], stride_t};
  if (stride_t == 0 && T > 1) {  // repeat a copy of the step, not a copy of all steps
    Tensor view = x;
    keep_alive = torch::stable::contiguous(torch::stable::narrow(view, 0, 0, 1));
    return {keep_alive.data_ptr(), M, 0, 0};
  }
  keep_alive = torch::stable::contiguous(x);
  return {keep_alive.data_ptr(), M, 0, M};
}

inline int64_t rows_of(int64_t T, int64_t interval) {
  return interval == 0 ? 0 : interval == 1 ? T : (T - 1) / interval;
}

template <typename S>
constexpr ScalarType kScalarType =
    std::is_same_v<S, double> ? ScalarType::Double : ScalarType::Float;

}  // namespace fused_lif::cpu
