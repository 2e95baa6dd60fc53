// How kernels read and write memory - conversions, several columns at once, copies that run ahead -
// and how run-time values become template arguments.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels.h"

// The dynamic shared memory of a block.
extern __shared__ __align__(16) unsigned char fused_lif_shared[];

namespace fused_lif::cuda {

template <typename IO>
using Compute = std::conditional_t<std::is_same_v<IO, double>, double, float>;

template <typename S, typename IO>
__device__ __forceinline__ S to_compute(IO x) {
  if constexpr (std::is_same_v<IO, __half>)
    return __half2float(x);
  else if constexpr (std::is_same_v<IO, __nv_bfloat16>)
    return __bfloat162float(x);
  else
    return static_cast<S>(x);
}

template <typename IO, typename S>
__device__ __forceinline__ IO to_io(S x) {
  if constexpr (std::is_same_v<IO, __half>)
    return __float2half_rn(static_cast<float>(x));
  else if constexpr (std::is_same_v<IO, __nv_bfloat16>)
    return __float2bfloat16_rn(static_cast<float>(x));
  else
    return static_cast<IO>(x);
}

// Adjacent columns that are read and written at once.
template <typename IO, int kColumns>
struct alignas(sizeof(IO) * kColumns) Pack {
  IO at[kColumns];
};

// Begins to copy a pack from global to shared memory. Two bytes are too few for that: they are
// there at once.
template <typename P>
__device__ __forceinline__ void copy_ahead(P* to, const void* from) {
  if constexpr (sizeof(P) >= 4)
    __pipeline_memcpy_async(to, from, sizeof(P));
  else
    *to = *static_cast<const P*>(from);
}

// Address of column m at the first time step; step t is t * stride_t elements further.
template <typename IO>
__device__ __forceinline__ const IO* column(const Sequence& x, int64_t m) {
  const int64_t row = m < x.row ? 0 : m / x.row;
  return static_cast<const IO*>(x.data) + row * x.stride_row + (m - row * x.row);
}

// Number of the thread's first column.
__device__ __forceinline__ int64_t first_column(int columns) {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * columns;
}

template <typename S>
__device__ __forceinline__ S load_or_zero(const void* from, int64_t m) {
  return from == nullptr ? S(0) : static_cast<const S*>(from)[m];
}

// Calls f(IO()) with the type of the elements.
template <typename F>
void visit_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat: return f(float());
    case DType::kDouble: return f(double());
    case DType::kHalf: return f(__half());
    case DType::kBFloat16: return f(__nv_bfloat16());
  }
}

// Calls f.operator()<kNeuron, kReset>().
template <typename F>
void visit_neuron(Neuron neuron, Reset reset, const F& f) {
  const bool soft = reset == Reset::kSoft;
  switch (neuron) {
    case Neuron::kLIF:
      return soft ? f.template operator()<Neuron::kLIF, Reset::kSoft>()
                  : f.template operator()<Neuron::kLIF, Reset::kHard>();
    case Neuron::kLI: return f.template operator()<Neuron::kLI, Reset::kHard>();
    case Neuron::kCurrentEncoder:
      return soft ? f.template operator()<Neuron::kCurrentEncoder, Reset::kSoft>()
                  : f.template operator()<Neuron::kCurrentEncoder, Reset::kHard>();
    case Neuron::kCount: return;
  }
}

// Calls f.operator()<kReset>().
template <typename F>
void visit_reset(Reset reset, const F& f) {
  if (reset == Reset::kSoft)
    f.template operator()<Reset::kSoft>();
  else
    f.template operator()<Reset::kHard>();
}

// Calls f.operator()<kSpike>(). Without a threshold all spikes are alike; smooth ones are compiled
// for double only, those of events for the backward only.
template <typename S, Neuron kNeuron, bool kBackward, typename F>
void visit_spike(Spike spike, const F& f) {
  if constexpr (has_threshold(kNeuron)) {
    if constexpr (std::is_same_v<S, double>)
      if (spike == Spike::kSmooth) return f.template operator()<Spike::kSmooth>();
    if constexpr (kBackward)
      if (spike == Spike::kEvent) return f.template operator()<Spike::kEvent>();
  }
  f.template operator()<Spike::kStep>();
}

template <int kColumns>
using Width = std::integral_constant<int, kColumns>;

// Calls f(Width<n>()) for the planned number of columns, which must be one of those given.
template <int... kColumns, typename F>
void visit_columns(int columns, const F& f) {
  (void)((columns == kColumns && (f(Width<kColumns>()), true)) || ...);
}

// Blocks for the columns of a call.
inline dim3 blocks_for(int64_t M, LaunchPlan plan) {
  const int64_t per_block = int64_t{plan.columns} * plan.threads;
  return dim3(static_cast<unsigned>((M + per_block - 1) / per_block));
}

}  // namespace fused_lif::cuda
