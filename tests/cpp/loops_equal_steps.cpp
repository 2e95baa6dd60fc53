// Compares the loops of csrc/cpu/kernels_baseline.cpp with one scalar step after the other. Needs
// no torch, so it also runs where only a compiler is, for instance on an emulated aarch64.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cpu/kernels.h"

using namespace fused_lif;
using namespace fused_lif::cpu;

int main() {
  const int64_t T = 50, M = 1111, unit = 256, segment = 32, rows = (T - 1) / segment;
  const int64_t units = (M + unit - 1) / unit, slots = 2 + kMaxLanes;
  const auto random = [](int64_t n, float low, float high) {
    std::vector<float> values(n);
    for (float& v : values) v = low + (high - low) * (rand() / static_cast<float>(RAND_MAX));
    return values;
  };
  const auto x = random(T * M, 0, 1), v0 = random(M, 0, 0.1f), i0 = random(M, 0, 0.1f);
  const auto grad_out = random(T * M, -0.5f, 0.5f);
  const Constants<float> c{0.2f, 0.1f, 0.05f, 0.6f, 0.01f};
  const float alpha = 3.0f;
  std::vector<float> out(T * M), v(M), i(M), states(2 * rows * M), grad_x(T * M), grad_v(M),
      grad_i(M);

  // Scalars, with the numbers behind them that the loops may read.
  std::vector<std::vector<float>> values(kNumConstants, std::vector<float>(1 + kMaxLanes));
  const float scalars[] = {c.dt_tau_syn_inv, c.dt_tau_mem_inv, c.v_leak, c.v_th, c.v_reset, alpha};
  void* scratch = std::aligned_alloc(64, (kScratchBytes + 63) / 64 * 64);

  Forward forward{};
  Backward backward{};
  forward.T = backward.T = T;
  forward.M = backward.M = M;
  forward.x = backward.x = {x.data(), M, 0, M};
  forward.v0 = backward.v0 = v0.data();
  forward.i0 = backward.i0 = i0.data();
  forward.rows = backward.rows = rows;
  forward.interval = backward.interval = backward.segment = segment;
  for (int k = 0; k < kNumConstants; ++k) {
    values[k][0] = scalars[k];
    forward.constants[k] = backward.constants[k] = {values[k].data(), M, 1};
  }
  forward.out = out.data();
  forward.v = v.data();
  forward.i = i.data();
  forward.states = states.data();
  backward.states = states.data();
  backward.grad_out = {grad_out.data(), M, 0, M};
  backward.grad_x = grad_x.data();
  backward.grad_v0 = grad_v.data();
  backward.grad_i0 = grad_i.data();
  backward.unit = unit;
  backward.surrogate = Surrogate::kTanh;
  std::vector<std::vector<float>> partial(kNumGrads, std::vector<float>(units * slots));
  for (int k = 0; k < kNumGrads; ++k) backward.sums[k] = {partial[k].data(), slots, false};
  kBaselineKernels.forward(forward, Neuron::kLIF, Reset::kHard, DType::kFloat, 0, M, scratch);
  kBaselineKernels.backward(
      backward, Neuron::kLIF, Reset::kHard, true, DType::kFloat, 0, M, scratch);

  int64_t wrong = 0, spikes = 0;
  double error = 0, v_th = 0, expected_v_th = 0;
  for (int64_t m = 0; m < M; ++m) {
    State<float> s{v0[m], i0[m]}, grad{0, 0};
    ConstantGrads<float> sums{};
    std::vector<Step<float>> steps;
    for (int64_t t = 0; t < T; ++t) {
      steps.push_back(step_forward<Neuron::kLIF, Reset::kHard>(x[t * M + m], s, c));
      const float z = steps.back().v_decayed > c.v_th ? 1.0f : 0.0f;
      spikes += z != 0;
      wrong += z != out[t * M + m];
    }
    wrong += s.v != v[m];
    wrong += s.i != i[m];
    for (int64_t t = T - 1; t >= 0; --t) {
      const float g = surrogate_grad<Surrogate::kTanh>(steps[t].v_decayed - c.v_th, alpha);
      const float grad_x_t = step_backward<Neuron::kLIF, Reset::kHard, true>(
          steps[t], grad_out[t * M + m], g, false, grad, sums, c);
      error = std::fmax(error, std::fabs(grad_x_t - grad_x[t * M + m]));
    }
    expected_v_th += sums.v_th;
  }
  for (float p : partial[kVTh]) v_th += p;
  error = std::fmax(error, std::fabs(v_th / expected_v_th - 1));
  std::printf("%ld wrong, %ld spikes, gradients off by %g\n", long(wrong), long(spikes), error);
  std::free(scratch);
  return wrong != 0 || spikes == 0 || !(error < 1e-5);
}
