// Surrogate derivatives of the spike function H(s), s = v_decayed - v_th, and their primitives.
//
// One entry per method: the enum value, its public name, its derivative and its primitive. The
// Python table (fused_lif/surrogate.py) gives the same formulas in torch; tests/test_surrogate.py
// compares them.
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

// The event-based methods, which have no surrogate (lif_step.h), are numbered on from there.
inline constexpr int64_t kAdjoint = static_cast<int64_t>(Surrogate::kCount);
inline constexpr int64_t kEventProp = kAdjoint + 1;

// The functions that a vector type has to bring along; a scalar has them from <cmath>.
template <typename V>
struct Math {
  static FUSED_LIF_HD V constant(double x) { return static_cast<V>(x); }
  static FUSED_LIF_HD V exp(V x) { return std::exp(x); }
  static FUSED_LIF_HD V sqrt(V x) { return std::sqrt(x); }
  static FUSED_LIF_HD V erf(V x) { return std::erf(x); }
  static FUSED_LIF_HD V atan(V x) { return std::atan(x); }

  // a * b + c for gradients, rounded once where vectors can.
  static FUSED_LIF_HD V multiply_add(V a, V b, V c) { return a * b + c; }

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

// The integral of surrogate_grad from s = -infinity: what takes the place of H(s) when gradients
// are verified. All derivatives are even, hence the integral is `tail` below zero, `area - tail`
// above.
template <Surrogate S, typename V>
FUSED_LIF_HD V surrogate_primitive(V s, V alpha) {
  const V zero = Math<V>::constant(0), one = Math<V>::constant(1), two = Math<V>::constant(2);
  const V half = Math<V>::constant(0.5), abs_s = s < zero ? -s : s;
  V tail = zero, area = one;
  if constexpr (S == Surrogate::kHeaviside) {  // H itself: its derivative is zero but at s = 0
  } else if constexpr (S == Surrogate::kSuper) {
    tail = one / (alpha * (alpha * abs_s + one));
    area = two / alpha;
  } else if constexpr (S == Surrogate::kTriangle) {
    const V height = abs_s < one ? one - abs_s : zero;
    tail = half * alpha * height * height;
    area = alpha;
  } else if constexpr (S == Surrogate::kTanh) {  // (1 + tanh(alpha s)) / alpha
    const V u = alpha * abs_s, e = Math<V>::exp(-(u + u));
    tail = two * e / (alpha * (one + e));
    area = two / alpha;
  } else if constexpr (S == Surrogate::kCirc) {  // alpha (1 + s / sqrt(alpha^2 + s^2))
    const V r = abs_s / alpha;
    tail = alpha * (one - r / Math<V>::sqrt(one + r * r));
    area = two * alpha;
  } else if constexpr (S == Surrogate::kHeaviErfc) {  // (1 + erf(alpha s)) / alpha
    tail = (one - Math<V>::erf(alpha * abs_s)) / alpha;
    area = two / alpha;
  } else if constexpr (S == Surrogate::kSigmoid) {
    const V e = Math<V>::exp(-(alpha * abs_s));
    tail = e / (one + e);
  } else if constexpr (S == Surrogate::kAtan) {
    const V u = Math<V>::constant(1.5707963267948966) * alpha * abs_s;
    tail = half - Math<V>::atan(u) * Math<V>::constant(0.3183098861837907);  // 1 / pi
  } else if constexpr (S == Surrogate::kPiecewiseLinear) {
    const V height = half - alpha * abs_s;
    tail = height < zero ? zero : height;
  } else {
    static_assert(kNotHandled<S>, "write the primitive of the new surrogate here");
  }
  return s > zero ? area - tail : tail;
}

// The primitive of the surrogate with this value.
template <int64_t kId = 0, typename V>
FUSED_LIF_HD V smooth_spike(Surrogate surrogate, V s, V alpha) {
  if constexpr (kId + 1 < static_cast<int64_t>(Surrogate::kCount))
    if (surrogate != static_cast<Surrogate>(kId)) return smooth_spike<kId + 1>(surrogate, s, alpha);
  return surrogate_primitive<static_cast<Surrogate>(kId)>(s, alpha);
}

}  // namespace fused_lif
