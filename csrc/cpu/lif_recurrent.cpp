// Operators of recurrent layers on the CPU: check and describe the arguments, lay out the weights,
// allocate, and run the loops of recurrent.inc over batch rows with torch's own threads.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <tuple>

#include "capability.h"
#include "tensors.h"

namespace fused_lif::cpu {
namespace {

using ConstantTensors = const std::optional<Tensor> (&)[kNumConstants];

// Work that is worth a thread, in multiplications and additions: some 30 us.
constexpr int64_t kGrain = 500'000;

// Sizes of a layer: v is [*batch, H].
struct Layer {
  std::vector<int64_t> step;
  int64_t T, B, H, M;

  Layer(const Tensor& sequence, const Tensor& v)
      : step(to_vector(v.sizes())),
        T(sequence.dim() == v.dim() ? 1 : sequence.size(0)),
        B(product(step, 0, step.size() - 1)),
        H(step.back()),
        M(B * H) {}

  int64_t rows() const { return H == 0 ? 0 : B; }  // that have something to compute

  std::vector<int64_t> sequence(bool has_time) const {
    std::vector<int64_t> sizes = step;
    if (has_time) sizes.insert(sizes.begin(), T);
    return sizes;
  }
  std::vector<int64_t> states(int64_t interval) const {
    std::vector<int64_t> sizes = {interval == 1 ? 2 : 1, rows_of(T, interval)};
    sizes.insert(sizes.end(), step.begin(), step.end());
    return sizes;
  }

  // Batch rows whose gradients of constants are summed together. Depends on the shape alone, and
  // divides the rows that the loops take at a time: results do not depend on the number of threads.
  int64_t unit_rows() const { return B >= 64 ? 8 : B >= 32 ? 4 : B >= 16 ? 2 : 1; }
};

// Numbers per row of the weights: whole vectors of every instruction set, and an odd number of
// cache lines, so that rows do not fall into the same few sets of the caches.
template <typename S>
int64_t padded(int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(S);
  return ((columns + kLine - 1) / kLine | 1) * kLine;
}

// Calls f(begin, end) for ranges of [0, n), `work` for each, whole multiples of `unit`.
template <typename F>
void parallel(int64_t n, int64_t unit, int64_t work, const F& f) {
  const int64_t units = (n + unit - 1) / unit;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, unit * work));
  if (units == 0) return;
  if (units <= grain) return f(0, n);
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    f(begin * unit, std::min(n, end * unit));
  });
}

// a times b with BLAS. Neither autograd nor autocast sees it.
Tensor matrix_product(const Tensor& a, const Tensor& b) {
  Tensor result = new_empty({a.size(0), b.size(1)}, a.scalar_type());
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), a.get(), b.get()));
  return result;
}

template <typename S>
bool all_finite(const S* p, int64_t n) {
  using Bits = std::conditional_t<sizeof(S) == 8, uint64_t, uint32_t>;
  constexpr Bits kExponent = sizeof(S) == 8 ? Bits(0x7ff0000000000000) : Bits(0x7f800000);
  Bits infinite = 0;
  for (int64_t k = 0; k < n; ++k) {
    Bits bits;
    std::memcpy(&bits, p + k, sizeof(S));
    infinite |= (bits & kExponent) == kExponent;
  }
  return infinite == 0;
}

