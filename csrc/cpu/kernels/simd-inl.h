// SPDX-License-Identifier: BSD-3-Clause
// Vectors of the instruction set that this translation unit is compiled for. They use the vector extensions that g++ and
// clang++ share, so that one source serves AVX-512, AVX2 and whatever else the target has. Included by kernels.cpp and matrix.cpp only.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "common/scalar.h"
#include "cpu/plan.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FS_INLINE inline __attribute__((always_inline))
#define FS_NOINLINE __attribute__((noinline))
#define FS_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define FS_UNROLL FS_PRAGMA(clang loop unroll(full))
#define FS_UNROLL_TWICE FS_PRAGMA(clang loop unroll_count(2))
#else
#define FS_UNROLL FS_PRAGMA(GCC unroll 64)
#define FS_UNROLL_TWICE FS_PRAGMA(GCC unroll 2)
#endif
#define FS_HIDE(x) asm("" : "+r"(x))  // the compiler knows nothing of the value of x after this

namespace fused_subpixel::cpu::FS_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <class S>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <class S>
using Vec = typename VecOf<S>::type;
template <class S>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(S));

template <class T>
FS_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
FS_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}

template <class S>
FS_INLINE Vec<S> load(const S* p) {
  return *reinterpret_cast<const typename VecOf<S>::unaligned*>(p);
}
template <class S>
FS_INLINE void store(S* p, Vec<S> v) {
  *reinterpret_cast<typename VecOf<S>::unaligned*>(p) = v;
}
// x - 0 is x, also for -0: compiles to one broadcast ({} + x would be an addition)
template <class S>
FS_INLINE Vec<S> splat(S x) {
  return x - Vec<S>{};
}

template <class To, class From>
FS_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// The smaller, or larger, of both. NaN stays NaN, which is why x comes second in the instructions.
FS_INLINE Vec<float> at_most(float bound, Vec<float> x) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_min_ps(__m512(splat(bound)), __m512(x)));
#elif defined(__AVX2__)
  return Vec<float>(_mm256_min_ps(__m256(splat(bound)), __m256(x)));
#else
  return x > bound ? splat(bound) : x;
#endif
}
FS_INLINE Vec<float> at_least(float bound, Vec<float> x) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_max_ps(__m512(splat(bound)), __m512(x)));
#elif defined(__AVX2__)
  return Vec<float>(_mm256_max_ps(__m256(splat(bound)), __m256(x)));
#else
  return x < bound ? splat(bound) : x;
#endif
}

// addend - a * b, rounded once. Optimised code fuses a plain expression too, but this must not depend on it.
#if defined(__FMA__) || defined(__aarch64__)
FS_INLINE Vec<float> subtract_product(Vec<float> addend, Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_fnmadd_ps(__m512(a), __m512(b), __m512(addend)));
#elif defined(__FMA__)
  return Vec<float>(_mm256_fnmadd_ps(__m256(a), __m256(b), __m256(addend)));
#else
  return bit_cast<Vec<float>>(
      vfmsq_f32(bit_cast<float32x4_t>(addend), bit_cast<float32x4_t>(a), bit_cast<float32x4_t>(b)));
#endif
}
#endif

// dividend / (divisor + rest), where 1 <= divisor <= 2^100 and the rest is what rounding has taken from the divisor.
FS_INLINE Vec<float> quotient(Vec<float> dividend, Vec<float> divisor, Vec<float> rest) {
#if defined(__FMA__) || defined(__aarch64__)
#if defined(__AVX512F__)  // 14 bits, which the last line doubles, take a fraction of a division's time
  const Vec<float> inverse = Vec<float>(_mm512_rcp14_ps(__m512(divisor)));
#else
  const Vec<float> inverse = 1.f / divisor;
#endif
  const Vec<float> rough = dividend * inverse;
  return rough + subtract_product(subtract_product(dividend, rough, divisor), rough, rest) * inverse;
#else  // the product above would be rounded
  typedef double Wide __attribute__((vector_size(2 * kVectorBytes)));
  const Wide sum = __builtin_convertvector(divisor, Wide) + __builtin_convertvector(rest, Wide);
  return __builtin_convertvector(__builtin_convertvector(dividend, Wide) / sum, Vec<float>);
#endif
}

// x * 2^n of whole numbers n from -252 to 254.
FS_INLINE Vec<float> times_power_of_2(Vec<float> x, Vec<float> n) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_scalef_ps(__m512(x), __m512(n)));
#else
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  const Bits whole = __builtin_convertvector(n, Bits), half = whole >> 1;
  return x * Vec<float>((half + 127) << 23) * Vec<float>((whole - half + 127) << 23);
