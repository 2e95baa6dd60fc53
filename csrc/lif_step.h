// One time step of a neuron, forward and backward: the only C++ copy of the equations. START HERE.
//
// V is the type of one value: a float or double for one neuron, or a SIMD vector of them for
// several. The CPU loops call this; fused_lif/backends/reference.py has the same equations in
// torch. Every backend does the same operations in the same order and never contracts them into
// fused multiply-adds, so that all backends spike alike, bit for bit; only gradients may.
#pragma once

#include <cstdint>

#include "macros.h"
#include "surrogate.h"

namespace fused_lif {

// What is integrated. LIF is the full model; LI has no threshold and returns the potential;
// the current encoder has no synapse: its input is the current itself.
enum class Neuron : int64_t { kLIF, kLI, kCurrentEncoder, kCount };

enum class Reset : int64_t { kHard, kSoft };  // to v_reset, or by subtracting v_th

// What a spike is, and how the backward gets past it.
enum class Spike : int64_t {
  kStep,    // z = H(s), with a surrogate derivative
  kSmooth,  // z = S(s), the primitive of that derivative: verifies gradients, in float64
  kEvent    // z = H(s), and the gradient of the time of the spike: adjoint and eventprop
};

// A method (surrogate.h), as the loops take it.
struct Method {
  Spike spike;
  Surrogate surrogate;
  bool is_adjoint;  // of the two event-based ones
};

FUSED_LIF_HD constexpr bool has_synapse(Neuron n) { return n != Neuron::kCurrentEncoder; }
FUSED_LIF_HD constexpr bool has_threshold(Neuron n) { return n != Neuron::kLI; }

template <typename V>
struct Constants {
  V dt_tau_syn_inv;  // dt / tau_syn, no unit
  V dt_tau_mem_inv;  // dt / tau_mem, no unit
  V v_leak;
  V v_th;
  V v_reset;
  V alpha;  // sharpness of the surrogate; read by smooth spikes only
};

template <typename V>
struct State {
  V v;  // membrane potential
  V i;  // synaptic current
};

// What the backward pass needs to know about a step.
template <typename V>
struct Step {
  V i_jump;     // current after the input
  V drive;      // what pulls the potential: (v_leak - v) + i_jump
  V v_decayed;  // potential before the reset
  V z;          // the spike; nothing without a threshold
};

// Advances `s` by one step, given the current after the input:
//
//   v_decayed = v + dt/tau_mem * ((v_leak - v) + i_jump)
//   i         = i_jump - dt/tau_syn * i_jump
//   z         = H(v_decayed - v_th)                            H(s) = 1 if s > 0 else 0
//   v         = z ? v_reset : v_decayed                        hard reset
//   v         = z ? v_decayed - v_th : v_decayed               soft reset
//
// The spike is `v_decayed > v_th`: the same as H of the difference for all IEEE numbers. A smooth
// spike is z = S(v_decayed - v_th), and v = z * v_spiked + (1 - z) * v_decayed.
template <Neuron kNeuron, Reset kReset, Spike kSpike = Spike::kStep, typename V>
FUSED_LIF_HD Step<V> step_from_jump(
    V i_jump,
    State<V>& s,
    const Constants<V>& c,
    Surrogate surrogate = Surrogate::kHeaviside) {
  const V zero = Math<V>::constant(0), one = Math<V>::constant(1);
  const V drive = (c.v_leak - s.v) + i_jump;
  const V v_decayed = s.v + c.dt_tau_mem_inv * drive;
  V z = zero;
  if constexpr (has_synapse(kNeuron)) s.i = i_jump - c.dt_tau_syn_inv * i_jump;
  if constexpr (has_threshold(kNeuron)) {
    const V v_spiked = kReset == Reset::kSoft ? v_decayed - c.v_th : c.v_reset;
    if constexpr (kSpike == Spike::kSmooth) {
      z = smooth_spike(surrogate, v_decayed - c.v_th, c.alpha);
      s.v = z * v_spiked + (one - z) * v_decayed;
    } else {
      z = v_decayed > c.v_th ? one : zero;
      s.v = v_decayed > c.v_th ? v_spiked : v_decayed;
    }
  } else {
    s.v = v_decayed;
  }
  return {i_jump, drive, v_decayed, z};
}

// The same, given the input:
//
//   i_jump = i + x              without a synapse: x
template <Neuron kNeuron, Reset kReset, Spike kSpike = Spike::kStep, typename V>
FUSED_LIF_HD Step<V>
step_forward(V x, State<V>& s, const Constants<V>& c, Surrogate surrogate = Surrogate::kHeaviside) {
  const V i_jump = has_synapse(kNeuron) ? s.i + x : x;
  return step_from_jump<kNeuron, kReset, kSpike>(i_jump, s, c, surrogate);
}

// The same for a recurrent layer, given x = W_in input and r = W_rec z of the step before:
//
//   i_jump = (i + x) + r
template <Reset kReset, Spike kSpike = Spike::kStep, typename V>
FUSED_LIF_HD Step<V> recurrent_step_forward(
    V x,
    V r,
    State<V>& s,
    const Constants<V>& c,
    Surrogate surrogate = Surrogate::kHeaviside) {
  return step_from_jump<Neuron::kLIF, kReset, kSpike>((s.i + x) + r, s, c, surrogate);
}

// Sums over time of the gradients of the constants. The first two lack a factor dt, the gradients
// of dt/tau being summed.
template <typename V>
struct ConstantGrads {
  V dt_tau_syn_inv;
  V dt_tau_mem_inv;
  V v_leak;
  V v_th;
  V v_reset;
};

// The end of a reverse step: from d, the gradient of v_decayed, to dL/dx, which is returned, and to
// dL/d(v, i) before the step.
//
//   grad_x = dt/tau_mem * d + (1 - dt/tau_syn) * grad_i
//   grad_v = (1 - dt/tau_mem) * d
//   grad_i = grad_x
template <Neuron kNeuron, bool kConstantGrads, typename V>
FUSED_LIF_HD V backward_from_potential(
    const Step<V>& step,
    V d,
    State<V>& grad,
    ConstantGrads<V>& sums,
    const Constants<V>& c) {
  using M = Math<V>;
  const V grad_drive = c.dt_tau_mem_inv * d;
  V grad_x = grad_drive;
  if constexpr (has_synapse(kNeuron))
    grad_x = grad_x + M::multiply_add(-c.dt_tau_syn_inv, grad.i, grad.i);
  if constexpr (kConstantGrads) {
    sums.v_leak = sums.v_leak + grad_drive;
    sums.dt_tau_mem_inv = M::multiply_add(d, step.drive, sums.dt_tau_mem_inv);
    if constexpr (has_synapse(kNeuron))
      sums.dt_tau_syn_inv = M::multiply_add(-grad.i, step.i_jump, sums.dt_tau_syn_inv);
  }
  grad.v = d - grad_drive;
  grad.i = grad_x;
  return grad_x;
}

// Reverse of `step_forward`. On entry `grad` holds dL/d(v, i) after the step, on return before it.
// `grad_out` is dL/dz (dL/dv_decayed for LI), `surrogate` the derivative of H at v_decayed - v_th.
// Returns dL/dx. In a recurrent layer this is dL/dr too, and grad_out includes W_rec^T dL/dr of the
// step after.
//
//   grad_spike = grad_out + (v_spiked - v_decayed) * grad_v    second term if not detached
//   d          = (z and hard ? 0 : grad_v) + surrogate * grad_spike    gradient of v_decayed
template <
    Neuron kNeuron,
    Reset kReset,
    bool kConstantGrads,
    Spike kSpike = Spike::kStep,
    typename V>
FUSED_LIF_HD V step_backward(
    const Step<V>& step,  // z only if smooth
    V grad_out,
    V surrogate,
    bool detach_reset,
    State<V>& grad,
    ConstantGrads<V>& sums,
    const Constants<V>& c) {
  const V zero = Math<V>::constant(0);
  V d;
  if constexpr (has_threshold(kNeuron)) {
    const V v_spiked = kReset == Reset::kSoft ? step.v_decayed - c.v_th : c.v_reset;
    V grad_spike = grad_out;
    if (!detach_reset)
      grad_spike = Math<V>::multiply_add(grad.v, v_spiked - step.v_decayed, grad_spike);
    V grad_spiked, grad_kept;  // of the potential after a spike, and without
    if constexpr (kSpike == Spike::kSmooth) {
      grad_spiked = step.z * grad.v;
      grad_kept = grad.v - grad_spiked;
    } else {
      const auto z = step.v_decayed > c.v_th;
      grad_spiked = z ? grad.v : zero;
      grad_kept = z ? zero : grad.v;
    }
    d = Math<V>::multiply_add(surrogate, grad_spike, kReset == Reset::kSoft ? grad.v : grad_kept);
    if constexpr (kConstantGrads) {
      sums.v_th = Math<V>::multiply_add(-surrogate, grad_spike, sums.v_th);
      if constexpr (kReset == Reset::kSoft)
        sums.v_th = sums.v_th - grad_spiked;
      else
        sums.v_reset = sums.v_reset + grad_spiked;
    }
  } else {
    d = grad.v + grad_out;
  }
  return backward_from_potential<kNeuron, kConstantGrads>(step, d, grad, sums, c);
}

// 1 / (dt/tau_mem * drive): one over the change of the potential in a step. Zero where `drive_up`
// is at most a millionth of the way from rest to the threshold, or the change at most 2^-60: a
// spike whose potential hardly moves passes no gradient, instead of an infinite one.
template <typename V>
FUSED_LIF_HD V inverse_slope(V drive, V drive_up, const Constants<V>& c) {
  const V zero = Math<V>::constant(0), one = Math<V>::constant(1);
  const V slope = c.dt_tau_mem_inv * drive, way = c.v_th - c.v_leak;
  const V least = Math<V>::constant(0x1p-20) * (way < zero ? -way : way);
  const V inverse =
      (slope < zero ? -slope : slope) > Math<V>::constant(0x1p-60) ? one / slope : zero;
  return drive_up > least ? inverse : zero;
}

// The two event-based backwards have no surrogate: a change of v_decayed moves the time of the
// spike. `grad_earlier` is what the loss gains per step by which the spike comes earlier; in the
// jump that the gradient makes at a spike, v_spiked is the potential after it, and
// docs/gradients.md derives it (after Wunderlich & Pehle 2021):
//
//   slope_after  = dt/tau_mem * ((v_leak - v_spiked) + current)
//   grad_s       = z ? (grad_earlier + slope_after * grad_v) / (dt/tau_mem * drive) : 0
//
// eventprop: grad_earlier = grad_out - grad_out of the next step (0 in the last one). A potential
// that was above the threshold before, and falls, did not cross it: its spike passes no gradient.
//
//   d            = z ? grad_s : grad_v
template <Neuron kNeuron, Reset kReset, typename V>
FUSED_LIF_HD V eventprop_backward(
    const Step<V>& step,
    V grad_earlier,
    State<V>& grad,
    ConstantGrads<V>& sums,
    const Constants<V>& c) {
  const V zero = Math<V>::constant(0);
  const V v_spiked = kReset == Reset::kSoft ? step.v_decayed - c.v_th : c.v_reset;
  const V slope_after = c.dt_tau_mem_inv * ((c.v_leak - v_spiked) + step.i_jump);
  const V jump = (grad_earlier + slope_after * grad.v) * inverse_slope(step.drive, step.drive, c);
  const auto z = step.v_decayed > c.v_th;
  sums.v_th = sums.v_th - (z ? jump : zero);
  if constexpr (kReset == Reset::kHard) sums.v_reset = sums.v_reset + (z ? grad.v : zero);
  return backward_from_potential<kNeuron, true>(step, z ? jump : grad.v, grad, sums, c);
}

// adjoint: Norse's discretisation, with the current `i` before the input and
// grad_earlier = dt * grad_out. Its grad_i is tau_syn_inv / tau_mem_inv times dL/di.
//
//   grad_x  = grad_i + dt/tau_syn * (grad_v - grad_i)
//   grad_v  = z ? grad_s : grad_v - dt/tau_mem * grad_v
//   grad_i  = grad_x
template <Neuron kNeuron, Reset kReset, typename V>
FUSED_LIF_HD V adjoint_backward(
    const Step<V>& step,
    V i,
    V grad_earlier,
    State<V>& grad,
    ConstantGrads<V>& sums,
    const Constants<V>& c) {
  const V zero = Math<V>::constant(0), a = c.dt_tau_mem_inv, b = c.dt_tau_syn_inv;
  const V v_spiked = kReset == Reset::kSoft ? step.v_decayed - c.v_th : c.v_reset;
  const V current = has_synapse(kNeuron) ? i : step.i_jump;
  const V drive = step.drive - (step.i_jump - current);
  const V slope_after = a * ((c.v_leak - v_spiked) + current);
  const V decayed = grad.v - a * grad.v;
  const V inverse = inverse_slope(drive, drive < zero ? -drive : drive, c);
  const V jump = (grad_earlier + slope_after * decayed) * inverse;
  const auto z = step.v_decayed > c.v_th;
  const V d = z ? jump : decayed;
  sums.v_th = sums.v_th - (z ? jump : zero);
  if constexpr (kReset == Reset::kHard) sums.v_reset = sums.v_reset + (z ? grad.v : zero);
  sums.v_leak = sums.v_leak + a * d;
  sums.dt_tau_mem_inv = sums.dt_tau_mem_inv + d * step.drive;
  V grad_x = a * d;
  if constexpr (has_synapse(kNeuron)) {
    grad_x = grad.i + b * (grad.v - grad.i);
    const V scale = b != zero ? a / b : zero;
    sums.dt_tau_syn_inv = sums.dt_tau_syn_inv - scale * grad.i * step.i_jump;
    grad.i = grad_x;
  }
  grad.v = d;
  return grad_x;
}

// One of the two, given dL/dz of this step and of the next (of this one in the last step), and the
// current before the input.
template <Neuron kNeuron, Reset kReset, typename V, typename S>
FUSED_LIF_HD V event_backward(
    const Method& method,
    const Step<V>& step,
    V i,
    V grad_out,
    V grad_next,
    S dt,
    State<V>& grad,
    ConstantGrads<V>& sums,
    const Constants<V>& c) {
  if (method.is_adjoint)
    return adjoint_backward<kNeuron, kReset>(step, i, grad_out * dt, grad, sums, c);
  return eventprop_backward<kNeuron, kReset>(step, grad_out - grad_next, grad, sums, c);
}

}  // namespace fused_lif
