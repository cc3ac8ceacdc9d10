// SPDX-License-Identifier: BSD-3-Clause
// The recipe of every operator, the same on every device: check, allocate, fill the arguments. What is left is to launch.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "common/op_arguments.h"
#include "torch/call_options.h"
#include "torch/checks.h"

namespace fused_subpixel {

inline ConstTensorRef view_of(const Tensor& t) { return {t.const_data_ptr(), strides_of(t)}; }
inline TensorRef writable_view_of(Tensor& t) { return {t.mutable_data_ptr(), strides_of(t)}; }

inline Tensor dense_vector(const char* name, const Tensor& t, const Tensor& input) {
  check_like(name, t, input);
  check(t.dim() <= 1, name, " must have one dimension, got ", shape_of(t));
  const bool dense = t.numel() <= 1 || t.stride(0) == 1;
  return dense ? t : torch::stable::contiguous(t);
}

// A transposed convolution's weight [Ci, C, K_h, K_w] is read where it is: no copy splits its phases, flips its taps or
// pads its kernel. Then the bias has C elements.
template <class Arguments>
void set_weight(Arguments& a, const Tensor& weight, bool transposed_weight) {
  const Geometry& g = a.geometry;
  a.weight_flipped = transposed_weight;
  if (!transposed_weight) {
    a.weight = view_of(weight);
    a.weight_rows = phase_strides(g, a.weight.stride.n);
    return;
  }
  const int64_t h = weight.stride(2), w = weight.stride(3);
  a.weight = {weight.const_data_ptr(), {0, weight.stride(0), h * g.r_h, w * g.r_w}};
  a.weight_rows = {weight.stride(1), h, w};
}

struct ForwardCall {
  ForwardArguments arguments;
  Tensor output;
  OptionalTensor bias, prelu;  // dense copies, if any had to be made, live as long as the call
};

inline ForwardCall forward_call(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& activation_weight, const OptionalTensor& residual,
                                const CallOptions& o) {
  const Geometry g = forward_geometry(input, weight, o.transposed_weight, o.conv);
  check(o.activation >= 0 && o.activation <= static_cast<int64_t>(kLastActivation), "unknown activation ",
        o.activation);
  ForwardArguments a{};
  a.geometry = g;
  a.dtype = dtype_of(input);
  a.epilogue = {static_cast<Activation>(o.activation), o.negative_slope, o.clamp_min, o.clamp_max,
                ResidualKind::kNone};
  OptionalTensor bias_dense, prelu_dense;
  if (bias) {
    bias_dense = dense_vector("bias", *bias, input);
    const int64_t biases = o.transposed_weight ? g.channels : g.lr_channels();
    check(bias_dense->numel() == biases, "bias must have ", biases, " elements");
    a.bias = bias_dense->const_data_ptr();
  }
  check((a.epilogue.activation == Activation::kPReLU) == activation_weight.has_value(),
        "activation_weight goes with prelu");
  if (activation_weight) {
    prelu_dense = dense_vector("activation_weight", *activation_weight, input);
    a.prelu_size = prelu_dense->numel();
    check(a.prelu_size == 1 || a.prelu_size == g.channels || a.prelu_size == g.lr_channels(),
          "activation_weight must have 1, ", g.channels, " or ", g.lr_channels(), " elements");
    a.prelu = prelu_dense->const_data_ptr();
  }
  if (residual) {
    check_like("residual", *residual, input);
    a.epilogue.residual_kind = residual_kind(*residual, g);
    a.residual = view_of(*residual);
  }
  Tensor output = new_tensor({g.batch, g.channels, g.out_h, g.out_w}, input, suggests_channels_last(input));
  a.input = view_of(input);
  a.output = writable_view_of(output);
  set_weight(a, weight, o.transposed_weight);
  return {a, output, bias_dense, prelu_dense};
}

// The geometry of a backward call; grad_output is checked against it.
inline Geometry backward_geometry(const Tensor& grad_output, const Sizes& sizes, const ConvOptions& options) {
  const Geometry g = make_geometry(sizes, options);
  check(grad_output.size(0) == g.batch && grad_output.size(1) == g.channels &&
            grad_output.size(2) == g.out_h && grad_output.size(3) == g.out_w,
        "grad_output ", shape_of(grad_output), " does not fit the output");
  return g;
}

// The forward pass's output and activation, as the gradients' operators take them.
inline SavedOutput saved_output(const Tensor& grad_output, const OptionalTensor& output, int64_t activation,
                                double negative_slope) {
  const auto kind = static_cast<Activation>(activation);
  check(output.has_value() == (kind != Activation::kNone), "output goes with activation");
  if (!output) return {};
  check(has_grad_from_output(kind), "the gradient of activation ", activation,
        " cannot be read from its output");
  check(kind != Activation::kLeakyReLU ||
            (negative_slope >= 0 && negative_slope < std::numeric_limits<double>::infinity()),
        "negative_slope must be finite and at least 0, got ", negative_slope);
  check_like("output", *output, grad_output);
  bool same = output->dim() == grad_output.dim();
  for (int64_t d = 0; same && d < output->dim(); ++d) same = output->size(d) == grad_output.size(d);
  check(same, "output ", shape_of(*output), " differs in shape from grad_output ", shape_of(grad_output));
  return {view_of(*output), kind, negative_slope};
}

inline void set_gradient(GradientArguments& a, const Geometry& g, const Tensor& grad_output,
                         const SavedOutput& saved) {
  a.geometry = g;
  a.dtype = dtype_of(grad_output);
  a.grad_output = view_of(grad_output);
  a.saved = saved;
}

// Is a transposed convolution's weight nothing but its phases, of one group?
inline bool has_whole_phases(const ConvOptions& o, int64_t height, int64_t width) {
  return o.groups == 1 && o.kernel_pad_h == 0 && o.kernel_pad_w == 0 && o.channel_order == 0 && o.r_h > 0 &&
         o.r_w > 0 && height % o.r_h == 0 && width % o.r_w == 0;
}

struct InputGradCall {
  InputGradArguments arguments;
  Tensor grad_input;
};

inline InputGradCall input_grad_call(const Tensor& grad_output, const Tensor& weight, bool transposed_weight,
                                     int64_t height, int64_t width, const ConvOptions& options,
                                     bool channels_last, const OptionalTensor& output, int64_t activation,
                                     double negative_slope) {
  check(grad_output.dim() == 4 && weight.dim() == 4, "expected grad_output and weight of 4 dimensions");
  check_like("weight", weight, grad_output);
  check(!transposed_weight || has_whole_phases(options, weight.size(2), weight.size(3)),
        "a transposed weight takes one group and no kernel padding");
  const Sizes sizes = transposed_weight ? Sizes{grad_output.size(0),
                                                weight.size(0),
                                                height,
                                                width,
                                                weight.size(1) * options.r_h * options.r_w,
                                                weight.size(2) / options.r_h,
                                                weight.size(3) / options.r_w}
                                        : Sizes{grad_output.size(0),
                                                weight.size(1) * options.groups,
                                                height,
                                                width,
                                                weight.size(0),
                                                weight.size(2),
                                                weight.size(3)};
  const Geometry g = backward_geometry(grad_output, sizes, options);
  InputGradArguments a{};
  set_gradient(a, g, grad_output, saved_output(grad_output, output, activation, negative_slope));
  Tensor grad_input = new_tensor({g.batch, g.in_channels, g.in_h, g.in_w}, grad_output, channels_last);
  set_weight(a, weight, transposed_weight);
  a.grad_input = writable_view_of(grad_input);
  return {a, grad_input};
}

struct WeightGradCall {
  WeightGradArguments arguments;
  Tensor grad_weight, grad_bias;
};

inline WeightGradCall weight_grad_call(const Tensor& grad_output, const Tensor& input, bool transposed,
                                       int64_t kernel_h, int64_t kernel_w, const ConvOptions& options,
                                       const OptionalTensor& output, int64_t activation,
                                       double negative_slope) {
  check(grad_output.dim() == 4 && input.dim() == 4, "expected grad_output and input of 4 dimensions");
  check_like("input", input, grad_output);
  const Geometry g = backward_geometry(grad_output,
                                       {input.size(0), input.size(1), input.size(2), input.size(3),
                                        grad_output.size(1) * options.r_h * options.r_w, kernel_h, kernel_w},
                                       options);
  WeightGradArguments a{};
  set_gradient(a, g, grad_output, saved_output(grad_output, output, activation, negative_slope));
  check(!transposed || has_whole_phases(options, kernel_h * options.r_h, kernel_w * options.r_w),
        "a transposed weight takes one group and no kernel padding");
  Tensor grad_weight = transposed
                           ? new_tensor({g.in_channels, g.channels, g.kernel_h * g.r_h, g.kernel_w * g.r_w},
                                        grad_output, false)
                           : new_tensor({g.lr_channels(), g.in_channels / g.groups, g.kernel_h, g.kernel_w},
                                        grad_output, false);
  Tensor grad_bias = new_vector(g.lr_channels(), grad_output, transposed);
  a.transposed = transposed;
  a.input = view_of(input);
  a.grad_weight = grad_weight.mutable_data_ptr();
  a.grad_bias = grad_bias.mutable_data_ptr();
  return {a, grad_weight, grad_bias};
}

struct UnshuffleReduceCall {
  UnshuffleReduceArguments arguments;
  Tensor lr_grad, grad_bias;
  Tensor grad_output;  // what is read, as long as the call
  OptionalTensor output;
};

// A tensor of larger steps than are counted is read from a dense copy.
inline Tensor with_small_steps(const Tensor& t, const Geometry& g) {
  return counts_steps(g, strides_of(t)) ? t : torch::stable::contiguous(t);
}

inline UnshuffleReduceCall unshuffle_reduce_call(const Tensor& grad_output, const ConvOptions& o,
                                                 const OptionalTensor& output, int64_t activation,
                                                 double negative_slope) {
  check(grad_output.dim() == 4, "expected grad_output of 4 dimensions");
  check(o.r_h >= 1 && o.r_w >= 1, "upscale factors must be positive, got ", o.r_h, " and ", o.r_w);
  check(o.crop_top >= 0 && o.crop_left >= 0 && o.crop_bottom >= 0 && o.crop_right >= 0,
        "crop must not be negative");
  check(o.channel_order == 0 || o.channel_order == 1, "channel_order must be 0 (crd) or 1 (dcr), got ",
        o.channel_order);
  const DType dtype = dtype_of(grad_output);
  Geometry g{};
  g.batch = grad_output.size(0);
  g.channels = grad_output.size(1);
  g.out_h = grad_output.size(2);
  g.out_w = grad_output.size(3);
  g.r_h = o.r_h;
  g.r_w = o.r_w;
  g.crop_top = o.crop_top;
  g.crop_left = o.crop_left;
  g.order = static_cast<ChannelOrder>(o.channel_order);
  const int64_t hr_h = g.out_h + o.crop_top + o.crop_bottom, hr_w = g.out_w + o.crop_left + o.crop_right;
  check(hr_h % g.r_h == 0 && hr_w % g.r_w == 0, "grad_output ", shape_of(grad_output),
        " with the crop does not divide by ", g.r_h, " and ", g.r_w);
  g.lr_h = hr_h / g.r_h;
  g.lr_w = hr_w / g.r_w;
  check(g.channels >= 1 && g.lr_h >= 1 && g.lr_w >= 1, "no channels or no pixels");
  check(counts_gradient(g, dtype), "grad_output ", shape_of(grad_output), " is too large");
  UnshuffleReduceArguments a{};
  const Tensor gradient = with_small_steps(grad_output, g);
  set_gradient(a, g, gradient, saved_output(grad_output, output, activation, negative_slope));
  OptionalTensor read;
  if (output) read = with_small_steps(*output, g), a.saved.output = view_of(*read);
  const int64_t padded = round_up(g.lr_channels(), 16 / element_bytes(dtype));
  Tensor lr_grad = new_tensor({g.batch, padded, g.lr_h, g.lr_w}, grad_output, true);
  Tensor grad_bias = new_vector(g.lr_channels(), grad_output);
  a.lr_grad = lr_grad.mutable_data_ptr();
  a.grad_bias = grad_bias.mutable_data_ptr();
  return {a, lr_grad, grad_bias, gradient, read};
}

// A problem as the plan operators take it: pass, dtype, layout (a bit mask), batch, in_channels, in_h, in_w, lr_channels,
// kernel_h, kernel_w, then the geometry values.
constexpr int64_t kProblemChannelsLast = 1, kProblemTransposed = 2;
inline Geometry problem_geometry(const std::vector<int64_t>& problem) {
  constexpr size_t kSizes = 10;
  check(problem.size() == kSizes + kConvOptions, "a problem is ", kSizes + kConvOptions, " numbers, got ",
        problem.size());
  check(problem[0] >= 0 && problem[0] <= 2 && problem[1] >= 0 && problem[1] <= 3, "unknown pass or dtype");
  const Sizes sizes{problem[3], problem[4], problem[5], problem[6], problem[7], problem[8], problem[9]};
  return make_geometry(sizes, conv_options(problem.data() + kSizes, kConvOptions));
}

}  // namespace fused_subpixel
