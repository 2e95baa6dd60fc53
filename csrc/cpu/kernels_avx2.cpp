// The loops for x86-64 with AVX2; compiled with -mavx2 (setup.py).
#if defined(__x86_64__)
#define FUSED_LIF_ISA avx2
namespace fused_lif::cpu {
static constexpr int kVectorBytes = 32;
}
#include "recurrent.inc"
#include "sequence.inc"

namespace fused_lif::cpu {
const Kernels kAvx2Kernels = {
    "avx2",
    avx2::forward,
    avx2::backward,
    avx2::recurrent_forward,
    avx2::recurrent_backward,
    avx2::pack_spikes,
    avx2::input_grad,
    avx2::weight_grad,
    avx2::transpose,
    avx2::surrogate_grad_all};
}
#endif
