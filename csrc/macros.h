// Qualifiers of functions that both the host compiler and nvcc compile, and the names under which
// the operators of CUDA are registered.
#pragma once

#if defined(__CUDACC__)
#define FUSED_LIF_HD __host__ __device__ __forceinline__
#else
// Always inline: the CPU kernels are compiled once per instruction set, and an out-of-line copy
// made for one of them must never serve another.
#define FUSED_LIF_HD inline __attribute__((always_inline))
#endif

// tests/cuda_emulator registers the CUDA operators for CPU tensors, beside the real ones.
#if !defined(FUSED_LIF_LIBRARY)
#define FUSED_LIF_LIBRARY fused_lif
#define FUSED_LIF_CUDA_KEY CUDA
#endif
