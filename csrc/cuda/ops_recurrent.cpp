// Operators of recurrent layers on CUDA: one kernel for all time steps where the layer fits a
// cluster of blocks (cluster_rows in plan.h), otherwise matrix products with a kernel per time
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

// Row t of a tensor of M numbers per row.
void* at_step(const Tensor& tensor, int64_t t, int64_t M) {
  return static_cast<std::byte*>(tensor.data_ptr()) + t * M * tensor.element_size();
}

// Rows of step t of a matrix [T * B, columns].
Tensor rows_at(Tensor matrix, int64_t t, int64_t B) {
  return torch::stable::narrow(matrix, 0, t * B, B);
}

// ---- forward ----

// What both ways of the forward take; x is W_in input, [T * B, H], and becomes i_jump if needed.
struct ForwardCall {
  Call& call;
  const ConstantSet& set;
  const Layer& layer;
  const Tensor &z, &v, &i;    // z: [B, H]
  const Tensor& from_hidden;  // [H, H], transposed
  Reset reset;
  double dt;
  int64_t interval;
  Method method;
  bool needs_grad;
  Tensor &x, &out, &v_end, &i_end, &states;
};

void forward_by_clusters(const ForwardCall& f, int rows) {
  ClusterForward args{};
  args.T = f.layer.T;
  args.B = f.layer.B;
  args.H = f.layer.H;
  args.x = f.x.data_ptr();
  args.weights = f.call.data(f.from_hidden);
  args.z0 = f.call.data(f.z);
  args.v0 = f.call.data(f.v);
  args.i0 = f.call.data(f.i);
  f.set.copy_to(args.constants);
  args.dt = f.dt;
  args.out = f.out.data_ptr();
  args.dtype = to_dtype(f.out.scalar_type());
  args.v = f.v_end.data_ptr();
  args.i = f.i_end.data_ptr();
  args.i_jump = f.needs_grad ? f.x.data_ptr() : nullptr;
  args.states = f.states.data_ptr();
  args.rows = rows_of(args.T, f.interval);
  args.interval = f.interval;
  launch_cluster_forward(args, f.reset, rows, f.call.stream);
}

// `project(t)` computes row t of x, where that has not been done.
template <typename Project>
void forward_by_steps(const ForwardCall& f, const Project& project) {
  const int64_t T = f.layer.T, B = f.layer.B, H = f.layer.H, M = f.layer.M;
  const ScalarType type = f.x.scalar_type();
  const bool same_type = f.out.scalar_type() == type;
  const int64_t rows = rows_of(T, f.interval);
  Tensor r = f.call.empty({B, H}, type);
  const Tensor out_rows = torch::stable::reshape(f.out, {T * B, H});
  const Tensor z_converted = same_type ? r : f.call.empty({B, H}, type);
  Tensor z = f.z;
  RecurrentStepForward args{};
  args.M = M;
  args.r = r.data_ptr();
  args.v_before = f.call.data(f.v);
  args.i_before = f.call.data(f.i);
  f.set.copy_to(args.constants);
  args.dt = f.dt;
  args.z = same_type ? nullptr : z_converted.data_ptr();
  args.v = f.v_end.data_ptr();
  args.i = f.i_end.data_ptr();
  args.method = f.method;
  for (int64_t t = 0; t < T; ++t) {
    project(t);
    matrix_product(r, z, f.from_hidden);
    args.x = at_step(f.x, t, M);
    args.out = at_step(f.out, t, M);
    args.i_jump = f.needs_grad ? at_step(f.x, t, M) : nullptr;
    const bool keeps = rows > 0 && (t + 1) % f.interval == 0 && t / f.interval < rows;
    args.kept_v = keeps ? at_step(f.states, t / f.interval, M) : nullptr;
    args.kept_i = f.interval == 1 ? at_step(f.states, T + t, M) : nullptr;
    launch_recurrent_step_forward(args, f.reset, to_dtype(f.out.scalar_type()), f.call.stream);
    args.v_before = args.v;
    args.i_before = args.i;
    z = same_type ? rows_at(out_rows, t, B) : z_converted;
  }
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
    std::optional<Tensor> alpha,
    double dt,
    bool soft_reset,
    bool exact,
    int64_t state_interval,
    int64_t method,
    bool smooth,
    bool needs_grad) {
  const char* op = "lif_recurrent_forward";
  const Method m = check_method(op, method, smooth, input.scalar_type());
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_recurrent_forward(
      op, input, z, v, i, input_weights, recurrent_weights, constants, exact, smooth,
      state_interval);
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const Layer layer(input, v);
  check_steps(op, layer.T);
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

  const Tensor from_input = transposed(input_weights, type);
  const Tensor from_hidden = transposed(recurrent_weights, type);
  if (M > 0 && !exact) {
    InputSums args{};
    args.rows = T * B;
    args.I = I;
    args.H = H;
    args.input = call.data(input);
    args.weights = call.data(from_input);
    args.infinite =
        static_cast<uint32_t*>(call.keep(call.empty({kFlags}, ScalarType::Int)).data_ptr());
    args.sums = x.data_ptr();
    launch_input_sums(args, to_dtype(input.scalar_type()), call.stream);
  }

  const Tensor z0 = as_matrix(z, type, B, H);
  const ForwardCall f = {call,           set, layer,      z0, v,   i,     from_hidden, reset, dt,
                         state_interval, m,   needs_grad, x,  out, v_end, i_end,       states};
  const int rows = cluster_rows(T, B, H, type == ScalarType::Double, 0, call.device);
  if (rows > 0 && !exact)
    forward_by_clusters(f, rows);
  else if (M > 0 && !exact)
    forward_by_steps(f, [](int64_t) {});
  else if (M > 0)
    forward_by_steps(
        f, [&, x_rows = as_matrix(x, type, T * B, H),
            input_rows = as_matrix(input, type, T * B, I)](int64_t t) {
          Tensor x_t = rows_at(x_rows, t, B);
          matrix_product(x_t, rows_at(input_rows, t, B), from_input);
        });
  return {
      out,
      v_end,
      i_end,
      needs_grad ? x : call.empty(none, type),
      states,
      call.empty(none, ScalarType::Long),
      call.empty(none, ScalarType::Long)};
}

