// SPDX-License-Identifier: BSD-3-Clause
// Bias, activation, residual and clamp of one value, the same for every kernel.
#pragma once

#include <cmath>

#include "cuda/device.cuh"
#include "cuda/params.h"

namespace fused_subpixel::cuda {

FS_DEVICE float exp_of(float x) { return expf(x); }
FS_DEVICE double exp_of(double x) { return exp(x); }
FS_DEVICE float erf_of(float x) { return erff(x); }
FS_DEVICE double erf_of(double x) { return erf(x); }
FS_DEVICE float tanh_of(float x) { return tanhf(x); }
FS_DEVICE double tanh_of(double x) { return tanh(x); }

// Activations made of straight lines; the others take some dozen instructions, and are applied where these stand once.
FS_DEVICE bool is_straight(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kReLU ||
         activation == Activation::kLeakyReLU || activation == Activation::kPReLU;
}
// NaN stays NaN in every branch, as in PyTorch.
template <class S>
FS_DEVICE S activate_straight(Activation activation, S v, S slope) {
  if (activation == Activation::kReLU) return v < S(0) ? S(0) : v;
  if (activation == Activation::kLeakyReLU || activation == Activation::kPReLU)
    return v > S(0) ? v : v * slope;
  return v;
}
template <class S>
FS_DEVICE S activate(Activation activation, S v, S slope) {
  switch (activation) {
    case Activation::kNone:
    case Activation::kReLU:
    case Activation::kLeakyReLU:
    case Activation::kPReLU: return activate_straight(activation, v, slope);
    case Activation::kSiLU: return v / (S(1) + exp_of(-v));
    case Activation::kGELU: return v * S(0.5) * (S(1) + erf_of(v * S(0.70710678118654752440)));
    case Activation::kTanh: return tanh_of(v);
    case Activation::kSigmoid: return S(1) / (S(1) + exp_of(-v));
  }
  return v;
}

// The gradient before an activation, from the one after it and the output, as PyTorch computes it.
template <class S>
FS_DEVICE S before_activation(Activation activation, S slope, S gradient, S output) {
  if (activation == Activation::kReLU) return output <= S(0) ? S(0) : gradient;
  if (activation == Activation::kLeakyReLU) return output > S(0) ? gradient : gradient * slope;
  if (activation == Activation::kTanh) return gradient * (S(1) - output * output);
  return gradient * (S(1) - output) * output;  // kSigmoid
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

// Where a value lies: image, high-resolution channel and pixel, low-resolution pixel, convolution channel.
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
