// Sizes of one call, and how its tensors are described to the loops of every device.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "problem.h"

namespace fused_lif {

using ConstantTensors = const std::optional<Tensor> (&)[kNumConstants];

inline constexpr const char* kConstantNames[kNumConstants] = {
    "tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset", "alpha"};

inline DType to_dtype(ScalarType t) {
  switch (t) {
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: return DType::kFloat;
  }
}

template <typename S>
constexpr ScalarType kScalarType =
    std::is_same_v<S, double> ? ScalarType::Double : ScalarType::Float;

inline std::vector<int64_t> to_vector(Sizes sizes) { return {sizes.begin(), sizes.end()}; }

inline int64_t product(const std::vector<int64_t>& sizes, size_t begin, size_t end) {
  int64_t n = 1;
  for (size_t d = begin; d < end; ++d) n *= sizes[d];
  return n;
}

// t itself if it is contiguous: asking costs less than a call of the operator.
inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// A contiguous tensor, not initialised; the type of the device is one of
// aoti_torch_device_type_*().
inline Tensor
new_contiguous(const std::vector<int64_t>& sizes, ScalarType dtype, int32_t device, int32_t index) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1))
    strides[d] = stride;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device, index,
      &handle));
  return Tensor(handle);
}

// How many states are kept of T time steps.
inline int64_t rows_of(int64_t T, int64_t interval) {
  return interval == 0 ? 0 : interval == 1 ? T : (T - 1) / interval;
}

// x is [T, *step], or [*step] for a single step. M is the number of columns: neurons of all batch
// rows.
struct Shape {
  std::vector<int64_t> step;
  int64_t T, M;

  Shape(const Tensor& x, int64_t step_dims)
      : step(x.sizes().end() - step_dims, x.sizes().end()),
        T(x.dim() == step_dims ? 1 : x.size(0)),
        M(product(step, 0, step.size())) {}

  // Sizes of the kept states: potential and current, or the potential only, of `rows` steps.
  std::vector<int64_t> states(bool synapse, int64_t rows) const {
    std::vector<int64_t> sizes = {synapse ? 2 : 1, rows};
    sizes.insert(sizes.end(), step.begin(), step.end());
    return sizes;
  }
};

// Sizes of a recurrent layer: v is [*batch, H].
struct Layer {
  std::vector<int64_t> step;
  int64_t T, B, H, M;

  Layer(const Tensor& sequence, const Tensor& v)
      : step(to_vector(v.sizes())),
        T(sequence.dim() == v.dim() ? 1 : sequence.size(0)),
        B(product(step, 0, step.size() - 1)),
        H(step.back()),
        M(B * H) {}

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
};

// Which gradients a backward has to give: bits in the order of its results, the first of which is
// that of x (of z in a recurrent layer).
struct Needs {
  int64_t bits;

  bool first() const { return bits & 1; }
  bool constant(int k) const { return bits >> (3 + k) & 1; }
  bool any_constant() const { return bits >> 3 != 0; }
};

// How a constant broadcasts over the columns: no group for a scalar, one for [N] or [C, 1, 1], two
// for [C, 1, W]. Its elements count through the groups, the last one first.
inline std::vector<Group>
groups_of(const char* op, const char* name, Sizes sizes, const std::vector<int64_t>& step) {
  const size_t missing = step.size() - std::min(step.size(), sizes.size());
  bool fits = sizes.size() <= step.size();
  for (size_t d = missing; fits && d < step.size(); ++d)
    fits = sizes[d - missing] == 1 || sizes[d - missing] == step[d];
  if (!fits)
    fail(
        op, ": ", name, " must broadcast to one time step of shape ",
        to_string({step.data(), step.size()}), ", got shape ", to_string(sizes));
  std::vector<Group> groups;
  bool within = false;  // the dimension before belongs to a group, or to none and is of size one
  for (size_t d = missing; d < step.size(); ++d) {
    const int64_t n = sizes[d - missing];
    if (n != 1) {
      const int64_t stride = std::max<int64_t>(product(step, d + 1, step.size()), 1);
      if (within)
        groups.back() = {groups.back().size * n, stride};
      else
        groups.push_back({n, stride});
      within = true;
    } else if (step[d] != 1) {
      within = false;
    }
  }
  return groups;
}

// Describes a sequence for the loops: as it lies if it is contiguous, repeats one step, or its last
// dimensions are contiguous rows of some length (batch-first views); through a copy otherwise,
// which `keep_alive` then holds.
inline Sequence describe_sequence(const Tensor& x, const Shape& shape, Tensor& keep_alive) {
  constexpr int64_t kShortestRow = 64;
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t M = shape.M, T = shape.T, stride_t = T == 1 ? 0 : strides[0];
  const size_t first = sizes.size() - shape.step.size();  // dimension of `step`
  // Dimensions from `d` on are one contiguous row.
  size_t d = sizes.size();
  int64_t row = 1;
  while (d > first && (sizes[d - 1] == 1 || strides[d - 1] == row)) row *= sizes[--d];
  if (row == M) return {x.data_ptr(), std::max<int64_t>(M, 1), 0, stride_t};
  // The dimensions before it must be evenly spaced.
  const auto evenly_spaced = [&] {
    for (size_t k = d - 1; k > first; --k)
      if (strides[k - 1] != strides[k] * sizes[k]) return false;
    return true;
  };
  if (row >= kShortestRow && evenly_spaced()) return {x.data_ptr(), row, strides[d - 1], stride_t};
  if (stride_t == 0 && T > 1) {  // repeat a copy of the step, not a copy of all steps
    Tensor view = x;
    keep_alive = torch::stable::contiguous(torch::stable::narrow(view, 0, 0, 1));
    return {keep_alive.data_ptr(), M, 0, 0};
  }
  keep_alive = torch::stable::contiguous(x);
  return {keep_alive.data_ptr(), M, 0, M};
}

}  // namespace fused_lif
