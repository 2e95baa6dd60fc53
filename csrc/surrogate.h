// Surrogate derivatives of the spike function H(s), s = v_decayed - v_th.
//
// One entry per method: the enum value, its public name and its derivative. The Python table
// (fused_lif/surrogate.py) gives the same formulas in torch; tests/test_surrogate.py compares them.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "macros.h"

namespace fused_lif {

enum class Surrogate : int64_t {
  kHeaviside,
  kSuper,
  kTriangle,
  kTanh,
  kCirc,
  kHeaviErfc,
  kSigmoid,
  kAtan,
  kPiecewiseLinear,
  kCount
};

inline constexpr const char* kSurrogateNames[] = {"heaviside", "super", "triangle",
                                                  "tanh",      "circ",  "heavi_erfc",
                                                  "sigmoid",   "atan",  "piecewise_linear"};
static_assert(
    sizeof(kSurrogateNames) / sizeof(kSurrogateNames[0]) == static_cast<size_t>(Surrogate::kCount));

// The functions that a vector type has to bring along; a scalar has them from <cmath>.
template <typename V>
struct Math {
  static FUSED_LIF_HD V constant(double x) { return static_cast<V>(x); }
  static FUSED_LIF_HD V exp(V x) { return std::exp(x); }
  static FUSED_LIF_HD V sqrt(V x) { return std::sqrt(x); }

  // 1 / x for x >= 1. On the GPU a division costs as much as the rest of a surrogate; this one is
  // off by two units in the last place, and only ever scales a gradient.
  static FUSED_LIF_HD V reciprocal(V x) {
#if defined(__CUDA_ARCH__)
    if constexpr (std::is_same_v<V, float>) return __fdividef(1.0f, x);
#endif
    return static_cast<V>(1) / x;
  }
};

template <Surrogate>
inline constexpr bool kNotHandled = false;

// dH/ds as the backward pass uses it. No intermediate result overflows into NaN for any finite s:
// the bell-shaped ones are written with exp of a negative number or with a ratio, not with powers.
template <Surrogate S, typename V>
FUSED_LIF_HD V surrogate_grad(V s, V alpha) {
  const V zero = Math<V>::constant(0), one = Math<V>::constant(1);
  const V abs_s = s < zero ? -s : s;
  if constexpr (S == Surrogate::kHeaviside) {
    return zero;
  } else if constexpr (S == Surrogate::kSuper) {
    const V d = alpha * abs_s + one;
    return Math<V>::reciprocal(d * d);
  } else if constexpr (S == Surrogate::kTriangle) {
    const V height = one - abs_s;
    return height < zero ? zero : alpha * height;
  } else if constexpr (S == Surrogate::kTanh) {  // 1 - tanh(u)^2 = 4 e / (1 + e)^2, e = exp(-2|u|)
    const V u = alpha * abs_s;
    const V e = Math<V>::exp(-(u + u)), d = one + e;
    return Math<V>::constant(4) * e * Math<V>::reciprocal(d * d);
  } else if constexpr (S == Surrogate::kCirc) {  // alpha^3 / (alpha^2 + s^2)^1.5
    const V r = s / alpha, d = one + r * r;
    return Math<V>::reciprocal(d * Math<V>::sqrt(d));
  } else if constexpr (S == Surrogate::kHeaviErfc) {
    const V u = alpha * s;
    return Math<V>::constant(1.1283791670955126) * Math<V>::exp(-(u * u));  // 2 / sqrt(pi)
  } else if constexpr (S == Surrogate::kSigmoid) {  // derivative of 1 / (1 + exp(-alpha s))
    const V e = Math<V>::exp(-(alpha * abs_s)), d = one + e;
    return alpha * e * Math<V>::reciprocal(d * d);
  } else if constexpr (S == Surrogate::kAtan) {  // of atan(pi/2 alpha s) / pi
    const V u = Math<V>::constant(1.5707963267948966) * alpha * s;
    return Math<V>::constant(0.5) * alpha * Math<V>::reciprocal(one + u * u);
  } else if constexpr (S == Surrogate::kPiecewiseLinear) {  // box of height alpha and area 1
    return alpha * abs_s < Math<V>::constant(0.5) ? alpha : zero;
  } else {
    static_assert(kNotHandled<S>, "write the derivative of the new surrogate here");
  }
}

}  // namespace fused_lif
