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

// How the forward pass ended, for the gradients: they apply the activation's gradient as they load grad_output. kNone:
// there is nothing to apply, and no output. Else an activation that has_grad_from_output.
struct SavedOutput {
  ConstTensorRef output;  // of grad_output's shape, in any strides
  Activation activation = Activation::kNone;
  double negative_slope = 0.0;  // leaky_relu: at least 0, and finite
};

struct InputGradArguments {
  Geometry geometry;
  DType dtype;
  ConstTensorRef grad_output, weight;
  TensorRef grad_input;
  SavedOutput saved;
};

struct WeightGradArguments {
  Geometry geometry;
  DType dtype;
  ConstTensorRef grad_output, input;
  void* grad_weight;  // contiguous
  void* grad_bias;    // contiguous
  SavedOutput saved;
};

// The gradient of the low-resolution convolution output, and of the bias. Of the geometry, what the shuffle and the crop
// need: batch, channels, factors, low-resolution and output size, crop, order.
struct UnshuffleReduceArguments {
  Geometry geometry;
  DType dtype;
  ConstTensorRef grad_output;
  void* lr_grad;    // [batch, lr_h, lr_w, lr_channels], channels padded with zeros to a multiple of 16 bytes
  void* grad_bias;  // contiguous
  SavedOutput saved;
};

}  // namespace fused_subpixel
