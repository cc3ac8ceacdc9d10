// SPDX-License-Identifier: BSD-3-Clause
// exp, expm1, log1p, erf, tanh and the sigmoid of vectors. In float32 they are polynomials, with errors of at most 2 ulp,
// denormal results included; infinities and NaN give what libm gives. The coefficients are minimax fits of the relative
// error. In float64, lanes go through libm one by one. Included by kernels.cpp and matrix.cpp only.
#pragma once

#include "common/epilogue.h"
#include "cpu/kernels/simd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class S>
struct VectorMath;

template <>
struct VectorMath<float> {
  using V = Vec<float>;
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));

  // c[0] + x (c[1] + x (c[2] + ...))
  template <int N>
  static FS_INLINE V polynomial(V x, const float (&c)[N]) {
    V sum = splat(c[N - 1]);
    FS_UNROLL
    for (int n = N - 2; n >= 0; --n) sum = sum * x + c[n];
    return sum;
  }
  static FS_INLINE V absolute(V x) { return V(Bits(x) & 0x7fffffff); }
  static FS_INLINE V minus_absolute(V x) { return V(Bits(x) | INT32_MIN); }
  static FS_INLINE V with_sign_of(V x, V sign) { return V(Bits(x) | (Bits(sign) & INT32_MIN)); }

  // x = n log(2) + r with an integer n and |r| <= log(2) / 2. NaN stays NaN in r.
  static constexpr float kRound = 0x1.8p23f;  // the sum with it has no fraction, and n in its lowest bits
  struct Reduced {
    V r, n, shifted;  // shifted = n + kRound

    // 2^n of -126 <= n <= 127
    FS_INLINE V power_of_2() const { return V((Bits(shifted) + (127 - bit_cast<int32_t>(kRound))) << 23); }
  };
  static FS_INLINE Reduced reduced(V x) {
    constexpr float kLog2Hi = 0x1.63p-1f, kLog2Lo = -0x1.bd0106p-13f;  // n * kLog2Hi is exact
    const V shifted = x * 0x1.715476p0f + kRound, n = shifted - kRound;
    return {x - n * kLog2Hi - n * kLog2Lo, n, shifted};
  }
  static FS_INLINE V exp_minus_1(V r) {  // for the r of Reduced
    return r + r * r *
                   polynomial(
                       r, {0x1.fffffcp-2f, 0x1.55549p-3f, 0x1.5558f4p-5f, 0x1.123a6cp-7f, 0x1.6a2352p-10f});
  }

  static FS_INLINE V exp(V x) {
    const Reduced at = reduced(at_most(89.f, at_least(-104.f, x)));  // the result is infinite, or 0, beyond
    return times_power_of_2(exp_minus_1(at.r) + 1.f, at.n);
  }

  // Of -30 <= x <= 30: 2^n (exp(r) - 1) + (2^n - 1), whose terms do not cancel. The error is below 1 ulp.
  static FS_INLINE V expm1_between_30(V x) {
    const Reduced at = reduced(x);
    const V scale = at.power_of_2();
    return exp_minus_1(at.r) * scale + (scale - 1.f);
  }
  // Of x <= 0. Of -0 it is -0.
  static FS_INLINE V expm1(V x) {
    return with_sign_of(expm1_between_30(at_least(-30.f, x)), x);  // the result is -1 beyond
  }

  // Of 0 <= x <= 1. The polynomial has degree 10 in all, and a relative error of 2^-27.5.
  static FS_INLINE V log1p(V x) {
    return x + x * x *
                   polynomial(
                       x, {-0x1.ffffd2p-2f, 0x1.554dd0p-2f, -0x1.ff23e6p-3f, 0x1.934b54p-3f, -0x1.3a435ep-3f,
                           0x1.b4ae08p-4f, -0x1.d6b08cp-5f, 0x1.4917cep-6f, -0x1.af49cep-9f});
  }

  static FS_INLINE V sigmoid(V x) {
    const V e = exp(minus_absolute(x)), sum = e + 1.f;  // e is never infinite
    return quotient(x < 0.f ? e : splat(1.f), sum, e - (sum - 1.f));
  }

  static FS_INLINE V tanh(V x) {
    const V a = at_most(10.f, absolute(x)), e = expm1_between_30(a + a);  // the result is 1 beyond
    const V sum = e + 2.f;
    return with_sign_of(quotient(e, sum, e - (sum - 2.f)), x);
  }

  // 1 - erf falls from 0.09 to 0 beyond 1.21, where its power of -1/8 is a polynomial.
  static FS_INLINE V erf(V x) {
    const V a = absolute(x);
    const V low =
        a + a * polynomial(a * a, {0.1283791664f, -0.376126331f, 0.1128371003f, -0.02686174567f,
                                   0.005212056822f, -0.0008371121895f, 0.000105556477f, -7.897744461e-6f});
    const V root = polynomial(a, {0.9885065372f, 0.192970872f, -0.01099191694f, 0.1329648686f,
                                  -0.06737448952f, 0.02952075485f, -0.006208456289f, 0.0007180805325f});
    const V square = root * root, fourth = square * square;
    return with_sign_of(a < 1.21f ? low : 1.f - 1.f / (fourth * fourth), x);
  }
};

