// Kernels that are right, and kernels that are wrong in one way each, for test_cuda_emulator.py.
#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>

#include "launch.h"

extern __shared__ __align__(16) unsigned char fused_lif_shared[];

namespace cg = cooperative_groups;

namespace {

constexpr unsigned kAll = 0xffffffff;

__device__ float* shared_floats() { return reinterpret_cast<float*>(fused_lif_shared); }

// ---- coordinates ----

// data[number of the thread in the grid] = one more than that number
__global__ void coordinates_kernel(float* data) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned number = block * blockDim.x * blockDim.y * blockDim.z + thread;
  data[number] = static_cast<float>(number + 1);
}

// data[k] = number of the thread that was the k-th to begin, after a first value that counts them
__global__ void order_kernel(float* data) {
  const int k = static_cast<int>(data[0]);
  data[0] = static_cast<float>(k + 1);
  data[1 + k] = static_cast<float>(threadIdx.x);
}

// ---- barriers of a block ----

__global__ void reverse_kernel(float* data) {
  float* shared = shared_floats();
  const unsigned k = threadIdx.x;
  shared[k] = data[k];
  __syncthreads();
  data[k] = shared[blockDim.x - 1 - k];
}

__global__ void reverse_without_barrier_kernel(float* data) {
  float* shared = shared_floats();
  const unsigned k = threadIdx.x;
  shared[k] = data[k];
  data[k] = shared[blockDim.x - 1 - k];
}

// The same value twice, once through static shared memory. One thread leaves early.
__global__ void early_exit_kernel(float* data) {
  __shared__ float first;
  if (threadIdx.x == 0) first = data[0];
  if (threadIdx.x == blockDim.x - 1) return;
  __syncthreads();
  data[threadIdx.x] = first;
}

__global__ void static_shared_starts_undefined_kernel(float* data) {
  __shared__ float values[32];
  __shared__ float dirty[32];
  data[32 * blockIdx.x + threadIdx.x] = values[threadIdx.x] + dirty[threadIdx.x];
  values[threadIdx.x] = dirty[threadIdx.x] = 0;
}

__global__ void different_barriers_kernel(float* data) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  data[threadIdx.x] = 0;
}

__global__ void deadlock_kernel(float* data) {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __syncwarp();
  data[threadIdx.x] = 0;
}

// ---- warps ----

__global__ void warp_kernel(float* data) {
  const int k = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  float* row = data + k;
  const auto store = [&](double value) {
    *row = static_cast<float>(value);
    row += n;
  };
  const int lane = k % warpSize;
  store(__ballot_sync(kAll, k % 3 == 0) & 0xffff);
  store(__ballot_sync(kAll, k % 3 == 0) >> 16);
  store(__any_sync(kAll, k == 40));
  store(__all_sync(kAll, k < 40));
  store(__shfl_sync(kAll, k, 5));
  store(__shfl_sync(kAll, k + 0.5, 3, 8));
  store(__shfl_up_sync(kAll, k, 3));
  store(__shfl_down_sync(kAll, k, 3, 16));
  store(__shfl_xor_sync(kAll, k, 6));
  if (lane < 8) {
    store(__shfl_sync(0xff, k, 7));
    float sum = static_cast<float>(k);
    for (int d = 4; d > 0; d /= 2) sum += __shfl_xor_sync(0xff, sum, d);
    store(sum);
  }
}

// Lanes hand values on through shared memory, round after round.
__global__ void warp_relay_kernel(float* data) {
  float* shared = shared_floats();
  const unsigned k = threadIdx.x;
  float value = data[k];
  for (int round = 0; round < 3; ++round) {
    shared[k] = value;
    __syncwarp();
    value = shared[(k + 1) % 32];
    __syncwarp();
  }
  data[k] = value;
}

__global__ void missing_lane_kernel(float* data) {
  if (threadIdx.x != 7) data[threadIdx.x] = __shfl_sync(kAll, data[threadIdx.x], 0);
  __syncthreads();
}

__global__ void lane_outside_mask_kernel(float* data) {
  data[threadIdx.x] = __shfl_sync(0xffff, data[threadIdx.x], 0);
}

__global__ void different_masks_kernel(float* data) {
  const unsigned mask = threadIdx.x < 16 ? kAll : 0xffffff00;
  data[threadIdx.x] = __shfl_sync(mask, data[threadIdx.x], 16);
}

__global__ void exited_lane_kernel(float* data) {
  if (threadIdx.x == 7) return;
  data[threadIdx.x] = __shfl_sync(kAll, data[threadIdx.x], 7);
}

// ---- asynchronous copies ----

