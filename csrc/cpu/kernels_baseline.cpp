// The loops for every machine: SSE2 on x86-64, NEON on aarch64, whatever the compiler makes
// elsewhere.
#define FUSED_LIF_ISA baseline
namespace fused_lif::cpu {
static constexpr int kVectorBytes = 16;
}
#include "kernels.inc"

namespace fused_lif::cpu {
const Kernels kBaselineKernels = {
    "baseline", baseline::forward, baseline::backward, baseline::surrogate_grad_all};
}
