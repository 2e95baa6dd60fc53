// Stands in for the CUDA toolkit's header of this name when a .cu file is compiled with g++: types
// and declarations are the toolkit's own, what nvcc would build in is emulated.
#pragma once

#include <cuda_runtime_api.h>  // the toolkit's

#include "cuda_emulator/qualifiers.h"

#include "cuda_emulator/cache_hints.h"
#include "cuda_emulator/launch.h"
#include "cuda_emulator/machine.h"
#include "cuda_emulator/math.h"
#include "cuda_emulator/warp.h"

// Coordinates of the running thread, as nvcc knows them.
inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local dim3 blockDim{};
inline constinit thread_local dim3 gridDim{};
inline constexpr int warpSize = cuda_emulator::kWarp;

inline void __syncthreads(cuda_emulator::Location here = cuda_emulator::Location::current()) {
  cuda_emulator::block_barrier("__syncthreads", here);
}

// Only one block at a time runs in a cluster, and blocks of different clusters share nothing that
// they may read from each other: there is nothing to order.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

[[noreturn]] inline void __trap(cuda_emulator::Location here = cuda_emulator::Location::current()) {
  cuda_emulator::fail("__trap()", here);
}