// data[0] = sum of data, through a ring of slots that are filled ahead. One thread.
__global__ void ring_kernel(float* data, int n) {
  constexpr int kSlots = 4;
  float* ring = shared_floats();
  const auto fetch = [&](int k) {
    if (k < n) __pipeline_memcpy_async(&ring[k % kSlots], &data[k], sizeof(float));
    __pipeline_commit();
  };
  for (int k = 0; k < kSlots - 1; ++k) fetch(k);
  float sum = 0;
  for (int k = 0; k < n; ++k) {
    fetch(k + kSlots - 1);
    __pipeline_wait_prior(kSlots - 1);
    sum += ring[k % kSlots];
  }
  data[0] = sum;
}

// The same, and waits for one group too few.
__global__ void impatient_ring_kernel(float* data, int n) {
  float* ring = shared_floats();
  float sum = 0;
  for (int k = -1; k < n; ++k) {
    if (k + 1 < n) __pipeline_memcpy_async(&ring[(k + 1) % 4], &data[k + 1], sizeof(float));
    __pipeline_commit();
    if (k < 0) continue;
    __pipeline_wait_prior(2);
    sum += ring[k % 4];
  }
  data[0] = sum;
}

// The same, but the slot that is filled is the one that is about to be read.
__global__ void short_ring_kernel(float* data, int n) {
  float* ring = shared_floats();
  float sum = 0;
  for (int k = -2; k < n; ++k) {
    if (k >= 0) __pipeline_wait_prior(1);
    if (k + 2 < n) __pipeline_memcpy_async(&ring[(k + 2) % 2], &data[k + 2], sizeof(float));
    __pipeline_commit();
    if (k >= 0) sum += ring[k % 2];
  }
  data[0] = sum;
}

__global__ void two_copies_kernel(float* data) {
  __pipeline_memcpy_async(fused_lif_shared, data, 16);
  __pipeline_memcpy_async(fused_lif_shared + 12, data, 4);
}

__global__ void zero_fill_kernel(float* data) {
  float4* shared = reinterpret_cast<float4*>(fused_lif_shared);
  __pipeline_memcpy_async(shared, data, sizeof(float4), 8);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  *reinterpret_cast<float4*>(data) = *shared;
}

__global__ void copy_of_three_bytes_kernel(float* data) {
  __pipeline_memcpy_async(fused_lif_shared, data, 3);
}

__global__ void misaligned_copy_kernel(float* data) {
  __pipeline_memcpy_async(fused_lif_shared, data + 1, 16);
}

__global__ void copy_to_global_kernel(float* data) { __pipeline_memcpy_async(data + 4, data, 4); }

__global__ void misaligned_load_kernel(float* data) {
  data[0] = __ldg(reinterpret_cast<const float4*>(data + 1)).x;
}

// ---- clusters ----

// Every block adds up what all blocks of its cluster have, in two rounds.
__global__ void cluster_sum_kernel(float* data) {
  const cg::cluster_group cluster = cg::this_cluster();
  __shared__ float second;
  float* shared = shared_floats();
  const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
  shared[threadIdx.x] = data[k];
  cluster.sync();
  float sum = 0;
  for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank)
    sum += *cluster.map_shared_rank(shared + threadIdx.x, rank);
  if (threadIdx.x == 0) second = sum;
  cluster.barrier_arrive();
  const float own = data[k];  // work between the two halves
  cluster.barrier_wait();
  data[k] = sum + own + *cluster.map_shared_rank(&second, cluster.num_blocks() - 1);
  cluster.sync();  // nobody leaves while others read
}

