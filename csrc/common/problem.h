// SPDX-License-Identifier: BSD-3-Clause
// The plain structs that cross the borders of csrc: sizes, 64-bit element strides, pointers. No torch in here.
#pragma once

#include <cstdint>

#include "common/pixel_shuffle.h"

namespace fused_subpixel {

enum class DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

enum class Activation : int32_t { kNone, kReLU, kLeakyReLU, kPReLU, kSiLU, kGELU, kTanh, kSigmoid };

// How a residual meets the output: added as is, nearest-upsampled from [N, C, P, Q], or in low-resolution
// channel space [N, C * r_h * r_w, P, Q].
enum class ResidualKind : int32_t { kNone, kHighRes, kNearest, kLowRes };

// One sub-pixel convolution. Low-resolution convolution output: [batch, channels * r_h * r_w, conv_h, conv_w];
// shuffled: [batch, channels, conv_h * r_h, conv_w * r_w]; the output is the window of it that starts at
// (crop_top, crop_left) and has out_h x out_w pixels.
struct Geometry {
  int64_t batch, in_channels, in_h, in_w;
  int64_t channels;
  int64_t kernel_h, kernel_w;
  int64_t r_h, r_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left, pad_bottom, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;
  int64_t conv_h, conv_w;
  int64_t crop_top, crop_left, out_h, out_w;
  // Rows and columns of zeros that extend a transposed convolution's kernel to a multiple of its stride, r_h x r_w: the
  // last so many phases lack the first row, or column, of taps, which need not be read.
  int64_t extension_h, extension_w;
  ChannelOrder order;
  bool tf32;  // float32 may be computed as tf32, on GPUs that can

  FS_HOST_DEVICE int64_t cell() const { return r_h * r_w; }
  FS_HOST_DEVICE int64_t conv_channels() const { return channels * cell(); }
};

struct Strides {
  int64_t n, c, h, w;
};

// Are the channels of a pixel neighbours in memory, as in channels_last? Of canonical strides only.
inline bool channels_are_neighbours(const Strides& s, int64_t channels) { return s.c == 1 && channels > 1; }

// PyTorch allows any stride in a dimension of size 1, because no index uses it. Code that reads the layout from the
// strides must not rely on such a value. This function replaces it by the stride of a dense tensor of the same layout.
// A tensor [N, C, 1, 1] has both layouts; it counts as channels_last.
inline Strides canonical_strides(int64_t n, int64_t c, int64_t h, int64_t w, Strides s) {
  const bool neighbours = channels_are_neighbours(s, c);
  if (w == 1) s.w = neighbours ? c : 1;
  if (h == 1) s.h = w * s.w;
  if (c == 1) s.c = h * s.h;
  if (n == 1) s.n = neighbours ? h * s.h : c * s.c;
  return s;
}

struct Epilogue {
  Activation activation = Activation::kNone;
  double negative_slope = 0.0;  // leaky_relu
  double clamp_min, clamp_max;  // -inf, +inf: no clamp
  ResidualKind residual_kind = ResidualKind::kNone;
};

// ---- what an operator hands to the launcher of a device; pointers are that device's ------------------------------
struct TensorView {
  const void* data = nullptr;
  Strides stride{};
};

// Elements from one convolution channel to the next in each of its coordinates, see Phase.
struct PhaseStrides {
  int64_t c, i, j;
};
// Where channels lie `step` elements apart, in the order of the call.
inline PhaseStrides phase_strides(const Geometry& g, int64_t step) {
  if (g.order == ChannelOrder::kCRD) return {g.cell() * step, g.r_w * step, step};
  return {step, g.r_w * g.channels * step, g.channels * step};
}

struct ForwardArguments {
  Geometry geometry;
  DType dtype;
  TensorView input, weight, residual, output;
  PhaseStrides weight_rows;  // of weight
  bool weight_turned;  // a transposed convolution's: its taps turned by 180 degrees, without the extension
  const void* bias;    // contiguous, or null; by convolution channel, a transposed convolution's by channel
  const void* prelu;   // contiguous, or null
  int64_t prelu_size;
  Epilogue epilogue;
};

// How the forward pass ended, for the gradients: they apply the activation's gradient as they load grad_output. kNone:
// there is nothing to apply, and no output. Else one whose gradient can be read from its output.
struct SavedOutput {
  TensorView output;  // of grad_output's shape, in any strides
  Activation activation = Activation::kNone;
  double negative_slope = 0.0;  // leaky_relu: at least 0, and finite
};

struct InputGradArguments {
  Geometry geometry;
  DType dtype;
  TensorView grad_output, weight, grad_input;
  SavedOutput saved;
};

struct WeightGradArguments {
  Geometry geometry;
  DType dtype;
  TensorView grad_output, input;
  void* grad_weight;  // contiguous
  void* grad_bias;    // contiguous
  SavedOutput saved;
};

}  // namespace fused_subpixel
