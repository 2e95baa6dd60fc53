// Function qualifiers for code that is compiled by both the host compiler and nvcc.
#pragma once

#if defined(__CUDACC__)
#define FUSED_LIF_HD __host__ __device__ __forceinline__
#else
// Always inline: the CPU kernels are compiled once per instruction set, and an out-of-line copy
// made for one of them must never serve another.
#define FUSED_LIF_HD inline __attribute__((always_inline))
#endif
