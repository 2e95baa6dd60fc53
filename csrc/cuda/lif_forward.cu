// The forward kernel of a whole sequence. A thread owns a few adjacent columns (neurons of all
// batch rows) for all time steps and keeps their state in registers; threads do not talk to each
// other. Input comes through shared memory, copied there long before it is needed, so that small
// layers run at the latency of the arithmetic and large ones at the bandwidth of memory.
#include <algorithm>
#include "constants.cuh"

#include "launch.h"
#include "plan.h"

namespace fused_lif::cuda {
namespace {

constexpr int kSteps = 4;  // time steps per group of copies

// Time steps whose input a thread has room for: 16 of 16 bytes, 64 of 4 bytes.
template <typename P>
constexpr int kRing = sizeof(P) >= 16  ? 16
                      : sizeof(P) == 8 ? 32
                                       : 64;

template <typename IO, int kColumns, Neuron kNeuron, Reset kReset>
__global__ void __launch_bounds__(kForwardThreads) lif_forward_kernel(const SequenceForward args) {
  using S = Compute<IO>;
  using P = Pack<IO, kColumns>;
  constexpr int kSlots = kRing<P>;
  const int64_t M = args.M, m = first_column(kColumns);
  if (m >= M) return;
  const int T = static_cast<int>(args.T);

  P* ring = reinterpret_cast<P*>(fused_lif_shared) + threadIdx.x;
  const IO* x = column<IO>(args.x, m);
  const auto fetch_group = [&](int t0) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
      if (t0 + k < T)
        copy_ahead(&ring[(t0 + k) % kSlots * blockDim.x], x + (t0 + k) * args.x.stride_t);
    __pipeline_commit();
  };
  for (int t = 0; t < kSlots - kSteps; t += kSteps) fetch_group(t);

  Constants<S> c[kColumns];
  load_constants<kNeuron>(args.constants, args.dt, m, c);
  State<S> state[kColumns];
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    state[k].v = static_cast<const S*>(args.v0)[m + k];
    state[k].i = has_synapse(kNeuron) ? static_cast<const S*>(args.i0)[m + k] : S(0);
  }
  IO* out = static_cast<IO*>(args.out) + m;
  S* kept = static_cast<S*>(args.states) + m;  // where the next state is kept, and after which step
  int keep_after = args.rows > 0 ? static_cast<int>(args.interval) - 1 : -1;
  int rows_left = static_cast<int>(args.rows);

  for (int t0 = 0; t0 < T; t0 += kSteps) {
    fetch_group(t0 + kSlots - kSteps);
    __pipeline_wait_prior(kSlots / kSteps - 1);
    P x_group[kSteps];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) x_group[k] = ring[(t0 + k) % kSlots * blockDim.x];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int t = t0 + j;
      if (t >= T) break;
      const P x_t = x_group[j];
      P out_t;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const auto step = step_forward<kNeuron, kReset>(to_compute<S>(x_t.at[k]), state[k], c[k]);
        if constexpr (has_threshold(kNeuron))
          out_t.at[k] = to_io<IO>(step.v_decayed > c[k].v_th ? S(1) : S(0));
        else
          out_t.at[k] = to_io<IO>(step.v_decayed);
      }
      *reinterpret_cast<P*>(out) = out_t;
      out += M;
      if (t == keep_after) {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          kept[k] = state[k].v;
          if constexpr (has_synapse(kNeuron)) kept[args.rows * M + k] = state[k].i;
        }
        kept += M;
        keep_after = --rows_left > 0 ? keep_after + static_cast<int>(args.interval) : -1;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    static_cast<S*>(args.v)[m + k] = state[k].v;
    if constexpr (has_synapse(kNeuron)) static_cast<S*>(args.i)[m + k] = state[k].i;
  }
}

}  // namespace

void launch_lif_forward(
    const SequenceForward& args,
    Neuron neuron,
    Reset reset,
    DType dtype,
    LaunchPlan plan,
    Stream stream) {
  visit_neuron(neuron, reset, [&]<Neuron kNeuron, Reset kReset>() {
    visit_dtype(dtype, [&]<typename IO>(IO) {
      const auto run = [&]<int kColumns>(Width<kColumns>) {
        using P = Pack<IO, kColumns>;
        // Whole groups: the last one is read as such.
        const int64_t slots = std::min<int64_t>(kRing<P>, (args.T + kSteps - 1) / kSteps * kSteps);
        const LaunchShape shape = {
            blocks_for(args.M, plan), dim3(plan.threads), slots * plan.threads * sizeof(P)};
        launch(
            "lif_forward_kernel", lif_forward_kernel<IO, kColumns, kNeuron, kReset>, shape, stream,
            args);
      };
      constexpr int kNarrow = narrow_columns(sizeof(IO));
      constexpr int kWide =
          has_wide_kernel(kNeuron, kReset) ? wide_forward_columns(sizeof(IO)) : kNarrow;
      visit_columns<1, kNarrow, kWide>(plan.columns, run);
    });
  });
}

}  // namespace fused_lif::cuda
