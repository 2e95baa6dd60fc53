// Gradients of the weights and of the input of a recurrent layer on the CPU, given that of the
// current.
#include <torch/csrc/stable/library.h>

#include "../arguments.h"
#include "weights.h"

namespace fused_lif::cpu {
namespace {

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
  check_weight_grad(op, grad, input, columns);
  if (!input && !spikes) fail(op, ": input or spikes must be given");
  std::vector<int64_t> sizes = to_vector(grad.sizes());
  const int64_t H = sizes.back(), rows = product(sizes, 0, sizes.size() - 1);
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
  check_input_grad(op, grad, weights);
  return grad.scalar_type() == ScalarType::Double ? input_grad_as<double>(grad, weights)
                                                  : input_grad_as<float>(grad, weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_lif, CPU, m) {
  m.impl("input_grad", TORCH_BOX(&input_grad_cpu));
  m.impl("weight_grad", TORCH_BOX(&weight_grad_cpu));
}

}  // namespace fused_lif::cpu
