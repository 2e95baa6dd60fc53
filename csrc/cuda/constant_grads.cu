// From the gradients of the constants per column to those of the tensors that the user gave: sums
// over the batch and every other dimension that was broadcast, in a fixed order, without atomics.
#include "common.cuh"
#include "launch.h"
#include "plan.h"

namespace fused_lif::cuda {
namespace {

struct AllGrads {
  ConstantGrad of[kNumGrads];
};

// Column of an element, or of a summed column relative to it: counts through groups of dimensions.
__device__ __forceinline__ int64_t
column_of(int64_t n, int groups, const int64_t* size, const int64_t* stride) {
  int64_t column = 0;
  for (int g = groups - 1; g > 0; --g) {
    column += n % size[g] * stride[g];
    n /= size[g];
  }
  return groups == 0 ? 0 : column + n * stride[0];
}

__device__ __forceinline__ void store_as(void* to, DType dtype, int64_t element, double value) {
  switch (dtype) {
    case DType::kFloat: static_cast<float*>(to)[element] = static_cast<float>(value); return;
    case DType::kDouble: static_cast<double*>(to)[element] = value; return;
    case DType::kHalf:
      static_cast<__half*>(to)[element] = __float2half_rn(static_cast<float>(value));
      return;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(to)[element] = __float2bfloat16_rn(static_cast<float>(value));
      return;
  }
}

// A block adds up one chunk of the columns of `lanes` elements: first every thread some of them,
// then the threads in pairs.
__global__ void __launch_bounds__(kReduceThreads) constant_grads_kernel(const AllGrads all) {
  __shared__ double partial[kReduceThreads];
  const ConstantGrad& g = all.of[blockIdx.y];
  const int64_t group = blockIdx.x / g.chunks, chunk = blockIdx.x % g.chunks;
  if (group * g.lanes >= g.elements) return;
  const int lane = threadIdx.x % g.lanes, row = threadIdx.x / g.lanes;
  const int rows = kReduceThreads / g.lanes;
  const int64_t element = group * g.lanes + lane, per_chunk = int64_t{rows} * kSumsPerThread;
  const bool is_used = element < g.elements;

  double sum = 0;
  if (is_used) {
    const int64_t first = column_of(element, g.kept, g.kept_size, g.kept_stride);
    const int64_t end = min(g.columns, (chunk + 1) * per_chunk);
    for (int64_t n = chunk * per_chunk + row; n < end; n += rows) {
      const int64_t column = first + column_of(n, g.summed, g.summed_size, g.summed_stride);
      sum += g.sums_are_double ? static_cast<const double*>(g.sums)[column]
                               : static_cast<double>(static_cast<const float*>(g.sums)[column]);
    }
  }
  partial[threadIdx.x] = sum;
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) partial[threadIdx.x] += partial[threadIdx.x + half * g.lanes];
  }
  if (row > 0 || !is_used) return;
  if (g.chunks == 1)
    store_as(g.grad, g.dtype, element, g.factor * partial[threadIdx.x]);
  else
    static_cast<double*>(g.grad)[chunk * g.elements + element] = partial[threadIdx.x];
}

}  // namespace

void launch_constant_grads(const ConstantGrad* grads, int count, Stream stream) {
  if (count == 0) return;
  AllGrads all{};
  int64_t blocks = 0;
  for (int k = 0; k < count; ++k) {
    all.of[k] = grads[k];
    const int64_t groups = (grads[k].elements + grads[k].lanes - 1) / grads[k].lanes;
    blocks = std::max(blocks, groups * grads[k].chunks);
  }
  const LaunchShape shape = {
      dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count)), dim3(kReduceThreads)};
  launch("constant_grads_kernel", constant_grads_kernel, shape, stream, all);
}

}  // namespace fused_lif::cuda