// The weights, or their transpose, in the type of the computation as rows of `ld` numbers, padded
// with zeros. Clears `finite` if one of them is not.
template <typename S>
Tensor lay_out(const Tensor& weights, bool transpose, int64_t ld, std::atomic<bool>& finite) {
  constexpr int64_t kBlock = 16;  // of a transposition: rows and columns that fit the L1 cache
  const int64_t r_dim = transpose ? 1 : 0, c_dim = 1 - r_dim;
  const int64_t rows = weights.size(r_dim), columns = weights.size(c_dim);
  const int64_t stride_r = weights.stride(r_dim), stride_c = weights.stride(c_dim);
  Tensor result = new_empty({rows, ld}, kScalarType<S>);
  S* to = static_cast<S*>(result.data_ptr());
  const bool same_type = weights.scalar_type() == kScalarType<S>;
  parallel(rows, kBlock, 2 * ld, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::fill(to + r * ld + columns, to + (r + 1) * ld, S(0));
    if (same_type && stride_r == 1) {
      current_kernels().transpose(
          sizeof(S) == 8, weights.data_ptr(), stride_c, columns, begin, end, to, ld);
    } else if (same_type && stride_c == 1) {
      for (int64_t r = begin; r < end; ++r)
        std::copy_n(static_cast<const S*>(weights.data_ptr()) + r * stride_r, columns, to + r * ld);
    } else {
      visit_elements(weights, [&](const auto* from) {
        using P = std::conditional_t<std::is_same_v<decltype(from), const double*>, double, float>;
        for (int64_t r0 = begin; r0 < end; r0 += kBlock)
          for (int64_t c0 = 0; c0 < columns; c0 += kBlock)
            for (int64_t r = r0; r < std::min(end, r0 + kBlock); ++r)
              for (int64_t c = c0; c < std::min(columns, c0 + kBlock); ++c)
                to[r * ld + c] = static_cast<S>(static_cast<P>(from[r * stride_r + c * stride_c]));
      });
    }
    if (!all_finite(to + begin * ld, (end - begin) * ld)) finite = false;
  });
  return result;
}

void check_layer(
    const char* op,
    const char* name,
    const Tensor& sequence,
    const Tensor& v,
    const Tensor& recurrent_weights,
    int64_t interval) {
  if (v.dim() < 1) fail(op, ": v must have shape [*batch, H], got ", to_string(v.sizes()));
  if (!(sequence.dim() == v.dim() || (sequence.dim() == v.dim() + 1 && sequence.size(0) >= 1)))
    fail(
        op, ": ", name, " must have at least one time step and match v of shape ",
        to_string(v.sizes()), ", got shape ", to_string(sequence.sizes()));
  if (!is_floating(sequence.scalar_type()))
    fail(op, ": ", name, " must be float64, float32, float16 or bfloat16");
  const int64_t H = v.size(v.dim() - 1);
  const int64_t square[] = {H, H};
  check_weights(op, "recurrent_weights", recurrent_weights, {square, 2}, sequence);
  if (!(interval >= 0 && interval <= kMaxSegment))
    fail(op, ": state_interval must be between 0 and ", kMaxSegment, ", got ", interval);
}

// ---- forward ----

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Room for the rows of a sequence [*rows, n], packed; empty if not needed.
Tensor new_packed(bool needed, std::vector<int64_t> sizes) {
  if (needed)
    sizes.back() = packed_size(sizes.back());
  else
    sizes = {0};
  return new_empty(sizes, ScalarType::Long);
}

