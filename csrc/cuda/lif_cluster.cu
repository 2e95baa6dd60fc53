// Kernels of a whole recurrent layer, for compute capability 9.0 and later. A cluster of blocks
// owns a few batch rows for all time steps. Each of its blocks computes kClusterColumns neurons of
// these rows and keeps their weights: the forward the columns of W_rec^T in shared memory, the
// backward those of W_rec in registers. After every step the blocks tell each other what they
// found, through distributed shared memory, and meet at one barrier: the only one of a step that
// spans the cluster.
#include <cooperative_groups.h>

#include "constants.cuh"
#include "launch.h"
#include "plan.h"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FUSED_LIF_HAS_CLUSTERS 1
#endif

namespace fused_lif::cuda {
namespace {

#if FUSED_LIF_HAS_CLUSTERS

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float load_any(const void* from, DType dtype, int64_t m) {
  switch (dtype) {
    case DType::kHalf: return __half2float(static_cast<const __half*>(from)[m]);
    case DType::kBFloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[m]);
    default: return static_cast<const float*>(from)[m];
  }
}

__device__ __forceinline__ void store_spike(void* to, DType dtype, int64_t m, bool z) {
  switch (dtype) {
    case DType::kHalf: static_cast<__half*>(to)[m] = __float2half_rn(z ? 1.f : 0.f); return;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(to)[m] = __float2bfloat16_rn(z ? 1.f : 0.f);
      return;
    default: static_cast<float*>(to)[m] = z ? 1.f : 0.f; return;
  }
}

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.f; }

// Turns the spikes of a row, as bits, into a list of senders in ascending order, filled up with
// `filler` to a multiple of kListUnit. A warp does it together; returns the length without filling.
__device__ __forceinline__ int
list_spikes(const uint32_t* spikes, int words, int lane, uint16_t filler, uint16_t* list) {
  uint32_t word = lane < words ? spikes[lane] : 0;
  int end = __popc(word);  // of this lane's part of the list
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int before = __shfl_up_sync(kAllLanes, end, d);
    if (lane >= d) end += before;
  }
  const int count = __shfl_sync(kAllLanes, end, 31);
  for (int at = end - __popc(word); word != 0; word &= word - 1)
    list[at++] = static_cast<uint16_t>(lane * kSpikeWord + __ffs(word) - 1);
  if (lane < kListUnit) list[count + lane] = filler;
  __syncwarp();
  return count;
}

#endif

