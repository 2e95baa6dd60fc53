// SIMD vectors out of the compiler's own vector types, kVectorBytes wide, for the instruction set
// that the including file is compiled for. Arithmetic, comparison and `mask ? a : b` are the
// language's.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "../surrogate.h"

namespace fused_lif::cpu {
namespace FUSED_LIF_ISA {

#define FUSED_LIF_INLINE static inline __attribute__((always_inline))

template <typename S>
struct VectorOf;
template <>
struct VectorOf<float> {
  using integer = int32_t;
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  using integer = int64_t;
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <typename S>
using Vector = typename VectorOf<S>::type;
template <typename S>
inline constexpr int kLanes = kVectorBytes / sizeof(S);

using UInt32s = VectorOf<float>::bits;
typedef uint16_t UInt16s __attribute__((vector_size(kVectorBytes / 2)));

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename S>
FUSED_LIF_INLINE Vector<S> broadcast(S x) {
  return x - Vector<S>{};
}

template <typename S>
FUSED_LIF_INLINE Vector<S> load(const S* p) {
  Vector<S> x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

template <typename S>
FUSED_LIF_INLINE void store(S* p, Vector<S> x) {
  __builtin_memcpy(p, &x, sizeof(x));
}

// x in the first n lanes, zero in the others.
template <typename S>
FUSED_LIF_INLINE Vector<S> first_lanes(Vector<S> x, int64_t n) {
  using Mask = typename VectorOf<S>::mask;
  Mask lane;
  for (int k = 0; k < kLanes<S>; ++k) lane[k] = k;
  return lane < static_cast<typename VectorOf<S>::integer>(n) ? x : Vector<S>{};
}

FUSED_LIF_INLINE Vector<float> as_float(UInt32s x) { return (Vector<float>)x; }
FUSED_LIF_INLINE UInt32s as_bits(Vector<float> x) { return (UInt32s)x; }

// Conversions between the type in memory and the type of the computation. Those from and to half
// are free of denormal floats, which may be flushed: see F. Giesen, "half to float done quickly".
template <typename S, typename IO>
struct Convert;

template <typename S>
struct Convert<S, S> {
  using Raw = Vector<S>;
  FUSED_LIF_INLINE Vector<S> widen(Raw x) { return x; }
  FUSED_LIF_INLINE Raw narrow(Vector<S> x) { return x; }
};

template <>
struct Convert<float, BFloat16> {
  using Raw = UInt16s;
  FUSED_LIF_INLINE Vector<float> widen(Raw x) {
    return as_float(__builtin_convertvector(x, UInt32s) << 16);
  }
  FUSED_LIF_INLINE Raw narrow(Vector<float> x) {  // to nearest, ties to even
    const UInt32s bits = as_bits(x);
    const UInt32s rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    return __builtin_convertvector(x != x ? (bits >> 16) | 0x40u : rounded, UInt16s);
  }
};

template <>
struct Convert<float, Half> {
  using Raw = UInt16s;
  FUSED_LIF_INLINE Vector<float> widen(Raw x) {
    const UInt32s half = __builtin_convertvector(x, UInt32s);
    const UInt32s magnitude = (half & 0x7fffu) << 13;
    const UInt32s exponent = magnitude & 0x0f800000u;
    const UInt32s normal = magnitude + 0x38000000u;
    const UInt32s infinite = magnitude + 0x70000000u;
    const UInt32s tiny =
        as_bits(as_float(magnitude + 0x38800000u) - broadcast<float>(6.103515625e-05f));
    const UInt32s bits = exponent == 0x0f800000u ? infinite : (exponent == 0u ? tiny : normal);
    return as_float(bits | ((half & 0x8000u) << 16));
  }
  FUSED_LIF_INLINE Raw narrow(Vector<float> x) {  // to nearest, ties to even
    const UInt32s sign = as_bits(x) & 0x80000000u;
    const UInt32s bits = as_bits(x) ^ sign;
    // Adding 0.5 shifts the mantissa of a small number to where that of a denormal half belongs.
    const UInt32s tiny = as_bits(as_float(bits) + broadcast<float>(0.5f)) - 0x3f000000u;
    const UInt32s normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    const UInt32s special = bits > 0x7f800000u ? UInt32s{} + 0x7e00u : UInt32s{} + 0x7c00u;
    const UInt32s half = bits >= 0x47800000u ? special : (bits < 0x38800000u ? tiny : normal);
    return __builtin_convertvector(half | (sign >> 16), UInt16s);
  }
};

template <typename S, typename IO>
FUSED_LIF_INLINE Vector<S> load_as(const IO* p) {
  typename Convert<S, IO>::Raw raw;
  __builtin_memcpy(&raw, p, sizeof(raw));
  return Convert<S, IO>::widen(raw);
}

template <typename S, typename IO>
FUSED_LIF_INLINE void store_as(IO* p, Vector<S> x) {
  const auto raw = Convert<S, IO>::narrow(x);
  __builtin_memcpy(p, &raw, sizeof(raw));
}

// Writes around the caches, which saves reading the cache lines first: for rows that are written
// once and are too many for the caches. p must be aligned to the vector; finish_streaming() makes
// other threads see what was written.
template <typename S, typename IO>
FUSED_LIF_INLINE void stream_as(IO* p, Vector<S> x) {
  const auto raw = Convert<S, IO>::narrow(x);
#if defined(__x86_64__)
  if constexpr (sizeof(raw) == 16) return _mm_stream_si128((__m128i*)p, (__m128i)raw);
#if defined(__AVX__)
  if constexpr (sizeof(raw) == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)raw);
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(raw) == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)raw);
#endif
#endif
  __builtin_memcpy(p, &raw, sizeof(raw));
}

FUSED_LIF_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// The same for the last n < kLanes columns; the lanes behind them are zero.
template <typename S, typename IO>
FUSED_LIF_INLINE Vector<S> load_some(const IO* p, int64_t n) {
  typename Convert<S, IO>::Raw raw = {};
  __builtin_memcpy(&raw, p, n * sizeof(IO));
  return Convert<S, IO>::widen(raw);
}

template <typename S, typename IO>
FUSED_LIF_INLINE void store_some(IO* p, Vector<S> x, int64_t n) {
  const auto raw = Convert<S, IO>::narrow(x);
  __builtin_memcpy(p, &raw, n * sizeof(IO));
}

// exp(x) to about one unit in the last place (float), two (double): 2^k * exp(r), |r| <= ln(2) / 2,
// exp(r) by its Taylor series. Gives 0 below the smallest normal number, NaN for NaN.
template <typename S>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kMin = -87.0f, kMax = 88.0f, kLn2High = 0.693145751953125f,
                         kLn2Low = 1.42860682030941723212e-6f, kRound = 12582912.0f;
  static constexpr int kTerms = 8, kBias = 127, kMantissa = 23;
};
template <>
struct Exp<double> {
  static constexpr double kMin = -708.0, kMax = 709.0, kLn2High = 6.93147180369123816490e-01,
                          kLn2Low = 1.90821492927058770002e-10, kRound = 6755399441055744.0;
  static constexpr int kTerms = 14, kBias = 1023, kMantissa = 52;
};

