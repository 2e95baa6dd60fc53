// SIMD vectors out of the compiler's own vector types, kVectorBytes wide, for the instruction set
// that the including file is compiled for. Arithmetic, comparison and `mask ? a : b` are the
// language's.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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

// a * b + c, rounded once where the instruction set can: for gradients, and for sums whose products
// are exact.
template <typename S>
FUSED_LIF_INLINE Vector<S> multiply_add(Vector<S> a, Vector<S> b, Vector<S> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return (Vector<S>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else
    return (Vector<S>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__) && defined(__FMA__)
  if constexpr (sizeof(S) == 4)
    return (Vector<S>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else
    return (Vector<S>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  if constexpr (sizeof(S) == 4)
    return (Vector<S>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  else
    return (Vector<S>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// One bit per lane: whether a > b, and whether a != b; the first lane is the lowest bit.
#if defined(__AVX512F__)
FUSED_LIF_INLINE uint32_t greater(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
}
FUSED_LIF_INLINE uint32_t greater(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
}
FUSED_LIF_INLINE uint32_t unequal(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ);
}
FUSED_LIF_INLINE uint32_t unequal(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_NEQ_UQ);
}
#else
template <typename Mask>
FUSED_LIF_INLINE uint32_t bits_of(Mask mask) {
  [[maybe_unused]] constexpr bool kIsFloat = sizeof(mask[0]) == 4;
#if defined(__AVX2__)
  if constexpr (kIsFloat) return _mm256_movemask_ps((__m256)mask);
  if constexpr (!kIsFloat) return _mm256_movemask_pd((__m256d)mask);
#elif defined(__x86_64__)
  if constexpr (kIsFloat) return _mm_movemask_ps((__m128)mask);
  if constexpr (!kIsFloat) return _mm_movemask_pd((__m128d)mask);
#else
  uint32_t bits = 0;
  for (int k = 0; k < int(kVectorBytes / sizeof(mask[0])); ++k) bits |= (mask[k] != 0) << k;
  return bits;
#endif
}
template <typename V>
FUSED_LIF_INLINE uint32_t greater(V a, V b) {
  return bits_of(a > b);
}
template <typename V>
FUSED_LIF_INLINE uint32_t unequal(V a, V b) {
  return bits_of(a != b);
}
#endif

// Appends first + the places of the ones of `word` to `list` in ascending order and returns the
// new end. May write up to 16 numbers behind it.
FUSED_LIF_INLINE int32_t* append_ones(uint64_t word, int32_t first, int32_t* list) {
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int k = 0; k < 64; k += 16) {
    const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(first + k));
    const uint64_t before = k == 0 ? 0 : word << (64 - k);
    _mm512_storeu_si512(
        list + __builtin_popcountll(before),
        _mm512_maskz_compress_epi32(static_cast<__mmask16>(word >> k), places));
  }
  list += __builtin_popcountll(word);
#else
  for (; word != 0; word &= word - 1) *list++ = first + __builtin_ctzll(word);
#endif
  return list;
}

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
#if defined(__AVX512F__)
  const uint32_t lanes = (1u << n) - 1;
  if constexpr (sizeof(IO) == 4) return (Vector<S>)_mm512_maskz_loadu_ps(lanes, p);
  if constexpr (sizeof(IO) == 8) return (Vector<S>)_mm512_maskz_loadu_pd(lanes, p);
#endif
  typename Convert<S, IO>::Raw raw = {};
  __builtin_memcpy(&raw, p, n * sizeof(IO));
  return Convert<S, IO>::widen(raw);
}

template <typename S, typename IO>
FUSED_LIF_INLINE void store_some(IO* p, Vector<S> x, int64_t n) {
#if defined(__AVX512F__)
  const uint32_t lanes = (1u << n) - 1;
  if constexpr (sizeof(IO) == 4) return _mm512_mask_storeu_ps(p, lanes, (__m512)x);
  if constexpr (sizeof(IO) == 8) return _mm512_mask_storeu_pd(p, lanes, (__m512d)x);
#endif
  const auto raw = Convert<S, IO>::narrow(x);
  __builtin_memcpy(p, &raw, n * sizeof(IO));
}

template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct MakeIndices<0, kIndex...> : Indices<kIndex...> {};

// a[0], b[0], a[1], b[1], ...: from the first halves of a and b, or from the second ones.
template <typename S, bool kSecond, int... kIndex>
FUSED_LIF_INLINE Vector<S> interleave(Vector<S> a, Vector<S> b, Indices<kIndex...>) {
  constexpr int L = kLanes<S>, kFirst = kSecond ? L / 2 : 0;
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (kFirst + kIndex / 2 + kIndex % 2 * L)...);
#else
  return Vector<S>{(kIndex % 2 ? b : a)[kFirst + kIndex / 2]...};
#endif
}