// Threads that leave early count as arrived at all barriers that follow.
__global__ void cluster_early_exit_kernel(float* data) {
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 3) return;
  for (unsigned round = 0; round < 3; ++round) {
    cluster.sync();
    if (threadIdx.x == 5 + round) return;
  }
  data[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

__global__ void wait_without_arrival_kernel(float*) { cg::this_cluster().barrier_wait(); }

__global__ void second_arrival_kernel(float*) {
  cg::this_cluster().barrier_arrive();
  cg::this_cluster().barrier_arrive();
}

__global__ void one_block_waits_kernel(float*) {
  if (cg::this_cluster().block_rank() == 0)
    cg::this_cluster().sync();
  else if (threadIdx.x == 0)
    __syncwarp(1);
  else
    __syncthreads();
  if (cg::this_cluster().block_rank() == 1) cg::this_cluster().sync();
  if (cg::this_cluster().block_rank() == 1) cg::this_cluster().sync();
  __syncthreads();
  if (cg::this_cluster().block_rank() == 0 && threadIdx.x == 0) __syncwarp(3);
}

// Reads the memory of a block that may have exited.
__global__ void read_after_exit_kernel(float* data) {
  const cg::cluster_group cluster = cg::this_cluster();
  float* shared = shared_floats();
  *shared = 1;
  cluster.sync();
  data[blockIdx.x] = *cluster.map_shared_rank(shared, 1 - cluster.block_rank());
}

// Writes to the memory of a block that may not have begun.
__global__ void write_before_begin_kernel(float* data) {
  const cg::cluster_group cluster = cg::this_cluster();
  float* shared = shared_floats();
  *cluster.map_shared_rank(shared, 1 - cluster.block_rank()) = 1;
  cluster.sync();
  data[blockIdx.x] = *shared;
}

__global__ void rank_outside_cluster_kernel(float*) {
  cg::this_cluster().map_shared_rank(shared_floats(), 2);
}

__global__ void map_global_kernel(float* data) { cg::this_cluster().map_shared_rank(data, 0); }

// ---- beyond the end ----

__global__ void read_beyond_shared_kernel(float* data) { data[0] = shared_floats()[threadIdx.x]; }

__global__ void write_beyond_data_kernel(float* data, int n) { data[n + threadIdx.x] = 0; }

// ---- how the tests run them ----

// Launches without asking for as much shared memory as csrc/cuda/launch.h does.
void launch_as_is(unsigned grid, unsigned block, size_t shared, unsigned cluster, float* data) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  fused_lif::cuda::check_launch(
      cudaLaunchKernelEx(&config, coordinates_kernel, data), "coordinates_kernel");
}

using Kernel = void (*)(float*);

const std::map<std::string, Kernel> kKernels = {
    {"coordinates", coordinates_kernel},
    {"order", order_kernel},
    {"reverse", reverse_kernel},
    {"reverse_without_barrier", reverse_without_barrier_kernel},
    {"early_exit", early_exit_kernel},
    {"static_shared_starts_undefined", static_shared_starts_undefined_kernel},
    {"different_barriers", different_barriers_kernel},
    {"deadlock", deadlock_kernel},
    {"warp", warp_kernel},
    {"warp_relay", warp_relay_kernel},
    {"missing_lane", missing_lane_kernel},
    {"lane_outside_mask", lane_outside_mask_kernel},
    {"different_masks", different_masks_kernel},
    {"exited_lane", exited_lane_kernel},
    {"two_copies", two_copies_kernel},
    {"zero_fill", zero_fill_kernel},
    {"copy_of_three_bytes", copy_of_three_bytes_kernel},
    {"misaligned_copy", misaligned_copy_kernel},
    {"copy_to_global", copy_to_global_kernel},
    {"misaligned_load", misaligned_load_kernel},
    {"cluster_sum", cluster_sum_kernel},
    {"cluster_early_exit", cluster_early_exit_kernel},
    {"wait_without_arrival", wait_without_arrival_kernel},
    {"second_arrival", second_arrival_kernel},
    {"one_block_waits", one_block_waits_kernel},
    {"read_after_exit", read_after_exit_kernel},
    {"write_before_begin", write_before_begin_kernel},
    {"rank_outside_cluster", rank_outside_cluster_kernel},
    {"map_global", map_global_kernel},
    {"read_beyond_shared", read_beyond_shared_kernel},
};

const std::map<std::string, void (*)(float*, int)> kKernelsWithSize = {
    {"ring", ring_kernel},
    {"impatient_ring", impatient_ring_kernel},
    {"short_ring", short_ring_kernel},
    {"write_beyond_data", write_beyond_data_kernel},
};

// The message of what f throws; empty if nothing.
template <typename F>
const char* guarded(const F& f) {
  static std::string message;
  message.clear();
  try {
    f();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Runs a kernel with `n` floats of data; returns the message of the error, or an empty string.
EXPORT const char* selftest_run(
    const char* name,
    float* data,
    int n,
    const unsigned grid[3],
    const unsigned block[3],
    size_t shared,
    unsigned cluster) {
  const fused_lif::cuda::LaunchShape shape = {
      dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared, cluster};
  return guarded([&] {
    if (const auto found = kKernels.find(name); found != kKernels.end())
      fused_lif::cuda::launch(name, found->second, shape, nullptr, data);
    else
      fused_lif::cuda::launch(name, kKernelsWithSize.at(name), shape, nullptr, data, n);
  });
}

EXPORT const char*
selftest_launch_as_is(unsigned grid, unsigned block, size_t shared, unsigned cluster, float* data) {
  return guarded([&] { launch_as_is(grid, block, shared, cluster, data); });
}
