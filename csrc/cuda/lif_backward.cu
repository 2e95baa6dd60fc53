// The backward kernel of a whole sequence. As in the forward, a thread owns a few adjacent columns
// for all time steps and talks to no other. It takes the segments of time from the last to the
// first: recomputes the states from what the forward kept, while the gradients of the output arrive
// in shared memory, and reverses the steps, while the input of the segment before arrives.
#include "constants.cuh"
#include "launch.h"
#include "plan.h"

namespace fused_lif::cuda {
namespace {

// What a thread keeps of one segment in shared memory: packs, kBackwardThreads apart from one step
// to the next.
template <typename IO, int kColumns>
struct Segment {
  using P = Pack<IO, kColumns>;
  using PS = Pack<Compute<IO>, kColumns>;
  PS *i_jump, *potential;  // current after the input, potential before it
  P *x, *grad_out;

  static constexpr size_t kBytesPerStep = 2 * (sizeof(P) + sizeof(PS));

  __device__ __forceinline__ explicit Segment(int steps) {
    const int n = steps * kBackwardThreads;
    PS* computed = reinterpret_cast<PS*>(fused_lif_shared);
    P* copied = reinterpret_cast<P*>(computed + 2 * n);
    i_jump = computed + threadIdx.x;
    potential = i_jump + n;
    x = copied + threadIdx.x;
    grad_out = x + n;
  }
};

template <Spike kSpike, typename IO, int kColumns, Neuron kNeuron, Reset kReset>
__global__ void __launch_bounds__(kBackwardThreads)
    lif_backward_kernel(const SequenceBackward args) {
  using S = Compute<IO>;
  using P = Pack<IO, kColumns>;
  using PS = Pack<S, kColumns>;
  constexpr bool kSurrogates = has_threshold(kNeuron) && kSpike != Spike::kEvent;
  // Time steps whose arithmetic overlaps. Smooth spikes are long code; events of one column of a
  // half type, the way out for odd layouts, would spill.
  constexpr bool kOdd = kSpike == Spike::kEvent && sizeof(P) < 4;
  constexpr int kAtOnce = kSpike == Spike::kSmooth ? 1 : kOdd ? 2 : 4 / kColumns;
  const int64_t M = args.M, m = first_column(kColumns);
  if (m >= M) return;
  const int T = static_cast<int>(args.T), K = static_cast<int>(args.segment);
  const Segment<IO, kColumns> segment(K);

  const IO* x = column<IO>(args.x, m);
  const bool has_grad_out = args.grad_out.data != nullptr;
  const IO* grad_out = has_grad_out ? column<IO>(args.grad_out, m) : nullptr;
  const auto fetch = [&](P* to, const IO* from, int64_t stride_t, int t0, int steps) {
    from += t0 * stride_t;
#pragma unroll 4
    for (int k = 0; k < steps; ++k, from += stride_t) copy_ahead(to + k * kBackwardThreads, from);
    __pipeline_commit();
  };
  int t0 = (T - 1) / K * K, steps = T - t0;
  fetch(segment.x, x, args.x.stride_t, t0, steps);

  Constants<S> c[kColumns];
  load_constants<kNeuron>(args.constants, args.dt, m, c);
  if constexpr (kSurrogates) load_alpha(args.constants, m, c);
  State<S> grad[kColumns];
  ConstantGrads<S> sums[kColumns] = {};
  S grad_next[kColumns] = {};  // of events: dL/dz of the step after
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    grad[k].v = load_or_zero<S>(args.grad_v, m + k);
    grad[k].i = has_synapse(kNeuron) ? load_or_zero<S>(args.grad_i, m + k) : S(0);
  }

  for (; t0 >= 0; t0 -= K, steps = K) {
    fetch(segment.grad_out, grad_out, args.grad_out.stride_t, t0, has_grad_out ? steps : 0);
    State<S> state[kColumns];
    const int64_t row = t0 == 0 ? 0 : t0 / args.interval - 1;
    const S* v = static_cast<const S*>(t0 == 0 ? args.v0 : args.states) + row * M + m;
    const S* i = t0 == 0 ? static_cast<const S*>(args.i0) + m : v + args.rows * M;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      state[k].v = v[k];
      state[k].i = has_synapse(kNeuron) ? i[k] : S(0);
    }
    __pipeline_wait_prior(1);  // x is there, grad_out may not be
    P x_next = segment.x[0];
    for (int r = 0; r < steps; ++r) {
      const P x_t = x_next;
      if (r + 1 < steps) x_next = segment.x[(r + 1) * kBackwardThreads];
      PS potential, i_jump;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        potential.at[k] = state[k].v;
        const auto step = step_forward<kNeuron, kReset, kSpike>(
            to_compute<S>(x_t.at[k]), state[k], c[k], args.method.surrogate);
        i_jump.at[k] = step.i_jump;
      }
      segment.potential[r * kBackwardThreads] = potential;
      segment.i_jump[r * kBackwardThreads] = i_jump;
    }

