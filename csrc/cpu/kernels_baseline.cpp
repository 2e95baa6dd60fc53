// The loops for every machine: SSE2 on x86-64, NEON on aarch64, whatever the compiler makes
// elsewhere.
#define FUSED_LIF_ISA baseline
namespace fused_lif::cpu {
static constexpr int kVectorBytes = 16;
}
#include "recurrent.inc"
#include "sequence.inc"

namespace fused_lif::cpu {
const Kernels kBaselineKernels = {
    "baseline",
    baseline::forward,
    baseline::backward,
    baseline::recurrent_forward,
    baseline::recurrent_backward,
    baseline::pack_spikes,
    baseline::input_grad,
    baseline::weight_grad,
    baseline::transpose,
    baseline::surrogate_grad_all};
}
