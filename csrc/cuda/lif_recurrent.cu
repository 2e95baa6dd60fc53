// Kernels of one time step of a recurrent layer, between two matrix products: for every size of
// layer and every device. A thread takes one column.
#include "constants.cuh"
#include "launch.h"
#include "plan.h"

namespace fused_lif::cuda {
namespace {

template <typename S>
__device__ __forceinline__ void store_if(void* to, int64_t m, S value) {
  if (to != nullptr) static_cast<S*>(to)[m] = value;
}

template <typename IO, Reset kReset>
__global__ void __launch_bounds__(kPointwiseThreads)
    lif_recurrent_step_forward_kernel(const RecurrentStepForward args) {
  using S = Compute<IO>;
  const int64_t m = first_column(1);
  if (m >= args.M) return;
  Constants<S> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  State<S> state = {
      static_cast<const S*>(args.v_before)[m], static_cast<const S*>(args.i_before)[m]};
  const auto step = recurrent_step_forward<kReset>(
      static_cast<const S*>(args.x)[m], static_cast<const S*>(args.r)[m], state, c[0]);
  const S z = step.v_decayed > c[0].v_th ? S(1) : S(0);
  static_cast<IO*>(args.out)[m] = to_io<IO>(z);
  static_cast<S*>(args.v)[m] = state.v;
  static_cast<S*>(args.i)[m] = state.i;
  store_if(args.z, m, z);
  store_if(args.i_jump, m, step.i_jump);
  store_if(args.kept_v, m, state.v);
  store_if(args.kept_i, m, state.i);
}

template <typename S, Reset kReset>
__global__ void __launch_bounds__(kPointwiseThreads)
    lif_recurrent_forward_potentials_kernel(const RecurrentPotentials args) {
  const int64_t m = first_column(1);
  if (m >= args.M) return;
  Constants<S> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  State<S> state = {static_cast<const S*>(args.v)[m], S(0)};
  const S* i_jump = static_cast<const S*>(args.i_jump) + m;
  S* potentials = static_cast<S*>(args.potentials) + m;
#pragma unroll 4
  for (int64_t t = 0; t < args.steps; ++t) {
    potentials[t * args.M] = state.v;
    step_from_jump<Neuron::kLIF, kReset>(i_jump[t * args.M], state, c[0]);
  }
}

template <typename IO, Reset kReset>
__global__ void __launch_bounds__(kPointwiseThreads)
    lif_recurrent_step_backward_kernel(const RecurrentStepBackward args) {
  using S = Compute<IO>;
  const int64_t m = first_column(1);
  if (m >= args.M) return;
  Constants<S> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  const Constant& alpha = args.constants[kAlpha];
  State<S> before = {static_cast<const S*>(args.potential)[m], S(0)};
  const auto step =
      step_from_jump<Neuron::kLIF, kReset>(static_cast<const S*>(args.i_jump)[m], before, c[0]);
  S surrogate = S(0);
  visit_surrogate(args.surrogate, [&]<Surrogate kSurrogate>() {
    surrogate = surrogate_grad<kSurrogate>(
        step.v_decayed - c[0].v_th, value_of<S>(alpha, element_of(alpha, m), 1.0));
  });
  State<S> grad = {
      load_or_zero<S>(args.grad_v_after, m) + load_or_zero<S>(args.grad_kept_v, m),
      load_or_zero<S>(args.grad_i_after, m) + load_or_zero<S>(args.grad_kept_i, m)};
  S grad_out = load_or_zero<S>(args.grad_z, m);
  if (args.grad_out != nullptr)
    grad_out = to_compute<S>(static_cast<const IO*>(args.grad_out)[m]) + grad_out;
  ConstantGrads<S> sums = {};
  static_cast<S*>(args.grad_x)[m] = step_backward<Neuron::kLIF, kReset, true>(
      step, grad_out, surrogate, args.detach_reset, grad, sums, c[0]);
  static_cast<S*>(args.grad_v)[m] = grad.v;
  static_cast<S*>(args.grad_i)[m] = grad.i;
  for_each_sum<Neuron::kLIF>(sums, [&](int constant, S sum) {
    S* const to = static_cast<S*>(args.sums[constant]);
    if (to != nullptr) to[m] = args.is_first ? sum : to[m] + sum;
  });
}

LaunchShape pointwise(int64_t M) {
  return {blocks_for(M, {1, kPointwiseThreads}), dim3(kPointwiseThreads)};
}

}  // namespace

void launch_recurrent_step_forward(
    const RecurrentStepForward& args,
    Reset reset,
    DType dtype,
    Stream stream) {
  visit_reset(reset, [&]<Reset kReset>() {
    visit_dtype(dtype, [&]<typename IO>(IO) {
      launch(
          "lif_recurrent_step_forward_kernel", lif_recurrent_step_forward_kernel<IO, kReset>,
          pointwise(args.M), stream, args);
    });
  });
}

void launch_recurrent_potentials(
    const RecurrentPotentials& args,
    Reset reset,
    DType dtype,
    Stream stream) {
  visit_reset(reset, [&]<Reset kReset>() {
    const auto run = [&](auto kernel) {
      launch("lif_recurrent_forward_potentials_kernel", kernel, pointwise(args.M), stream, args);
    };
    if (dtype == DType::kDouble)
      run(lif_recurrent_forward_potentials_kernel<double, kReset>);
    else
      run(lif_recurrent_forward_potentials_kernel<float, kReset>);
  });
}

void launch_recurrent_step_backward(
    const RecurrentStepBackward& args,
    Reset reset,
    DType dtype,
    Stream stream) {
  visit_reset(reset, [&]<Reset kReset>() {
    visit_dtype(dtype, [&]<typename IO>(IO) {
      launch(
          "lif_recurrent_step_backward_kernel", lif_recurrent_step_backward_kernel<IO, kReset>,
          pointwise(args.M), stream, args);
    });
  });
}

}  // namespace fused_lif::cuda
