// How work is cut into threads, blocks and kernels: pure functions of sizes and of the device, so
// that they can be tested without one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace fused_lif::cuda {

// Per block, at most. A backward thread needs much shared memory.
inline constexpr int kForwardThreads = 128, kBackwardThreads = 32;

// The widths that kernels are compiled for, in columns per thread: the narrow ones for all neurons,
// the widest only for the neurons that large layers have. One column of a half type is less than
// what can be copied ahead: the way out for odd layouts.
constexpr bool has_wide_kernel(Neuron neuron, Reset reset) {
  return neuron != Neuron::kCurrentEncoder && reset == Reset::kHard;
}
constexpr int narrow_columns(int64_t element_bytes) { return element_bytes == 2 ? 2 : 1; }
constexpr int wide_forward_columns(int64_t element_bytes) {
  return element_bytes == 8 ? 1 : static_cast<int>(16 / element_bytes);
}
constexpr int wide_backward_columns(int64_t element_bytes) {
  return static_cast<int>(8 / element_bytes);
}

// Whether threads can take `columns` adjacent ones: whether packs of them are aligned in every row
// of a sequence, and the constants of a pack are the same one or consecutive ones.
inline bool fits_columns(const Sequence& x, int64_t element_bytes, int64_t columns) {
  const bool rows = x.row % columns == 0 && x.stride_row % columns == 0;
  return rows && x.stride_t % columns == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % (columns * element_bytes) == 0;
}
inline bool fits_columns(const Constant& c, int64_t columns) {
  if (c.groups == 0) return true;
  const int64_t size = c.size[c.groups - 1], stride = c.stride[c.groups - 1];
  return stride == 1 ? size % columns == 0 : stride % columns == 0;
}

// The widest kernel that fits and still gives every multiprocessor enough threads to hide the
// latency of memory; where threads are few, small blocks that spread over all multiprocessors.
template <typename Fits>
LaunchPlan choose_plan(
    int64_t M,
    int narrow,
    int wide,
    int max_threads,
    int multiprocessors,
    const Fits& fits) {
  constexpr int64_t kWarp = 32, kEnoughThreads = 128;  // per multiprocessor
  const auto can_take = [&](int columns) { return M % columns == 0 && fits(columns); };
  int columns = 1;
  if (M >= wide * kEnoughThreads * multiprocessors && can_take(wide))
    columns = wide;
  else if (can_take(narrow))
    columns = narrow;
  const int64_t threads_each = M / columns / multiprocessors / kWarp * kWarp;
  return {columns, static_cast<int>(std::clamp<int64_t>(threads_each, kWarp, max_threads))};
}

inline constexpr int kPointwiseThreads = 128;  // of kernels that take one step of a recurrent layer

// ---- gradients of constants ----

inline constexpr int kReduceThreads = 256;
inline constexpr int kSumsPerThread = 32;  // columns that a thread adds up, at most

// Which columns of [M] the elements of a constant have, and how blocks share them. What a block
// adds up depends on the sizes alone: so does every bit of the result.
inline ConstantGrad plan_constant_grad(int64_t M, const Group* groups, int count) {
  ConstantGrad plan{};
  int64_t block = M;  // columns of one element of the groups so far, and of all inner dimensions
  plan.elements = 1;
  for (int g = 0; g < count; ++g) {
    const int64_t inside = groups[g].size * groups[g].stride;
    if (block > inside) {
      plan.summed_size[plan.summed] = block / inside;
      plan.summed_stride[plan.summed++] = inside;
    }
    plan.kept_size[plan.kept] = groups[g].size;
    plan.kept_stride[plan.kept++] = groups[g].stride;
    plan.elements *= groups[g].size;
    block = groups[g].stride;
  }
  if (block > 1) {
    plan.summed_size[plan.summed] = block;
    plan.summed_stride[plan.summed++] = 1;
  }
  plan.columns = M / plan.elements;
  // Neighbouring threads read neighbouring columns: of the next element, or of the same one.
  plan.lanes = count > 0 && groups[count - 1].stride == 1 ? 32 : 1;
  const int64_t per_chunk = int64_t{kReduceThreads / plan.lanes} * kSumsPerThread;
  plan.chunks = (plan.columns + per_chunk - 1) / per_chunk;
  return plan;
}

}  // namespace fused_lif::cuda
