// What the operators demand of their arguments, on every device. Constants are checked where they
// are described: groups_of in shapes.h.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"
#include "shapes.h"

namespace fused_lif {

inline void check_interval(const char* op, int64_t interval) {
  if (!(interval >= 0 && interval <= kMaxSegment))
    fail(op, ": state_interval must be between 0 and ", kMaxSegment, ", got ", interval);
}

inline void check_constant(const char* op, int k, const Tensor& constant, const Tensor& x) {
  if (!is_floating(constant.scalar_type()))
    fail(op, ": ", kConstantNames[k], " must be floating-point");
  if (!is_on_device_of(constant, x))
    fail(op, ": ", kConstantNames[k], " must be on the device of x");
}

inline void check_constants(const char* op, ConstantTensors constants, const Tensor& x) {
  for (int k = 0; k < kNumConstants; ++k)
    if (constants[k]) check_constant(op, k, *constants[k], x);
}

// A backward takes alpha, a forward for smooth spikes only.
inline void check_alpha(const char* op, ConstantTensors constants, bool needed) {
  if (constants[kAlpha].has_value() != needed)
    fail(op, needed ? ": alpha must be given" : ": alpha must be given for smooth spikes only");
}

// Of both directions of a sequence.
inline void check_sequence(
    const char* op,
    const Tensor& x,
    const Tensor& v,
    const std::optional<Tensor>& i,
    ConstantTensors constants,
    Neuron neuron,
    bool needs_alpha,
    int64_t interval) {
  check_input(op, x, v);
  const Sizes step(x.sizes().data() + (x.dim() - v.dim()), v.dim());
  const ScalarType state_type = compute_type(x.scalar_type());
  check_tensor(op, "v", v, step, state_type, x);
  if (!(i.has_value() == has_synapse(neuron) &&
        constants[kTauSynInv].has_value() == has_synapse(neuron)))
    fail(op, ": i and tau_syn_inv must be given, except for the current encoder");
  if (i) check_tensor(op, "i", *i, step, state_type, x);
  if (!(constants[kVTh].has_value() == has_threshold(neuron) &&
        constants[kVReset].has_value() == has_threshold(neuron)))
    fail(op, ": v_th and v_reset must be given, except for LI");
  check_alpha(op, constants, has_threshold(neuron) && needs_alpha);
  check_constants(op, constants, x);
  check_interval(op, interval);
}

// What a backward takes besides the gradient of the output: gradients of the final state and of the
// recorded ones, and the states that the forward kept. `x` has the device.
inline void check_states(
    const char* op,
    const std::optional<Tensor>& grad_v,
    const std::optional<Tensor>& grad_i,
    const std::optional<Tensor>& grad_states,
    const Tensor& states,
    const Tensor& v,
    const Tensor& x,
    const std::vector<int64_t>& kept,
    int64_t T,
    int64_t interval) {
  const ScalarType state_type = compute_type(x.scalar_type());
  const Sizes kept_sizes(kept.data(), kept.size());
  if (!(interval > 0 || T <= kMaxSegment))
    fail(op, ": states must be kept by the forward for more than ", kMaxSegment, " time steps");
  check_tensor(op, "states", states, kept_sizes, state_type, x);
  if (grad_v) check_tensor(op, "grad_v", *grad_v, v.sizes(), state_type, x);
  if (grad_i) check_tensor(op, "grad_i", *grad_i, v.sizes(), state_type, x);
  if (grad_states) {
    if (interval != 1) fail(op, ": grad_states needs state_interval = 1");
    check_tensor(op, "grad_states", *grad_states, kept_sizes, state_type, x);
  }
}

// Of both directions of a recurrent layer; `sequence` is the input or i_jump, called `name`.
inline void check_layer(
    const char* op,
    const char* name,
    const Tensor& sequence,
    const Tensor& v,
    const Tensor& recurrent_weights,
    ConstantTensors constants,
    int64_t interval) {
  if (v.dim() < 1) fail(op, ": v must have shape [*batch, H], got ", to_string(v.sizes()));
  if (!(sequence.dim() == v.dim() || (sequence.dim() == v.dim() + 1 && sequence.size(0) >= 1)))
    fail(
        op, ": ", name, " must have at least one time step and match v of shape ",
        to_string(v.sizes()), ", got shape ", to_string(sequence.sizes()));
  if (!is_floating(sequence.scalar_type()))
    fail(op, ": ", name, " must be float64, float32, float16 or bfloat16");
  const int64_t H = v.size(v.dim() - 1);
  const int64_t square[] = {H, H};
  check_weights(op, "recurrent_weights", recurrent_weights, {square, 2}, sequence);
  check_constants(op, constants, sequence);
  check_interval(op, interval);
}

inline void check_recurrent_forward(
    const char* op,
    const Tensor& input,
    const Tensor& z,
    const Tensor& v,
    const Tensor& i,
    const Tensor& input_weights,
    const Tensor& recurrent_weights,
    ConstantTensors constants,
    bool exact,
    bool smooth,
    int64_t interval) {
  check_layer(op, "input", input, v, recurrent_weights, constants, interval);
  const ScalarType state_type = compute_type(input.scalar_type());
  const int64_t dims = v.dim(), offset = input.dim() - dims;
  for (int64_t d = 0; d + 1 < dims; ++d)
    if (input.size(offset + d) != v.size(d))
      fail(
          op, ": input must have the batch of v, of shape ", to_string(v.sizes()), ", got shape ",
          to_string(input.sizes()));
  check_tensor(op, "z", z, v.sizes(), state_type, input);
  check_tensor(op, "v", v, v.sizes(), state_type, input);
  check_tensor(op, "i", i, v.sizes(), state_type, input);
  const int64_t sizes[] = {v.size(dims - 1), input.size(input.dim() - 1)};
  check_weights(op, "input_weights", input_weights, {sizes, 2}, input);
  if (exact && !(input.scalar_type() == state_type && input_weights.scalar_type() == state_type &&
                 recurrent_weights.scalar_type() == state_type))
    fail(op, ": exact needs input and weights in float32, or all in float64");
  check_alpha(op, constants, smooth);
}

inline void check_recurrent_backward(
    const char* op,
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
    int64_t interval) {
  check_layer(op, "i_jump", i_jump, v, recurrent_weights, constants, interval);
  const Layer layer(i_jump, v);
  const ScalarType state_type = compute_type(i_jump.scalar_type());
  const std::vector<int64_t> sequence = layer.sequence(i_jump.dim() > v.dim());
  const Sizes sizes(sequence.data(), sequence.size());
  check_tensor(op, "i_jump", i_jump, sizes, state_type, i_jump);
  check_tensor(op, "v", v, v.sizes(), state_type, i_jump);
  check_tensor(op, "i", i, v.sizes(), state_type, i_jump);
  check_states(
      op, grad_v, grad_i, grad_states, states, v, i_jump, layer.states(interval), layer.T,
      interval);
  if (grad_out) {
    if (!is_floating(grad_out->scalar_type()) ||
        compute_type(grad_out->scalar_type()) != state_type)
      fail(op, ": grad_out must be of a type that is computed in that of i_jump");
    check_tensor(op, "grad_out", *grad_out, sizes, grad_out->scalar_type(), i_jump);
  }
}

// Sizes [rows, H] of the gradient and [rows, I] of the input of a layer's weights.
inline void check_weight_grad(
    const char* op,
    const Tensor& grad,
    const std::optional<Tensor>& input,
    int64_t columns) {
  const ScalarType type = grad.scalar_type();
  if (!(grad.dim() >= 1 && (type == ScalarType::Double || type == ScalarType::Float)))
    fail(op, ": grad must be float32 or float64, of shape [*rows, H]");
  if (columns < 0) fail(op, ": columns must not be negative, got ", columns);
  if (!input) return;
  std::vector<int64_t> sizes = to_vector(grad.sizes());
  sizes.back() = columns;
  if (!is_floating(input->scalar_type()) || compute_type(input->scalar_type()) != type)
    fail(op, ": grad must be of the type that input is computed in");
  check_tensor(op, "input", *input, {sizes.data(), sizes.size()}, input->scalar_type(), grad);
}

inline void check_input_grad(const char* op, const Tensor& grad, const Tensor& weights) {
  const ScalarType type = grad.scalar_type();
  if (!(type == ScalarType::Double || type == ScalarType::Float))
    fail(op, ": grad must be float32 or float64");
  if (grad.dim() < 1) fail(op, ": grad must have shape [*rows, H]");
  if (weights.dim() != 2)
    fail(op, ": weights must have shape [H, I], got ", to_string(weights.sizes()));
  const int64_t sizes[] = {grad.size(grad.dim() - 1), weights.size(1)};
  check_weights(op, "weights", weights, {sizes, 2}, grad);
}

}  // namespace fused_lif