template <>
struct VectorMath<double> {
  using V = Vec<double>;
  template <class F>
  static FS_INLINE V each_lane(V x, F&& f) {
    double part[kLanes<double>];
    store<double>(part, x);
    for (double& lane : part) lane = f(lane);
    return load<double>(part);
  }
  // Builtins rather than <cmath>: std:: overloads are inline functions that would leak out of this instruction set.
  static FS_INLINE V exp(V x) {
    return each_lane(x, [](double lane) { return __builtin_exp(lane); });
  }
  static FS_INLINE V expm1(V x) {
    return each_lane(x, [](double lane) { return __builtin_expm1(lane); });
  }
  static FS_INLINE V log1p(V x) {
    return each_lane(x, [](double lane) { return __builtin_log1p(lane); });
  }
  static FS_INLINE V erf(V x) {
    return each_lane(x, [](double lane) { return __builtin_erf(lane); });
  }
  static FS_INLINE V tanh(V x) {
    return each_lane(x, [](double lane) { return __builtin_tanh(lane); });
  }
  static FS_INLINE V sigmoid(V x) { return 1. / (exp(-x) + 1.); }
};

template <Activation kActivation, class S>
void activate_each(S* sums, int64_t step, int64_t vectors, Vec<S> bias) {
  for (int64_t v = 0; v < vectors; ++v, sums += step)
    store<S>(sums, activate_transcendental<VectorMath<S>, S>(kActivation, load<S>(sums) + bias));
}

// Adds the bias to `vectors` vectors, `step` elements apart, and applies a transcendental activation, in place. Not
// inlined: one copy of the formulas serves all places that store.
template <class S>
FS_NOINLINE void activate_sums(Activation activation, S* sums, int64_t step, int64_t vectors, Vec<S> bias) {
  switch (activation) {
    case Activation::kSiLU: return activate_each<Activation::kSiLU>(sums, step, vectors, bias);
    case Activation::kGELU: return activate_each<Activation::kGELU>(sums, step, vectors, bias);
    case Activation::kTanh: return activate_each<Activation::kTanh>(sums, step, vectors, bias);
    case Activation::kSigmoid: return activate_each<Activation::kSigmoid>(sums, step, vectors, bias);
    case Activation::kGELUTanh: return activate_each<Activation::kGELUTanh>(sums, step, vectors, bias);
    case Activation::kELU: return activate_each<Activation::kELU>(sums, step, vectors, bias);
    case Activation::kMish: return activate_each<Activation::kMish>(sums, step, vectors, bias);
    case Activation::kSoftplus: return activate_each<Activation::kSoftplus>(sums, step, vectors, bias);
    default: __builtin_trap();  // piecewise polynomial
  }
}

}  // namespace fused_subpixel::cpu::FS_ISA
