// Operators on the CPU: check and describe the arguments, allocate, and run the loops of
// sequence.inc over the columns (neurons of all batch rows) with torch's own threads.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../arguments.h"
#include "capability.h"
#include "tensors.h"

namespace fused_lif::cpu {
namespace {

// Work that is worth a thread, in neuron-steps: some 30 us. Loading and storing a neuron's state
// and constants costs as much as kLoadSteps steps.
constexpr int64_t kGrain = 65536;
constexpr int64_t kLoadSteps = 4;

// Columns per unit: sums of gradients are cut at units, and threads take whole units. Depends on
// the shape alone, so that results do not depend on the number of threads.
int64_t unit_of(int64_t M) {
  int64_t unit = 256;
  while (unit < 8 * kTile && 64 * unit <= M) unit *= 2;  // at least 32 of them, if possible
  return unit;
}

template <typename F>
void parallel_over_columns(int64_t T, int64_t M, const F& f) {
  const int64_t unit = unit_of(M), units = (M + unit - 1) / unit;
  const int64_t grain = std::max<int64_t>(1, kGrain / (unit * (T + kLoadSteps)));
  if (units == 0) return;
  if (units <= grain) return f(0, M);
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    f(begin * unit, std::min(M, end * unit));
  });
}

// ---- forward ----

