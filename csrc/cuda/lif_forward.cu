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

// Time steps whose input a thread has room for: 16 of 16 bytes, 32 of 8 bytes, 64 of less. They are
// copied in groups; a thread can tell apart at most eight groups that are under way.
template <typename P>
constexpr int kRing = sizeof(P) >= 16  ? 16
                      : sizeof(P) == 8 ? 32
                                       : 64;
template <typename P>
constexpr int kSteps = sizeof(P) >= 8 ? 4 : 8;

// Bytes of shared memory for T steps. Slots of one step are kForwardThreads apart, a number that
// the compiler knows, also where a block has fewer threads.
template <typename P>
size_t ring_bytes(int64_t T) {
  return std::min<int64_t>(kRing<P>, T) * kForwardThreads * sizeof(P);
}

template <Spike kSpike, typename IO, int kColumns, Neuron kNeuron, Reset kReset>
__global__ void __launch_bounds__(kForwardThreads, 1)
    lif_forward_kernel(const SequenceForward args) {
  using S = Compute<IO>;
  using P = Pack<IO, kColumns>;
  constexpr int kGroup = kSpike == Spike::kSmooth ? 1 : kSteps<P>;  // their code is long
  constexpr int kGroups = kRing<P> / kGroup < 8 ? kRing<P> / kGroup : 8;
  constexpr int kGroupSlots = kGroup * kForwardThreads;
  const int64_t M = args.M, m = first_column(kColumns);
  if (m >= M) return;
  const int T = static_cast<int>(args.T);

  P* const ring = reinterpret_cast<P*>(fused_lif_shared) + threadIdx.x;
  const IO* x = column<IO>(args.x, m);  // of the next step to fetch
  int fetched = 0;
  const auto fetch_group = [&](P* to) {
    if (fetched + kGroup <= T) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k, x += args.x.stride_t)
        copy_ahead(to + k * kForwardThreads, x);
    } else {
#pragma unroll 1
      for (int k = 0; fetched + k < T; ++k, x += args.x.stride_t)
        copy_ahead(to + k * kForwardThreads, x);
    }
    fetched += kGroup;
    __pipeline_commit();
  };
  for (int g = 0; g + 1 < kGroups; ++g) fetch_group(ring + g * kGroupSlots);

  Constants<S> c[kColumns];
  load_constants<kNeuron>(args.constants, args.dt, m, c);
  if constexpr (kSpike == Spike::kSmooth) load_alpha(args.constants, m, c);
  State<S> state[kColumns];
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    state[k].v = static_cast<const S*>(args.v0)[m + k];
    state[k].i = has_synapse(kNeuron) ? static_cast<const S*>(args.i0)[m + k] : S(0);
  }
  IO* out = static_cast<IO*>(args.out) + m;
  S* kept = static_cast<S*>(args.states) + m;  // where the next state is kept, and after which step
  const int interval = static_cast<int>(args.interval);
  const int last_kept = interval * static_cast<int>(args.rows) - 1;
  int keep_after = args.rows > 0 ? interval - 1 : -1;

  const auto advance = [&](int t, const P& x_t) {
    P out_t;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const auto step = step_forward<kNeuron, kReset, kSpike>(
          to_compute<S>(x_t.at[k]), state[k], c[k], args.method.surrogate);
      if constexpr (!has_threshold(kNeuron))
        out_t.at[k] = to_io<IO>(step.v_decayed);
      else if constexpr (kSpike == Spike::kSmooth)
        out_t.at[k] = to_io<IO>(step.z);
      else  // step.z takes more registers
        out_t.at[k] = to_io<IO>(step.v_decayed > c[k].v_th ? S(1) : S(0));
    }
    *reinterpret_cast<P*>(out) = out_t;
    out += M;
    if (t != keep_after) return;
    Pack<S, kColumns> v, i;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      v.at[k] = state[k].v;
      i.at[k] = state[k].i;
    }
    *reinterpret_cast<Pack<S, kColumns>*>(kept) = v;
    if constexpr (has_synapse(kNeuron))
      *reinterpret_cast<Pack<S, kColumns>*>(kept + args.rows * M) = i;
    kept += M;
    keep_after = t < last_kept ? t + interval : -1;
  };

  P* group = ring;                               // what is read next
  P* free = ring + (kGroups - 1) * kGroupSlots;  // what was read last
  const auto next = [&](P* g) {
    return g == ring + (kGroups - 1) * kGroupSlots ? ring : g + kGroupSlots;
  };
  int t = 0;
  for (; t + kGroup <= T; t += kGroup, group = next(group), free = next(free)) {
    fetch_group(free);
    __pipeline_wait_prior(kGroups - 1);
    P x_t[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) x_t[k] = group[k * kForwardThreads];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) advance(t + k, x_t[k]);
  }
  __pipeline_wait_prior(0);
  for (int k = 0; t < T; ++t, ++k) advance(t, group[k * kForwardThreads]);

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
      visit_spike<IO, kNeuron, false>(args.method.spike, [&]<Spike kSpike>() {
        const auto run = [&]<int kColumns>(Width<kColumns>) {
          const LaunchShape shape = {
              blocks_for(args.M, plan), dim3(plan.threads), ring_bytes<Pack<IO, kColumns>>(args.T)};
          launch(
              "lif_forward_kernel", lif_forward_kernel<kSpike, IO, kColumns, kNeuron, kReset>,
              shape, stream, args);
        };
        constexpr int kNarrow = narrow_columns(sizeof(IO));
        constexpr int kWide =
            has_wide_kernel(kNeuron, kReset) ? wide_forward_columns(sizeof(IO)) : kNarrow;
        visit_columns<1, kNarrow, kWide>(plan.columns, run);
      });
    });
  });
}

}  // namespace fused_lif::cuda
