// Operators of recurrent layers on the CPU: check and describe the arguments, allocate, and run the
// loops of recurrent.inc over batch rows with torch's own threads.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../arguments.h"
#include "weights.h"

namespace fused_lif::cpu {
namespace {

int64_t rows_with_work(const Layer& layer) { return layer.H == 0 ? 0 : layer.B; }

// Batch rows whose gradients of constants are summed together. Depends on the shape alone, and
// divides the rows that the loops take at a time: results do not depend on the number of threads.
int64_t unit_rows(int64_t B) { return B >= 64 ? 8 : B >= 32 ? 4 : B >= 16 ? 2 : 1; }

// ---- forward ----

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename S>
Outputs forward_as(
    const Tensor& input,
    const Tensor& z,
    const Tensor& v,
    const Tensor& i,
    const Tensor& input_weights,
    const Tensor& recurrent_weights,
    ConstantTensors constants,
    double dt,
    Reset reset,
    bool exact,
    int64_t interval,
    Method method,
    bool needs_grad) {
  constexpr ScalarType kType = kScalarType<S>;
  const Layer layer(input, v);
  const bool has_time = input.dim() > v.dim();
  const Shape input_shape(input, v.dim());
  const ConstantSet<S> set("lif_recurrent_forward", layer.step, constants, dt);
  const Tensor z0 = dense(z), v0 = dense(v), i0 = dense(i);

  Tensor out = new_empty(layer.sequence(has_time), input.scalar_type());
  Tensor v_end = new_empty(layer.step, kType), i_end = new_empty(layer.step, kType);
  Tensor i_jump = new_empty(needs_grad ? layer.sequence(has_time) : std::vector<int64_t>{0}, kType);
  Tensor states = new_empty(layer.states(interval), kType);
  const bool smooth = method.spike == Spike::kSmooth;
  const bool packs = needs_grad && !exact && !smooth;
  const int64_t I = input_shape.step.back();
  Tensor input_spikes = new_packed(packs, to_vector(input.sizes()));
  Tensor hidden_spikes = new_packed(packs, to_vector(out.sizes()));

  RecurrentForward args{};
  args.T = args.t1 = layer.T;
  args.B = layer.B;
  args.I = I;
  args.H = layer.H;
  args.ld = padded<S>(layer.H);
  args.z0 = z0.data_ptr();
  args.v0 = v0.data_ptr();
  args.i0 = i0.data_ptr();
  std::copy(std::begin(set.constants), std::end(set.constants), args.constants);
  args.out = out.data_ptr();
  args.v = v_end.data_ptr();
  args.i = i_end.data_ptr();
  if (needs_grad) args.i_jump = i_jump.data_ptr();
  if (packs) {
    args.input_spikes = static_cast<uint64_t*>(input_spikes.data_ptr());
    args.hidden_spikes = static_cast<uint64_t*>(hidden_spikes.data_ptr());
  }
  args.states = states.data_ptr();
  args.rows = rows_of(layer.T, interval);
  args.interval = interval;
  args.method = method;
  args.flush_denormals = set.flush_denormals;
  args.allocate = &scratch;
  const Kernels& kernels = current_kernels();
  const DType dtype = to_dtype(input.scalar_type());
  const auto run = [&](int64_t work) {
    parallel(rows_with_work(layer), 1, work, [&](int64_t begin, int64_t end) {
      kernels.recurrent_forward(args, reset, dtype, begin, end);
    });
  };

  if (!exact) {
    Tensor dense_input;
    args.input = describe_sequence(input, input_shape, dense_input);
    std::atomic<bool> finite = true;
    const Tensor from_input = lay_out<S>(input_weights, true, args.ld, finite);
    const Tensor from_hidden = lay_out<S>(recurrent_weights, true, args.ld, finite);
    args.always_dense = !finite || smooth;
    args.input_weights = from_input.data_ptr();
    args.recurrent_weights = from_hidden.data_ptr();
    // A guess: one input in sixteen is a spike.
    run(layer.T * args.ld * (8 + (I + layer.H) / 16));
    return {out, v_end, i_end, i_jump, states, input_spikes, hidden_spikes};
  }
  const Tensor from_input = torch::stable::transpose(input_weights, 0, 1);
  const Tensor from_hidden = torch::stable::transpose(recurrent_weights, 0, 1);
  Tensor input_rows = torch::stable::reshape(input, {layer.T, layer.B, I});
  Tensor out_rows = torch::stable::reshape(out, {layer.T, layer.B, layer.H});
  Tensor z_t = torch::stable::reshape(z0, {layer.B, layer.H});
  for (int64_t t = 0; t < layer.T; ++t) {
    const Tensor x_t = torch::stable::select(input_rows, 0, t);
    const Tensor input_sums = matrix_product(x_t, from_input);
    const Tensor recurrent_sums = matrix_product(z_t, from_hidden);
    args.input_sums = input_sums.data_ptr();
    args.recurrent_sums = recurrent_sums.data_ptr();
    args.t0 = t;
    args.t1 = t + 1;
    run(8 * args.ld);
    args.v0 = args.v;
    args.i0 = args.i;
    z_t = torch::stable::select(out_rows, 0, t);
  }
  return {out, v_end, i_end, i_jump, states, input_spikes, hidden_spikes};
}

Outputs lif_recurrent_forward_cpu(
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
  const bool is_double = compute_type(input.scalar_type()) == ScalarType::Double;
  const auto run = is_double ? &forward_as<double> : &forward_as<float>;
  return run(
      input, z, v, i, input_weights, recurrent_weights, constants, dt, reset, exact, state_interval,
      m, needs_grad);
}

// ---- backward ----

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename S>
Grads backward_as(
    const std::optional<Tensor>& grad_out,
    const std::optional<Tensor>& grad_v,
    const std::optional<Tensor>& grad_i,
    const std::optional<Tensor>& grad_states,
    const Tensor& i_jump,
    const Tensor& states,
    const Tensor& v,
    const Tensor& i,
    const Tensor& recurrent_weights,
    ConstantTensors constants,
    double dt,
    Reset reset,
    int64_t interval,
    Method method,
    bool detach_reset,
    Needs needs) {
  constexpr ScalarType kType = kScalarType<S>;
  const Layer layer(i_jump, v);
  const Shape shape(i_jump, v.dim());
  const ConstantSet<S> set("lif_recurrent_backward", layer.step, constants, dt);

  std::vector<Tensor> alive;  // dense copies, as long as the loops run
  const auto data_of = [&](const std::optional<Tensor>& t) -> const void* {
    if (!t) return nullptr;
    alive.push_back(dense(*t));
    return alive.back().data_ptr();
  };
  std::vector<std::byte> zeros;

  RecurrentBackward args{};
  args.T = layer.T;
  args.B = layer.B;
  args.H = layer.H;
  args.ld = padded<S>(layer.H);
  if (grad_out) {
    alive.emplace_back();
    args.grad_out = describe_sequence(*grad_out, shape, alive.back());
  } else {
    zeros.resize(layer.M * sizeof(double));
    args.grad_out = {zeros.data(), std::max<int64_t>(layer.M, 1), 0, 0};
  }
  args.i_jump = data_of(i_jump);
  args.v0 = data_of(v);
  args.i0 = data_of(i);
  args.states = data_of(states);
  args.rows = rows_of(layer.T, interval);
  args.interval = std::max<int64_t>(interval, 1);
  args.segment = std::min(interval > 1 ? interval : kMaxSegment, layer.T);
  std::atomic<bool> finite;  // does not matter: backward's products are dense
  const Tensor weights = lay_out<S>(recurrent_weights, false, args.ld, finite);
  args.recurrent_weights = weights.data_ptr();
  std::copy(std::begin(set.constants), std::end(set.constants), args.constants);
  args.grad_v = data_of(grad_v);
  args.grad_i = data_of(grad_i);
  args.grad_states = data_of(grad_states);
  args.method = method;
  args.dt = dt;
  args.detach_reset = detach_reset;
  args.flush_denormals = set.flush_denormals;
  args.allocate = &scratch;

  const std::vector<int64_t> none = {0};
  Tensor grad_x = new_empty(to_vector(i_jump.sizes()), kType);
  Tensor grad_z0 = new_empty(needs.first() ? layer.step : none, kType);
  Tensor grad_v0 = new_empty(layer.step, kType), grad_i0 = new_empty(layer.step, kType);
  args.grad_x = grad_x.data_ptr();
  args.grad_z0 = needs.first() ? grad_z0.data_ptr() : nullptr;
  args.grad_v0 = grad_v0.data_ptr();
  args.grad_i0 = grad_i0.data_ptr();

  // Rows are summed together where all of them have the same constants.
  bool shared = true;
  for (int k = 0; k < kNumGrads; ++k)
    shared = shared && repeats_every_row(args.constants[k], layer.H);
  args.unit_rows = shared ? unit_rows(layer.B) : 1;
  const int64_t unit = args.unit_rows * std::max<int64_t>(layer.H, 1);
  PartialSums<S> sums[kNumGrads];
  const auto has_grad = [&](int k) { return needs.constant(k); };
  for (int k = 0; k < kNumGrads; ++k)
    if (has_grad(k)) args.sums[k] = sums[k].prepare(set.layout(k), layer.M, unit);

  const Kernels& kernels = current_kernels();
  const DType dtype = to_dtype(grad_out ? grad_out->scalar_type() : kType);
  const bool constant_grads = needs.any_constant();
  parallel(
      rows_with_work(layer), args.unit_rows, layer.T * args.ld * (8 + layer.H),
      [&](int64_t b0, int64_t b1) {
        kernels.recurrent_backward(args, reset, constant_grads, dtype, b0, b1);
      });

  Tensor grads[kNumGrads];
  for (int k = 0; k < kNumGrads; ++k) {
    if (!has_grad(k)) {
      grads[k] = new_empty(none, kType);
      continue;
    }
    grads[k] = new_empty(to_vector(constants[k]->sizes()), constants[k]->scalar_type());
    const double factor = k == kTauSynInv || k == kTauMemInv ? dt : 1.0;
    sums[k].finish(args.sums[k], set.layout(k), layer.M, unit, factor, grads[k]);
  }
  return {grad_x, grad_z0, grad_v0, grad_i0, grads[0], grads[1], grads[2], grads[3], grads[4]};
}

Grads lif_recurrent_backward_cpu(
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
    int64_t needs) {
  const char* op = "lif_recurrent_backward";
  const Method m = check_method(op, method, smooth, i_jump.scalar_type());
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_recurrent_backward(
      op, grad_out, grad_v, grad_i, grad_states, i_jump, states, v, i, recurrent_weights, constants,
      state_interval);
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const bool is_double = i_jump.scalar_type() == ScalarType::Double;
  const auto run = is_double ? &backward_as<double> : &backward_as<float>;
  return run(
      grad_out, grad_v, grad_i, grad_states, i_jump, states, v, i, recurrent_weights, constants, dt,
      reset, state_interval, m, detach_reset, {needs});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_lif, CPU, m) {
  m.impl("lif_recurrent_forward", TORCH_BOX(&lif_recurrent_forward_cpu));
  m.impl("lif_recurrent_backward", TORCH_BOX(&lif_recurrent_backward_cpu));
}

}  // namespace fused_lif::cpu