// A thread computes one neuron of one row; a warp, 32 of one row.
template <Reset kReset>
__global__ void __launch_bounds__(kClusterColumns* kForwardRows, 1)
    lif_cluster_forward_kernel(const ClusterForward args) {
#if FUSED_LIF_HAS_CLUSTERS
  const auto cluster = cooperative_groups::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int rank = static_cast<int>(cluster.block_rank());
  const int H = static_cast<int>(args.H), words = blocks * kClusterColumns / kSpikeWord;
  const int rows = blockDim.x / kClusterColumns, warps = blockDim.x / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = threadIdx.x / kClusterColumns, column = threadIdx.x % kClusterColumns;
  const int h = rank * kClusterColumns + column;
  const int64_t b = int64_t{blockIdx.x} / blocks * rows + row;
  const bool is_used = h < H && b < args.B;
  const int64_t M = args.B * H, m = is_used ? b * H + h : 0;

  float* weights = reinterpret_cast<float*>(fused_lif_shared);  // [H + 1, kClusterColumns]
  uint32_t* spikes = reinterpret_cast<uint32_t*>(weights + (H + 1) * kClusterColumns);
  uint16_t* lists = reinterpret_cast<uint16_t*>(spikes + 2 * rows * words);
  uint16_t* list = lists + warp * list_size(H);
  uint32_t* infinite = reinterpret_cast<uint32_t*>(lists + warps * list_size(H));  // [warps]

  // The row behind the last is zero: of no sender.
  bool found_infinite = false;
  for (int k = row; k <= H; k += rows) {
    float weight = 0.f;
    if (k < H && h < H) weight = static_cast<const float*>(args.weights)[int64_t{k} * H + h];
    found_infinite |= !is_finite(weight);
    weights[k * kClusterColumns + column] = weight;
  }
  const uint32_t lanes = __ballot_sync(kAllLanes, found_infinite);
  if (lane == 0) infinite[warp] = lanes;

  Constants<float> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  State<float> state = {
      static_cast<const float*>(args.v0)[m], static_cast<const float*>(args.i0)[m]};
  const float* x = static_cast<const float*>(args.x) + m;
  const int T = static_cast<int>(args.T);
  constexpr int kAhead = 4;  // steps of input on their way
  float x_next[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) x_next[k] = x[(k < T ? k : 0) * M];
  int64_t keep_after = args.rows > 0 ? args.interval - 1 : -1, kept = 0;

  cluster.sync();         // the weights are there, and so are all blocks
  bool is_dense = false;  // 0 times a weight must show
  for (int w = 0; w < warps; ++w) is_dense |= infinite[w] != 0;

  for (int t = 0; t < T; ++t) {
    const float* own = weights + column;
    float r = 0.f;
    if (t == 0) {
      const float* z0 = static_cast<const float*>(args.z0) + (m - (is_used ? h : 0));
#pragma unroll 8
      for (int k = 0; k < H; ++k) {
        const float z = z0[k];
        if (z != 0.f || is_dense) r += z * own[k * kClusterColumns];
      }
    } else {
      const uint32_t* received = spikes + ((t & 1) * rows + row) * words;
      if (is_dense) {
        for (int k = 0; k < H; ++k) {
          const bool z = received[k / kSpikeWord] >> (k % kSpikeWord) & 1;
          r += (z ? 1.f : 0.f) * own[k * kClusterColumns];
        }
      } else {
        const int count = list_spikes(received, words, lane, static_cast<uint16_t>(H), list);
        for (int n = 0; n < count; n += kListUnit) {
          const auto senders = *reinterpret_cast<const Pack<uint16_t, kListUnit>*>(list + n);
          float weight[kListUnit];
#pragma unroll
          for (int k = 0; k < kListUnit; ++k) weight[k] = own[senders.at[k] * kClusterColumns];
#pragma unroll
          for (int k = 0; k < kListUnit; ++k) r += weight[k];
        }
      }
    }
    const auto step = recurrent_step_forward<kReset>(x_next[0], r, state, c[0]);
    const bool z = is_used && step.v_decayed > c[0].v_th;
    const uint32_t word = __ballot_sync(kAllLanes, z);
    uint32_t* const sent = spikes + (((t + 1) & 1) * rows + row) * words + h / kSpikeWord;
    if (lane < blocks) *cluster.map_shared_rank(sent, lane) = word;
    cluster.barrier_arrive();

    const int64_t offset = t * M;
#pragma unroll
    for (int k = 0; k + 1 < kAhead; ++k) x_next[k] = x_next[k + 1];
    x_next[kAhead - 1] = x[(t + kAhead < T ? t + kAhead : 0) * M];
    if (is_used) {
      store_spike(args.out, args.dtype, offset + m, z);
      if (args.i_jump != nullptr) static_cast<float*>(args.i_jump)[offset + m] = step.i_jump;
      if (t == keep_after) {
        static_cast<float*>(args.states)[kept * M + m] = state.v;
        if (args.interval == 1) static_cast<float*>(args.states)[(T + kept) * M + m] = state.i;
        keep_after = ++kept < args.rows ? keep_after + args.interval : -1;
      }
    }
    cluster.barrier_wait();
  }
  if (is_used) {
    static_cast<float*>(args.v)[m] = state.v;
    static_cast<float*>(args.i)[m] = state.i;
  }
#endif
}