template <typename S>
Outputs forward_as(
    const Tensor& input,
    const Tensor& z,
    const Tensor& v,
    const Tensor& i,
    const Tensor& input_weights,
    const Tensor& recurrent_weights,
    ConstantTensors constants,
    double dt,
    Reset reset,
    bool exact,
    int64_t interval,
    bool needs_grad) {
  constexpr ScalarType kType = kScalarType<S>;
  const Layer layer(input, v);
  const bool has_time = input.dim() > v.dim();
  const Shape input_shape(input, v.dim());
  const ConstantSet<S> set("lif_recurrent_forward", layer.step, constants, dt);
  const Tensor z0 = dense(z), v0 = dense(v), i0 = dense(i);

  Tensor out = new_empty(layer.sequence(has_time), input.scalar_type());
  Tensor v_end = new_empty(layer.step, kType), i_end = new_empty(layer.step, kType);
  Tensor i_jump = new_empty(needs_grad ? layer.sequence(has_time) : std::vector<int64_t>{0}, kType);
  Tensor states = new_empty(layer.states(interval), kType);
  const bool packs = needs_grad && !exact;
  const int64_t I = input_shape.step.back();
  Tensor input_spikes = new_packed(packs, to_vector(input.sizes()));
  Tensor hidden_spikes = new_packed(packs, to_vector(out.sizes()));

  RecurrentForward args{};
  args.T = args.t1 = layer.T;
  args.B = layer.B;
  args.I = I;
  args.H = layer.H;
  args.ld = padded<S>(layer.H);
  args.z0 = z0.data_ptr();
  args.v0 = v0.data_ptr();
  args.i0 = i0.data_ptr();
  std::copy(std::begin(set.constants), std::end(set.constants), args.constants);
  args.out = out.data_ptr();
  args.v = v_end.data_ptr();
  args.i = i_end.data_ptr();
  if (needs_grad) args.i_jump = i_jump.data_ptr();
  if (packs) {
    args.input_spikes = static_cast<uint64_t*>(input_spikes.data_ptr());
    args.hidden_spikes = static_cast<uint64_t*>(hidden_spikes.data_ptr());
  }
  args.states = states.data_ptr();
  args.rows = rows_of(layer.T, interval);
  args.interval = interval;
  args.flush_denormals = set.flush_denormals;
  args.allocate = &scratch;
  const Kernels& kernels = current_kernels();
  const DType dtype = to_dtype(input.scalar_type());
  const auto run = [&](int64_t work) {
    parallel(layer.rows(), 1, work, [&](int64_t begin, int64_t end) {
      kernels.recurrent_forward(args, reset, dtype, begin, end);
    });
  };

  if (!exact) {
    Tensor dense_input;
    args.input = describe_sequence(input, input_shape, dense_input);
    std::atomic<bool> finite = true;
    const Tensor from_input = lay_out<S>(input_weights, true, args.ld, finite);
    const Tensor from_hidden = lay_out<S>(recurrent_weights, true, args.ld, finite);
    args.always_dense = !finite;
    args.input_weights = from_input.data_ptr();
    args.recurrent_weights = from_hidden.data_ptr();
    // A guess: one input in sixteen is a spike.
    run(layer.T * args.ld * (8 + (I + layer.H) / 16));
    return {out, v_end, i_end, i_jump, states, input_spikes, hidden_spikes};
  }
  const Tensor from_input = torch::stable::transpose(input_weights, 0, 1);
  const Tensor from_hidden = torch::stable::transpose(recurrent_weights, 0, 1);
  Tensor input_rows = torch::stable::reshape(input, {layer.T, layer.B, I});
  Tensor out_rows = torch::stable::reshape(out, {layer.T, layer.B, layer.H});
  Tensor z_t = torch::stable::reshape(z0, {layer.B, layer.H});
  for (int64_t t = 0; t < layer.T; ++t) {
    const Tensor x_t = torch::stable::select(input_rows, 0, t);
    const Tensor input_sums = matrix_product(x_t, from_input);
    const Tensor recurrent_sums = matrix_product(z_t, from_hidden);
    args.input_sums = input_sums.data_ptr();
    args.recurrent_sums = recurrent_sums.data_ptr();
    args.t0 = t;
    args.t1 = t + 1;
    run(8 * args.ld);
    args.v0 = args.v;
    args.i0 = args.i;
    z_t = torch::stable::select(out_rows, 0, t);
  }
  return {out, v_end, i_end, i_jump, states, input_spikes, hidden_spikes};
}

Outputs lif_recurrent_forward_cpu(
    Tensor input,  // [T, *batch, I], or [*batch, I] for a single step
    Tensor z,      // [*batch, H], as v and i
    Tensor v,
    Tensor i,
    Tensor input_weights,      // [H, I]
    Tensor recurrent_weights,  // [H, H]
    Tensor tau_syn_inv,        // this and the following broadcast to [*batch, H]
    Tensor tau_mem_inv,
    Tensor v_leak,
    Tensor v_th,
    Tensor v_reset,
    double dt,
    bool soft_reset,
    bool exact,
    int64_t state_interval,
    bool needs_grad) {
  const char* op = "lif_recurrent_forward";
  check_layer(op, "input", input, v, recurrent_weights, state_interval);
  const ScalarType state_type = compute_type(input.scalar_type());
  const int64_t dims = v.dim(), offset = input.dim() - dims;
  for (int64_t d = 0; d + 1 < dims; ++d)
    if (input.size(offset + d) != v.size(d))
      fail(
          op, ": input must have the batch of v, of shape ", to_string(v.sizes()), ", got shape ",
          to_string(input.sizes()));
  check_tensor(op, "z", z, v.sizes(), state_type, input);
  check_tensor(op, "v", v, v.sizes(), state_type, input);
  check_tensor(op, "i", i, v.sizes(), state_type, input);
  const int64_t sizes[] = {v.size(dims - 1), input.size(input.dim() - 1)};
  check_weights(op, "input_weights", input_weights, {sizes, 2}, input);
  if (exact && !(input.scalar_type() == state_type && input_weights.scalar_type() == state_type &&
                 recurrent_weights.scalar_type() == state_type))
    fail(op, ": exact needs input and weights in float32, or all in float64");
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     std::nullopt};
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const auto run = state_type == ScalarType::Double ? &forward_as<double> : &forward_as<float>;
  return run(
      input, z, v, i, input_weights, recurrent_weights, constants, dt, reset, exact, state_interval,
      needs_grad);
}

