// Plain data that describe one call to the loops of every device. No header of torch.
#pragma once

#include <cstdint>

namespace fused_lif {

enum class DType : int64_t { kFloat, kDouble, kHalf, kBFloat16 };

// Index of a constant; the order of LIFParameters.
enum {
  kTauSynInv,
  kTauMemInv,
  kVLeak,
  kVTh,
  kVReset,
  kNumGrads,
  kAlpha = kNumGrads,
  kNumConstants
};

inline constexpr int64_t kMaxSegment = 32;  // time steps that the backward recomputes at once

// A sequence [T, M] in memory: element (t, m) is data[t * stride_t + m / row * stride_row + m %
// row]. A contiguous one has row = M; stride_t = 0 repeats one step; a batch-first [B, T, N] has
// row = N.
struct Sequence {
  const void* data;
  int64_t row;
  int64_t stride_row;
  int64_t stride_t;
};

// One group of adjacent dimensions of a step that a constant has too: `size` values, each `stride`
// columns from the next. Column m has the value m / stride % size.
struct Group {
  int64_t size;
  int64_t stride;
};

}  // namespace fused_lif
