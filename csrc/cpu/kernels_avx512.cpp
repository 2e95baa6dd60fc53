// The loops for x86-64 with AVX-512; compiled with -mavx512f and so on (setup.py).
#if defined(__x86_64__)
#define FUSED_LIF_ISA avx512
namespace fused_lif::cpu {
static constexpr int kVectorBytes = 64;
}
#include "recurrent.inc"
#include "sequence.inc"

namespace fused_lif::cpu {
const Kernels kAvx512Kernels = {
    "avx512",
    avx512::forward,
    avx512::backward,
    avx512::recurrent_forward,
    avx512::recurrent_backward,
    avx512::pack_spikes,
    avx512::input_grad,
    avx512::weight_grad,
    avx512::transpose,
    avx512::surrogate_grad_all};
}
#endif