// ---- backward ----

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
enum { kNeedsZ, kNeedsV, kNeedsI, kNeedsConstants };  // bits of `needs`

template <typename S>
Grads backward_as(
    const std::optional<Tensor>& grad_out,
    const std::optional<Tensor>& grad_v,
    const std::optional<Tensor>& grad_i,
    const std::optional<Tensor>& grad_states,
    const Tensor& i_jump,
    const Tensor& states,
    const Tensor& v,
    const Tensor& recurrent_weights,
    ConstantTensors constants,
    double dt,
    Reset reset,
    int64_t interval,
    Surrogate surrogate,
    bool detach_reset,
    int64_t needs) {
  constexpr ScalarType kType = kScalarType<S>;
  const Layer layer(i_jump, v);
  const Shape shape(i_jump, v.dim());
  const ConstantSet<S> set("lif_recurrent_backward", layer.step, constants, dt);
  const auto is_needed = [needs](int bit) { return (needs >> bit & 1) != 0; };

  std::vector<Tensor> alive;  // dense copies, as long as the loops run
  const auto data_of = [&](const std::optional<Tensor>& t) -> const void* {
    if (!t) return nullptr;
    alive.push_back(dense(*t));
    return alive.back().data_ptr();
  };
  std::vector<std::byte> zeros;

  RecurrentBackward args{};
  args.T = layer.T;
  args.B = layer.B;
  args.H = layer.H;
  args.ld = padded<S>(layer.H);
  if (grad_out) {
    alive.emplace_back();
    args.grad_out = describe_sequence(*grad_out, shape, alive.back());
  } else {
    zeros.resize(layer.M * sizeof(double));
    args.grad_out = {zeros.data(), std::max<int64_t>(layer.M, 1), 0, 0};
  }
  args.i_jump = data_of(i_jump);
  args.v0 = data_of(v);
  args.states = data_of(states);
  args.rows = rows_of(layer.T, interval);
  args.interval = std::max<int64_t>(interval, 1);
  args.segment = std::min(interval > 1 ? interval : kMaxSegment, layer.T);
  std::atomic<bool> finite;  // does not matter: backward's products are dense
  const Tensor weights = lay_out<S>(recurrent_weights, false, args.ld, finite);
  args.recurrent_weights = weights.data_ptr();
  std::copy(std::begin(set.constants), std::end(set.constants), args.constants);
  args.grad_v = data_of(grad_v);
  args.grad_i = data_of(grad_i);
  args.grad_states = data_of(grad_states);
  args.surrogate = surrogate;
  args.detach_reset = detach_reset;
  args.flush_denormals = set.flush_denormals;
  args.allocate = &scratch;

  const std::vector<int64_t> none = {0};
  Tensor grad_x = new_empty(to_vector(i_jump.sizes()), kType);
  Tensor grad_z0 = new_empty(is_needed(kNeedsZ) ? layer.step : none, kType);
  Tensor grad_v0 = new_empty(layer.step, kType), grad_i0 = new_empty(layer.step, kType);
  args.grad_x = grad_x.data_ptr();
  args.grad_z0 = is_needed(kNeedsZ) ? grad_z0.data_ptr() : nullptr;
  args.grad_v0 = grad_v0.data_ptr();
  args.grad_i0 = grad_i0.data_ptr();

  // Rows are summed together where all of them have the same constants.
  bool shared = true;
  for (int k = 0; k < kNumGrads; ++k)
    shared = shared && repeats_every_row(args.constants[k], layer.H);
  args.unit_rows = shared ? layer.unit_rows() : 1;
  const int64_t unit = args.unit_rows * std::max<int64_t>(layer.H, 1);
  PartialSums<S> sums[kNumGrads];
  const auto has_grad = [&](int k) { return is_needed(kNeedsConstants + k); };
  for (int k = 0; k < kNumGrads; ++k)
    if (has_grad(k)) args.sums[k] = sums[k].prepare(set.layout(k), layer.M, unit);

  const Kernels& kernels = current_kernels();
  const DType dtype = to_dtype(grad_out ? grad_out->scalar_type() : kType);
  const bool constant_grads = needs >> kNeedsConstants != 0;
  parallel(
      layer.rows(), args.unit_rows, layer.T * args.ld * (8 + layer.H), [&](int64_t b0, int64_t b1) {
        kernels.recurrent_backward(args, reset, constant_grads, dtype, b0, b1);
      });

  Tensor grads[kNumGrads];
  for (int k = 0; k < kNumGrads; ++k) {
    if (!has_grad(k)) {
      grads[k] = new_empty(none, kType);
      continue;
    }
    grads[k] = new_empty(to_vector(constants[k]->sizes()), constants[k]->scalar_type());
    const double factor = k == kTauSynInv || k == kTauMemInv ? dt : 1.0;
    sums[k].finish(args.sums[k], set.layout(k), layer.M, unit, factor, grads[k]);
  }
  return {grad_x, grad_z0, grad_v0, grad_i0, grads[0], grads[1], grads[2], grads[3], grads[4]};
}

