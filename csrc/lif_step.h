// One time step of a neuron, forward and backward: the only C++ copy of the equations. START HERE.
//
// V is the type of one value: a float or double for one neuron, or a SIMD vector of them for
// several. The CPU loops call this; fused_lif/backends/reference.py has the same equations in
// torch. Every backend does the same operations in the same order and never contracts them into
// fused multiply-adds, so that all backends spike alike, bit for bit.
#pragma once

#include <cstdint>

#include "macros.h"
#include "surrogate.h"

namespace fused_lif {

// What is integrated. LIF is the full model; LI has no threshold and returns the potential;
// the current encoder has no synapse: its input is the current itself.
enum class Neuron : int64_t { kLIF, kLI, kCurrentEncoder, kCount };

enum class Reset : int64_t { kHard, kSoft };  // to v_reset, or by subtracting v_th

FUSED_LIF_HD constexpr bool has_synapse(Neuron n) { return n != Neuron::kCurrentEncoder; }
FUSED_LIF_HD constexpr bool has_threshold(Neuron n) { return n != Neuron::kLI; }

template <typename V>
struct Constants {
  V dt_tau_syn_inv;  // dt / tau_syn, no unit
  V dt_tau_mem_inv;  // dt / tau_mem, no unit
  V v_leak;
  V v_th;
  V v_reset;
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
};

// Advances `s` by one step, given the current after the input:
//
//   v_decayed = v + dt/tau_mem * ((v_leak - v) + i_jump)
//   i         = i_jump - dt/tau_syn * i_jump
//   z         = H(v_decayed - v_th)                            H(s) = 1 if s > 0 else 0
//   v         = z ? v_reset : v_decayed                        hard reset
//   v         = z ? v_decayed - v_th : v_decayed               soft reset
//
// The spike is `v_decayed > v_th`: the same as H of the difference for all IEEE numbers.
template <Neuron kNeuron, Reset kReset, typename V>
FUSED_LIF_HD Step<V> step_from_jump(V i_jump, State<V>& s, const Constants<V>& c) {
  const V drive = (c.v_leak - s.v) + i_jump;
  const V v_decayed = s.v + c.dt_tau_mem_inv * drive;
  if constexpr (has_synapse(kNeuron)) s.i = i_jump - c.dt_tau_syn_inv * i_jump;
  if constexpr (has_threshold(kNeuron)) {
    const V v_spiked = kReset == Reset::kSoft ? v_decayed - c.v_th : c.v_reset;
    s.v = v_decayed > c.v_th ? v_spiked : v_decayed;
  } else {
    s.v = v_decayed;
  }
  return {i_jump, drive, v_decayed};
}

// The same, given the input:
//
//   i_jump = i + x              without a synapse: x
template <Neuron kNeuron, Reset kReset, typename V>
FUSED_LIF_HD Step<V> step_forward(V x, State<V>& s, const Constants<V>& c) {
  return step_from_jump<kNeuron, kReset>(has_synapse(kNeuron) ? s.i + x : x, s, c);
}

// The same for a recurrent layer, given x = W_in input and r = W_rec z of the step before:
//
//   i_jump = (i + x) + r
template <Reset kReset, typename V>
FUSED_LIF_HD Step<V> recurrent_step_forward(V x, V r, State<V>& s, const Constants<V>& c) {
  return step_from_jump<Neuron::kLIF, kReset>((s.i + x) + r, s, c);
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

// Reverse of `step_forward`. On entry `grad` holds dL/d(v, i) after the step, on return before it.
// `grad_out` is dL/dz (dL/dv_decayed for LI), `surrogate` the derivative of H at v_decayed - v_th.
// Returns dL/dx. In a recurrent layer this is dL/dr too, and grad_out includes W_rec^T dL/dr of the
// step after.
//
//   grad_spike = grad_out + (v_spiked - v_decayed) * grad_v    second term if not detached
//   d          = (z and hard ? 0 : grad_v) + surrogate * grad_spike    gradient of v_decayed
//   grad_x     = dt/tau_mem * d + (1 - dt/tau_syn) * grad_i
//   grad_v     = (1 - dt/tau_mem) * d
//   grad_i     = grad_x
template <Neuron kNeuron, Reset kReset, bool kConstantGrads, typename V>
FUSED_LIF_HD V step_backward(
    const Step<V>& step,
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
    if (!detach_reset) grad_spike = grad_spike + grad.v * (v_spiked - step.v_decayed);
    const V grad_s = surrogate * grad_spike;
    const auto z = step.v_decayed > c.v_th;
    if constexpr (kReset == Reset::kSoft) {
      d = grad.v + grad_s;
      if constexpr (kConstantGrads) sums.v_th = sums.v_th - grad_s - (z ? grad.v : zero);
    } else {
      d = (z ? zero : grad.v) + grad_s;
      if constexpr (kConstantGrads) {
        sums.v_th = sums.v_th - grad_s;
        sums.v_reset = sums.v_reset + (z ? grad.v : zero);
      }
    }
  } else {
    d = grad.v + grad_out;
  }
  const V grad_drive = c.dt_tau_mem_inv * d;
  V grad_x = grad_drive;
  if constexpr (has_synapse(kNeuron)) grad_x = grad_x + (grad.i - c.dt_tau_syn_inv * grad.i);
  if constexpr (kConstantGrads) {
    sums.v_leak = sums.v_leak + grad_drive;
    sums.dt_tau_mem_inv = sums.dt_tau_mem_inv + d * step.drive;
    if constexpr (has_synapse(kNeuron))
      sums.dt_tau_syn_inv = sums.dt_tau_syn_inv - grad.i * step.i_jump;
  }
  grad.v = d - grad_drive;
  grad.i = grad_x;
  return grad_x;
}

}  // namespace fused_lif
