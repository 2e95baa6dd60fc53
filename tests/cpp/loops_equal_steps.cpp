// Compares the loops of csrc/cpu/kernels_baseline.cpp with one scalar step after the other. Needs
// no torch, so it also runs where only a compiler is, for instance on an emulated aarch64.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cpu/kernels.h"

using namespace fused_lif;
using namespace fused_lif::cpu;

namespace {

using Floats = std::vector<float>;

Floats random(int64_t n, float low, float high) {
  Floats values(n);
  for (float& v : values) v = low + (high - low) * (rand() / static_cast<float>(RAND_MAX));
  return values;
}

// Scalars, with the numbers behind them that the loops may read.
std::vector<Floats> values_of(const Constants<float>& c, float alpha) {
  const float scalars[] = {c.dt_tau_syn_inv, c.dt_tau_mem_inv, c.v_leak, c.v_th, c.v_reset, alpha};
  std::vector<Floats> values(kNumConstants, Floats(1 + kMaxLanes));
  for (int k = 0; k < kNumConstants; ++k) values[k][0] = scalars[k];
  return values;
}

bool sequence_equals_steps() {
  const int64_t T = 50, M = 1111, unit = 256, segment = 32, rows = (T - 1) / segment;
  const int64_t units = (M + unit - 1) / unit, slots = 2 + kMaxLanes;
  const auto x = random(T * M, 0, 1), v0 = random(M, 0, 0.1f), i0 = random(M, 0, 0.1f);
  const auto grad_out = random(T * M, -0.5f, 0.5f);
  const Constants<float> c{0.2f, 0.1f, 0.05f, 0.6f, 0.01f};
  const float alpha = 3.0f;
  Floats out(T * M), v(M), i(M), states(2 * rows * M), grad_x(T * M), grad_v(M), grad_i(M);
  const auto values = values_of(c, alpha);
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
  for (int k = 0; k < kNumConstants; ++k)
    forward.constants[k] = backward.constants[k] = {values[k].data(), M, 1};
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
  forward.method = backward.method = {Spike::kStep, Surrogate::kTanh, false};
  std::vector<Floats> partial(kNumGrads, Floats(units * slots));
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
  return wrong == 0 && spikes > 0 && error < 1e-5;
}

// ---- recurrent layers ----

void* allocate(int64_t bytes) {  // until the next call
  static void* memory = nullptr;
  std::free(memory);
  return memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
}

int64_t count_unequal(const Floats& a, const Floats& b) {
  int64_t n = 0;
  for (size_t k = 0; k < b.size(); ++k) n += a[k] != b[k];
  return n;
}

// Places that are further apart than 1e-5 of the largest number, or not finite.
int64_t count_far(const Floats& a, const Floats& b) {
  int64_t n = 0;
  double size = 0;
  for (float x : b) size = std::fmax(size, std::fabs(x));
  for (size_t k = 0; k < b.size(); ++k) n += !(std::fabs(double(a[k]) - b[k]) <= 1e-5 * size);
  return n;
}

// sum over k of a[k] * b[k * stride], in ascending order
float dot(const float* a, const float* b, int64_t stride, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k * stride];
  return sum;
}

// Rows of `ld` numbers, padded with zeros.
Floats padded(const Floats& rows, int64_t n, int64_t columns, int64_t ld) {
  Floats to(n * ld);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < columns; ++c) to[r * ld + c] = rows[r * columns + c];
  return to;
}

Floats transposed(const Floats& from, int64_t rows, int64_t columns, int64_t ld) {
  Floats to(columns * ld);
  kBaselineKernels.transpose(false, from.data(), columns, rows, 0, columns, to.data(), ld);
  return to;
}

// Counts packed rows that are not what the numbers are.
int64_t count_wrong_rows(const std::vector<uint64_t>& packed, const Floats& rows, int64_t n) {
  int64_t wrong = 0;
  for (size_t r = 0; r < rows.size() / n; ++r) {
    const uint64_t* words = packed.data() + r * packed_size(n);
    std::vector<uint64_t> expected(packed_size(n));
    for (int64_t k = 0; k < n; ++k)
      if (rows[r * n + k] == 1) ++expected[0], expected[1 + k / kWord] |= 1ull << (k % kWord);
    for (int64_t w = 0; w < packed_size(n); ++w) wrong += words[w] != expected[w];
  }
  return wrong;
}