Grads lif_recurrent_backward_cpu(
    std::optional<Tensor> grad_out,     // [T, *step]
    std::optional<Tensor> grad_v,       // [*step]
    std::optional<Tensor> grad_i,       // [*step]
    std::optional<Tensor> grad_states,  // [2, T, *step]
    Tensor i_jump,                      // [T, *step]
    Tensor states,                      // [1, rows, *step] or [2, T, *step]
    Tensor v,                           // [*step], initial
    Tensor recurrent_weights,           // [H, H]
    Tensor tau_syn_inv,
    Tensor tau_mem_inv,
    Tensor v_leak,
    Tensor v_th,
    Tensor v_reset,
    Tensor alpha,
    double dt,
    bool soft_reset,
    int64_t state_interval,
    int64_t method,
    bool detach_reset,
    int64_t needs) {
  const char* op = "lif_recurrent_backward";
  const Surrogate surrogate = check_surrogate(op, method);
  check_layer(op, "i_jump", i_jump, v, recurrent_weights, state_interval);
  const Layer layer(i_jump, v);
  const ScalarType state_type = compute_type(i_jump.scalar_type());
  const std::vector<int64_t> sequence = layer.sequence(i_jump.dim() > v.dim());
  const std::vector<int64_t> kept = layer.states(state_interval);
  const Sizes sequence_sizes(sequence.data(), sequence.size()),
      kept_sizes(kept.data(), kept.size());
  check_tensor(op, "i_jump", i_jump, sequence_sizes, state_type, i_jump);
  check_tensor(op, "v", v, v.sizes(), state_type, i_jump);
  if (!(state_interval > 0 || layer.T <= kMaxSegment))
    fail(op, ": states must be kept by the forward for more than ", kMaxSegment, " time steps");
  check_tensor(op, "states", states, kept_sizes, state_type, i_jump);
  if (grad_out) {
    if (!is_floating(grad_out->scalar_type()) ||
        compute_type(grad_out->scalar_type()) != state_type)
      fail(op, ": grad_out must be of a type that is computed in that of i_jump");
    check_tensor(op, "grad_out", *grad_out, sequence_sizes, grad_out->scalar_type(), i_jump);
  }
  if (grad_v) check_tensor(op, "grad_v", *grad_v, v.sizes(), state_type, i_jump);
  if (grad_i) check_tensor(op, "grad_i", *grad_i, v.sizes(), state_type, i_jump);
  if (grad_states) {
    if (state_interval != 1) fail(op, ": grad_states needs state_interval = 1");
    check_tensor(op, "grad_states", *grad_states, kept_sizes, state_type, i_jump);
  }
  const std::optional<Tensor> constants[kNumConstants] = {tau_syn_inv, tau_mem_inv, v_leak,
                                                          v_th,        v_reset,     alpha};
  const Reset reset = soft_reset ? Reset::kSoft : Reset::kHard;
  const auto run = state_type == ScalarType::Double ? &backward_as<double> : &backward_as<float>;
  return run(
      grad_out, grad_v, grad_i, grad_states, i_jump, states, v, recurrent_weights, constants, dt,
      reset, state_interval, surrogate, detach_reset, needs);
}

