// The block and the cluster as groups; no tiles, no grid-wide barrier.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

class thread_block {
 public:
  using Location = cuda_emulator::Location;

  static void sync(Location here = Location::current()) {
    cuda_emulator::block_barrier("thread_block::sync", here);
  }
  static unsigned thread_rank() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  }
  static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned size() { return num_threads(); }
  static dim3 group_index() { return blockIdx; }
  static dim3 thread_index() { return threadIdx; }
};

inline thread_block this_thread_block() { return {}; }

class cluster_group {
 public:
  using Location = cuda_emulator::Location;
  struct arrival_token {};

  static void sync(Location here = Location::current()) {
    cuda_emulator::cluster_arrive("cluster.sync", here);
    cuda_emulator::cluster_wait("cluster.sync", here);
  }
  static arrival_token barrier_arrive(Location here = Location::current()) {
    cuda_emulator::cluster_arrive("cluster.barrier_arrive", here);
    return {};
  }
  static void barrier_wait(Location here = Location::current()) {
    cuda_emulator::cluster_wait("cluster.barrier_wait", here);
  }
  static void barrier_wait(arrival_token&&, Location here = Location::current()) {
    cuda_emulator::cluster_wait("cluster.barrier_wait", here);
  }

  static unsigned block_rank() { return cuda_emulator::cluster_rank(); }
  static unsigned num_blocks() { return cuda_emulator::cluster_size(); }
  static dim3 dim_blocks() { return {num_blocks(), 1, 1}; }
  static dim3 block_index() { return {block_rank(), 0, 0}; }
  static unsigned num_threads() { return num_blocks() * thread_block::num_threads(); }
  static unsigned size() { return num_threads(); }
  static unsigned thread_rank() {
    return block_rank() * thread_block::num_threads() + thread_block::thread_rank();
  }

  template <typename T>
  static T* map_shared_rank(T* address, int rank, Location here = Location::current()) {
    return static_cast<T*>(cuda_emulator::map_shared(
        const_cast<std::remove_const_t<T>*>(address), static_cast<unsigned>(rank), here));
  }
  static unsigned query_shared_rank(const void* address, Location here = Location::current()) {
    return cuda_emulator::rank_of_shared(address, here);
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
