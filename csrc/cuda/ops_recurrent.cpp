// Operators of recurrent layers on CUDA: one kernel for all time steps where the layer fits a
// cluster of blocks (choose_cluster in plan.h), otherwise matrix products with a kernel per time
// step between them, all on one stream, so that a CUDA graph can capture them.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../macros.h"
#include "tensors.h"

namespace fused_lif::cuda {
namespace {

// A tensor in the type of the computation, as a matrix [rows, columns].
Tensor as_matrix(const Tensor& t, ScalarType type, int64_t rows, int64_t columns) {
  return torch::stable::reshape(
      t.scalar_type() == type ? t : torch::stable::to(t, type), {rows, columns});
}

Tensor transposed(const Tensor& weights, ScalarType type) {
  return torch::stable::transpose(
      weights.scalar_type() == type ? weights : torch::stable::to(weights, type), 0, 1);
}

// Row t of [T, M] numbers of `bytes` each.
void* at_step(const Tensor& t, int64_t step, int64_t M, int64_t bytes) {
  return static_cast<std::byte*>(t.data_ptr()) + step * M * bytes;
}

// Rows of step t of a matrix [T * B, columns].
Tensor rows_at(Tensor matrix, int64_t t, int64_t B) {
  return torch::stable::narrow(matrix, 0, t * B, B);
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs lif_recurrent_forward_cuda(
    Tensor input,  // [T, *batch, I], or [*batch, I] for a single step
    Tensor z,      // [*batch, H], as v and i
    Tensor v,
    Tensor i,
    Tensor input_weights,      // [H, I]
    Tensor recurrent_weights,  // [H, H]
    Tensor tau_syn_inv,        // this and the following broadcast to [*batch, H]
    Tensor tau_mem_inv,
    Tensor v_leak,
    Tensor v_th,
    Tensor v_reset,
    double dt,
    bool soft_reset,
    bool exact,
    int64_t state_interval,
    bool needs_grad) {
  const char* op = "lif_recurrent_forward";
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     std::nullopt};
  check_recurrent_forward(
      op, input, z, v, i, input_weights, recurrent_weights, constants, exact, state_interval);
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const Layer layer(input, v);
  const int64_t T = layer.T, B = layer.B, H = layer.H, M = layer.M;
  const int64_t I = input.size(input.dim() - 1);
  const bool has_time = input.dim() > v.dim();
  Call call(op, input);
  const ConstantSet set(call, layer.step, constants);

  const ScalarType type = compute_type(input.scalar_type());
  const std::vector<int64_t> none = {0};
  Tensor out = call.empty(layer.sequence(has_time), input.scalar_type());
  Tensor v_end = call.empty(layer.step, type), i_end = call.empty(layer.step, type);
  Tensor x = call.empty(layer.sequence(has_time), type);  // W_in input, then i_jump
  Tensor states = call.empty(layer.states(state_interval), type);

  const Tensor input_rows = as_matrix(input, type, T * B, I);
  const Tensor from_input = transposed(input_weights, type);
  const Tensor from_hidden = transposed(recurrent_weights, type);
  Tensor x_rows = torch::stable::reshape(x, {T * B, H});
  if (M > 0 && !exact) matrix_product(x_rows, input_rows, from_input);

  const Tensor z0 = as_matrix(z, type, B, H);
  const int cluster_rows =
      exact ? 0
            : choose_cluster(
                  T, B, H, type == ScalarType::Double, kForwardRows, call.device.capability,
                  call.device.multiprocessors, call.device.shared_memory,
                  [&](int64_t rows) { return cluster_forward_bytes(H, rows); });
  if (cluster_rows > 0) {
    ClusterForward args{};
    args.T = T;
    args.B = B;
    args.H = H;
    args.x = x.data_ptr();
    args.weights = call.data(from_hidden);
    args.z0 = call.data(z0);
    args.v0 = call.data(v);
    args.i0 = call.data(i);
    set.copy_to(args.constants);
    args.dt = dt;
    args.out = out.data_ptr();
    args.dtype = to_dtype(out.scalar_type());
    args.v = v_end.data_ptr();
    args.i = i_end.data_ptr();
    args.i_jump = needs_grad ? x.data_ptr() : nullptr;
    args.states = states.data_ptr();
    args.rows = rows_of(T, state_interval);
    args.interval = state_interval;
    launch_cluster_forward(args, reset, cluster_rows, call.stream);
  } else if (M > 0) {
    Tensor r = call.empty({B, H}, type), out_rows = torch::stable::reshape(out, {T * B, H});
    const bool same_type = input.scalar_type() == type;
    const Tensor z_converted = same_type ? r : call.empty({B, H}, type);
    Tensor z_t = z0;
    const int64_t rows = rows_of(T, state_interval);
    const int64_t bytes = x.element_size(), out_bytes = out.element_size();
    RecurrentStepForward args{};
    args.M = M;
    args.r = r.data_ptr();
    args.v_before = call.data(v);
    args.i_before = call.data(i);
    set.copy_to(args.constants);
    args.dt = dt;
    args.z = same_type ? nullptr : z_converted.data_ptr();
    args.v = v_end.data_ptr();
    args.i = i_end.data_ptr();
    for (int64_t t = 0; t < T; ++t) {
      if (exact) {
        Tensor x_t = rows_at(x_rows, t, B);
        matrix_product(x_t, rows_at(input_rows, t, B), from_input);
      }
      matrix_product(r, z_t, from_hidden);
      args.x = at_step(x, t, M, bytes);
      args.out = at_step(out, t, M, out_bytes);
      args.i_jump = needs_grad ? at_step(x, t, M, bytes) : nullptr;
      const bool keeps = rows > 0 && (t + 1) % state_interval == 0 && t / state_interval < rows;
      args.kept_v = keeps ? at_step(states, t / state_interval, M, bytes) : nullptr;
      args.kept_i = state_interval == 1 ? at_step(states, T + t, M, bytes) : nullptr;
      launch_recurrent_step_forward(args, reset, to_dtype(out.scalar_type()), call.stream);
      args.v_before = args.v;
      args.i_before = args.i;
      z_t = same_type ? rows_at(out_rows, t, B) : z_converted;
    }
  }
  return {
      out,
      v_end,
      i_end,
      needs_grad ? x : call.empty(none, type),
      states,
      call.empty(none, ScalarType::Long),
      call.empty(none, ScalarType::Long)};
}

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Grads lif_recurrent_backward_cuda(
    std::optional<Tensor> grad_out,     // [T, *step]
    std::optional<Tensor> grad_v,       // [*step]
    std::optional<Tensor> grad_i,       // [*step]
    std::optional<Tensor> grad_states,  // [2, T, *step]
    Tensor i_jump,                      // [T, *step]
    Tensor states,                      // [1, rows, *step] or [2, T, *step]
    Tensor v,                           // [*step], initial
    Tensor recurrent_weights,           // [H, H]
    Tensor tau_syn_inv,
    Tensor tau_mem_inv,
    Tensor v_leak,
    Tensor v_th,
    Tensor v_reset,
    Tensor alpha,
    double dt,
    bool soft_reset,
    int64_t state_interval,
    int64_t method,
    bool detach_reset,
    int64_t needs_bits) {
  const char* op = "lif_recurrent_backward";
  const Surrogate surrogate = check_surrogate(op, method);
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_recurrent_backward(
      op, grad_out, grad_v, grad_i, grad_states, i_jump, states, v, recurrent_weights, constants,
      state_interval);
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const Needs needs = {needs_bits};
  const Layer layer(i_jump, v);
  const int64_t T = layer.T, B = layer.B, H = layer.H, M = layer.M;
  Call call(op, i_jump);
  const ConstantSet set(call, layer.step, constants);

  const ScalarType type = i_jump.scalar_type();
  const DType dtype = to_dtype(type);
  const int64_t bytes = i_jump.element_size();
  Tensor grad_x = call.empty(to_vector(i_jump.sizes()), type);
  Tensor grad_z0 = call.empty(needs.first() ? layer.step : std::vector<int64_t>{0}, type);
  Tensor grad_v0 = call.empty(layer.step, type), grad_i0 = call.empty(layer.step, type);
  ConstantSums sums(call, constants, needs, M, type);

  const int64_t segment = std::min(state_interval > 1 ? state_interval : kMaxSegment, T);
  const Tensor weights = as_matrix(recurrent_weights, type, H, H);
  Tensor grad_x_rows = torch::stable::reshape(grad_x, {T * B, H});
  const int cluster_rows = choose_cluster(
      T, B, H, type == ScalarType::Double, kBackwardRows, call.device.capability,
      call.device.multiprocessors, call.device.shared_memory,
      [&](int64_t rows) { return cluster_backward_bytes(H, rows, segment); });
  if (cluster_rows > 0) {
    ClusterBackward args{};
    args.T = T;
    args.B = B;
    args.H = H;
    args.grad_out = call.data(grad_out);
    args.dtype = grad_out ? to_dtype(grad_out->scalar_type()) : dtype;
    args.i_jump = call.data(i_jump);
    args.v0 = call.data(v);
    args.states = call.data(states);
    args.interval = std::max<int64_t>(state_interval, 1);
    args.segment = segment;
    args.weights = call.data(weights);
    set.copy_to(args.constants);
    args.dt = dt;
    args.grad_v = call.data(grad_v);
    args.grad_i = call.data(grad_i);
    args.grad_states = call.data(grad_states);
    args.grad_x = grad_x.data_ptr();
    args.grad_v0 = grad_v0.data_ptr();
    args.grad_i0 = grad_i0.data_ptr();
    std::copy_n(sums.sums, kNumGrads, args.sums);
    args.surrogate = surrogate;
    args.detach_reset = detach_reset;
    launch_cluster_backward(args, reset, cluster_rows, call.stream);
  } else if (M > 0) {
    const Tensor potentials = call.empty({segment, M}, type);
    const Tensor& currents = call.keep(dense(i_jump));
    const Tensor& kept = call.keep(dense(states));
    const std::byte* grad_out_data = static_cast<const std::byte*>(call.data(grad_out));
    const std::byte* grad_states_data = static_cast<const std::byte*>(call.data(grad_states));
    const int64_t out_bytes = grad_out ? grad_out->element_size() : bytes;
    Tensor grad_z = call.empty({B, H}, type);

    RecurrentPotentials recompute{};
    recompute.M = M;
    recompute.dt = dt;
    recompute.potentials = potentials.data_ptr();
    set.copy_to(recompute.constants);
    RecurrentStepBackward args{};
    args.M = M;
    args.grad_v_after = call.data(grad_v);
    args.grad_i_after = call.data(grad_i);
    set.copy_to(args.constants);
    args.dt = dt;
    args.grad_v = grad_v0.data_ptr();
    args.grad_i = grad_i0.data_ptr();
    std::copy_n(sums.sums, kNumGrads, args.sums);
    args.is_first = true;
    args.surrogate = surrogate;
    args.detach_reset = detach_reset;
    for (int64_t t = T - 1, t0 = T; t >= 0; --t) {
      if (t < t0) {  // the last step of a segment
        t0 = t / segment * segment;
        recompute.steps = t - t0 + 1;
        recompute.i_jump = at_step(currents, t0, M, bytes);
        recompute.v = t0 == 0
                          ? call.data(v)
                          : at_step(kept, t0 / std::max<int64_t>(state_interval, 1) - 1, M, bytes);
        launch_recurrent_potentials(recompute, reset, dtype, call.stream);
      }
      if (t + 1 < T) {
        matrix_product(grad_z, rows_at(grad_x_rows, t + 1, B), weights);
        args.grad_z = grad_z.data_ptr();
      }
      if (grad_out) args.grad_out = grad_out_data + t * M * out_bytes;
      if (grad_states) {
        args.grad_kept_v = grad_states_data + t * M * bytes;
        args.grad_kept_i = grad_states_data + (T + t) * M * bytes;
      }
      args.potential = at_step(potentials, t - t0, M, bytes);
      args.i_jump = at_step(currents, t, M, bytes);
      args.grad_x = at_step(grad_x, t, M, bytes);
      launch_recurrent_step_backward(
          args, reset, grad_out ? to_dtype(grad_out->scalar_type()) : dtype, call.stream);
      args.grad_v_after = args.grad_v;
      args.grad_i_after = args.grad_i;
      args.is_first = false;
    }
  }
  if (needs.first() && M > 0) {
    Tensor to = torch::stable::reshape(grad_z0, {B, H});
    matrix_product(to, rows_at(grad_x_rows, 0, B), weights);
  }
  sums.finish(call, set, dt);
  return {
      grad_x,
      grad_z0,
      grad_v0,
      grad_i0,
      sums.grads[kTauSynInv],
      sums.grads[kTauMemInv],
      sums.grads[kVLeak],
      sums.grads[kVTh],
      sums.grads[kVReset]};
}

Tensor weight_grad_cuda(
    Tensor grad,                  // [*rows, H]
    std::optional<Tensor> input,  // [*rows, I]
    std::optional<Tensor> spikes,
    int64_t columns) {  // I
  const char* op = "weight_grad";
  check_weight_grad(op, grad, input, columns);
  if (!input || spikes) fail(op, ": CUDA takes input, not packed spikes");
  const ScalarType type = grad.scalar_type();
  const std::vector<int64_t> sizes = to_vector(grad.sizes());
  const int64_t rows = product(sizes, 0, sizes.size() - 1), H = sizes.back();
  Call call(op, grad);
  Tensor result = call.empty({H, columns}, type);
  matrix_product(
      result, torch::stable::transpose(as_matrix(grad, type, rows, H), 0, 1),
      as_matrix(*input, type, rows, columns));
  return result;
}

Tensor input_grad_cuda(Tensor grad /* [*rows, H] */, Tensor weights /* [H, I] */) {
  const char* op = "input_grad";
  check_input_grad(op, grad, weights);
  const ScalarType type = grad.scalar_type();
  std::vector<int64_t> sizes = to_vector(grad.sizes());
  const int64_t rows = product(sizes, 0, sizes.size() - 1), H = sizes.back(), I = weights.size(1);
  sizes.back() = I;
  Call call(op, grad);
  Tensor result = call.empty(sizes, type);
  Tensor result_rows = torch::stable::reshape(result, {rows, I});
  matrix_product(result_rows, as_matrix(grad, type, rows, H), as_matrix(weights, type, H, I));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSED_LIF_LIBRARY, FUSED_LIF_CUDA_KEY, m) {
  m.impl("lif_recurrent_forward", TORCH_BOX(&lif_recurrent_forward_cuda));
  m.impl("lif_recurrent_backward", TORCH_BOX(&lif_recurrent_backward_cuda));
  m.impl("weight_grad", TORCH_BOX(&weight_grad_cuda));
  m.impl("input_grad", TORCH_BOX(&input_grad_cuda));
}

}  // namespace fused_lif::cuda