// ---- backward ----

// What both ways of the backward take.
struct BackwardCall {
  Call& call;
  const ConstantSet& set;
  const Layer& layer;
  const std::optional<Tensor>&grad_out, &grad_v, &grad_i, &grad_states;
  const Tensor &i_jump, &states, &v, &i;
  const Tensor& weights;  // [H, H]
  Reset reset;
  double dt;
  int64_t interval, segment;
  Method method;
  bool detach_reset;
  Tensor &grad_x, &grad_v0, &grad_i0;
  const ConstantSums& sums;

  DType grad_out_type() const {
    return to_dtype(grad_out ? grad_out->scalar_type() : i_jump.scalar_type());
  }
};

void backward_by_clusters(const BackwardCall& f, int rows) {
  ClusterBackward args{};
  args.T = f.layer.T;
  args.B = f.layer.B;
  args.H = f.layer.H;
  args.grad_out = f.call.data(f.grad_out);
  args.dtype = f.grad_out_type();
  args.i_jump = f.call.data(f.i_jump);
  args.v0 = f.call.data(f.v);
  args.i0 = f.call.data(f.i);
  args.states = f.call.data(f.states);
  args.interval = std::max<int64_t>(f.interval, 1);
  args.segment = f.segment;
  args.weights = f.call.data(f.weights);
  f.set.copy_to(args.constants);
  args.dt = f.dt;
  args.grad_v = f.call.data(f.grad_v);
  args.grad_i = f.call.data(f.grad_i);
  args.grad_states = f.call.data(f.grad_states);
  args.grad_x = f.grad_x.data_ptr();
  args.grad_v0 = f.grad_v0.data_ptr();
  args.grad_i0 = f.grad_i0.data_ptr();
  std::copy_n(f.sums.sums, kNumGrads, args.sums);
  args.method = f.method;
  args.detach_reset = f.detach_reset;
  launch_cluster_backward(args, f.reset, rows, f.call.stream);
}

