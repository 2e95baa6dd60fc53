// Names and schemas of all operators. No math and no kernels here; autograd and fake functions are
// in fused_lif/backends/_autograd.py. Built on the stable ABI of LibTorch: one library for every
// torch from 2.10 on.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "surrogate.h"

namespace fused_lif {
namespace {

std::string surrogate_names() {
  std::string names;
  for (const char* name : kSurrogateNames) names += (names.empty() ? "" : " ") + std::string(name);
  return names;
}

}  // namespace

// x: [T, *step], or [*step] for a single step. States v and i: [*step]. Constants broadcast to
// [*step]. `out` are the spikes, or the potentials of an LI. `states`: [2, rows, *step] (1 without
// synapse); rows is T if state_interval is 1, (T - 1) / state_interval if it is greater, 0 if it is
// 0. neuron: 0 LIF, 1 LI (no threshold, no v_th, v_reset, alpha), 2 current encoder (no i,
// tau_syn_inv). method: a surrogate or an event-based method, see surrogate.h. smooth: the
// primitive of the surrogate instead of spikes, in float64; the forward takes alpha then, and only
// then. needs: bit k asks for the k-th gradient of the backward's result; what is not needed comes
// back empty.
//
// lif_recurrent_*: input: [T, *batch, I] or [*batch, I]; z, v and i: [*batch, H], which is *step;
// input_weights: [H, I]; recurrent_weights: [H, H]. exact: sum over weights with the matrix
// products of eager torch. i_jump: [T, *step], the current after the input, empty unless
// needs_grad. input_spikes and hidden_spikes: input and out packed into bits (csrc/cpu/kernels.h,
// packed_size), empty unless needs_grad and not exact. states are [2, T, *step] if state_interval
// is 1, otherwise [1, rows, *step], the potentials only. The backward gives the gradient of x =
// W_in input, from which those of the input and of the weights follow by a matrix product each;
// then that of z, and what lif_backward gives.
//
// input_grad: grad: [*rows, H], weights: [H, I]. Returns grad weights, [*rows, I].
// weight_grad: grad: [*rows, H], input: [*rows, I], spikes: the same packed into bits; one of these
// two may be missing; columns: I. Returns grad^T input, [H, I]; quick where input are few spikes.
STABLE_TORCH_LIBRARY(fused_lif, m) {
  m.def(
      "lif_forward(Tensor x, Tensor v, Tensor? i, Tensor? tau_syn_inv, Tensor tau_mem_inv, "
      "Tensor v_leak, Tensor? v_th, Tensor? v_reset, Tensor? alpha, float dt, int neuron, "
      "bool soft_reset, int state_interval, int method, bool smooth) -> (Tensor out, Tensor v, "
      "Tensor i, Tensor states)");
  m.def(
      "lif_backward(Tensor? grad_out, Tensor? grad_v, Tensor? grad_i, Tensor? grad_states, "
      "Tensor x, Tensor states, Tensor v, Tensor? i, Tensor? tau_syn_inv, Tensor tau_mem_inv, "
      "Tensor v_leak, "
      "Tensor? v_th, Tensor? v_reset, Tensor? alpha, float dt, int neuron, bool soft_reset, "
      "int state_interval, int method, bool smooth, bool detach_reset, int needs) -> ("
      "Tensor grad_x, Tensor grad_v, Tensor grad_i, Tensor grad_tau_syn_inv, Tensor "
      "grad_tau_mem_inv, "
      "Tensor grad_v_leak, Tensor grad_v_th, Tensor grad_v_reset)");
  m.def(
      "lif_recurrent_forward(Tensor input, Tensor z, Tensor v, Tensor i, Tensor input_weights, "
      "Tensor recurrent_weights, Tensor tau_syn_inv, Tensor tau_mem_inv, Tensor v_leak, "
      "Tensor v_th, Tensor v_reset, Tensor? alpha, float dt, bool soft_reset, bool exact, "
      "int state_interval, int method, bool smooth, bool needs_grad) -> (Tensor out, Tensor v, "
      "Tensor i, Tensor i_jump, Tensor states, "
      "Tensor input_spikes, Tensor hidden_spikes)");
  m.def(
      "lif_recurrent_backward(Tensor? grad_out, Tensor? grad_v, Tensor? grad_i, "
      "Tensor? grad_states, Tensor i_jump, Tensor states, Tensor v, Tensor i, "
      "Tensor recurrent_weights, "
      "Tensor tau_syn_inv, Tensor tau_mem_inv, Tensor v_leak, Tensor v_th, Tensor v_reset, "
      "Tensor alpha, float dt, bool soft_reset, int state_interval, int method, bool smooth, "
      "bool detach_reset, int needs) -> (Tensor grad_x, Tensor grad_z, Tensor grad_v, "
      "Tensor grad_i, Tensor grad_tau_syn_inv, Tensor grad_tau_mem_inv, Tensor grad_v_leak, "
      "Tensor grad_v_th, Tensor grad_v_reset)");
  m.def("input_grad(Tensor grad, Tensor weights) -> Tensor");
  m.def("weight_grad(Tensor grad, Tensor? input, Tensor? spikes, int columns) -> Tensor");
  m.def("surrogate_grad(Tensor s, int method, float alpha) -> Tensor");
  m.def("surrogate_names() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fused_lif, CompositeExplicitAutograd, m) {
  m.impl("surrogate_names", TORCH_BOX(&surrogate_names));
}

}  // namespace fused_lif