// ---- gradients of weights ----

// More spikes than this share of the senders are quicker in a dense product.
constexpr double kMostSpikes = 0.2;

// Packed rows of n numbers as ones and zeros.
template <typename S>
Tensor unpacked(const uint64_t* words, int64_t rows, int64_t n) {
  Tensor result = new_empty({rows, n}, kScalarType<S>);
  S* to = static_cast<S*>(result.data_ptr());
  parallel(rows, 1, 4 * n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t k = 0; k < n; ++k)
        to[r * n + k] = S(words[r * packed_size(n) + 1 + k / kWord] >> (k % kWord) & 1);
  });
  return result;
}

// grad: [rows, H]; `input` and `spikes` as in weight_grad.
template <typename S>
Tensor weight_grad_as(
    const Tensor& grad,
    const std::optional<Tensor>& input,
    const std::optional<Tensor>& spikes,
    int64_t I) {
  constexpr ScalarType kType = kScalarType<S>;
  const int64_t rows = grad.size(0), H = grad.size(1);
  const Kernels& kernels = current_kernels();

  const Tensor packed = spikes ? dense(*spikes) : new_packed(true, {rows, I});
  uint64_t* words = static_cast<uint64_t*>(packed.data_ptr());
  if (!spikes) {
    const Shape shape(*input, input->dim() == 1 ? 1 : input->dim() - 1);
    Tensor dense_input;
    const Sequence x = describe_sequence(*input, shape, dense_input);
    const DType dtype = to_dtype(input->scalar_type());
    parallel(rows, 1, I, [&](int64_t begin, int64_t end) {
      kernels.pack_spikes(x, dtype, rows / shape.T, I, begin, end, words);
    });
  }
  const double most = kMostSpikes * static_cast<double>(rows * I);
  double ones = 0;
  for (int64_t r = 0; r < rows && ones <= most; ++r)
    ones += static_cast<double>(words[r * packed_size(I)]);  // kNotSpikes is large
  if (ones > most) {
    const Tensor input_rows =
        input ? torch::stable::to(torch::stable::reshape(*input, {rows, I}), kType)
              : unpacked<S>(words, rows, I);
    return matrix_product(torch::stable::transpose(grad, 0, 1), input_rows);
  }

  Tensor result = new_empty({H, I}, kType);
  if (ones == 0) {
    std::fill_n(static_cast<S*>(result.data_ptr()), result.numel(), S(0));
    return result;
  }
  const Tensor dense_grad = dense(grad);
  WeightGrad args{};
  args.rows = rows;
  args.I = I;
  args.H = H;
  args.ld = padded<S>(H);
  Tensor by_sender = new_empty({I, args.ld}, kType);
  args.grad = dense_grad.data_ptr();
  args.spikes = words;
  args.to = by_sender.data_ptr();
  args.allocate = &scratch;
  const int64_t work = (rows + static_cast<int64_t>(ones) * H) / std::max<int64_t>(I, 1);
  parallel(I, 8, work, [&](int64_t begin, int64_t end) {
    kernels.weight_grad(args, sizeof(S) == 8, begin, end);
  });
  parallel(H, 16, 2 * I, [&](int64_t begin, int64_t end) {
    kernels.transpose(sizeof(S) == 8, args.to, args.ld, I, begin, end, result.data_ptr(), I);
  });
  return result;
}