template <typename S>
FUSED_LIF_INLINE Vector<S> exp_vector(Vector<S> x) {
  using E = Exp<S>;
  using Bits = typename VectorOf<S>::bits;
  const Vector<S> clamped = x > E::kMax ? broadcast<S>(E::kMax) : x;
  const Vector<S> shifted = clamped * S(1.4426950408889634) + E::kRound;  // k in the low bits
  const Vector<S> k = shifted - E::kRound;
  const Vector<S> r = (clamped - k * E::kLn2High) - k * E::kLn2Low;
  Vector<S> sum = broadcast<S>(S(1));
#pragma GCC unroll 16
  for (int n = E::kTerms; n > 0; --n) sum = S(1) + sum * r * (S(1) / S(n));
  const Bits bits = (Bits)shifted - (Bits)broadcast<S>(E::kRound);
  const Vector<S> scale = (Vector<S>)((bits + E::kBias) << E::kMantissa);
  const Vector<S> result = sum * scale;
  return x < E::kMin ? Vector<S>{} : (x != x ? x : result);
}

template <typename S>
FUSED_LIF_INLINE Vector<S> sqrt_vector(Vector<S> x) {
  for (int k = 0; k < kLanes<S>; ++k)
    x[k] = sizeof(S) == 4 ? __builtin_sqrtf(x[k]) : __builtin_sqrt(x[k]);
  return x;
}

template <typename S>
struct VectorMath {
  static FUSED_LIF_HD Vector<S> constant(double x) { return broadcast<S>(S(x)); }
  static FUSED_LIF_HD Vector<S> exp(Vector<S> x) { return exp_vector<S>(x); }
  static FUSED_LIF_HD Vector<S> sqrt(Vector<S> x) { return sqrt_vector<S>(x); }
};

}  // namespace FUSED_LIF_ISA
}  // namespace fused_lif::cpu

namespace fused_lif {

template <>
struct Math<cpu::FUSED_LIF_ISA::Vector<float>> : cpu::FUSED_LIF_ISA::VectorMath<float> {};
template <>
struct Math<cpu::FUSED_LIF_ISA::Vector<double>> : cpu::FUSED_LIF_ISA::VectorMath<double> {};

}  // namespace fused_lif
