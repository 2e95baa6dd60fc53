// What CUDA's qualifiers mean to a host compiler. The toolkit defines some of them for host code;
// these replace them.
#pragma once

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__
#undef __forceinline__

#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))

// A block has an OS thread of its own. At block scope, thread_local implies static.
#define __shared__ thread_local
