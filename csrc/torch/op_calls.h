// SPDX-License-Identifier: BSD-3-Clause
// Helpers over LibTorch's stable ABI: errors, dtypes, layouts, and the checks that every device makes. The Python
// layer has already said, in better words, what is wrong with a call; these checks keep a raw operator call safe.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/op_arguments.h"

namespace fused_subpixel {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// STD_TORCH_CHECK would print build paths; other exception types reach Python differently in each torch version.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream text;
  ((text << "fused_subpixel: ") << ... << parts);
  throw std::runtime_error(text.str());
}

// Prints the shape if and when the message is made: a check that passes must cost nothing.
struct ShapeOf {
  const Tensor& tensor;
};
inline ShapeOf shape_of(const Tensor& t) { return {t}; }
inline std::ostream& operator<<(std::ostream& text, const ShapeOf& shape) {
  text << '[';
  for (int64_t d = 0; d < shape.tensor.dim(); ++d) text << (d ? ", " : "") << shape.tensor.size(d);
  return text << ']';
}

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: check(false, "expected float16, bfloat16, float32 or float64, got ", toString(t.scalar_type()));
  }
  return DType::kFloat32;
}

inline Strides strides_of(const Tensor& t) {
  return canonical_strides(t.size(0), t.size(1), t.size(2), t.size(3),
                           {t.stride(0), t.stride(1), t.stride(2), t.stride(3)});
}

// As c10's is_channels_last_strides_2d, which the fakes follow too: do strides grow in the order C, W, H, N?
inline bool suggests_channels_last(const Tensor& t) {
  int64_t least = 0;
  if (t.stride(1) == 0) return false;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;  // N111 and the like: ambiguous, so contiguous
    least = t.stride(d);
    if (t.size(d) > 1) least *= t.size(d);
  }
  return true;
}

inline Tensor new_tensor(const std::array<int64_t, 4>& size, const Tensor& like, bool channels_last) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The integers that every operator takes, in the order of Geometry in _arguments.py. One list: as plain integers they
// would cost 3 us per call.
using GeometryValues = std::array<int64_t, 19>;
inline GeometryValues geometry_values(const std::vector<int64_t>& geometry) {
  check(geometry.size() == std::tuple_size_v<GeometryValues>, "geometry takes ",
        std::tuple_size_v<GeometryValues>, " numbers, got ", geometry.size());
  GeometryValues values;
  std::copy(geometry.begin(), geometry.end(), values.begin());
  return values;
}

struct Sizes {
  int64_t batch, in_channels, in_h, in_w;
  int64_t lr_channels, kernel_h, kernel_w;
};