    if (t0 > 0) fetch(segment.x, x, args.x.stride_t, t0 - K, K);
    if (t0 > 0)
      __pipeline_wait_prior(1);
    else
      __pipeline_wait_prior(0);
    for (int r1 = steps - 1; r1 >= 0; r1 -= kAtOnce) {
      Step<S> step[kAtOnce][kColumns];
      P grad_out_t[kAtOnce] = {};
      S surrogate[kAtOnce][kColumns] = {};
      S current[kAtOnce][kColumns] = {};  // before the input
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int slot = max(r1 - j, 0) * kBackwardThreads;
        const PS potential = segment.potential[slot], i_jump = segment.i_jump[slot];
        if (has_grad_out) grad_out_t[j] = segment.grad_out[slot];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          State<S> before = {potential.at[k], S(0)};
          step[j][k] = step_from_jump<kNeuron, kReset, kSpike>(
              i_jump.at[k], before, c[k], args.method.surrogate);
        }
        if constexpr (kSpike == Spike::kEvent && has_synapse(kNeuron))
          if (args.method.is_adjoint) {
            const bool is_first = slot == 0;
            const PS jump = segment.i_jump[is_first ? 0 : slot - kBackwardThreads];
#pragma unroll
            for (int k = 0; k < kColumns; ++k)
              current[j][k] = is_first ? i[k] : jump.at[k] - c[k].dt_tau_syn_inv * jump.at[k];
          }
      }
      if constexpr (kSurrogates)
        visit_surrogate(args.method.surrogate, [&]<Surrogate kSurrogate>() {
#pragma unroll
          for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
            for (int k = 0; k < kColumns; ++k)
              surrogate[j][k] =
                  surrogate_grad<kSurrogate>(step[j][k].v_decayed - c[k].v_th, c[k].alpha);
        });
      // Two branches for all of them, instead of two for each: their arithmetic overlaps.
      const auto reverse = [&](bool is_adjoint) {
        const Method method = {kSpike, Surrogate::kHeaviside, is_adjoint};
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (r1 - j < 0) break;
          const int64_t t = t0 + r1 - j;
          if (args.grad_states != nullptr) {
            const S* recorded = static_cast<const S*>(args.grad_states) + t * M + m;
#pragma unroll
            for (int k = 0; k < kColumns; ++k) {
              grad[k].v = grad[k].v + recorded[k];
              if constexpr (has_synapse(kNeuron)) grad[k].i = grad[k].i + recorded[args.T * M + k];
            }
          }
          P grad_x_t;
#pragma unroll
          for (int k = 0; k < kColumns; ++k) {
            const S grad_out_k = to_compute<S>(grad_out_t[j].at[k]);
            S grad_x_k;
            if constexpr (kSpike == Spike::kEvent)
              grad_x_k = event_backward<kNeuron, kReset>(
                  method, step[j][k], current[j][k], grad_out_k,
                  t + 1 == T ? grad_out_k : grad_next[k], static_cast<S>(args.dt), grad[k], sums[k],
                  c[k]);
            else
              grad_x_k = step_backward<kNeuron, kReset, true, kSpike>(
                  step[j][k], grad_out_k, surrogate[j][k], args.detach_reset, grad[k], sums[k],
                  c[k]);
            grad_next[k] = grad_out_k;
            grad_x_t.at[k] = to_io<IO>(grad_x_k);
          }
          if (args.grad_x != nullptr)
            *reinterpret_cast<P*>(static_cast<IO*>(args.grad_x) + t * M + m) = grad_x_t;
        }
      };
      if (kSpike == Spike::kEvent && args.method.is_adjoint)
        reverse(true);
      else
        reverse(false);
    }
  }

#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    static_cast<S*>(args.grad_v0)[m + k] = grad[k].v;
    if constexpr (has_synapse(kNeuron)) static_cast<S*>(args.grad_i0)[m + k] = grad[k].i;
    for_each_sum<kNeuron>(sums[k], [&](int constant, S sum) {
      if (args.sums[constant] != nullptr) static_cast<S*>(args.sums[constant])[m + k] = sum;
    });
  }
}

}  // namespace

void launch_lif_backward(
    const SequenceBackward& args,
    Neuron neuron,
    Reset reset,
    DType dtype,
    LaunchPlan plan,
    Stream stream) {
  visit_neuron(neuron, reset, [&]<Neuron kNeuron, Reset kReset>() {
    visit_dtype(dtype, [&]<typename IO>(IO) {
      visit_spike<IO, kNeuron, true>(args.method.spike, [&]<Spike kSpike>() {
        const auto run = [&]<int kColumns>(Width<kColumns>) {
          const LaunchShape shape = {
              blocks_for(args.M, plan), dim3(plan.threads),
              args.segment * Segment<IO, kColumns>::kBytesPerStep * kBackwardThreads};
          launch(
              "lif_backward_kernel", lif_backward_kernel<kSpike, IO, kColumns, kNeuron, kReset>,
              shape, stream, args);
        };
        constexpr int kNarrow = narrow_columns(sizeof(IO));
        constexpr int kWide =
            has_wide_kernel(kNeuron, kReset) ? wide_backward_columns(sizeof(IO)) : kNarrow;
        visit_columns<1, kNarrow, kWide>(plan.columns, run);
      });
    });
  });
}

}  // namespace fused_lif::cuda