// Transposes a block of kLanes rows of kLanes numbers.
template <typename S>
FUSED_LIF_INLINE void transpose_block(const S* from, int64_t stride, S* to, int64_t ld) {
  constexpr int L = kLanes<S>;
  Vector<S> rows[L], mixed[L];
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k) rows[k] = load(from + k * stride);
#pragma GCC unroll 4
  for (int stage = 1; stage < L; stage *= 2) {
#pragma GCC unroll 16
    for (int k = 0; k < L / 2; ++k) {
      mixed[2 * k] = interleave<S, false>(rows[k], rows[k + L / 2], MakeIndices<L>{});
      mixed[2 * k + 1] = interleave<S, true>(rows[k], rows[k + L / 2], MakeIndices<L>{});
    }
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) rows[k] = mixed[k];
  }
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k) store(to + k * ld, rows[k]);
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

// For smooth spikes only, which need not be fast.
template <typename S>
FUSED_LIF_INLINE Vector<S> erf_vector(Vector<S> x) {
  for (int k = 0; k < kLanes<S>; ++k)
    x[k] = sizeof(S) == 4 ? __builtin_erff(x[k]) : __builtin_erf(x[k]);
  return x;
}
template <typename S>
FUSED_LIF_INLINE Vector<S> atan_vector(Vector<S> x) {
  for (int k = 0; k < kLanes<S>; ++k)
    x[k] = sizeof(S) == 4 ? __builtin_atanf(x[k]) : __builtin_atan(x[k]);
  return x;
}

// 1 / x for x >= 1, off by a unit in the last place where a division takes as long as the rest of a
// surrogate. What is below the smallest normal number is 0.
template <typename S>
FUSED_LIF_INLINE Vector<S> reciprocal_vector(Vector<S> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) {
    const __m512 d = (__m512)x, one = _mm512_set1_ps(1.0f);
    const __mmask16 keep = _mm512_cmp_ps_mask(d, _mm512_set1_ps(0x1p126f), _CMP_NGT_UQ);
    const __m512 r = _mm512_maskz_rcp14_ps(keep, d);
    return (Vector<S>)_mm512_maskz_fmadd_ps(keep, r, _mm512_fnmadd_ps(d, r, one), r);
  }
#endif
  return broadcast<S>(S(1)) / x;
}

template <typename S>
struct VectorMath {
  static FUSED_LIF_HD Vector<S> constant(double x) { return broadcast<S>(S(x)); }
  static FUSED_LIF_HD Vector<S> exp(Vector<S> x) { return exp_vector<S>(x); }
  static FUSED_LIF_HD Vector<S> sqrt(Vector<S> x) { return sqrt_vector<S>(x); }
  static FUSED_LIF_HD Vector<S> erf(Vector<S> x) { return erf_vector<S>(x); }
  static FUSED_LIF_HD Vector<S> atan(Vector<S> x) { return atan_vector<S>(x); }
  static FUSED_LIF_HD Vector<S> multiply_add(Vector<S> a, Vector<S> b, Vector<S> c) {
    return cpu::FUSED_LIF_ISA::multiply_add<S>(a, b, c);
  }
  static FUSED_LIF_HD Vector<S> reciprocal(Vector<S> x) { return reciprocal_vector<S>(x); }
};

}  // namespace FUSED_LIF_ISA
}  // namespace fused_lif::cpu

namespace fused_lif {

template <>
struct Math<cpu::FUSED_LIF_ISA::Vector<float>> : cpu::FUSED_LIF_ISA::VectorMath<float> {};
template <>
struct Math<cpu::FUSED_LIF_ISA::Vector<double>> : cpu::FUSED_LIF_ISA::VectorMath<double> {};

}  // namespace fused_lif
