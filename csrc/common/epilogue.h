// SPDX-License-Identifier: BSD-3-Clause
// What follows the accumulator, in this order: + bias, activation, + residual, clamp. The formulas stand here once: V is
// a scalar, or a vector on CPUs.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fused_subpixel {

enum class Activation : int32_t { kNone, kReLU, kLeakyReLU, kPReLU, kSiLU, kGELU, kTanh, kSigmoid };

// How a residual meets the output: added as is, nearest-upsampled from [N, C, P, Q], or in low-resolution
// channel space [N, C * r_h * r_w, P, Q].
enum class ResidualKind : int32_t { kNone, kHighRes, kNearest, kLowRes };

struct Epilogue {
  Activation activation = Activation::kNone;
  double negative_slope = 0.0;  // leaky_relu
  double clamp_min = -__builtin_inf(), clamp_max = __builtin_inf();
  ResidualKind residual_kind = ResidualKind::kNone;
};

// The other activations are transcendental: they take some dozen instructions.
FS_HOST_DEVICE bool is_piecewise_linear(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kReLU ||
         activation == Activation::kLeakyReLU || activation == Activation::kPReLU;
}

// NaN stays NaN in every branch, as in PyTorch.
template <class V>
FS_HOST_DEVICE V activate_piecewise_linear(Activation activation, V v, V slope) {
  if (activation == Activation::kReLU) return v < V{} ? V{} : v;
  if (activation == Activation::kLeakyReLU || activation == Activation::kPReLU)
    return v > V{} ? v : v * slope;
  return v;
}

// Math has exp, erf, tanh and sigmoid of V: vectorised on CPUs, those of the device on GPUs.
template <class Math, class S, class V>
FS_HOST_DEVICE V activate_transcendental(Activation activation, V x) {
  if (activation == Activation::kSiLU) return x * Math::sigmoid(x);
  if (activation == Activation::kGELU) return x * S(0.5) * (Math::erf(x * S(0.70710678118654752440)) + S(1));
  if (activation == Activation::kTanh) return Math::tanh(x);
  return Math::sigmoid(x);  // kSigmoid
}

// Activations whose gradient follows from the output alone (`result` in PyTorch's derivatives.yaml).
FS_HOST_DEVICE bool has_grad_from_output(Activation activation) {
  return activation == Activation::kReLU || activation == Activation::kLeakyReLU ||
         activation == Activation::kTanh || activation == Activation::kSigmoid;
}

// The gradient before such an activation, from the gradient after it and the output, as PyTorch computes it.
template <class V>
FS_HOST_DEVICE V grad_from_output(Activation activation, V slope, V grad, V output) {
  const V one = V{} + 1;
  if (activation == Activation::kReLU) return output <= V{} ? V{} : grad;
  if (activation == Activation::kLeakyReLU) return output > V{} ? grad : grad * slope;
  if (activation == Activation::kTanh) return grad * (one - output * output);
  return grad * (one - output) * output;  // kSigmoid
}

}  // namespace fused_subpixel