inline Geometry make_geometry(const Sizes& z, const GeometryValues& v) {
  const auto [r_h, r_w, stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, crop_t, crop_l,
              crop_b, crop_r, order, tf32, kernel_pad_h, kernel_pad_w] = v;
  check(r_h >= 1 && r_w >= 1, "upscale factors must be positive, got ", r_h, " and ", r_w);
  check(stride_h >= 1 && stride_w >= 1 && dil_h >= 1 && dil_w >= 1, "stride and dilation must be positive");
  check(pad_t >= 0 && pad_l >= 0 && pad_b >= 0 && pad_r >= 0, "padding must not be negative");
  check(crop_t >= 0 && crop_l >= 0 && crop_b >= 0 && crop_r >= 0, "crop must not be negative");
  check(kernel_pad_h >= 0 && kernel_pad_h < r_h && kernel_pad_w >= 0 && kernel_pad_w < r_w,
        "extension must be at least 0 and less than the upscale factors");
  constexpr int64_t kLarge = int64_t{1} << 30;  // products of two of these still fit
  for (int64_t n : v) check(n < kLarge, "geometry value ", n, " is too large");
  check(order == 0 || order == 1, "channel_order must be 0 (crd) or 1 (dcr), got ", order);
  check(z.kernel_h >= 1 && z.kernel_w >= 1, "empty kernel");
  check(z.in_channels >= 1 && z.lr_channels >= 1, "no channels");
  check(z.lr_channels % (r_h * r_w) == 0, z.lr_channels, " convolution channels do not divide by ", r_h,
        " * ", r_w);
  check(groups >= 1 && z.in_channels % groups == 0 && z.lr_channels % groups == 0,
        "channels do not divide by groups = ", groups);
  Geometry g{};
  g.batch = z.batch, g.in_channels = z.in_channels, g.in_h = z.in_h, g.in_w = z.in_w;
  g.channels = z.lr_channels / (r_h * r_w);
  g.kernel_h = z.kernel_h, g.kernel_w = z.kernel_w, g.r_h = r_h, g.r_w = r_w;
  g.stride_h = stride_h, g.stride_w = stride_w;
  g.pad_top = pad_t, g.pad_left = pad_l, g.pad_bottom = pad_b, g.pad_right = pad_r;
  g.dilation_h = dil_h, g.dilation_w = dil_w, g.groups = groups;
  const int64_t reach_h = z.in_h + pad_t + pad_b - (z.kernel_h - 1) * dil_h - 1;
  const int64_t reach_w = z.in_w + pad_l + pad_r - (z.kernel_w - 1) * dil_w - 1;
  check(reach_h >= 0 && reach_w >= 0, "the kernel is larger than the padded input");
  g.lr_h = reach_h / stride_h + 1, g.lr_w = reach_w / stride_w + 1;
  g.crop_top = crop_t, g.crop_left = crop_l;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check(g.lr_h <= kMost / r_h && g.lr_w <= kMost / r_w, "the output is too large");
  g.out_h = g.lr_h * r_h - crop_t - crop_b, g.out_w = g.lr_w * r_w - crop_l - crop_r;
  check(g.out_h >= 0 && g.out_w >= 0, "the crop is larger than the output");
  g.kernel_pad_h = kernel_pad_h, g.kernel_pad_w = kernel_pad_w;
  g.order = order == 0 ? ChannelOrder::kCRD : ChannelOrder::kDCR;
  g.tf32 = tf32 != 0;
  return g;
}

inline Geometry forward_geometry(const Tensor& input, const Tensor& weight, const GeometryValues& v) {
  check(input.dim() == 4 && (weight.dim() == 4 || weight.dim() == 5),
        "expected input [N, Ci, H, W] and weight [C*r*r, Ci/groups, kh, kw] or [1, Ci, C, Kh, Kw]");
  check(weight.scalar_type() == input.scalar_type(), "input and weight differ in dtype");
  check(weight.device() == input.device(), "input and weight are on different devices");
  Sizes sizes{input.size(0),  input.size(1),  input.size(2), input.size(3),
              weight.size(0), weight.size(2), weight.size(3)};
  if (weight.dim() == 5) {
    const int64_t r_h = v[0], r_w = v[1], height = weight.size(3) + v[17], width = weight.size(4) + v[18];
    check(r_h >= 1 && r_w >= 1 && height % r_h == 0 && width % r_w == 0 && weight.size(0) == 1 && v[10] == 1,
          "weight ", shape_of(weight), " does not fit the upscale factors, extension or groups");
    sizes.lr_channels = weight.size(2) * r_h * r_w, sizes.kernel_h = height / r_h,
    sizes.kernel_w = width / r_w;
  }
  const Geometry g = make_geometry(sizes, v);
  check(weight.size(1) * g.groups == g.in_channels, "weight ", shape_of(weight), " does not fit input ",
        shape_of(input));
  return g;
}

inline void check_like(const char* name, const Tensor& t, const Tensor& input) {
  check(t.scalar_type() == input.scalar_type(), name, " differs in dtype from the input");
  check(t.device() == input.device(), name, " is on another device than the input");
}

