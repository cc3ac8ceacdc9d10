// SPDX-License-Identifier: BSD-3-Clause
// What an operator hands to the launcher of a device. Pointers are that device's. No torch in here.
#pragma once

#include <cstdint>

#include "common/epilogue.h"
#include "common/tensor_ref.h"

namespace fused_subpixel {

enum class Pass : int32_t { kForward, kInputGrad, kWeightGrad };

struct ForwardArguments {
  Geometry geometry;
  DType dtype;
  ConstTensorRef input, weight, residual;
  TensorRef output;
  PhaseStrides weight_rows;  // of weight, by output channel
  bool
      weight_flipped;  // a transposed convolution's: its taps rotated by 180 degrees, without the kernel padding
  const void* bias;   // contiguous, or null; by low-resolution channel, a transposed convolution's by channel
  const void* prelu;  // contiguous, or null
  int64_t prelu_size;
  Epilogue epilogue;
};

// How the forward pass ended, for the gradients: the activation's gradient is still to be applied to grad_output. kNone:
// there is nothing to apply, and no output. Else an activation that has_grad_from_output.
struct SavedOutput {
  ConstTensorRef output;  // of grad_output's shape, in any strides
  Activation activation = Activation::kNone;
  double negative_slope = 0.0;  // leaky_relu: at least 0, and finite
};

// What the operators of the gradients read.
struct GradientArguments {
  Geometry geometry;
  DType dtype;
  ConstTensorRef grad_output;
  SavedOutput saved;
  int64_t grad_padding = 0;  // zeros after the channels of a pixel of grad_output, that may be read with them
};

struct InputGradArguments : GradientArguments {
  ConstTensorRef weight;
  PhaseStrides weight_rows;  // as in ForwardArguments
  bool weight_flipped;       // the same; then without kernel padding
  TensorRef grad_input;
};

struct WeightGradArguments : GradientArguments {
  ConstTensorRef input;
  void* grad_weight;  // contiguous, [C*r_h*r_w, Ci/groups, k_h, k_w]
  void* grad_bias;    // contiguous, by low-resolution channel
  // grad_weight is a transposed convolution's, [Ci, C, k_h*r_h, k_w*r_w], of one group, and grad_bias has the arithmetic
  // type, because it is to be summed over phases.
  bool transposed;
};

// The gradient of the low-resolution convolution output, and of the bias. Of the geometry, what the shuffle and the crop
// need: batch, channels, factors, low-resolution and output size, crop, order.
struct UnshuffleReduceArguments : GradientArguments {
  void* lr_grad;    // [batch, lr_h, lr_w, lr_channels], channels padded with zeros to a multiple of 16 bytes
  void* grad_bias;  // contiguous; or null: not wanted
};

// unshuffle_reduce counts pixels, of which there is at least one, and the elements of a sub-pixel block, in 32 bits.
inline bool counts_gradient(const Geometry& g, DType dtype) {
  constexpr int64_t kMost = INT32_MAX;
  return g.lr_h <= kMost / g.r_h && g.lr_w <= kMost / g.r_w &&
         g.channels <= kMost / g.r_h / g.r_w - 16 / element_bytes(dtype) &&
         g.batch <= kMost / g.lr_h / g.lr_w && g.channels * g.out_h <= kMost &&
         g.channels * g.out_h * g.out_w <= kMost / 2;
}
inline bool counts_steps(const Geometry& g, const Strides& s) {
  constexpr int64_t kMost = INT32_MAX;
  return s.c >= 0 && s.h >= 0 && s.w >= 0 && s.c <= kMost / g.channels && s.h <= kMost / g.r_h &&
         s.w <= kMost / g.r_w && g.channels * s.c + g.r_h * s.h + g.r_w * s.w <= kMost;
}

}  // namespace fused_subpixel
