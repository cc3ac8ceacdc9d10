// SPDX-License-Identifier: BSD-3-Clause
// A gradient to which an activation's is still to be applied: unshuffle_reduce does it, and the tensor-core kernels read
// what that wrote as they read any other gradient.
#pragma once

#include "common/op_arguments.h"

namespace fused_subpixel::cuda {

// What unshuffle_reduce is to do for a gradient. The bias's is computed with the weight's.
inline UnshuffleReduceArguments lowering(const GradientArguments& a, void* lr_grad) {
  return {a, lr_grad, nullptr};
}

// The same gradient, to be read from what unshuffle_reduce wrote.
template <class Arguments>
Arguments lowered(Arguments a, const void* lr_grad) {
  Geometry& g = a.geometry;
  g.channels = g.lr_channels();
  g.r_h = g.r_w = 1;
  g.crop_top = g.crop_left = 0;
  g.out_h = g.lr_h;
  g.out_w = g.lr_w;
  const int64_t padded = round_up(g.channels, 16 / element_bytes(a.dtype));
  a.grad_output = {lr_grad, dense_strides(padded, g.lr_h, g.lr_w, true)};
  a.grad_padding = padded - g.channels;
  a.saved = {};
  return a;
}

// Calls f with the lowered arguments of both gradients; null ones stay null.
template <class F>
auto with_lowered(const InputGradArguments* input, const WeightGradArguments* weight, const void* lr_grad,
                  F f) {
  const InputGradArguments lowered_input = lowered(input ? *input : InputGradArguments{}, lr_grad);
  const WeightGradArguments lowered_weight = lowered(weight ? *weight : WeightGradArguments{}, lr_grad);
  return f(input ? &lowered_input : nullptr, weight ? &lowered_weight : nullptr);
}

}  // namespace fused_subpixel::cuda
