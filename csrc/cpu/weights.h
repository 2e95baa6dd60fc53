// Weights on the CPU: how they are laid out for the loops, products with them, packed spikes, and
// how work is shared between threads.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <atomic>

#include "capability.h"
#include "tensors.h"

namespace fused_lif::cpu {

// Work that is worth a thread, in multiplications and additions: some 30 us.
inline constexpr int64_t kGrain = 500'000;

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
inline Tensor matrix_product(const Tensor& a, const Tensor& b) {
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

// Room for the rows of a sequence [*rows, n], packed; empty if not needed.
inline Tensor new_packed(bool needed, std::vector<int64_t> sizes) {
  if (needed)
    sizes.back() = packed_size(sizes.back());
  else
    sizes = {0};
  return new_empty(sizes, ScalarType::Long);
}

}  // namespace fused_lif::cpu
