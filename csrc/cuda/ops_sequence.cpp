// Operators on CUDA: check and describe the arguments, allocate, choose how wide the kernels work,
// and launch them. No value is read on the host.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../macros.h"
#include "tensors.h"

namespace fused_lif::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> lif_forward_cuda(
    Tensor x,                           // [T, *step], or [*step] for a single step
    Tensor v,                           // [*step]
    std::optional<Tensor> i,            // [*step]
    std::optional<Tensor> tau_syn_inv,  // this and the following broadcast to [*step]
    Tensor tau_mem_inv,
    Tensor v_leak,
    std::optional<Tensor> v_th,
    std::optional<Tensor> v_reset,
    std::optional<Tensor> alpha,
    double dt,
    int64_t neuron,
    bool soft_reset,
    int64_t state_interval,
    int64_t method,
    bool smooth) {
  const char* op = "lif_forward";
  const Neuron n = check_neuron(op, neuron);
  const Method m = check_method(op, method, smooth, x.scalar_type());
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_sequence(op, x, v, i, constants, n, smooth, state_interval);
  const Shape shape(x, v.dim());
  check_steps(op, shape.T);
  Call call(op, x);
  const ConstantSet set(call, shape.step, constants);

  const ScalarType type = compute_type(x.scalar_type());
  const int64_t rows = rows_of(shape.T, state_interval);
  Tensor out = call.empty(to_vector(x.sizes()), x.scalar_type());
  Tensor v_end = call.empty(shape.step, type);
  Tensor i_end = call.empty(has_synapse(n) ? shape.step : std::vector<int64_t>{0}, type);
  Tensor states = call.empty(shape.states(has_synapse(n), rows), type);

  SequenceForward args{};
  args.T = shape.T;
  args.M = shape.M;
  args.x = call.sequence(x, shape);
  args.v0 = call.data(v);
  args.i0 = call.data(i);
  set.copy_to(args.constants);
  args.dt = dt;
  args.out = out.data_ptr();
  args.v = v_end.data_ptr();
  args.i = i_end.data_ptr();
  args.states = states.data_ptr();
  args.rows = rows;
  args.interval = state_interval;
  args.method = m;
  const int64_t bytes = x.element_size();
  const LaunchPlan plan = plan_sequence(
      false, args.M, bytes, n, reset, call.device,
      [&](int64_t columns) { return fits_columns(args.x, bytes, columns) && set.fits(columns); });
  launch_lif_forward(args, n, reset, to_dtype(x.scalar_type()), plan, call.stream);
  return {out, v_end, i_end, states};
}

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Grads lif_backward_cuda(
    std::optional<Tensor> grad_out,     // [T, *step]
    std::optional<Tensor> grad_v,       // [*step]
    std::optional<Tensor> grad_i,       // [*step]
    std::optional<Tensor> grad_states,  // [2, T, *step]
    Tensor x,                           // [T, *step]
    Tensor states,                      // [2, rows, *step]
    Tensor v,                           // [*step], initial
    std::optional<Tensor> i,            // [*step], initial
    std::optional<Tensor> tau_syn_inv,
    Tensor tau_mem_inv,
    Tensor v_leak,
    std::optional<Tensor> v_th,
    std::optional<Tensor> v_reset,
    std::optional<Tensor> alpha,
    double dt,
    int64_t neuron,
    bool soft_reset,
    int64_t state_interval,
    int64_t method,
    bool smooth,
    bool detach_reset,
    int64_t needs_bits) {
  const char* op = "lif_backward";
  const Neuron n = check_neuron(op, neuron);
  const Method m = check_method(op, method, smooth, x.scalar_type());
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const Needs needs = {needs_bits};
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_sequence(op, x, v, i, constants, n, true, state_interval);
  const Shape shape(x, v.dim());
  check_steps(op, shape.T);
  check_states(
      op, grad_v, grad_i, grad_states, states, v, x,
      shape.states(has_synapse(n), rows_of(shape.T, state_interval)), shape.T, state_interval);
  if (grad_out) check_tensor(op, "grad_out", *grad_out, x.sizes(), x.scalar_type(), x);
  Call call(op, x);
  const ConstantSet set(call, shape.step, constants);

  const ScalarType type = compute_type(x.scalar_type());
  const std::vector<int64_t> none = {0};
  Tensor grad_x = call.empty(needs.first() ? to_vector(x.sizes()) : none, x.scalar_type());
  Tensor grad_v0 = call.empty(shape.step, type);
  Tensor grad_i0 = call.empty(has_synapse(n) ? shape.step : none, type);
  ConstantSums sums(call, constants, needs, shape.M, type);

  SequenceBackward args{};
  args.T = shape.T;
  args.M = shape.M;
  args.x = call.sequence(x, shape);
  if (grad_out) args.grad_out = call.sequence(*grad_out, shape);
  args.v0 = call.data(v);
  args.i0 = call.data(i);
  args.states = call.data(states);
  args.rows = rows_of(shape.T, state_interval);
  args.interval = std::max<int64_t>(state_interval, 1);
  args.segment = std::min(state_interval > 1 ? state_interval : kMaxSegment, shape.T);
  set.copy_to(args.constants);
  args.dt = dt;
  args.grad_v = call.data(grad_v);
  args.grad_i = call.data(grad_i);
  args.grad_states = call.data(grad_states);
  args.grad_x = needs.first() ? grad_x.data_ptr() : nullptr;
  args.grad_v0 = grad_v0.data_ptr();
  args.grad_i0 = grad_i0.data_ptr();
  std::copy_n(sums.sums, kNumGrads, args.sums);
  args.method = m;
  args.detach_reset = detach_reset;
  const int64_t bytes = x.element_size();
  const LaunchPlan plan =
      plan_sequence(true, args.M, bytes, n, reset, call.device, [&](int64_t columns) {
        return fits_columns(args.x, bytes, columns) && set.fits(columns) &&
               (!grad_out || fits_columns(args.grad_out, bytes, columns));
      });
  launch_lif_backward(args, n, reset, to_dtype(x.scalar_type()), plan, call.stream);
  sums.finish(call, set, dt);
  return {
      grad_x,
      grad_v0,
      grad_i0,
      sums.grads[kTauSynInv],
      sums.grads[kTauMemInv],
      sums.grads[kVLeak],
      sums.grads[kVTh],
      sums.grads[kVReset]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSED_LIF_LIBRARY, FUSED_LIF_CUDA_KEY, m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward_cuda));
  m.impl("lif_backward", TORCH_BOX(&lif_backward_cuda));
}

}  // namespace fused_lif::cuda
