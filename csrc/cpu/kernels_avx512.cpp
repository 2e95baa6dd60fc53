// The loops for x86-64 with AVX-512; compiled with -mavx512f and so on (setup.py).
#if defined(__x86_64__)
#define FUSED_LIF_ISA avx512
namespace fused_lif::cpu {
static constexpr int kVectorBytes = 64;
}
#include "kernels.inc"

namespace fused_lif::cpu {
const Kernels kAvx512Kernels = {
    "avx512", avx512::forward, avx512::backward, avx512::surrogate_grad_all};
}
#endif
