// How kernels read the constants of the neuron and call the surrogate.
#pragma once

#include "common.cuh"

namespace fused_lif::cuda {

// 64-bit division is a slow subroutine; most numbers are small.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The element of a constant that column m has.
__device__ __forceinline__ int64_t element_of(const Constant& c, int64_t m) {
  int64_t element = 0;
#pragma unroll 1
  for (int g = 0; g < c.groups; ++g) {
    const int64_t q = divide(m, c.stride[g]);
    element = element * c.size[g] + (q - divide(q, c.size[g]) * c.size[g]);
  }
  return element;
}

// Its value. `factor` is dt for dt/tau, which is formed in the type of tau (float32 for half types)
// as eager torch does, and one otherwise.
template <typename S>
__device__ __forceinline__ S value_of(const Constant& c, int64_t element, double factor) {
  switch (c.dtype) {
    case DType::kDouble:
      return static_cast<S>(factor * static_cast<const double*>(c.values)[element]);
    case DType::kHalf:
      return static_cast<S>(
          static_cast<float>(factor) * __half2float(static_cast<const __half*>(c.values)[element]));
    case DType::kBFloat16:
      return static_cast<S>(
          static_cast<float>(factor) *
          __bfloat162float(static_cast<const __nv_bfloat16*>(c.values)[element]));
    default:
      return static_cast<S>(
          static_cast<float>(factor) * static_cast<const float*>(c.values)[element]);
  }
}

// Calls f(k, value) for the columns m + k of a thread. Either they all have the same element, or
// consecutive ones: `columns_per_thread` (plan.h) sees to it.
template <typename S, int kColumns, typename F>
__device__ __forceinline__ void
for_each_value(const Constant& c, int64_t m, double factor, const F& f) {
  const int64_t first = element_of(c, m);
  const int64_t next = c.groups > 0 && c.stride[c.groups - 1] == 1 ? 1 : 0;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) f(k, value_of<S>(c, first + k * next, factor));
}

// The constants of the columns m + k that a neuron has, without alpha.
template <Neuron kNeuron, typename S, int kColumns>
__device__ __forceinline__ void load_constants(
    const Constant (&constants)[kNumConstants],
    double dt,
    int64_t m,
    Constants<S> (&c)[kColumns]) {
  if constexpr (has_synapse(kNeuron))
    for_each_value<S, kColumns>(
        constants[kTauSynInv], m, dt, [&](int k, S value) { c[k].dt_tau_syn_inv = value; });
  for_each_value<S, kColumns>(
      constants[kTauMemInv], m, dt, [&](int k, S value) { c[k].dt_tau_mem_inv = value; });
  for_each_value<S, kColumns>(
      constants[kVLeak], m, 1.0, [&](int k, S value) { c[k].v_leak = value; });
  if constexpr (has_threshold(kNeuron)) {
    for_each_value<S, kColumns>(
        constants[kVTh], m, 1.0, [&](int k, S value) { c[k].v_th = value; });
    for_each_value<S, kColumns>(
        constants[kVReset], m, 1.0, [&](int k, S value) { c[k].v_reset = value; });
  }
}

// alpha, for surrogates and for smooth spikes.
template <typename S, int kColumns>
__device__ __forceinline__ void
load_alpha(const Constant (&constants)[kNumConstants], int64_t m, Constants<S> (&c)[kColumns]) {
  for_each_value<S, kColumns>(
      constants[kAlpha], m, 1.0, [&](int k, S value) { c[k].alpha = value; });
}

// Calls f(constant, sum) for the constants that a neuron has.
template <Neuron kNeuron, typename S, typename F>
__device__ __forceinline__ void for_each_sum(const ConstantGrads<S>& sums, const F& f) {
  if constexpr (has_synapse(kNeuron)) f(kTauSynInv, sums.dt_tau_syn_inv);
  f(kTauMemInv, sums.dt_tau_mem_inv);
  f(kVLeak, sums.v_leak);
  if constexpr (has_threshold(kNeuron)) {
    f(kVTh, sums.v_th);
    f(kVReset, sums.v_reset);
  }
}

// Calls f.operator()<kSurrogate>(): all threads take the same branch.
template <typename F>
__device__ __forceinline__ void visit_surrogate(Surrogate surrogate, const F& f) {
  switch (surrogate) {
    case Surrogate::kHeaviside: return f.template operator()<Surrogate::kHeaviside>();
    case Surrogate::kSuper: return f.template operator()<Surrogate::kSuper>();
    case Surrogate::kTriangle: return f.template operator()<Surrogate::kTriangle>();
    case Surrogate::kTanh: return f.template operator()<Surrogate::kTanh>();
    case Surrogate::kCirc: return f.template operator()<Surrogate::kCirc>();
    case Surrogate::kHeaviErfc: return f.template operator()<Surrogate::kHeaviErfc>();
    case Surrogate::kSigmoid: return f.template operator()<Surrogate::kSigmoid>();
    case Surrogate::kAtan: return f.template operator()<Surrogate::kAtan>();
    case Surrogate::kPiecewiseLinear: return f.template operator()<Surrogate::kPiecewiseLinear>();
    case Surrogate::kCount: return;
  }
}

}  // namespace fused_lif::cuda
