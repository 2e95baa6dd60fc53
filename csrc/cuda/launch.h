// Launches a kernel on a stream, and says which one if that fails.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fused_lif::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic shared memory of a block
  unsigned cluster = 1;     // blocks per cluster, along x
};

inline void check_launch(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that was reported must not come up again elsewhere
  throw std::runtime_error(
      std::string("fused_lif: the CUDA kernel ") + kernel +
      " could not be launched: " + cudaGetErrorString(error));
}

// Runs `kernel`, called `name` in messages. An empty grid is no launch.
template <typename... Parameters, typename... Arguments>
void launch(
    const char* name,
    void (*kernel)(Parameters...),
    const LaunchShape& shape,
    cudaStream_t stream,
    Arguments&&... arguments) {
  constexpr size_t kDefaultShared = 48 << 10;
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  if (shape.shared_bytes > kDefaultShared)
    check_launch(
        cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
            static_cast<int>(shape.shared_bytes)),
        name);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = shape.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  check_launch(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

}  // namespace fused_lif::cuda