template <Reset kReset>
bool recurrent_equals_steps() {
  // More batch rows than are worked on at a time; sizes that are not whole words or vectors.
  const int64_t T = 70, B = 11, I = 70, H = 37, ld = 48, ld_input = 80, N = T * B, M = B * H;
  const int64_t segment = 32, rows = (T - 1) / segment, slots = 1 + kMaxLanes;
  const Constants<float> c{0.2f, 0.1f, 0.05f, 0.6f, 0.01f};
  const float alpha = 3.0f;
  const auto values = values_of(c, alpha);
  Floats x = random(N * I, 0, 1), z0 = random(M, 0, 1);
  const float densities[] = {0, 0.05f, 0.3f, 0.9f};  // few spikes are listed, many multiplied
  for (int64_t k = 0; k < N * I; ++k) x[k] = x[k] < densities[k / (B * I) % 4] ? 1.0f : 0.0f;
  const Floats v0 = random(M, 0, 0.1f), i0 = random(M, 0, 0.1f);
  const Floats w_in = random(H * I, -0.1f, 0.2f);
  Floats w_rec = random(H * H, -0.5f, 0.4f);
  for (float& z : z0) z = std::floor(4 * z) / 4;  // no spikes; all sums are exact
  for (float& w : w_rec) w = std::floor(256 * w) / 256;
  const Floats w_in_t = transposed(w_in, H, I, ld), w_rec_t = transposed(w_rec, H, H, ld);
  const Floats w_in_rows = padded(w_in, H, I, ld_input), w_rec_rows = padded(w_rec, H, H, ld);
  const Floats grad_out = random(T * M, -0.5f, 0.5f);
  Floats out(T * M), v(M), i(M), i_jump(T * M), states(rows * M);
  Floats grad_x(T * M), grad_z0(M), grad_v0(M), grad_i0(M), grad_input(N * I), grad_w(I * ld);
  std::vector<uint64_t> input_spikes(N * packed_size(I)), hidden_spikes(N * packed_size(H)),
      packed(N * packed_size(I));

  RecurrentForward forward{};
  forward.T = forward.t1 = T;
  forward.B = B;
  forward.I = I;
  forward.H = H;
  forward.ld = ld;
  forward.input = {x.data(), B * I, 0, B * I};
  forward.input_weights = w_in_t.data();
  forward.recurrent_weights = w_rec_t.data();
  forward.z0 = z0.data();
  forward.v0 = v0.data();
  forward.i0 = i0.data();
  forward.out = out.data();
  forward.v = v.data();
  forward.i = i.data();
  forward.i_jump = i_jump.data();
  forward.input_spikes = input_spikes.data();
  forward.hidden_spikes = hidden_spikes.data();
  forward.states = states.data();
  forward.rows = rows;
  forward.interval = segment;
  forward.allocate = allocate;

  RecurrentBackward backward{};
  backward.T = T;
  backward.B = B;
  backward.H = H;
  backward.ld = ld;
  backward.grad_out = {grad_out.data(), M, 0, M};
  backward.i_jump = i_jump.data();
  backward.v0 = v0.data();
  backward.states = states.data();
  backward.rows = rows;
  backward.interval = backward.segment = segment;
  backward.recurrent_weights = w_rec_rows.data();
  backward.grad_x = grad_x.data();
  backward.grad_z0 = grad_z0.data();
  backward.grad_v0 = grad_v0.data();
  backward.grad_i0 = grad_i0.data();
  std::vector<Floats> sums(kNumGrads, Floats(B * slots));
  for (int k = 0; k < kNumGrads; ++k) backward.sums[k] = {sums[k].data(), slots, false};
  backward.unit_rows = 1;
  forward.method = backward.method = {Spike::kStep, Surrogate::kTanh, false};
  backward.allocate = allocate;
  for (int k = 0; k < kNumConstants; ++k)
    forward.constants[k] = backward.constants[k] = {values[k].data(), M, 1};

  const InputGrad input_grad{
      H, I, ld_input, grad_x.data(), w_in_rows.data(), grad_input.data(), false, allocate};
  const WeightGrad weight_grad{N, I, H, ld, grad_x.data(), packed.data(), grad_w.data(), allocate};
  const Kernels& kernels = kBaselineKernels;
  kernels.recurrent_forward(forward, kReset, DType::kFloat, 0, B);
  kernels.recurrent_backward(backward, kReset, true, DType::kFloat, 0, B);
  kernels.pack_spikes(forward.input, DType::kFloat, B, I, 0, N, packed.data());
  kernels.input_grad(input_grad, false, 0, N);
  kernels.weight_grad(weight_grad, false, 0, I);

  // The same, one scalar after the other.
  Floats z(M), spikes, jumps, kept;
  std::vector<State<float>> s(M), grad(M, State<float>{});
  std::vector<Step<float>> steps(T * M);
  for (int64_t m = 0; m < M; ++m) s[m] = {v0[m], i0[m]};
  z = z0;
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t m = 0; m < M; ++m) {
      const int64_t b = m / H, h = m % H;
      steps[t * M + m] = recurrent_step_forward<kReset>(
          dot(&w_in[h * I], &x[(t * B + b) * I], 1, I), dot(&w_rec[h * H], &z[b * H], 1, H), s[m],
          c);
      jumps.push_back(steps[t * M + m].i_jump);
      spikes.push_back(steps[t * M + m].v_decayed > c.v_th ? 1.0f : 0.0f);
      if ((t + 1) % segment == 0) kept.push_back(s[m].v);
    }
    z.assign(spikes.end() - M, spikes.end());
  }
  Floats expected_x(T * M), grad_z(M);
  ConstantGrads<float> totals{};
  for (int64_t t = T - 1; t >= 0; --t) {
    float* grad_t = &expected_x[t * M];
    for (int64_t m = 0; m < M; ++m) {
      const Step<float>& step = steps[t * M + m];
      const float g = surrogate_grad<Surrogate::kTanh>(step.v_decayed - c.v_th, alpha);
      grad_t[m] = step_backward<Neuron::kLIF, kReset, true>(
          step, grad_out[t * M + m] + grad_z[m], g, false, grad[m], totals, c);
    }
    for (int64_t m = 0; m < M; ++m) grad_z[m] = dot(grad_t + m / H * H, &w_rec[m % H], H, H);
  }
  Floats expected_input(N * I), expected_w(I * ld);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < I; ++k) expected_input[n * I + k] = dot(&grad_x[n * H], &w_in[k], I, H);
  for (int64_t k = 0; k < I; ++k)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t n = 0; n < N; ++n) expected_w[k * ld + h] += x[n * I + k] * grad_x[n * H + h];

  Floats end_v, end_i, start_v, start_i;
  for (const State<float>& end : s) end_v.push_back(end.v), end_i.push_back(end.i);
  for (const State<float>& start : grad) start_v.push_back(start.v), start_i.push_back(start.i);
  float v_th = 0, tau_mem = 0, rate = 0;
  for (float p : sums[kVTh]) v_th += p;
  for (float p : sums[kTauMemInv]) tau_mem += p;
  for (float spike : spikes) rate += spike / static_cast<float>(T * M);
  const int64_t wrong =
      count_unequal(out, spikes) + count_unequal(i_jump, jumps) + count_unequal(states, kept) +
      count_unequal(v, end_v) + count_unequal(i, end_i) + count_wrong_rows(packed, x, I) +
      count_wrong_rows(input_spikes, x, I) + count_wrong_rows(hidden_spikes, spikes, H);
  const int64_t far = count_far(grad_x, expected_x) + count_far(grad_z0, grad_z) +
                      count_far(grad_v0, start_v) + count_far(grad_i0, start_i) +
                      count_far(grad_input, expected_input) + count_far(grad_w, expected_w) +
                      count_far({v_th, tau_mem}, {totals.v_th, totals.dt_tau_mem_inv});
  std::printf(
      "recurrent: %ld wrong, %ld gradients far off, rate %.2f\n", long(wrong), long(far), rate);
  return wrong == 0 && far == 0 && rate > 0.1f && rate < 0.7f;
}

}  // namespace

int main() {
  const bool equal[] = {
      sequence_equals_steps(), recurrent_equals_steps<Reset::kHard>(),
      recurrent_equals_steps<Reset::kSoft>()};
  return equal[0] && equal[1] && equal[2] ? 0 : 1;
}
