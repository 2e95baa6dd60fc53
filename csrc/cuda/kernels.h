// What the operators (ops_*.cpp) hand to the kernels (*.cu): sizes, raw pointers to memory of the
// device, and how a launch is shaped. No header of torch or of CUDA.
#pragma once

#include <cstdint>

#include "../lif_step.h"
#include "../problem.h"

struct CUstream_st;  // what a cudaStream_t points to

namespace fused_lif::cuda {

using Stream = CUstream_st*;

inline constexpr int kMaxGroups = 4;

// A constant of the neuron, of any floating type. The element of column m is found by counting
// through the groups of dimensions that it has: m / stride[g] % size[g].
struct Constant {
  const void* values;
  DType dtype;
  int groups;
  int64_t size[kMaxGroups];
  int64_t stride[kMaxGroups];
};

struct SequenceForward {
  int64_t T, M;
  Sequence x;
  const void *v0, *i0;
  Constant constants[kNumConstants];
  double dt;
  void *out, *v, *i;
  void* states;  // [2, rows, M] (v and i; no i without synapse): states after step interval * (row
                 // + 1) - 1
  int64_t rows, interval;
  Method method;
};

struct SequenceBackward {
  int64_t T, M;
  Sequence x, grad_out;  // data of grad_out may be null: zero
  const void *v0, *i0, *states;
  int64_t rows, interval, segment;
  Constant constants[kNumConstants];
  double dt;
  const void *grad_v, *grad_i, *grad_states;  // may be null: zero
  void* grad_x;                               // may be null: not needed
  void *grad_v0, *grad_i0;
  void* sums[kNumGrads];  // [M]: gradients of the constants per column; may be null: not needed
  Method method;
  bool detach_reset;
};

// x = W_in input for all rows, of any time step and batch.
struct InputSums {
  int64_t rows, I, H;
  const void* input;    // [rows, I]
  const void* weights;  // [I, H], transposed, in the type of the computation, as x
  uint32_t* infinite;   // [kFlags], memory to work with
  void* sums;           // x, [rows, H]
};

// One time step of a recurrent layer, given both sums over weights. All tensors are [M].
struct RecurrentStepForward {
  int64_t M;
  const void *x, *r;                // W_in input and W_rec z
  const void *v_before, *i_before;  // may be v and i
  Constant constants[kNumConstants];
  double dt;
  void* out;
  void* z;  // out in the type of the computation; null if that is its own
  void *v, *i;
  void* i_jump;           // may be x; null if not needed
  void *kept_v, *kept_i;  // null if the state is not kept
  Method method;
};

// Potentials before each of some time steps, from the currents after the input. [steps, M]
struct RecurrentPotentials {
  int64_t steps, M;
  const void* i_jump;
  const void* v;  // [M], before the first of them
  Constant constants[kNumConstants];
  double dt;
  void* potentials;
  Method method;
};

// The reverse of one time step. All tensors are [M].
struct RecurrentStepBackward {
  int64_t M;
  const void* grad_out;                     // null: zero
  const void* grad_z;                       // W_rec^T grad_x of the step after; null: zero
  const void *grad_v_after, *grad_i_after;  // may be grad_v and grad_i; null: zero
  const void *grad_kept_v, *grad_kept_i;    // gradients of the recorded state; null: zero
  const void *potential, *i_jump;           // before the step, and after its input
  const void *i0, *i_jump_before;  // initial, and of the step before; null: this is the first
  void* grad_next;                 // for events: dL/dz of the step after, becomes that of this one
  Constant constants[kNumConstants];
  double dt;
  void* grad_x;
  void *grad_v, *grad_i;
  void* sums[kNumGrads];  // gradients of the constants per column; null: not needed
  bool is_last;           // of all steps, the first to be reversed: sums start from zero
  Method method;
  bool detach_reset;
};

// A recurrent layer over all time steps, given x = W_in input. Of float32, with spikes of `dtype`.
struct ClusterForward {
  int64_t T, B, H;
  const void* x;             // [T, B, H]
  const void* weights;       // [H, H], transposed: a row of each sender
  const void *z0, *v0, *i0;  // [B, H]
  Constant constants[kNumConstants];
  double dt;
  void* out;
  DType dtype;
  void *v, *i;
  void* i_jump;  // may be x; null if not needed
  void* states;  // [2, T, B, H] if interval is 1, else [1, rows, B, H]: the potential only
  int64_t rows, interval;
};

struct ClusterBackward {
  int64_t T, B, H;
  const void* grad_out;  // of `dtype`; may be null: zero
  DType dtype;
  const void *i_jump, *v0, *i0, *states;
  int64_t interval, segment;
  const void* weights;  // [H, H], not transposed
  Constant constants[kNumConstants];
  double dt;
  const void *grad_v, *grad_i, *grad_states;  // may be null: zero
  void* grad_x;
  void *grad_v0, *grad_i0;
  void* sums[kNumGrads];
  Method method;
  bool detach_reset;
};

// The gradient of one constant from its sums per column: element e is `factor` times the sum over
// all columns that have it. The first of these is found by counting e through the dimensions that
// the constant has, `kept`, and the others by counting through those that it does not have,
// `summed`.
struct ConstantGrad {
  const void* sums;  // [M]
  bool sums_are_double;
  void* grad;  // [elements] of `dtype`; if there are several chunks: [chunks, elements] of double
  DType dtype;
  double factor;
  int64_t elements, columns;  // columns of each element
  int kept, summed;           // groups of dimensions, the last one counts first
  int64_t kept_size[kMaxGroups], kept_stride[kMaxGroups];
  int64_t summed_size[kMaxGroups + 1], summed_stride[kMaxGroups + 1];
  int lanes;       // elements that a block works on
  int64_t chunks;  // parts that the columns are cut into
};

// How many adjacent columns a thread takes, and threads per block.
struct LaunchPlan {
  int columns;
  int threads;
};

// ---- lif_forward.cu, lif_backward.cu ----

void launch_lif_forward(
    const SequenceForward& args,
    Neuron neuron,
    Reset reset,
    DType dtype,
    LaunchPlan plan,
    Stream stream);
void launch_lif_backward(
    const SequenceBackward& args,
    Neuron neuron,
    Reset reset,
    DType dtype,
    LaunchPlan plan,
    Stream stream);

// ---- constant_grads.cu ----

// Of at most kNumGrads constants.
void launch_constant_grads(const ConstantGrad* grads, int count, Stream stream);

// ---- input_sums.cu ----

// `dtype` is that of the input.
void launch_input_sums(const InputSums& args, DType dtype, Stream stream);

// ---- lif_recurrent.cu ----

void launch_recurrent_step_forward(
    const RecurrentStepForward& args,
    Reset reset,
    DType dtype,
    Stream stream);
void launch_recurrent_potentials(
    const RecurrentPotentials& args,
    Reset reset,
    DType dtype,
    Stream stream);
void launch_recurrent_step_backward(
    const RecurrentStepBackward& args,
    Reset reset,
    DType dtype,
    Stream stream);

// ---- lif_cluster.cu ----

// One of the kernels, to ask CUDA what it was compiled for.
const void* cluster_kernel();

// `rows`: batch rows of a cluster, from cluster_rows in plan.h.
void launch_cluster_forward(const ClusterForward& args, Reset reset, int rows, Stream stream);
void launch_cluster_backward(const ClusterBackward& args, Reset reset, int rows, Stream stream);

}  // namespace fused_lif::cuda
