// What the operators (lif_*.cpp) hand to the loops (sequence.inc, recurrent.inc). The loops are
// compiled once per instruction set and include no header of torch or of the C++ library but this
// one's: an inline function compiled for AVX-512 must not end up in code that runs on an older
// machine.
#pragma once

#include <cstdint>

#include "../lif_step.h"
#include "../problem.h"
#include "../surrogate.h"

namespace fused_lif::cpu {

// Columns are worked on in units of at most kTile. Rows of 1024 floats keep a page of memory busy
// for every time step; narrower strips touch one cache line per page.
inline constexpr int64_t kTile = 1024;
inline constexpr int64_t kMaxLanes = 16;
inline constexpr int64_t kMaxBlock = 64;  // columns of the backward's scratch rows

// A constant of the neuron: column m has values[m / inner % period]. inner = M for a scalar,
// 1 for one value per neuron, H * W for [C, 1, 1]. kMaxLanes numbers behind the last can be read.
struct Constant {
  const void* values;
  int64_t inner;
  int64_t period;
};

// Whether all rows of H columns have the same values.
static inline bool repeats_every_row(const Constant& c, int64_t H) {
  return c.period == 1 || H % (c.inner * c.period) == 0;
}

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
  Method method;
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
  Method method;
  double dt;
  bool detach_reset, flush_denormals, stream_grad_x;
};

// A row of n numbers that are all zero or one is packed into packed_size(n) words: the number of
// ones, and behind it bit j % 64 of word j / 64 for column j. kNotSpikes stands for the number in a
// row that has others.
inline constexpr int64_t kWord = 64;
inline constexpr uint64_t kNotSpikes = ~uint64_t{0};
static constexpr int64_t packed_size(int64_t n) { return 1 + (n + kWord - 1) / kWord; }

// A recurrent layer: H neurons in each of B batch rows. Columns are m = b * H + h. Weights lie in
// rows of `ld` numbers, padded with zeros. The loops ask `allocate` once per call for memory that
// is aligned to 64 bytes and theirs until the call ends.
struct RecurrentForward {
  int64_t t0, t1, B, I, H, ld;
  Sequence input;                           // [T, B * I], each row of I numbers contiguous
  const void* input_weights;                // [I, ld], transposed
  const void* recurrent_weights;            // [H, ld], transposed
  bool always_dense;                        // a weight is not finite: 0 times it must show
  const void *input_sums, *recurrent_sums;  // [B, H]: if given, instead of sums over weights
  const void *z0, *v0, *i0;                 // [B, H]
  Constant constants[kNumConstants];
  void *out, *v, *i;
  void* i_jump;                            // [T, B, H]; this and the next may be null: not needed
  uint64_t *input_spikes, *hidden_spikes;  // of [T, B] rows, packed
  void* states;  // [2, T, B, H] if interval is 1, else [1, rows, B, H]: the potential only
  int64_t T, rows, interval;
  Method method;
  bool flush_denormals;
  void* (*allocate)(int64_t bytes);
};

struct RecurrentBackward {
  int64_t T, B, H, ld;
  Sequence grad_out;
  const void *i_jump, *v0, *i0, *states;
  int64_t rows, interval, segment;
  const void* recurrent_weights;  // [H, ld], not transposed
  Constant constants[kNumConstants];
  const void *grad_v, *grad_i, *grad_states;  // may be null: zero
  void* grad_x;                               // [T, B, H], in the type of the computation
  void* grad_z0;                              // may be null: not needed
  void *grad_v0, *grad_i0;
  GradSum sums[kNumGrads];
  int64_t unit_rows;  // batch rows whose gradients of constants are summed together
  Method method;
  double dt;
  bool detach_reset, flush_denormals;
  void* (*allocate)(int64_t bytes);
};

// The gradient of an input: grad times weights.
struct InputGrad {
  int64_t H, I, ld;
  const void* grad;     // [rows, H]
  const void* weights;  // [H, ld]
  void* to;             // [rows, I]
  bool stream;          // around the caches
  void* (*allocate)(int64_t bytes);
};

// The gradient of weights [H, I], transposed: to[k] = sum over rows of grad[r] where column k of
// row r is a spike.
struct WeightGrad {
  int64_t rows, I, H, ld;
  const void* grad;        // [rows, H]
  const uint64_t* spikes;  // [rows, packed_size(I)]
  void* to;                // [I, ld]
  void* (*allocate)(int64_t bytes);
};

// The loops of one instruction set. [begin, end) are columns, or batch rows if recurrent; a call
// needs kScratchBytes of scratch memory, aligned to 64 bytes.
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
  void (*recurrent_forward)(
      const RecurrentForward& args,
      Reset reset,
      DType dtype,
      int64_t begin,
      int64_t end);
  void (*recurrent_backward)(
      const RecurrentBackward& args,
      Reset reset,
      bool constant_grads,
      DType dtype,
      int64_t begin,
      int64_t end);
  // Packs the rows [begin, end) of x, [T, B * n].
  void (*pack_spikes)(
      const Sequence& x,
      DType dtype,
      int64_t B,
      int64_t n,
      int64_t begin,
      int64_t end,
      uint64_t* spikes);
  void (*input_grad)(const InputGrad& args, bool is_double, int64_t begin, int64_t end);
  void (*weight_grad)(const WeightGrad& args, bool is_double, int64_t begin, int64_t end);
  // to[c * ld + r] = from[r * stride + c] for c in [begin, end).
  void (*transpose)(
      bool is_double,
      const void* from,
      int64_t stride,
      int64_t rows,
      int64_t begin,
      int64_t end,
      void* to,
      int64_t ld);
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