inline ResidualKind residual_kind(const Tensor& t, const Geometry& g) {
  const auto is = [&](int64_t c, int64_t h, int64_t w) {
    return t.dim() == 4 && t.size(0) == g.batch && t.size(1) == c && t.size(2) == h && t.size(3) == w;
  };
  if (is(g.channels, g.out_h, g.out_w)) return ResidualKind::kHighRes;
  if (is(g.channels, g.lr_h, g.lr_w)) return ResidualKind::kNearest;
  check(is(g.lr_channels(), g.lr_h, g.lr_w), "residual ", shape_of(t), " fits no kind of residual");
  return ResidualKind::kLowRes;
}

// ---- the operators' recipes: check, allocate, fill the arguments; what is left is to launch ------------------------

inline ConstTensorRef view_of(const Tensor& t) { return {t.const_data_ptr(), strides_of(t)}; }
inline TensorRef writable_view_of(Tensor& t) { return {t.mutable_data_ptr(), strides_of(t)}; }

inline Tensor scratch_of(int64_t bytes, const Tensor& like) {
  const std::array<int64_t, 1> size{bytes};
  return torch::stable::empty(size, ScalarType::Byte, std::nullopt, like.device());
}

inline Tensor dense_vector(const char* name, const Tensor& t, const Tensor& input) {
  check_like(name, t, input);
  check(t.dim() <= 1, name, " must have one dimension, got ", shape_of(t));
  return torch::stable::contiguous(t);
}

// A weight of five dimensions is that of a transposed convolution, [1, Ci, C, K_h, K_w]: no copy is made to split its
// phases, turn its taps or extend it. Then the bias has C elements.
inline void set_weight(ForwardArguments& a, const Tensor& weight) {
  const Geometry& g = a.geometry;
  a.weight_flipped = weight.dim() == 5;
  if (a.weight_flipped) {
    const int64_t h = weight.stride(3), w = weight.stride(4);
    a.weight = {weight.const_data_ptr(), {0, weight.stride(1), h * g.r_h, w * g.r_w}};
    a.weight_rows = {weight.stride(2), h, w};
    return;
  }
  a.weight = view_of(weight);
  a.weight_rows = phase_strides(g, a.weight.stride.n);
}

struct ForwardCall {
  ForwardArguments arguments;
  Tensor output;
  OptionalTensor bias, prelu;  // dense copies, if any had to be made, live as long as the call
};

