// SPDX-License-Identifier: BSD-3-Clause
// Bias, activation, residual and clamp of one value, the same for every kernel.
#pragma once

#include <cmath>

#include "cuda/device.cuh"
#include "cuda/params.h"

namespace fused_subpixel::cuda {

// The device's functions, for activate_transcendental.
struct DeviceMath {
  static FS_DEVICE float exp(float x) { return expf(x); }
  static FS_DEVICE double exp(double x) { return ::exp(x); }
  static FS_DEVICE float expm1(float x) { return expm1f(x); }
  static FS_DEVICE double expm1(double x) { return ::expm1(x); }
  static FS_DEVICE float log1p(float x) { return log1pf(x); }
  static FS_DEVICE double log1p(double x) { return ::log1p(x); }
  static FS_DEVICE float erf(float x) { return erff(x); }
  static FS_DEVICE double erf(double x) { return ::erf(x); }
  static FS_DEVICE float tanh(float x) { return tanhf(x); }
  static FS_DEVICE double tanh(double x) { return ::tanh(x); }
  template <class S>
  static FS_DEVICE S sigmoid(S x) {
    return S(1) / (S(1) + exp(-x));
  }
};

template <class S>
FS_DEVICE S activate(Activation activation, S v, S slope) {
  return is_piecewise_polynomial(activation) ? activate_piecewise_polynomial<S>(activation, v, slope)
                                             : activate_transcendental<DeviceMath, S>(activation, v);
}

template <class T>
FS_DEVICE Compute<T> bias_of(const EpilogueParams& e, int64_t c, int64_t lr_channel) {
  if (!e.bias) return Compute<T>(0);
  return widen(static_cast<const T*>(e.bias)[e.bias_c * c + e.bias_o * lr_channel]);
}

template <class T>
FS_DEVICE Compute<T> slope_of(const EpilogueParams& e, int64_t c, int64_t lr_channel) {
  if (!e.prelu)
    return sizeof(Compute<T>) == 8 ? Compute<T>(e.negative_slope) : Compute<T>(e.negative_slope_f);
  return widen(static_cast<const T*>(e.prelu)[e.prelu_c * c + e.prelu_o * lr_channel]);
}

// The place of a value: image, high-resolution channel and pixel, low-resolution pixel and channel.
struct Place {
  int64_t n, c, y, x, h, w, lr_channel;
};

template <class T>
FS_DEVICE Compute<T> residual_at(const EpilogueParams& e, const Place& p) {
  const Strides& s = e.residual_stride;
  int64_t at = p.n * s.n;
  if (e.residual_kind == ResidualKind::kHighRes)
    at += p.c * s.c + p.y * s.h + p.x * s.w;
  else
    at += (e.residual_kind == ResidualKind::kLowRes ? p.lr_channel : p.c) * s.c + p.h * s.h + p.w * s.w;
  return widen(static_cast<const T*>(e.residual)[at]);
}

FS_DEVICE float clamp_to(const EpilogueParams& e, float v) {
  v = v < e.clamp_min_f ? e.clamp_min_f : v;
  return v > e.clamp_max_f ? e.clamp_max_f : v;
}
FS_DEVICE double clamp_to(const EpilogueParams& e, double v) {
  v = v < e.clamp_min ? e.clamp_min : v;
  return v > e.clamp_max ? e.clamp_max : v;
}

}  // namespace fused_subpixel::cuda