void backward_by_steps(const BackwardCall& f) {
  const int64_t T = f.layer.T, B = f.layer.B, H = f.layer.H, M = f.layer.M;
  const ScalarType type = f.i_jump.scalar_type();
  const Tensor& i_jump = f.call.keep(dense(f.i_jump));
  const Tensor& states = f.call.keep(dense(f.states));
  const Tensor potentials = f.call.empty({f.segment, M}, type);
  const Tensor grad_x_rows = torch::stable::reshape(f.grad_x, {T * B, H});
  Tensor grad_z = f.call.empty({B, H}, type);
  const bool has_events = f.method.spike == Spike::kEvent;
  const Tensor grad_next = f.call.empty({has_events ? M : 0}, type);
  const auto dense_or_none = [&](const std::optional<Tensor>& t) {
    return t ? std::optional<Tensor>(f.call.keep(dense(*t))) : std::nullopt;
  };
  const std::optional<Tensor> grad_out = dense_or_none(f.grad_out);
  const std::optional<Tensor> grad_states = dense_or_none(f.grad_states);

  RecurrentPotentials recompute{};
  recompute.M = M;
  f.set.copy_to(recompute.constants);
  recompute.dt = f.dt;
  recompute.potentials = potentials.data_ptr();
  recompute.method = f.method;
  RecurrentStepBackward args{};
  args.M = M;
  args.grad_v_after = f.call.data(f.grad_v);
  args.grad_i_after = f.call.data(f.grad_i);
  f.set.copy_to(args.constants);
  args.dt = f.dt;
  args.grad_v = f.grad_v0.data_ptr();
  args.grad_i = f.grad_i0.data_ptr();
  std::copy_n(f.sums.sums, kNumGrads, args.sums);
  args.is_last = true;
  args.i0 = f.call.data(f.i);
  args.grad_next = grad_next.data_ptr();
  args.method = f.method;
  args.detach_reset = f.detach_reset;
  for (int64_t t = T - 1, t0 = T; t >= 0; --t) {
    if (t < t0) {  // the last step of a segment
      t0 = t / f.segment * f.segment;
      recompute.steps = t - t0 + 1;
      recompute.i_jump = at_step(i_jump, t0, M);
      recompute.v = t0 == 0 ? f.call.data(f.v)
                            : at_step(states, t0 / std::max<int64_t>(f.interval, 1) - 1, M);
      launch_recurrent_potentials(recompute, f.reset, to_dtype(type), f.call.stream);
    }
    if (!args.is_last) {
      matrix_product(grad_z, rows_at(grad_x_rows, t + 1, B), f.weights);
      args.grad_z = grad_z.data_ptr();
    }
    if (grad_out) args.grad_out = at_step(*grad_out, t, M);
    if (grad_states) {
      args.grad_kept_v = at_step(*grad_states, t, M);
      args.grad_kept_i = at_step(*grad_states, T + t, M);
    }
    args.potential = at_step(potentials, t - t0, M);
    args.i_jump = at_step(i_jump, t, M);
    args.i_jump_before = t > 0 ? at_step(i_jump, t - 1, M) : nullptr;
    args.grad_x = at_step(f.grad_x, t, M);
    launch_recurrent_step_backward(args, f.reset, f.grad_out_type(), f.call.stream);
    args.grad_v_after = args.grad_v;
    args.grad_i_after = args.grad_i;
    args.is_last = false;
  }
}

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Grads lif_recurrent_backward_cuda(
    std::optional<Tensor> grad_out,     // [T, *step]
    std::optional<Tensor> grad_v,       // [*step]
    std::optional<Tensor> grad_i,       // [*step]
    std::optional<Tensor> grad_states,  // [2, T, *step]
    Tensor i_jump,                      // [T, *step]
    Tensor states,                      // [1, rows, *step] or [2, T, *step]
    Tensor v,                           // [*step], initial, as i
    Tensor i,
    Tensor recurrent_weights,  // [H, H]
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
    bool smooth,
    bool detach_reset,
    int64_t needs_bits) {
  const char* op = "lif_recurrent_backward";
  const Method m = check_method(op, method, smooth, i_jump.scalar_type());
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_recurrent_backward(
      op, grad_out, grad_v, grad_i, grad_states, i_jump, states, v, i, recurrent_weights, constants,
      state_interval);
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const Needs needs = {needs_bits};
  const Layer layer(i_jump, v);
  check_steps(op, layer.T);
  const int64_t T = layer.T, B = layer.B, H = layer.H, M = layer.M;
  Call call(op, i_jump);
  const ConstantSet set(call, layer.step, constants);

  const ScalarType type = i_jump.scalar_type();
  Tensor grad_x = call.empty(to_vector(i_jump.sizes()), type);
  Tensor grad_z0 = call.empty(needs.first() ? layer.step : std::vector<int64_t>{0}, type);
  Tensor grad_v0 = call.empty(layer.step, type), grad_i0 = call.empty(layer.step, type);
  ConstantSums sums(call, constants, needs, M, type);

  const Tensor weights = as_matrix(recurrent_weights, type, H, H);
  const int64_t segment = std::min(state_interval > 1 ? state_interval : kMaxSegment, T);
  const BackwardCall f = {call,        set,     layer,          grad_out, grad_v, grad_i,
                          grad_states, i_jump,  states,         v,        i,      weights,
                          reset,       dt,      state_interval, segment,  m,      detach_reset,
                          grad_x,      grad_v0, grad_i0,        sums};
  const int rows = cluster_rows(T, B, H, type == ScalarType::Double, segment, call.device);
  if (rows > 0)
    backward_by_clusters(f, rows);
  else if (M > 0)
    backward_by_steps(f);
  if (needs.first() && M > 0) {
    Tensor to = torch::stable::reshape(grad_z0, {B, H});
    matrix_product(to, rows_at(torch::stable::reshape(grad_x, {T * B, H}), 0, B), weights);
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

// ---- gradients of weights and input ----

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
