// SPDX-License-Identifier: BSD-3-Clause
// The operators, the same for every device. Device is constructed from a tensor, whose device it makes current, and has
// launch() for the calls of op_calls.h: the forward pass, and the gradients, either or both of which may be null.
#pragma once

#include <tuple>
#include <vector>

#include "torch/namespace.h"
#include "torch/op_calls.h"

namespace fused_subpixel {

template <class Device>
Tensor forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
               const OptionalTensor& activation_weight, const OptionalTensor& residual,
               const CallOptions& options) {
  const Device device(input);
  const ForwardCall call = forward_call(input, weight, bias, activation_weight, residual, options);
  device.launch(call);
  return call.output;
}

template <class Device>
Tensor subpixel_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& activation_weight, const OptionalTensor& residual,
                       std::vector<int64_t> geometry, int64_t activation, double negative_slope,
                       std::optional<double> clamp_min, std::optional<double> clamp_max,
                       bool transposed_weight) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return forward<Device>(input, weight, bias, activation_weight, residual,
                         {conv_options(geometry), activation, negative_slope, clamp_min.value_or(-kInfinity),
                          clamp_max.value_or(kInfinity), transposed_weight});
}

template <class Device>
Tensor input_grad(const Tensor& grad_output, const Tensor& weight, int64_t height, int64_t width,
                  std::vector<int64_t> geometry, bool channels_last, const OptionalTensor& output,
                  int64_t activation, double negative_slope) {
  const Device device(grad_output);
  const InputGradCall call =
      input_grad_call(grad_output, weight, false, height, width, conv_options(geometry), channels_last,
                      output, activation, negative_slope);
  device.launch(&call, nullptr);
  return call.grad_input;
}

template <class Device>
std::tuple<Tensor, Tensor> weight_grad(const Tensor& grad_output, const Tensor& input, int64_t kernel_h,
                                       int64_t kernel_w, std::vector<int64_t> geometry,
                                       const OptionalTensor& output, int64_t activation,
                                       double negative_slope) {
  const Device device(grad_output);
  const WeightGradCall call = weight_grad_call(grad_output, input, false, kernel_h, kernel_w,
                                               conv_options(geometry), output, activation, negative_slope);
  device.launch(nullptr, &call);
  return {call.grad_weight, call.grad_bias};
}

// subpixel_conv2d of an eager call.
template <class Device>
Tensor eager_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& activation_weight, const OptionalTensor& residual,
                     const Tensor& options) {
  return forward<Device>(input, weight, bias, activation_weight, residual, eager_options(options).call);
}

// Which gradients eager_backward computes, and how: bits of `wanted`. kTransposedWeight: the weight, and its gradient, are a
// transposed convolution's, without kernel padding and of one group; then the bias's gradient is by low-resolution channel
// in the arithmetic type.
enum Wanted : int64_t { kWantInput = 1, kWantWeight = 2, kInputChannelsLast = 4, kTransposedWeight = 8 };

// The gradients of an eager call's input, weight and bias; those that are not wanted are undefined. The bias's comes with
// the weight's.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> eager_backward(const Tensor& grad_output, const OptionalTensor& input,
                                                  const OptionalTensor& weight, const OptionalTensor& output,
                                                  const Tensor& options, int64_t wanted) {
  const auto [o, sizes] = eager_options(options);
  const int64_t activation = output ? o.activation : 0;
  check(weight || !(wanted & kWantInput), "the gradient of the input needs the weight");
  check(input || !(wanted & kWantWeight), "the gradient of the weight needs the input");
  const bool transposed = (wanted & kTransposedWeight) != 0;
  check(!transposed || Device::kTransposedGradients, "this device takes no transposed weight here");
  const Device device(grad_output);
  std::optional<InputGradCall> of_input;
  std::optional<WeightGradCall> of_weight;
  if (wanted & kWantInput)
    of_input = input_grad_call(grad_output, *weight, transposed, sizes.in_h, sizes.in_w, o.conv,
                               (wanted & kInputChannelsLast) != 0, output, activation, o.negative_slope);
  if (wanted & kWantWeight)
    of_weight = weight_grad_call(grad_output, *input, transposed, sizes.kernel_h, sizes.kernel_w, o.conv,
                                 output, activation, o.negative_slope);
  device.launch(of_input ? &*of_input : nullptr, of_weight ? &*of_weight : nullptr);
  return {of_input ? of_input->grad_input : Tensor(), of_weight ? of_weight->grad_weight : Tensor(),
          of_weight ? of_weight->grad_bias : Tensor()};
}

template <class Device, class Library>
void register_operators(Library& m) {
  m.impl("subpixel_conv2d", TORCH_BOX(&subpixel_conv2d<Device>));
  m.impl("subpixel_conv2d_input_grad", TORCH_BOX(&input_grad<Device>));
  m.impl("subpixel_conv2d_weight_grad", TORCH_BOX(&weight_grad<Device>));
  m.impl("_subpixel_conv2d", TORCH_BOX(&eager_forward<Device>));
  m.impl("_subpixel_conv2d_backward", TORCH_BOX(&eager_backward<Device>));
}

}  // namespace fused_subpixel