#endif
}

// ---- half types: storage only, arithmetic is in float ----------------------------------------------------------
FS_INLINE float widen(float x) { return x; }
FS_INLINE double widen(double x) { return x; }
FS_INLINE float widen(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
FS_INLINE float widen(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#elif defined(__aarch64__)
  return bit_cast<__fp16>(x.bits);
#else
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, body = x.bits & 0x7fffu;
  if (body >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (body & 0x3ffu) << 13);  // inf, nan
  // exponents meet after scaling by 2^112, which also normalises subnormals exactly
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(body << 13) * 0x1p112f));
#endif
}

template <class T>
FS_INLINE T narrow(double x);
template <class T>
FS_INLINE T narrow(float x);
template <>
FS_INLINE double narrow<double>(double x) {
  return x;
}
template <>
FS_INLINE float narrow<float>(float x) {
  return x;
}
template <>
FS_INLINE BFloat16 narrow<BFloat16>(float x) {  // round to nearest even
  const uint32_t u = bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>(u >> 16 | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
template <>
FS_INLINE Float16 narrow<Float16>(float x) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, 0))};
#elif defined(__aarch64__)
  return {bit_cast<uint16_t>(static_cast<__fp16>(x))};
#else
  const uint32_t u = bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000u, body = u & 0x7fffffffu;
  if (body > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (body >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (body < 0x38800000u) {  // subnormal: adding 0.5 lets the float unit round at the right bit
    const uint32_t sub = bit_cast<uint32_t>(bit_cast<float>(body) + 0.5f) - 0x3f000000u;
    return {static_cast<uint16_t>(sign | sub)};
  }
  return {static_cast<uint16_t>(sign | (body - 0x38000000u + 0xfffu + (body >> 13 & 1u)) >> 13)};
#endif
}

template <class T>
FS_INLINE Vec<Compute<T>> load_widened(const T* p) {
  using S = Compute<T>;
  if constexpr (sizeof(T) == sizeof(S)) {
    return load<S>(reinterpret_cast<const S*>(p));
  } else {
#if defined(__AVX512F__)
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (__is_same(T, Float16)) return Vec<S>(_mm512_cvtph_ps(h));
    return bit_cast<Vec<S>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#elif defined(__AVX2__)
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (__is_same(T, Float16)) return Vec<S>(_mm256_cvtph_ps(h));
    return bit_cast<Vec<S>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
#elif defined(__aarch64__)
    uint16x4_t h;
    std::memcpy(&h, p, sizeof(h));
    if constexpr (__is_same(T, Float16)) return bit_cast<Vec<S>>(vcvt_f32_f16(bit_cast<float16x4_t>(h)));
    return bit_cast<Vec<S>>(vshll_n_u16(h, 16));
#else
    Vec<S> v{};
    for (int l = 0; l < kLanes<S>; ++l) v[l] = widen(p[l]);
    return v;
#endif
  }
}

// The first n elements, n <= lanes; the other lanes are zero, and nothing is read for them.
template <class T>
FS_INLINE Vec<Compute<T>> load_first(const T* p, int64_t n) {
  using S = Compute<T>;
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) return Vec<S>(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
  if constexpr (__is_same(T, double)) return Vec<S>(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p));
  if constexpr (sizeof(T) == 2) {
    const __m256i h = _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
    if constexpr (__is_same(T, Float16)) return Vec<S>(_mm512_cvtph_ps(h));
    return bit_cast<Vec<S>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
#elif defined(__AVX2__)
  if constexpr (__is_same(T, float)) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return Vec<S>(_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane)));
  }
#endif
  T first[kLanes<S>]{};
  std::memcpy(first, p, sizeof(T) * static_cast<size_t>(n));
  return load_widened<T>(first);
}

typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

// bfloat16 in the upper half of each lane, as narrow<BFloat16> rounds. (AVX512-BF16's own instructions, which the kernels for
// tile registers use below, take subnormal numbers for zero, as those registers do.)
FS_INLINE Bits32 narrow_upper(Vec<float> v) {
  const Bits32 u = bit_cast<Bits32>(v), rounded = u + 0x7fffu + (u >> 16 & 1u);
  return (v == v ? rounded : u | 0x400000u) & 0xffff0000u;
}
// Two values that bfloat16 can hold, in one lane, `low` first.
FS_INLINE Bits32 join_pair(Vec<float> low, Vec<float> high) {
  return bit_cast<Bits32>(low) >> 16 | bit_cast<Bits32>(high);
}

