// What the operators (lif_sequence.cpp) hand to the loops (kernels.inc). The loops are compiled
// once per instruction set and include no header of torch or of the C++ library but this one's: an
// inline function compiled for AVX-512 must not end up in code that runs on an older machine.
#pragma once

#include <cstdint>

#include "../lif_step.h"
#include "../surrogate.h"

namespace fused_lif::cpu {

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

// Columns are worked on in units of at most kTile. Rows of 1024 floats keep a page of memory busy
// for every time step; narrower strips touch one cache line per page.
inline constexpr int64_t kTile = 1024;
inline constexpr int64_t kMaxLanes = 16;
inline constexpr int64_t kMaxBlock = 64;    // columns of the backward's scratch rows
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

// A constant of the neuron: column m has values[m / inner % period]. inner = M for a scalar,
// 1 for one value per neuron, H * W for [C, 1, 1]. kMaxLanes numbers behind the last can be read.
struct Constant {
  const void* values;
  int64_t inner;
  int64_t period;
};

// Where a unit of columns sums the gradient of a constant up to: slot_of(m) of its own row.
struct GradSum {
  void* partial;  // [units, slots]; null if not needed; the last kMaxLanes slots are padding
  int64_t slots;
  bool wraps;  // slot = index of the value, else relative to the first column of the unit
};

struct Forward {
  int64_t T, M;
  Sequence x;
  const void *v0, *i0;
  Constant constants[kNumConstants];
  void *out, *v, *i;
  void* states;  // [2, rows, M] (v and i; no i without synapse): states after step interval * (row
                 // + 1) - 1
  int64_t rows, interval;
  bool flush_denormals;
};

struct Backward {
  int64_t T, M;
  Sequence x, grad_out;
  const void *v0, *i0, *states;
  int64_t rows, interval, segment;
  Constant constants[kNumConstants];
  const void *grad_v, *grad_i, *grad_states;  // may be null: zero
  void* grad_x;                               // may be null: not needed
  void *grad_v0, *grad_i0;
  GradSum sums[kNumGrads];
  int64_t unit;  // columns; a power of two
  Surrogate surrogate;
  bool detach_reset, flush_denormals, stream_grad_x;
};

// The loops of one instruction set. [begin, end) are columns; a call needs kScratchBytes of scratch
// memory, aligned to 64 bytes.
struct Kernels {
  const char* name;
  void (*forward)(
      const Forward& args,
      Neuron neuron,
      Reset reset,
      DType dtype,
      int64_t begin,
      int64_t end,
      void* scratch);
  void (*backward)(
      const Backward& args,
      Neuron neuron,
      Reset reset,
      bool constant_grads,
      DType dtype,
      int64_t begin,
      int64_t end,
      void* scratch);
  void (*surrogate_grad)(
      Surrogate surrogate,
      bool is_double,
      const void* s,
      const void* alpha,
      int64_t n,
      void* out);
};

inline constexpr int64_t kScratchBytes =
    8 * (15 * (kTile + kMaxLanes) + 5 * kMaxBlock * kMaxSegment);

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace fused_lif::cpu
