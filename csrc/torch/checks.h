// SPDX-License-Identifier: BSD-3-Clause
// Checks over LibTorch's stable ABI: errors, dtypes, layouts, sizes, the same on every device. The Python package has
// already said, in better words, what is wrong with a call; these checks keep a raw operator call safe.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <cstring>
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

// A dense tensor without values; each library has its own.
Tensor new_tensor(const std::array<int64_t, 4>& size, const Tensor& like, bool channels_last);
// Of the dtype of `like`, or of that in which its kernels compute.
Tensor new_vector(int64_t size, const Tensor& like, bool arithmetic = false);
Tensor new_bytes(int64_t size, const Tensor& like);

// The options that every operator takes as one list `int[] geometry`, in this order, which is that of Geometry in the
// Python package. As separate integers they would cost 3 us per call.
struct ConvOptions {
  int64_t r_h, r_w, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w,
      groups;
  int64_t crop_top, crop_left, crop_bottom, crop_right, channel_order, tf32, kernel_pad_h, kernel_pad_w;
};
constexpr size_t kConvOptions = sizeof(ConvOptions) / sizeof(int64_t);

inline ConvOptions conv_options(const int64_t* values, size_t count) {
  check(count == kConvOptions, "geometry takes ", kConvOptions, " numbers, got ", count);
  constexpr int64_t kLarge = int64_t{1} << 30;  // products of two of these still fit
  for (size_t k = 0; k < count; ++k) check(values[k] < kLarge, "geometry value ", values[k], " is too large");
  ConvOptions options;
  std::memcpy(&options, values, sizeof options);
  return options;
}
inline ConvOptions conv_options(const std::vector<int64_t>& geometry) {
  return conv_options(geometry.data(), geometry.size());
}

struct Sizes {
  int64_t batch, in_channels, in_h, in_w;
  int64_t lr_channels, kernel_h, kernel_w;
};

inline Geometry make_geometry(const Sizes& z, const ConvOptions& o) {
  check(o.r_h >= 1 && o.r_w >= 1, "upscale factors must be positive, got ", o.r_h, " and ", o.r_w);
  check(o.stride_h >= 1 && o.stride_w >= 1 && o.dilation_h >= 1 && o.dilation_w >= 1,
        "stride and dilation must be positive");
  check(o.pad_top >= 0 && o.pad_left >= 0 && o.pad_bottom >= 0 && o.pad_right >= 0,
        "padding must not be negative");
  check(o.crop_top >= 0 && o.crop_left >= 0 && o.crop_bottom >= 0 && o.crop_right >= 0,
        "crop must not be negative");
  check(o.kernel_pad_h >= 0 && o.kernel_pad_h < o.r_h && o.kernel_pad_w >= 0 && o.kernel_pad_w < o.r_w,
        "kernel padding must be at least 0 and less than the upscale factors");
  check(o.channel_order == 0 || o.channel_order == 1, "channel_order must be 0 (crd) or 1 (dcr), got ",
        o.channel_order);
  check(z.kernel_h >= 1 && z.kernel_w >= 1, "empty kernel");
  check(z.in_channels >= 1 && z.lr_channels >= 1, "no channels");
  check(z.lr_channels % (o.r_h * o.r_w) == 0, z.lr_channels, " convolution channels do not divide by ", o.r_h,
        " * ", o.r_w);
  check(o.groups >= 1 && z.in_channels % o.groups == 0 && z.lr_channels % o.groups == 0,
        "channels do not divide by groups = ", o.groups);
  const int64_t last_h = z.in_h + o.pad_top + o.pad_bottom - (z.kernel_h - 1) * o.dilation_h - 1;
  const int64_t last_w = z.in_w + o.pad_left + o.pad_right - (z.kernel_w - 1) * o.dilation_w - 1;
  check(last_h >= 0 && last_w >= 0, "the kernel is larger than the padded input");
  Geometry g{};
  g.batch = z.batch;
  g.in_channels = z.in_channels;
  g.in_h = z.in_h;
  g.in_w = z.in_w;
  g.channels = z.lr_channels / (o.r_h * o.r_w);
  g.kernel_h = z.kernel_h;
  g.kernel_w = z.kernel_w;
  g.r_h = o.r_h;
  g.r_w = o.r_w;
  g.stride_h = o.stride_h;
  g.stride_w = o.stride_w;
  g.pad_top = o.pad_top;
  g.pad_left = o.pad_left;
  g.pad_bottom = o.pad_bottom;
  g.pad_right = o.pad_right;
  g.dilation_h = o.dilation_h;
  g.dilation_w = o.dilation_w;
  g.groups = o.groups;
  g.lr_h = last_h / o.stride_h + 1;
  g.lr_w = last_w / o.stride_w + 1;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check(g.lr_h <= kMost / o.r_h && g.lr_w <= kMost / o.r_w, "the output is too large");
  g.crop_top = o.crop_top;
  g.crop_left = o.crop_left;
  g.out_h = g.lr_h * o.r_h - o.crop_top - o.crop_bottom;
  g.out_w = g.lr_w * o.r_w - o.crop_left - o.crop_right;
  check(g.out_h >= 0 && g.out_w >= 0, "the crop is larger than the output");
  g.kernel_pad_h = o.kernel_pad_h;
  g.kernel_pad_w = o.kernel_pad_w;
  g.order = o.channel_order == 0 ? ChannelOrder::kCRD : ChannelOrder::kDCR;
  g.tf32 = o.tf32 != 0;
  return g;
}

// transposed_weight: the weight is a transposed convolution's, [Ci, C, K_h, K_w], of one group.
inline Sizes forward_sizes(const Tensor& input, const Tensor& weight, bool transposed_weight,
                           const ConvOptions& o) {
  Sizes sizes{input.size(0),  input.size(1),  input.size(2), input.size(3),
              weight.size(0), weight.size(2), weight.size(3)};
  if (!transposed_weight) {
    check(weight.size(1) * o.groups == sizes.in_channels, "weight ", shape_of(weight), " does not fit input ",
          shape_of(input));
    return sizes;
  }
  const int64_t height = weight.size(2) + o.kernel_pad_h, width = weight.size(3) + o.kernel_pad_w;
  check(o.r_h >= 1 && o.r_w >= 1 && height % o.r_h == 0 && width % o.r_w == 0 && o.groups == 1, "weight ",
        shape_of(weight), " does not fit the upscale factors, kernel padding or groups");
  check(weight.size(0) == sizes.in_channels, "weight ", shape_of(weight), " does not fit input ",
        shape_of(input));
  sizes.lr_channels = weight.size(1) * o.r_h * o.r_w;
  sizes.kernel_h = height / o.r_h;
  sizes.kernel_w = width / o.r_w;
  return sizes;
}

inline Geometry forward_geometry(const Tensor& input, const Tensor& weight, bool transposed_weight,
                                 const ConvOptions& options) {
  check(input.dim() == 4 && weight.dim() == 4,
        "expected input [N, Ci, H, W] and weight [C*r*r, Ci/groups, kh, kw] or, transposed, [Ci, C, Kh, Kw]");
  check(weight.scalar_type() == input.scalar_type(), "input and weight differ in dtype");
  check(weight.device() == input.device(), "input and weight are on different devices");
  return make_geometry(forward_sizes(input, weight, transposed_weight, options), options);
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

}  // namespace fused_subpixel