template <class T>
FS_INLINE void store_narrowed(T* p, Vec<Compute<T>> v) {
  using S = Compute<T>;
  if constexpr (sizeof(T) == sizeof(S)) {
    store<S>(reinterpret_cast<S*>(p), v);
  } else {
#if defined(__AVX512F__)
    if constexpr (__is_same(T, Float16))
      return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(v), 0));
    if constexpr (__is_same(T, BFloat16))
#if defined(__AVX512BF16__)
      return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(_mm512_cvtneps_pbh(__m512(v))));
#else
      return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                                 _mm512_cvtepi32_epi16(__m512i(narrow_upper(v) >> 16)));
#endif
#elif defined(__AVX2__)
    if constexpr (__is_same(T, Float16))
      return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(v), 0));
#elif defined(__aarch64__)
    uint16x4_t h;
    if constexpr (__is_same(T, Float16))
      h = bit_cast<uint16x4_t>(vcvt_f16_f32(bit_cast<float32x4_t>(v)));
    else
      h = vshrn_n_u32(bit_cast<uint32x4_t>(narrow_upper(v)), 16);
    std::memcpy(p, &h, sizeof(h));
    return;
#endif
    for (int l = 0; l < kLanes<S>; ++l) p[l] = narrow<T>(v[l]);
  }
}

// The first n elements, n < lanes; nothing else is written.
template <class T>
FS_INLINE void store_first(T* p, Vec<Compute<T>> v, int64_t n) {
  T narrowed[kLanes<Compute<T>>];
  store_narrowed<T>(narrowed, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2)
    return _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1),
                                    _mm256_loadu_si256(reinterpret_cast<const __m256i*>(narrowed)));
#endif
  std::memcpy(p, narrowed, sizeof(T) * static_cast<size_t>(n));
}

// Two vectors, which are neighbours in memory.
template <class T>
FS_INLINE void store_narrowed(T* p, Vec<Compute<T>> v, Vec<Compute<T>> next) {
#if defined(__AVX512BF16__)
  if constexpr (__is_same(T, BFloat16))
    return _mm512_storeu_si512(p, __m512i(_mm512_cvtne2ps_pbh(__m512(next), __m512(v))));
#endif
  store_narrowed<T>(p, v);
  store_narrowed<T>(p + kLanes<Compute<T>>, next);
}

// ---- shuffles --------------------------------------------------------------------------------------------------
template <class S, int... L>
FS_INLINE void zip2(Vec<S>& a, Vec<S>& b, std::integer_sequence<int, L...>) {
  constexpr int n = sizeof...(L);
  const Vec<S> lo = __builtin_shufflevector(a, b, (L / 2 + L % 2 * n)...);
  const Vec<S> hi = __builtin_shufflevector(a, b, (n / 2 + L / 2 + L % 2 * n)...);
  a = lo;
  b = hi;
}
template <class S, int... L>
FS_INLINE void unzip2(Vec<S>& a, Vec<S>& b, std::integer_sequence<int, L...>) {
  const Vec<S> even = __builtin_shufflevector(a, b, (2 * L)...);
  const Vec<S> odd = __builtin_shufflevector(a, b, (2 * L + 1)...);
  a = even;
  b = odd;
}
// Element f of the interleaved a0 b0 c0 a1 b1 c1 ... is lane f / 3 of vector f % 3.
template <class S, int K, int... L>
FS_INLINE Vec<S> zip3_part(Vec<S> a, Vec<S> b, Vec<S> c, std::integer_sequence<int, L...>) {
  constexpr int n = sizeof...(L);
  const Vec<S> ab =
      __builtin_shufflevector(a, b, ((K * n + L) % 3 == 1 ? n + (K * n + L) / 3 : (K * n + L) / 3)...);
  return __builtin_shufflevector(ab, c, ((K * n + L) % 3 == 2 ? n + (K * n + L) / 3 : L)...);
}
// Lane l of part K is element 3 l + K of the 3 n elements in a, b, c.
template <class S, int K, int... L>
FS_INLINE Vec<S> unzip3_part(Vec<S> a, Vec<S> b, Vec<S> c, std::integer_sequence<int, L...>) {
  constexpr int n = sizeof...(L);
  const Vec<S> ab = __builtin_shufflevector(a, b, (3 * L + K < 2 * n ? 3 * L + K : 0)...);
  return __builtin_shufflevector(ab, c, (3 * L + K < 2 * n ? L : 3 * L + K - n)...);
}
template <class S>
using Lanes = std::make_integer_sequence<int, kLanes<S>>;

