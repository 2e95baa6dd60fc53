// W_in input for all time steps of a recurrent layer, each sum in ascending order of the input, as
// on the CPU: an input of spikes gives the same bits on both. A matrix product of BLAS would not.
#include "common.cuh"
#include "launch.h"
#include "plan.h"

namespace fused_lif::cuda {
namespace {

template <typename S>
__device__ __forceinline__ bool is_finite(S x) {
  return x - x == S(0);
}

// Where all weights are finite, a zero times a weight adds nothing and is left out.
template <typename S>
__global__ void __launch_bounds__(kFlagThreads)
    find_infinite_kernel(const S* __restrict__ weights, int64_t n, uint32_t* flags) {
  __shared__ uint32_t found[kFlagThreads / 32];
  bool infinite = false;
  for (int64_t k = int64_t{blockIdx.x} * kFlagThreads + threadIdx.x; k < n;
       k += int64_t{gridDim.x} * kFlagThreads)
    infinite |= !is_finite(weights[k]);
  const uint32_t lanes = __ballot_sync(0xffffffffu, infinite);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = lanes;
  __syncthreads();
  if (threadIdx.x > 0) return;
  uint32_t any = 0;
  for (int w = 0; w < kFlagThreads / 32; ++w) any |= found[w];
  flags[blockIdx.x] = any;
}

// A thread adds up one neuron of kSumRows rows. The block goes through the input in tiles, and
// skips what is zero in all of its rows.
template <typename IO>
__global__ void __launch_bounds__(kSumThreads) lif_input_sums_forward_kernel(const InputSums args) {
  using S = Compute<IO>;
  using Rows = Pack<S, kSumRows>;
  constexpr int kWord = 32, kWords = kSumThreads / kWord;
  __shared__ Rows tile[kSumThreads];
  __shared__ uint32_t used[kWords];  // one bit for each input of the tile
  const int64_t I = args.I, H = args.H, row0 = int64_t{blockIdx.x} * kSumRows;
  const int64_t h = int64_t{blockIdx.y} * kSumThreads + threadIdx.x;
  uint32_t infinite = 0;
  for (int k = 0; k < kFlags; ++k) infinite |= args.infinite[k];

  Rows sum = {};
  for (int64_t tile0 = 0; tile0 < I; tile0 += kSumThreads) {
    const int64_t own = tile0 + threadIdx.x;
    bool is_used = infinite != 0;
#pragma unroll
    for (int r = 0; r < kSumRows; ++r) {
      S value = S(0);
      if (own < I && row0 + r < args.rows)
        value = to_compute<S>(static_cast<const IO*>(args.input)[(row0 + r) * I + own]);
      tile[threadIdx.x].at[r] = value;
      is_used |= value != S(0);
    }
    const uint32_t word = __ballot_sync(0xffffffffu, is_used && own < I);
    if (threadIdx.x % kWord == 0) used[threadIdx.x / kWord] = word;
    __syncthreads();
    if (h < H) {
      const S* weights = static_cast<const S*>(args.weights) + tile0 * H + h;
      for (int w = 0; w < kWords; ++w)
        for (uint32_t left = used[w]; left != 0; left &= left - 1) {
          const int k = w * kWord + __ffs(static_cast<int>(left)) - 1;
          const S weight = weights[k * H];
#pragma unroll
          for (int r = 0; r < kSumRows; ++r) sum.at[r] += tile[k].at[r] * weight;
        }
    }
    __syncthreads();
  }
  if (h >= H) return;
#pragma unroll
  for (int r = 0; r < kSumRows; ++r)
    if (row0 + r < args.rows) static_cast<S*>(args.sums)[(row0 + r) * H + h] = sum.at[r];
}

}  // namespace

void launch_input_sums(const InputSums& args, DType dtype, Stream stream) {
  visit_dtype(dtype, [&]<typename IO>(IO) {
    using S = Compute<IO>;
    launch(
        "find_infinite_kernel", find_infinite_kernel<S>, {dim3(kFlags), dim3(kFlagThreads)}, stream,
        static_cast<const S*>(args.weights), args.I * args.H, args.infinite);
    const LaunchShape shape = {
        dim3(
            static_cast<unsigned>((args.rows + kSumRows - 1) / kSumRows),
            static_cast<unsigned>((args.H + kSumThreads - 1) / kSumThreads)),
        dim3(kSumThreads)};
    launch("lif_input_sums_forward_kernel", lif_input_sums_forward_kernel<IO>, shape, stream, args);
  });
}

}  // namespace fused_lif::cuda
