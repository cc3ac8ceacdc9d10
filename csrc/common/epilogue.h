// SPDX-License-Identifier: BSD-3-Clause
// What follows the accumulator, in this order: + bias, activation, + residual, clamp. The formulas stand here once: V is
// a scalar, or a vector on CPUs.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fused_subpixel {

// Exported programs hold these numbers: new ones come last.
enum class Activation : int32_t {
  kNone,
  kReLU,
  kLeakyReLU,
  kPReLU,
  kSiLU,
  kGELU,
  kTanh,
  kSigmoid,
  kReLU6,
  kHardswish,
  kHardsigmoid,
  kGELUTanh,
  kELU,
  kMish,
  kSoftplus
};
constexpr Activation kLastActivation = Activation::kSoftplus;

// How a residual meets the output: added as is, nearest-upsampled from [N, C, P, Q], or in low-resolution
// channel space [N, C * r_h * r_w, P, Q].
enum class ResidualKind : int32_t { kNone, kHighRes, kNearest, kLowRes };

struct Epilogue {
  Activation activation = Activation::kNone;
  double negative_slope = 0.0;  // leaky_relu
  double clamp_min = -__builtin_inf(), clamp_max = __builtin_inf();
  ResidualKind residual_kind = ResidualKind::kNone;
};

// One comparison each. GPU kernels apply these while the values are in registers.
FS_HOST_DEVICE bool is_rectifier(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kReLU ||
         activation == Activation::kLeakyReLU || activation == Activation::kPReLU;
}

// A few instructions. The other activations are transcendental: they take some dozen.
FS_HOST_DEVICE bool is_piecewise_polynomial(Activation activation) {
  return is_rectifier(activation) || activation == Activation::kReLU6 ||
         activation == Activation::kHardswish || activation == Activation::kHardsigmoid;
}

// NaN stays NaN in every branch, as in PyTorch.
template <class V>
FS_HOST_DEVICE V activate_rectifier(Activation activation, V v, V slope) {
  if (activation == Activation::kReLU) return v < V{} ? V{} : v;
  if (activation == Activation::kLeakyReLU || activation == Activation::kPReLU)
    return v > V{} ? v : v * slope;
  return v;
}

template <class V>
FS_HOST_DEVICE V from_0_to_6(V v) {
  const V six = V{} + 6, lowered = v > six ? six : v;
  return lowered < V{} ? V{} : lowered;
}

template <class S, class V>
FS_HOST_DEVICE V activate_piecewise_polynomial(Activation activation, V v, V slope) {
  if (activation == Activation::kReLU6) return from_0_to_6(v);
  if (activation == Activation::kHardswish) return v * (from_0_to_6(v + S(3)) * S(1. / 6));
  if (activation == Activation::kHardsigmoid) return from_0_to_6(v + S(3)) * S(1. / 6);
  return activate_rectifier(activation, v, slope);
}

// exp(-|x|), which never overflows.
template <class Math, class V>
FS_HOST_DEVICE V exp_of_minus_abs(V x) {
  return Math::exp(x < V{} ? x : -x);
}

// Math has exp, erf, tanh, sigmoid, expm1 of x <= 0 and log1p of 0 <= x <= 1 of V: vectorised on CPUs, those of the device
// on GPUs.
template <class Math, class S, class V>
FS_HOST_DEVICE V activate_transcendental(Activation activation, V x) {
  if (activation == Activation::kSiLU) return x * Math::sigmoid(x);
  if (activation == Activation::kGELU) return x * S(0.5) * (Math::erf(x * S(0.70710678118654752440)) + S(1));
  if (activation == Activation::kTanh) return Math::tanh(x);
  if (activation == Activation::kGELUTanh)  // (1 + tanh(u)) / 2 = sigmoid(2 u), which does not cancel
    return x * Math::sigmoid(x * (x * x * S(0.0713548162726002527) + S(1.5957691216057307117)));
  if (activation == Activation::kELU) return x > V{} ? x : Math::expm1(x);  // alpha = 1
  if (activation == Activation::kSoftplus)  // with PyTorch's defaults, beta = 1 and threshold = 20
    return x > S(20) ? x : (x > V{} ? x : V{}) + Math::log1p(exp_of_minus_abs<Math>(x));
  // x tanh(log(1 + exp(x))) = y (1 - t) with y = x or, of negative values, x exp(x), and 0 <= t <= 0.4.
  if (activation == Activation::kMish) {
    const V e = exp_of_minus_abs<Math>(x), squared = e * e, one = V{} + S(1), y = x < V{} ? x * e : x;
    const V dividend = squared + (x < V{} ? e : squared);
    const V divisor = squared + (x < V{} ? one + one : squared + one) + (e + e);
    return e < S(4e-18) ? y : y - y * (dividend / divisor);  // where t is nothing: infinity, and -0
  }
  return Math::sigmoid(x);  // kSigmoid
}

// Activations whose gradient follows from the output alone (`result` in PyTorch's derivatives.yaml).
FS_HOST_DEVICE bool has_grad_from_output(Activation activation) {
  return activation == Activation::kReLU || activation == Activation::kLeakyReLU ||
         activation == Activation::kTanh || activation == Activation::kSigmoid ||
         activation == Activation::kReLU6;
}

// The gradient before such an activation, from the gradient after it and the output, as PyTorch computes it.
template <class V>
FS_HOST_DEVICE V grad_from_output(Activation activation, V slope, V grad, V output) {
  const V one = V{} + 1;
  if (activation == Activation::kReLU) return output <= V{} ? V{} : grad;
  if (activation == Activation::kLeakyReLU) return output > V{} ? grad : grad * slope;
  if (activation == Activation::kTanh) return grad * (one - output * output);
  if (activation == Activation::kReLU6) return ((output <= V{}) | (output >= V{} + 6)) ? V{} : grad;
  return grad * (one - output) * output;  // kSigmoid
}

}  // namespace fused_subpixel
