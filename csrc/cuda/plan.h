// How work is cut into threads, blocks and kernels: pure functions of sizes and of the device, so
// that they can be tested without one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace fused_lif::cuda {

struct Device {
  int index;
  int capability;  // compute capability: 90 for 9.0; less if the kernels were compiled for less
  int multiprocessors;
  int64_t shared_memory;  // bytes that a block can have at most
};

// ---- sequences ----

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
// `fits(columns)` says whether threads can take so many.
template <typename Fits>
LaunchPlan plan_sequence(
    bool is_backward,
    int64_t M,
    int64_t element_bytes,
    Neuron neuron,
    Reset reset,
    const Device& device,
    const Fits& fits) {
  constexpr int64_t kWarp = 32, kEnoughThreads = 128;  // per multiprocessor
  const int narrow = narrow_columns(element_bytes);
  int wide = narrow;
  if (has_wide_kernel(neuron, reset))
    wide = is_backward ? wide_backward_columns(element_bytes) : wide_forward_columns(element_bytes);
  const auto can_take = [&](int columns) { return M % columns == 0 && fits(columns); };
  int columns = 1;
  if (M >= wide * kEnoughThreads * device.multiprocessors && can_take(wide))
    columns = wide;
  else if (can_take(narrow))
    columns = narrow;
  const int64_t max_threads = is_backward ? kBackwardThreads : kForwardThreads;
  const int64_t threads_each = M / columns / device.multiprocessors / kWarp * kWarp;
  return {columns, static_cast<int>(std::clamp<int64_t>(threads_each, kWarp, max_threads))};
}

inline constexpr int kListUnit = 8;  // what a list of inputs or senders is read in

// ---- sums over the weights of the input ----

inline constexpr int kFlags = 32, kFlagThreads = 256;  // blocks that look for infinite weights
inline constexpr int kSumThreads = 128, kSumRows = 8;  // neurons and rows of a block

// ---- recurrent layers, one kernel per step ----

inline constexpr int kPointwiseThreads = 128;  // of kernels that take one step of a recurrent layer

// ---- recurrent layers in clusters of blocks ----

// A block owns so many neurons, which it computes, of every batch row of its cluster, and so many
// threads per row. The hardware guarantees clusters of eight blocks.
inline constexpr int kClusterColumns = 64, kMaxClusterBlocks = 8;
inline constexpr int kMaxClusterNeurons = kClusterColumns * kMaxClusterBlocks;
inline constexpr int kForwardRows = 16, kBackwardRows = 8;  // at most
inline constexpr int kBackwardSplits = 8;  // parts of the sum over receivers, a thread for each
inline constexpr int kClusterBackwardThreads = kClusterColumns * kBackwardSplits;
inline constexpr int kSpikeWord = 32;

FUSED_LIF_HD constexpr int cluster_blocks(int64_t H) {
  return static_cast<int>((H + kClusterColumns - 1) / kClusterColumns);
}
// Receivers that a thread of the backward sums over: 16, 32 or 64.
FUSED_LIF_HD constexpr int backward_slice(int64_t H) {
  return H <= 16 * kBackwardSplits ? 16 : H <= 32 * kBackwardSplits ? 32 : 64;
}

// Dynamic shared memory of a block, in bytes.
FUSED_LIF_HD constexpr int64_t list_size(int64_t H) {
  return cluster_blocks(H) * kClusterColumns + kListUnit;
}
constexpr int64_t cluster_forward_bytes(int64_t H, int64_t rows) {
  const int64_t weights = 4 * (H + 1) * kClusterColumns, warps = 2 * rows;
  const int64_t spikes = 2 * rows * cluster_blocks(H) * (kClusterColumns / 8);
  return weights + spikes + warps * (2 * list_size(H) + 4);
}
constexpr int64_t cluster_backward_bytes(int64_t H, int64_t rows, int64_t segment) {
  const int64_t grads = 2 * rows * backward_slice(H) * kBackwardSplits;
  return 4 * (grads + rows * kClusterColumns * (kBackwardSplits + 2 * segment));
}

// Batch rows per cluster, or 0 if matrix products are to be used. Rows of a cluster take little
// more time than one; more clusters than fit on the device at once wait for each other. Clusters
// must lie within a group of multiprocessors, and not all of these are whole: an eighth is left
// unused. `segment` is that of the backward, 0 for the forward.
inline int cluster_rows(
    int64_t T,
    int64_t B,
    int64_t H,
    bool is_double,
    int64_t segment,
    const Device& device) {
  constexpr int64_t kFewSteps = 8;  // do not pay for loading the weights
  if (device.capability < 90 || is_double || H > kMaxClusterNeurons || B * H == 0 || T < kFewSteps)
    return 0;
  int64_t rows = segment == 0 ? kForwardRows : kBackwardRows;
  const auto bytes = [&] {
    return segment == 0 ? cluster_forward_bytes(H, rows) : cluster_backward_bytes(H, rows, segment);
  };
  while (rows > 0 && bytes() > device.shared_memory) --rows;
  if (rows == 0) return 0;
  const int64_t clusters =
      std::max(1, device.multiprocessors * 7 / 8 / cluster_blocks(H));  // at once
  const int64_t waves = (B + clusters * rows - 1) / (clusters * rows);
  return static_cast<int>((B + clusters * waves - 1) / (clusters * waves));
}

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