template <typename S>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_as(
    const Tensor& x,
    const Tensor& v,
    const std::optional<Tensor>& i,
    ConstantTensors constants,
    double dt,
    Neuron neuron,
    Reset reset,
    int64_t interval,
    Method method) {
  const char* op = "lif_forward";
  const Shape shape(x, v.dim());
  const int64_t T = shape.T, M = shape.M;
  const bool synapse = has_synapse(neuron);
  const Tensor v0 = dense(v);
  const Tensor i0 = synapse ? dense(*i) : v0;
  const ConstantSet<S> set(op, shape.step, constants, dt);

  const int64_t rows = rows_of(T, interval);
  Tensor out = new_empty(to_vector(x.sizes()), x.scalar_type());
  Tensor v_end = new_empty(shape.step, kScalarType<S>);
  Tensor i_end = new_empty(synapse ? shape.step : std::vector<int64_t>{0}, kScalarType<S>);
  Tensor states = new_empty(shape.states(synapse, rows), kScalarType<S>);

  Tensor dense_x;
  Forward args{};
  args.T = T;
  args.M = M;
  args.x = describe_sequence(x, shape, dense_x);
  args.v0 = v0.data_ptr();
  args.i0 = i0.data_ptr();
  std::copy(std::begin(set.constants), std::end(set.constants), args.constants);
  args.out = out.data_ptr();
  args.v = v_end.data_ptr();
  args.i = i_end.data_ptr();
  args.states = states.data_ptr();
  args.rows = rows;
  args.interval = interval;
  args.method = method;
  args.flush_denormals = set.flush_denormals;
  const Kernels& kernels = current_kernels();
  const DType dtype = to_dtype(x.scalar_type());
  parallel_over_columns(T, M, [&](int64_t begin, int64_t end) {
    kernels.forward(args, neuron, reset, dtype, begin, end, scratch(kScratchBytes));
  });
  return {out, v_end, i_end, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lif_forward_cpu(
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
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_sequence(op, x, v, i, constants, n, smooth, state_interval);
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const bool is_double = x.scalar_type() == ScalarType::Double;
  const auto run = is_double ? &forward_as<double> : &forward_as<float>;
  return run(x, v, i, constants, dt, n, reset, state_interval, m);
}

// ---- backward ----

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename S>
Grads backward_as(
    const std::optional<Tensor>& grad_out,
    const std::optional<Tensor>& grad_v,
    const std::optional<Tensor>& grad_i,
    const std::optional<Tensor>& grad_states,
    const Tensor& x,
    const Tensor& states,
    const Tensor& v,
    const std::optional<Tensor>& i,
    ConstantTensors constants,
    double dt,
    Neuron neuron,
    Reset reset,
    int64_t interval,
    Method method,
    bool detach_reset,
    Needs needs) {
  const char* op = "lif_backward";
  const Shape shape(x, v.dim());
  const int64_t T = shape.T, M = shape.M;
  const bool synapse = has_synapse(neuron);
  constexpr ScalarType kType = kScalarType<S>;
  const ConstantSet<S> set(op, shape.step, constants, dt);

  std::vector<Tensor> alive;  // dense copies, as long as the loops run
  const auto data_of = [&](const std::optional<Tensor>& t) -> const void* {
    if (!t) return nullptr;
    alive.push_back(dense(*t));
    return alive.back().data_ptr();
  };
  const auto sequence_of = [&](const Tensor& t) {
    alive.emplace_back();
    return describe_sequence(t, shape, alive.back());
  };
  std::vector<std::byte> zeros;

  Backward args{};
  args.T = T;
  args.M = M;
  args.x = sequence_of(x);
  if (grad_out) {
    args.grad_out = sequence_of(*grad_out);
  } else {
    zeros.resize(M * sizeof(double));
    args.grad_out = {zeros.data(), std::max<int64_t>(M, 1), 0, 0};
  }
  args.v0 = data_of(v);
  args.i0 = data_of(i);
  args.states = data_of(states);
  args.rows = rows_of(T, interval);
  args.interval = std::max<int64_t>(interval, 1);
  args.segment = interval > 1 ? interval : kMaxSegment;
  std::copy(std::begin(set.constants), std::end(set.constants), args.constants);
  args.grad_v = data_of(grad_v);
  args.grad_i = data_of(grad_i);
  args.grad_states = data_of(grad_states);
  args.method = method;
  args.dt = dt;
  args.detach_reset = detach_reset;
  args.flush_denormals = set.flush_denormals;
  args.unit = unit_of(M);

  const std::vector<int64_t> none = {0};
  Tensor grad_x = new_empty(needs.first() ? to_vector(x.sizes()) : none, x.scalar_type());
  args.grad_x = needs.first() ? grad_x.data_ptr() : nullptr;
  args.stream_grad_x = needs.first() && size_of(grad_x) >= kStreamBytes;
  Tensor grad_v0 = new_empty(shape.step, kType);
  Tensor grad_i0 = new_empty(synapse ? shape.step : none, kType);
  args.grad_v0 = grad_v0.data_ptr();
  args.grad_i0 = grad_i0.data_ptr();
  PartialSums<S> sums[kNumGrads];
  const auto has_grad = [&](int k) { return needs.constant(k) && constants[k]; };
  for (int k = 0; k < kNumGrads; ++k)
    if (has_grad(k)) args.sums[k] = sums[k].prepare(set.layout(k), M, args.unit);

  const Kernels& kernels = current_kernels();
  const DType dtype = to_dtype(x.scalar_type());
  const bool constant_grads = needs.any_constant();
  parallel_over_columns(T, M, [&](int64_t begin, int64_t end) {
    kernels.backward(
        args, neuron, reset, constant_grads, dtype, begin, end, scratch(kScratchBytes));
  });

  Tensor grads[kNumGrads];
  for (int k = 0; k < kNumGrads; ++k) {
    if (!has_grad(k)) {
      grads[k] = new_empty(none, kType);
      continue;
    }
    grads[k] = new_empty(to_vector(constants[k]->sizes()), constants[k]->scalar_type());
    const double factor = k == kTauSynInv || k == kTauMemInv ? dt : 1.0;
    sums[k].finish(args.sums[k], set.layout(k), M, args.unit, factor, grads[k]);
  }
  return {grad_x, grad_v0, grad_i0, grads[0], grads[1], grads[2], grads[3], grads[4]};
}

Grads lif_backward_cpu(
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
    int64_t needs) {
  const char* op = "lif_backward";
  const Neuron n = check_neuron(op, neuron);
  const Method m = check_method(op, method, smooth, x.scalar_type());
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  check_sequence(op, x, v, i, constants, n, true, state_interval);
  const Shape shape(x, v.dim());
  check_states(
      op, grad_v, grad_i, grad_states, states, v, x,
      shape.states(has_synapse(n), rows_of(shape.T, state_interval)), shape.T, state_interval);
  if (grad_out) check_tensor(op, "grad_out", *grad_out, x.sizes(), x.scalar_type(), x);
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const bool is_double = x.scalar_type() == ScalarType::Double;
  const auto run = is_double ? &backward_as<double> : &backward_as<float>;
  return run(
      grad_out, grad_v, grad_i, grad_states, x, states, v, i, constants, dt, n, reset,
      state_interval, m, detach_reset, {needs});
}

Tensor surrogate_grad_cpu(Tensor s, int64_t method, double alpha) {
  const Surrogate surrogate = check_surrogate("surrogate_grad", method);
  const ScalarType type = s.scalar_type();
  if (!(type == ScalarType::Float || type == ScalarType::Double))
    fail("surrogate_grad: s must be float32 or float64");
  const Tensor elements = dense(s);
  Tensor out = new_empty(to_vector(s.sizes()), type);
  const float alpha32 = static_cast<float>(alpha);
  const bool is_double = type == ScalarType::Double;
  const void* a = is_double ? static_cast<const void*>(&alpha) : &alpha32;
  current_kernels().surrogate_grad(
      surrogate, is_double, elements.data_ptr(), a, elements.numel(), out.data_ptr());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_lif, CPU, m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward_cpu));
  m.impl("lif_backward", TORCH_BOX(&lif_backward_cpu));
  m.impl("surrogate_grad", TORCH_BOX(&surrogate_grad_cpu));
}

}  // namespace fused_lif::cpu