// All threads take part in grad_z = W_rec^T grad_x: thread (split, column) adds up the receivers
// [split * kSlice, (split + 1) * kSlice), whose weights it has in registers, for every row. Then a
// thread per neuron and row adds up the splits and reverses the step.
template <Spike kSpike, int kSlice, Reset kReset>
__global__ void __launch_bounds__(kClusterBackwardThreads, 1)
    lif_cluster_backward_kernel(const ClusterBackward args, int rows) {
#if FUSED_LIF_HAS_CLUSTERS
  constexpr int kReceivers = kSlice * kBackwardSplits;
  const auto cluster = cooperative_groups::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int rank = static_cast<int>(cluster.block_rank());
  const int H = static_cast<int>(args.H), T = static_cast<int>(args.T);
  // Of the product: a split of the receivers. Of the reversal: a row.
  const int part = threadIdx.x / kClusterColumns, column = threadIdx.x % kClusterColumns;
  const int h = rank * kClusterColumns + column;
  const int64_t b = int64_t{blockIdx.x} / blocks * rows + part;
  const bool has_row = part < rows, is_used = has_row && h < H && b < args.B;
  const int64_t M = args.B * H, m = is_used ? b * H + h : 0;

  float* grads = reinterpret_cast<float*>(fused_lif_shared);  // [2, rows, kReceivers]
  float* partial = grads + 2 * rows * kReceivers;  // [kBackwardSplits, rows, kClusterColumns]
  const int slots = rows * kClusterColumns;        // a segment: [segment, rows, kClusterColumns]
  float* potential = partial + kBackwardSplits * slots + threadIdx.x;
  float* current = potential + args.segment * slots;

  float weight[kSlice];
#pragma unroll
  for (int k = 0; k < kSlice; ++k) {
    const int receiver = part * kSlice + k;
    weight[k] = receiver < H && h < H
                    ? static_cast<const float*>(args.weights)[int64_t{receiver} * H + h]
                    : 0.f;
  }
  for (int k = threadIdx.x; k < 2 * rows * kReceivers; k += blockDim.x) grads[k] = 0.f;

  Constants<float> c[1];
  load_constants<Neuron::kLIF>(args.constants, args.dt, m, c);
  if constexpr (kSpike != Spike::kEvent) load_alpha(args.constants, m, c);
  State<float> grad = {load_or_zero<float>(args.grad_v, m), load_or_zero<float>(args.grad_i, m)};
  ConstantGrads<float> sums = {};
  const auto load_grad_out = [&](int t) {
    return args.grad_out == nullptr ? 0.f : load_any(args.grad_out, args.dtype, t * M + m);
  };
  float grad_out = load_grad_out(T - 1);
  float grad_next = 0.f;  // of events: dL/dz of the step after
  const int segment = static_cast<int>(args.segment);

  cluster.sync();  // all blocks have cleared what others write to
  for (int t = T - 1, t0 = T; t >= 0; --t) {
    if (t < t0 && has_row) {  // the last step of a segment: the potentials before its steps
      const int first = t / segment * segment;
      for (int s = first; s <= t; ++s)
        copy_ahead(
            reinterpret_cast<Pack<float, 1>*>(&current[(s - first) * slots]),
            static_cast<const float*>(args.i_jump) + s * M + m);
      __pipeline_commit();
      const float* v = static_cast<const float*>(first == 0 ? args.v0 : args.states);
      State<float> state = {v[(first == 0 ? 0 : first / args.interval - 1) * M + m], 0.f};
      __pipeline_wait_prior(0);
      for (int s = first; s <= t; ++s) {
        potential[(s - first) * slots] = state.v;
        step_from_jump<Neuron::kLIF, kReset>(current[(s - first) * slots], state, c[0]);
      }
    }
    if (t < t0) t0 = t / segment * segment;

    const float* received = grads + (t & 1) * rows * kReceivers;
    if (t + 1 < T) {
      for (int row = 0; row < rows; ++row) {
        const float4* g =
            reinterpret_cast<const float4*>(received + row * kReceivers + part * kSlice);
        float even = 0.f, odd = 0.f;
#pragma unroll
        for (int k = 0; k < kSlice / 4; ++k) {
          const float4 g4 = g[k];
          even = fmaf(weight[4 * k], g4.x, even);
          odd = fmaf(weight[4 * k + 1], g4.y, odd);
          even = fmaf(weight[4 * k + 2], g4.z, even);
          odd = fmaf(weight[4 * k + 3], g4.w, odd);
        }
        partial[(part * rows + row) * kClusterColumns + column] = even + odd;
      }
      __syncthreads();
    }
    float grad_x = 0.f;
    if (is_used) {
      float grad_z = 0.f;
      if (t + 1 < T) {
#pragma unroll
        for (int s = 0; s < kBackwardSplits; ++s) grad_z += partial[s * slots + threadIdx.x];
      }
      if (args.grad_states != nullptr) {
        const float* recorded = static_cast<const float*>(args.grad_states) + m;
        grad.v += recorded[t * M];
        grad.i += recorded[(args.T + t) * M];
      }
      State<float> before = {potential[(t - t0) * slots], 0.f};
      const auto step =
          step_from_jump<Neuron::kLIF, kReset>(current[(t - t0) * slots], before, c[0]);
      if constexpr (kSpike == Spike::kEvent) {
        float i = 0.f;  // before the input
        if (args.method.is_adjoint && t == 0) {
          i = static_cast<const float*>(args.i0)[m];
        } else if (args.method.is_adjoint) {
          const float jump = t > t0 ? current[(t - t0 - 1) * slots]
                                    : static_cast<const float*>(args.i_jump)[(t - 1) * M + m];
          i = jump - c[0].dt_tau_syn_inv * jump;
        }
        const float grad_total = grad_out + grad_z;
        grad_x = event_backward<Neuron::kLIF, kReset>(
            args.method, step, i, grad_total, t + 1 == T ? grad_total : grad_next,
            static_cast<float>(args.dt), grad, sums, c[0]);
        grad_next = grad_total;
      } else {
        float surrogate = 0.f;
        visit_surrogate(args.method.surrogate, [&]<Surrogate kSurrogate>() {
          surrogate = surrogate_grad<kSurrogate>(step.v_decayed - c[0].v_th, c[0].alpha);
        });
        grad_x = step_backward<Neuron::kLIF, kReset, true>(
            step, grad_out + grad_z, surrogate, args.detach_reset, grad, sums, c[0]);
      }
    }
    if (has_row)
      for (int q = 0; q < blocks; ++q)
        *cluster.map_shared_rank(grads + (((t + 1) & 1) * rows + part) * kReceivers + h, q) =
            grad_x;
    cluster.barrier_arrive();
    if (is_used) {
      static_cast<float*>(args.grad_x)[t * M + m] = grad_x;
      if (t > 0) grad_out = load_grad_out(t - 1);
    }
    cluster.barrier_wait();
  }
  if (!is_used) return;
  static_cast<float*>(args.grad_v0)[m] = grad.v;
  static_cast<float*>(args.grad_i0)[m] = grad.i;
  for_each_sum<Neuron::kLIF>(sums, [&](int constant, float sum) {
    if (args.sums[constant] != nullptr) static_cast<float*>(args.sums[constant])[m] = sum;
  });
#endif
}

