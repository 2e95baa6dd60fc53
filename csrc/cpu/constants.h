// Constants of the neuron on the CPU: how a tensor that broadcasts against a step is laid out over
// the columns, its values in the type of the computation, and the sums that become its gradient.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "../shapes.h"
#include "kernels.h"

namespace fused_lif::cpu {

// How a tensor of constants is laid out over the columns. The kernel sees `period` values, each for
// `inner` consecutive columns; value q is the tensor's element index[q], or q if index is empty.
struct Layout {
  int64_t inner = 1, period = 1;
  std::vector<int64_t> index;
};

inline Layout
layout_of(const char* op, const char* name, Sizes sizes, const std::vector<int64_t>& step) {
  const std::vector<Group> groups = groups_of(op, name, sizes, step);
  if (groups.empty()) return {std::max<int64_t>(product(step, 0, step.size()), 1), 1, {}};
  Layout layout;
  layout.inner = groups.back().stride;
  layout.period = groups.front().size * (groups.front().stride / layout.inner);
  if (groups.size() == 1) return layout;
  // A hole, such as [C, 1, W] over [C, H, W]: list the elements.
  layout.index.resize(layout.period);
  for (int64_t q = 0; q < layout.period; ++q)
    for (const Group& group : groups)
      layout.index[q] = layout.index[q] * group.size + q * layout.inner / group.stride % group.size;
  return layout;
}

// Calls f with a pointer of the tensor's own type.
template <typename F>
void visit_elements(const Tensor& t, const F& f) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return f(static_cast<double*>(t.data_ptr()));
    case ScalarType::Half: return f(static_cast<torch::headeronly::Half*>(t.data_ptr()));
    case ScalarType::BFloat16: return f(static_cast<torch::headeronly::BFloat16*>(t.data_ptr()));
    default: return f(static_cast<float*>(t.data_ptr()));
  }
}

// The constants of one call in the type S of the computation, and what they say about denormals.
template <typename S>
class ConstantSet {
 public:
  // dt * tau is formed in the type of tau (float32 for half types), as eager torch does.
  ConstantSet(
      const char* op,
      const std::vector<int64_t>& step,
      ConstantTensors tensors,
      double dt) {
    int64_t total = 0;
    for (int k = 0; k < kNumConstants; ++k) {
      if (!tensors[k]) continue;
      layouts_[k] = layout_of(op, kConstantNames[k], tensors[k]->sizes(), step);
      total += layouts_[k].period;
    }
    values_.reset(new S[total + kMaxLanes]());
    S* to = values_.get();
    for (int k = 0; k < kNumConstants; ++k) {
      if (!tensors[k]) continue;
      const Layout& layout = layouts_[k];
      constants[k] = {to, layout.inner, std::max<int64_t>(layout.period, 1)};
      const Tensor elements = dense(*tensors[k]);
      visit_elements(elements, [&](const auto* from) {
        using P = std::conditional_t<std::is_same_v<decltype(from), const double*>, double, float>;
        const bool is_tau = k == kTauSynInv || k == kTauMemInv;
        const P factor = is_tau ? static_cast<P>(dt) : P(1);
        for (int64_t q = 0; q < layout.period; ++q) {
          const auto element = from[layout.index.empty() ? q : layout.index[q]];
          to[q] = static_cast<S>(factor * static_cast<P>(element));
        }
      });
      flush_denormals = flush_denormals && is_safe(k, to, layout.period);
      to += layout.period;
    }
  }

  const Layout& layout(int k) const { return layouts_[k]; }

  Constant constants[kNumConstants] = {};

  // What flushing denormals loses is below 1e-36. Where the threshold is far from zero and the
  // dynamics does not amplify, |1 - dt * tau_inv| <= 1, it reaches a spike only if it breaks an
  // exact rounding tie.
  bool flush_denormals = true;

 private:
  static bool is_safe(int k, const S* values, int64_t n) {
    int64_t safe = 0;
    if (k == kVTh)
      for (int64_t q = 0; q < n; ++q) safe += std::abs(values[q]) >= S(1e-25);
    else if (k == kTauSynInv || k == kTauMemInv)
      for (int64_t q = 0; q < n; ++q) safe += std::abs(values[q] - S(1)) <= S(1);
    else
      return true;
    return safe == n;
  }

  std::unique_ptr<S[]> values_;
  Layout layouts_[kNumConstants];
};

// The partial sums of one constant's gradient and how they become the gradient.
template <typename S>
class PartialSums {
 public:
  GradSum prepare(const Layout& layout, int64_t M, int64_t unit) {
    const int64_t units = (M + unit - 1) / unit;
    const bool wraps = layout.inner * layout.period <= unit;
    const int64_t slots = (wraps ? layout.period : (unit - 1) / layout.inner + 2) + kMaxLanes;
    partial_.assign(units * slots, S(0));
    return {partial_.data(), slots, wraps};
  }

  // Adds up the units in their order; in double precision where many numbers become few.
  void finish(
      const GradSum& sum,
      const Layout& layout,
      int64_t M,
      int64_t unit,
      double factor,
      const Tensor& grad) const {
    constexpr int64_t kFew = 64;
    if (layout.period < kFew || !layout.index.empty())
      finish_as<double>(sum, layout, M, unit, factor, grad);
    else
      finish_as<S>(sum, layout, M, unit, factor, grad);
  }

 private:
  template <typename A>
  void finish_as(
      const GradSum& sum,
      const Layout& layout,
      int64_t M,
      int64_t unit,
      double factor,
      const Tensor& grad) const {
    std::vector<A> totals(layout.period, A(0));  // of the values that the kernel sees
    const int64_t units = (M + unit - 1) / unit;
    for (int64_t u = 0; u < units; ++u) {
      const int64_t first = u * unit / layout.inner;
      const int64_t last = (std::min(M, (u + 1) * unit) - 1) / layout.inner;
      const int64_t used = sum.wraps ? layout.period : last - first + 1;
      const S* from = partial_.data() + u * sum.slots;
      A* to = totals.data() + (sum.wraps ? 0 : first % layout.period);
      for (int64_t s = 0; s < used;) {
        const int64_t n = std::min(used - s, totals.data() + layout.period - to);
        for (int64_t k = 0; k < n; ++k) to[k] += from[s + k];
        s += n;
        to = totals.data();
      }
    }
    std::vector<A> elements;  // of the tensor, where it has fewer than the kernel sees
    if (!layout.index.empty()) {
      elements.resize(grad.numel(), A(0));
      for (int64_t q = 0; q < layout.period; ++q) elements[layout.index[q]] += totals[q];
    }
    const std::vector<A>& result = layout.index.empty() ? totals : elements;
    visit_elements(grad, [&](auto* to) {
      for (size_t q = 0; q < result.size(); ++q)
        to[q] = static_cast<std::remove_reference_t<decltype(*to)>>(A(factor) * result[q]);
    });
  }

  std::vector<S> partial_;
};

}  // namespace fused_lif::cpu