inline ForwardCall forward_call(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& activation_weight, const OptionalTensor& residual,
                                const std::vector<int64_t>& geometry, int64_t activation,
                                double negative_slope, const std::optional<double>& clamp_min,
                                const std::optional<double>& clamp_max) {
  const Geometry g = forward_geometry(input, weight, geometry_values(geometry));
  check(activation >= 0 && activation <= static_cast<int64_t>(Activation::kSigmoid), "unknown activation ",
        activation);
  ForwardArguments a{};
  a.geometry = g;
  a.dtype = dtype_of(input);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  a.epilogue = {static_cast<Activation>(activation), negative_slope, clamp_min.value_or(-kInfinity),
                clamp_max.value_or(kInfinity), ResidualKind::kNone};
  OptionalTensor bias_dense, prelu_dense;
  if (bias) {
    bias_dense = dense_vector("bias", *bias, input);
    const int64_t biases = weight.dim() == 5 ? g.channels : g.lr_channels();
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
  a.input = view_of(input), a.output = writable_view_of(output);
  set_weight(a, weight);
  return {a, output, bias_dense, prelu_dense};
}

// The geometry of a backward call; grad_output is checked against it.
inline Geometry backward_geometry(const Tensor& grad_output, const Sizes& sizes,
                                  const GeometryValues& values) {
  const Geometry g = make_geometry(sizes, values);
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
  check(kind == Activation::kReLU || kind == Activation::kLeakyReLU || kind == Activation::kTanh ||
            kind == Activation::kSigmoid,
        "the gradient of activation ", activation, " cannot be read from its output");
  check(kind != Activation::kLeakyReLU ||
            (negative_slope >= 0 && negative_slope < std::numeric_limits<double>::infinity()),
        "negative_slope must be finite and at least 0, got ", negative_slope);
  check_like("output", *output, grad_output);
  bool same = output->dim() == grad_output.dim();
  for (int64_t d = 0; same && d < output->dim(); ++d) same = output->size(d) == grad_output.size(d);
  check(same, "output ", shape_of(*output), " differs in shape from grad_output ", shape_of(grad_output));
  return {view_of(*output), kind, negative_slope};
}

struct InputGradCall {
  InputGradArguments arguments;
  Tensor grad_input;
};

inline InputGradCall input_grad_call(const Tensor& grad_output, const Tensor& weight, int64_t height,
                                     int64_t width, const std::vector<int64_t>& geometry, bool channels_last,
                                     const OptionalTensor& output, int64_t activation,
                                     double negative_slope) {
  check(grad_output.dim() == 4 && weight.dim() == 4, "expected grad_output and weight of 4 dimensions");
  check_like("weight", weight, grad_output);
  const GeometryValues values = geometry_values(geometry);
  const Geometry g = backward_geometry(grad_output,
                                       {grad_output.size(0), weight.size(1) * values[10], height, width,
                                        weight.size(0), weight.size(2), weight.size(3)},
                                       values);
  const SavedOutput saved = saved_output(grad_output, output, activation, negative_slope);
  Tensor grad_input = new_tensor({g.batch, g.in_channels, g.in_h, g.in_w}, grad_output, channels_last);
  const InputGradArguments a{
      g, dtype_of(grad_output), view_of(grad_output), view_of(weight), writable_view_of(grad_input), saved};
  return {a, grad_input};
}

struct WeightGradCall {
  WeightGradArguments arguments;
  Tensor grad_weight, grad_bias;
};

inline WeightGradCall weight_grad_call(const Tensor& grad_output, const Tensor& input, int64_t kernel_h,
                                       int64_t kernel_w, const std::vector<int64_t>& geometry,
                                       const OptionalTensor& output, int64_t activation,
                                       double negative_slope) {
  check(grad_output.dim() == 4 && input.dim() == 4, "expected grad_output and input of 4 dimensions");
  check_like("input", input, grad_output);
  const GeometryValues values = geometry_values(geometry);
  const Geometry g = backward_geometry(grad_output,
                                       {input.size(0), input.size(1), input.size(2), input.size(3),
                                        grad_output.size(1) * values[0] * values[1], kernel_h, kernel_w},
                                       values);
  const SavedOutput saved = saved_output(grad_output, output, activation, negative_slope);
  Tensor grad_weight =
      new_tensor({g.lr_channels(), g.in_channels / g.groups, g.kernel_h, g.kernel_w}, grad_output, false);
  const std::array<int64_t, 1> rows{g.lr_channels()};
  Tensor grad_bias =
      torch::stable::empty(rows, grad_output.scalar_type(), std::nullopt, grad_output.device());
  const WeightGradArguments a{g,
                              dtype_of(grad_output),
                              view_of(grad_output),
                              view_of(input),
                              grad_weight.mutable_data_ptr(),
                              grad_bias.mutable_data_ptr(),
                              saved};
  return {a, grad_weight, grad_bias};
}

// A problem as the plan operators take it: pass, dtype, channels_last, batch, in_channels, in_h, in_w, lr_channels,
// kernel_h, kernel_w, then the geometry values.
inline Geometry problem_geometry(const std::vector<int64_t>& problem) {
  GeometryValues values;
  check(problem.size() == 10 + values.size(), "a problem is ", 10 + values.size(), " numbers, got ",
        problem.size());
  check(problem[0] >= 0 && problem[0] <= 2 && problem[1] >= 0 && problem[1] <= 3, "unknown pass or dtype");
  std::copy(problem.begin() + 10, problem.end(), values.begin());
  return make_geometry({problem[3], problem[4], problem[5], problem[6], problem[7], problem[8], problem[9]},
                       values);
}

}  // namespace fused_subpixel