LaunchShape cluster_shape(int64_t B, int64_t H, int rows, int threads, int64_t bytes) {
  const int blocks = cluster_blocks(H);
  return {
      dim3(static_cast<unsigned>((B + rows - 1) / rows * blocks)), dim3(threads),
      static_cast<size_t>(bytes), static_cast<unsigned>(blocks)};
}

}  // namespace

const void* cluster_kernel() {
  return reinterpret_cast<const void*>(&lif_cluster_forward_kernel<Reset::kHard>);
}

void launch_cluster_forward(const ClusterForward& args, Reset reset, int rows, Stream stream) {
  const LaunchShape shape = cluster_shape(
      args.B, args.H, rows, rows * kClusterColumns, cluster_forward_bytes(args.H, rows));
  visit_reset(reset, [&]<Reset kReset>() {
    launch("lif_cluster_forward_kernel", lif_cluster_forward_kernel<kReset>, shape, stream, args);
  });
}

void launch_cluster_backward(const ClusterBackward& args, Reset reset, int rows, Stream stream) {
  const LaunchShape shape = cluster_shape(
      args.B, args.H, rows, kClusterBackwardThreads,
      cluster_backward_bytes(args.H, rows, args.segment));
  visit_reset(reset, [&]<Reset kReset>() {
    visit_spike<float, Neuron::kLIF, true>(args.method.spike, [&]<Spike kSpike>() {
      const auto run = [&](auto kernel) {
        launch("lif_cluster_backward_kernel", kernel, shape, stream, args, rows);
      };
      switch (backward_slice(args.H)) {
        case 16: return run(lif_cluster_backward_kernel<kSpike, 16, kReset>);
        case 32: return run(lif_cluster_backward_kernel<kSpike, 32, kReset>);
        default: return run(lif_cluster_backward_kernel<kSpike, 64, kReset>);
      }
    });
  });
}

}  // namespace fused_lif::cuda