Tensor weight_grad_cpu(
    Tensor grad,                   // [*rows, H]
    std::optional<Tensor> input,   // [*rows, I]
    std::optional<Tensor> spikes,  // [*rows, packed_size(I)]
    int64_t columns) {             // I
  const char* op = "weight_grad";
  const ScalarType type = grad.scalar_type();
  if (!(grad.dim() >= 1 && (type == ScalarType::Double || type == ScalarType::Float)))
    fail(op, ": grad must be float32 or float64, of shape [*rows, H]");
  if (!input && !spikes) fail(op, ": input or spikes must be given");
  if (columns < 0) fail(op, ": columns must not be negative, got ", columns);
  std::vector<int64_t> sizes = to_vector(grad.sizes());
  const int64_t H = sizes.back(), rows = product(sizes, 0, sizes.size() - 1);
  if (input) {
    sizes.back() = columns;
    if (!is_floating(input->scalar_type()) || compute_type(input->scalar_type()) != type)
      fail(op, ": grad must be of the type that input is computed in");
    check_tensor(op, "input", *input, {sizes.data(), sizes.size()}, input->scalar_type(), grad);
  }
  if (spikes) {
    sizes.back() = packed_size(columns);
    check_tensor(op, "spikes", *spikes, {sizes.data(), sizes.size()}, ScalarType::Long, grad);
  }
  const Tensor grad_rows = torch::stable::reshape(grad, {rows, H});
  return type == ScalarType::Double ? weight_grad_as<double>(grad_rows, input, spikes, columns)
                                    : weight_grad_as<float>(grad_rows, input, spikes, columns);
}

template <typename S>
Tensor input_grad_as(const Tensor& grad, const Tensor& weights) {
  std::vector<int64_t> sizes = to_vector(grad.sizes());
  const int64_t rows = product(sizes, 0, sizes.size() - 1);
  sizes.back() = weights.size(1);
  InputGrad args{};
  args.H = weights.size(0);
  args.I = weights.size(1);
  args.ld = padded<S>(args.I);
  args.allocate = &scratch;
  std::atomic<bool> finite;
  const Tensor dense_grad = dense(grad),
               dense_weights = lay_out<S>(weights, false, args.ld, finite);
  Tensor result = new_empty(sizes, kScalarType<S>);
  args.grad = dense_grad.data_ptr();
  args.weights = dense_weights.data_ptr();
  args.to = result.data_ptr();
  args.stream = size_of(result) >= kStreamBytes;
  parallel(args.I == 0 ? 0 : rows, 8, args.H * args.I, [&](int64_t begin, int64_t end) {
    current_kernels().input_grad(args, sizeof(S) == 8, begin, end);
  });
  return result;
}

Tensor input_grad_cpu(Tensor grad /* [*rows, H] */, Tensor weights /* [H, I] */) {
  const char* op = "input_grad";
  const ScalarType type = grad.scalar_type();
  if (!(type == ScalarType::Double || type == ScalarType::Float))
    fail(op, ": grad must be float32 or float64");
  if (grad.dim() < 1) fail(op, ": grad must have shape [*rows, H]");
  if (weights.dim() != 2)
    fail(op, ": weights must have shape [H, I], got ", to_string(weights.sizes()));
  const int64_t sizes[] = {grad.size(grad.dim() - 1), weights.size(1)};
  check_weights(op, "weights", weights, {sizes, 2}, grad);
  return type == ScalarType::Double ? input_grad_as<double>(grad, weights)
                                    : input_grad_as<float>(grad, weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_lif, CPU, m) {
  m.impl("input_grad", TORCH_BOX(&input_grad_cpu));
  m.impl("weight_grad", TORCH_BOX(&weight_grad_cpu));
  m.impl("lif_recurrent_forward", TORCH_BOX(&lif_recurrent_forward_cpu));
  m.impl("lif_recurrent_backward", TORCH_BOX(&lif_recurrent_backward_cpu));
}

}  // namespace fused_lif::cpu