// Interleaves M vectors in place: element l * M + q of the result is lane l of v[q]. M = 2^a 3^b: each step takes off a
// factor f by interleaving v[q], v[q + M/f], ... and recurses on the f halves (thirds) of the result.
template <class S, int M>
FS_INLINE void interleave(Vec<S>* v) {
  if constexpr (M == 1) {
  } else if constexpr (M % 2 == 0) {
    Vec<S> lo[M / 2], hi[M / 2];
    FS_UNROLL
    for (int q = 0; q < M / 2; ++q) {
      lo[q] = v[q];
      hi[q] = v[q + M / 2];
      zip2<S>(lo[q], hi[q], Lanes<S>{});
    }
    interleave<S, M / 2>(lo);
    interleave<S, M / 2>(hi);
    FS_UNROLL
    for (int q = 0; q < M / 2; ++q) {
      v[q] = lo[q];
      v[q + M / 2] = hi[q];
    }
  } else {
    static_assert(M % 3 == 0);
    constexpr int m = M / 3;
    Vec<S> p0[m], p1[m], p2[m];
    FS_UNROLL
    for (int q = 0; q < m; ++q) {
      p0[q] = zip3_part<S, 0>(v[q], v[q + m], v[q + 2 * m], Lanes<S>{});
      p1[q] = zip3_part<S, 1>(v[q], v[q + m], v[q + 2 * m], Lanes<S>{});
      p2[q] = zip3_part<S, 2>(v[q], v[q + m], v[q + 2 * m], Lanes<S>{});
    }
    interleave<S, m>(p0);
    interleave<S, m>(p1);
    interleave<S, m>(p2);
    FS_UNROLL
    for (int q = 0; q < m; ++q) {
      v[q] = p0[q];
      v[q + m] = p1[q];
      v[q + 2 * m] = p2[q];
    }
  }
}

// The inverse of interleave: the same steps backwards.
template <class S, int M>
FS_INLINE void deinterleave(Vec<S>* v) {
  if constexpr (M == 1) {
  } else if constexpr (M % 2 == 0) {
    deinterleave<S, M / 2>(v);
    deinterleave<S, M / 2>(v + M / 2);
    FS_UNROLL
    for (int q = 0; q < M / 2; ++q) unzip2<S>(v[q], v[q + M / 2], Lanes<S>{});
  } else {
    static_assert(M % 3 == 0);
    constexpr int m = M / 3;
    deinterleave<S, m>(v);
    deinterleave<S, m>(v + m);
    deinterleave<S, m>(v + 2 * m);
    FS_UNROLL
    for (int q = 0; q < m; ++q) {
      const Vec<S> a = v[q], b = v[q + m], c = v[q + 2 * m];
      v[q] = unzip3_part<S, 0>(a, b, c, Lanes<S>{});
      v[q + m] = unzip3_part<S, 1>(a, b, c, Lanes<S>{});
      v[q + 2 * m] = unzip3_part<S, 2>(a, b, c, Lanes<S>{});
    }
  }
}

// Swaps bit D of the vector index with bit D of the lane index.
template <class S, int D, int... L>
FS_INLINE void swap_bit(Vec<S>& a, Vec<S>& b, std::integer_sequence<int, L...>) {
  constexpr int n = sizeof...(L);
  const Vec<S> lo = __builtin_shufflevector(a, b, ((L & D) == 0 ? L : n + L - D)...);
  const Vec<S> hi = __builtin_shufflevector(a, b, ((L & D) == 0 ? L + D : n + L)...);
  a = lo;
  b = hi;
}
// Square transposition in registers: lane l of v[q] becomes lane q of v[l].
template <class S, int D = 1>
FS_INLINE void transpose(Vec<S>* v) {
  if constexpr (D < kLanes<S>) {
    FS_UNROLL
    for (int q = 0; q < kLanes<S>; ++q)
      if ((q & D) == 0) swap_bit<S, D>(v[q], v[q + D], Lanes<S>{});
    transpose<S, 2 * D>(v);
  }
}

// Sums of `lanes` vectors at once: lane l of v[0] becomes the sum over the lanes of v[l].
template <class S, int D = 1>
FS_INLINE void fold(Vec<S>* v) {
  if constexpr (D < kLanes<S>) {
    FS_UNROLL
    for (int q = 0; q < kLanes<S>; q += 2 * D) {
      swap_bit<S, D>(v[q], v[q + D], Lanes<S>{});
      v[q] += v[q + D];
    }
    fold<S, 2 * D>(v);
  }
}

}  // namespace fused_subpixel::cpu::FS_ISA
