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
// lists what is not zero in one of its rows.
template <typename IO>
__global__ void __launch_bounds__(kSumThreads) lif_input_sums_forward_kernel(const InputSums args) {
  using S = Compute<IO>;
  using Rows = Pack<S, kSumRows>;
  constexpr int kWarps = kSumThreads / 32;
  __shared__ Rows tile[kSumThreads + 1];              // the last one is zero: of no input
  __shared__ uint16_t list[kSumThreads + kListUnit];  // inputs of the tile, in ascending order
  __shared__ uint32_t used[kWarps];                   // the same, one bit for each
  const int64_t I = args.I, H = args.H, row0 = int64_t{blockIdx.x} * kSumRows;
  const int64_t h = int64_t{blockIdx.y} * kSumThreads + threadIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t infinite = 0;
  for (int k = 0; k < kFlags; ++k) infinite |= args.infinite[k];
  if (threadIdx.x == 0) tile[kSumThreads] = {};

  Rows sum = {};
  for (int64_t tile0 = 0; tile0 < I; tile0 += kSumThreads) {
    const int64_t own = tile0 + threadIdx.x;
    bool is_used = infinite != 0;
    Rows values = {};
    if (own < I) {
#pragma unroll
      for (int r = 0; r < kSumRows; ++r)
        if (row0 + r < args.rows)
          values.at[r] = to_compute<S>(static_cast<const IO*>(args.input)[(row0 + r) * I + own]);
    }
#pragma unroll
    for (int r = 0; r < kSumRows; ++r) is_used |= values.at[r] != S(0);
    const uint32_t word = __ballot_sync(0xffffffffu, is_used && own < I);
    __syncthreads();  // the tile before is done with
    tile[threadIdx.x] = values;
    if (lane == 0) used[warp] = word;
    __syncthreads();
    int count = 0, before = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) before = count;
      count += __popc(used[w]);
    }
    if (word >> lane & 1)
      list[before + __popc(word & ((1u << lane) - 1))] = static_cast<uint16_t>(threadIdx.x);
    if (threadIdx.x < kListUnit) list[count + threadIdx.x] = kSumThreads;
    __syncthreads();
    if (h >= H) continue;
    const S* weights = static_cast<const S*>(args.weights) + tile0 * H + h;
    for (int n = 0; n < count; n += kListUnit) {
      int input[kListUnit];
      S weight[kListUnit];
#pragma unroll
      for (int j = 0; j < kListUnit; ++j) {
        input[j] = list[n + j];
        weight[j] = input[j] < kSumThreads ? weights[input[j] * H] : S(0);
      }
#pragma unroll
      for (int j = 0; j < kListUnit; ++j) {
        const Rows x = tile[input[j]];
#pragma unroll
        for (int r = 0; r < kSumRows; ++r) sum.at[r] += x.at[r] * weight[j];
      }
    }
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
