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

template <Spike kSpike, typename IO, Reset kReset>
__global__ void __launch_bounds__(kPointwiseThreads)
    lif_recurrent_step_forward_kernel(const RecurrentStepForward args) {
  using S = Compute<IO>;
  const int64_t m = first_column(1);
  if (m >= args.M) return;
  Constants<S> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  if constexpr (kSpike == Spike::kSmooth) load_alpha(args.constants, m, c);
  State<S> state = {
      static_cast<const S*>(args.v_before)[m], static_cast<const S*>(args.i_before)[m]};
  const auto step = recurrent_step_forward<kReset, kSpike>(
      static_cast<const S*>(args.x)[m], static_cast<const S*>(args.r)[m], state, c[0],
      args.method.surrogate);
  static_cast<IO*>(args.out)[m] = to_io<IO>(step.z);
  static_cast<S*>(args.v)[m] = state.v;
  static_cast<S*>(args.i)[m] = state.i;
  store_if(args.z, m, step.z);
  store_if(args.i_jump, m, step.i_jump);
  store_if(args.kept_v, m, state.v);
  store_if(args.kept_i, m, state.i);
}

template <Spike kSpike, typename S, Reset kReset>
__global__ void __launch_bounds__(kPointwiseThreads)
    lif_recurrent_forward_potentials_kernel(const RecurrentPotentials args) {
  const int64_t m = first_column(1);
  if (m >= args.M) return;
  Constants<S> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  if constexpr (kSpike == Spike::kSmooth) load_alpha(args.constants, m, c);
  State<S> state = {static_cast<const S*>(args.v)[m], S(0)};
  const S* i_jump = static_cast<const S*>(args.i_jump) + m;
  S* potentials = static_cast<S*>(args.potentials) + m;
#pragma unroll(kSpike == Spike::kSmooth ? 1 : 4)
  for (int64_t t = 0; t < args.steps; ++t) {
    potentials[t * args.M] = state.v;
    step_from_jump<Neuron::kLIF, kReset, kSpike>(
        i_jump[t * args.M], state, c[0], args.method.surrogate);
  }
}

template <Spike kSpike, typename IO, Reset kReset>
__global__ void __launch_bounds__(kPointwiseThreads)
    lif_recurrent_step_backward_kernel(const RecurrentStepBackward args) {
  using S = Compute<IO>;
  const int64_t m = first_column(1);
  if (m >= args.M) return;
  Constants<S> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  if constexpr (kSpike == Spike::kSmooth) load_alpha(args.constants, m, c);
  State<S> before = {static_cast<const S*>(args.potential)[m], S(0)};
  const auto step = step_from_jump<Neuron::kLIF, kReset, kSpike>(
      static_cast<const S*>(args.i_jump)[m], before, c[0], args.method.surrogate);
  S surrogate = S(0);
  if constexpr (kSpike != Spike::kEvent)
    visit_surrogate(args.method.surrogate, [&]<Surrogate kSurrogate>() {
      if constexpr (kSpike == Spike::kStep) load_alpha(args.constants, m, c);
      surrogate = surrogate_grad<kSurrogate>(step.v_decayed - c[0].v_th, c[0].alpha);
    });
  State<S> grad = {
      load_or_zero<S>(args.grad_v_after, m) + load_or_zero<S>(args.grad_kept_v, m),
      load_or_zero<S>(args.grad_i_after, m) + load_or_zero<S>(args.grad_kept_i, m)};
  S grad_out = load_or_zero<S>(args.grad_z, m);
  if (args.grad_out != nullptr)
    grad_out = to_compute<S>(static_cast<const IO*>(args.grad_out)[m]) + grad_out;
  ConstantGrads<S> sums = {};
  S grad_x;
  if constexpr (kSpike == Spike::kEvent) {
    S current = S(0);  // before the input
    if (args.method.is_adjoint) {
      const S* i_jump = static_cast<const S*>(args.i_jump_before);
      current = i_jump == nullptr ? static_cast<const S*>(args.i0)[m]
                                  : i_jump[m] - c[0].dt_tau_syn_inv * i_jump[m];
    }
    S* const grad_next = static_cast<S*>(args.grad_next) + m;
    grad_x = event_backward<Neuron::kLIF, kReset>(
        args.method, step, current, grad_out, args.is_last ? grad_out : *grad_next,
        static_cast<S>(args.dt), grad, sums, c[0]);
    *grad_next = grad_out;
  } else {
    grad_x = step_backward<Neuron::kLIF, kReset, true, kSpike>(
        step, grad_out, surrogate, args.detach_reset, grad, sums, c[0]);
  }
  static_cast<S*>(args.grad_x)[m] = grad_x;
  static_cast<S*>(args.grad_v)[m] = grad.v;
  static_cast<S*>(args.grad_i)[m] = grad.i;
  for_each_sum<Neuron::kLIF>(sums, [&](int constant, S sum) {
    S* const to = static_cast<S*>(args.sums[constant]);
    if (to != nullptr) to[m] = args.is_last ? sum : to[m] + sum;
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
      visit_spike<IO, Neuron::kLIF, false>(args.method.spike, [&]<Spike kSpike>() {
        launch(
            "lif_recurrent_step_forward_kernel",
            lif_recurrent_step_forward_kernel<kSpike, IO, kReset>, pointwise(args.M), stream, args);
      });
    });
  });
}

void launch_recurrent_potentials(
    const RecurrentPotentials& args,
    Reset reset,
    DType dtype,
    Stream stream) {
  visit_reset(reset, [&]<Reset kReset>() {
    const auto run = [&]<typename S>(S) {
      visit_spike<S, Neuron::kLIF, false>(args.method.spike, [&]<Spike kSpike>() {
        launch(
            "lif_recurrent_forward_potentials_kernel",
            lif_recurrent_forward_potentials_kernel<kSpike, S, kReset>, pointwise(args.M), stream,
            args);
      });
    };
    if (dtype == DType::kDouble)
      run(double());
    else
      run(float());
  });
}

void launch_recurrent_step_backward(
    const RecurrentStepBackward& args,
    Reset reset,
    DType dtype,
    Stream stream) {
  visit_reset(reset, [&]<Reset kReset>() {
    visit_dtype(dtype, [&]<typename IO>(IO) {
      visit_spike<IO, Neuron::kLIF, true>(args.method.spike, [&]<Spike kSpike>() {
        launch(
            "lif_recurrent_step_backward_kernel",
            lif_recurrent_step_backward_kernel<kSpike, IO, kReset>, pointwise(args.M), stream,
            args);
      });
    });
  });
}

}  // namespace fused_lif::cuda
