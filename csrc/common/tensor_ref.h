// SPDX-License-Identifier: BSD-3-Clause
// References to [N, C, H, W] tensors: a pointer and four strides in elements.
#pragma once

#include <cstdint>

#include "common/conv_geometry.h"

namespace fused_subpixel {

struct Strides {
  int64_t n, c, h, w;
};
inline bool operator==(const Strides& a, const Strides& b) {
  return a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w;
}

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

// The strides of a dense tensor in one of the two layouts.
inline Strides dense_strides(int64_t channels, int64_t h, int64_t w, bool channels_last) {
  if (channels_last) return {channels * h * w, 1, w * channels, channels};
  return {channels * h * w, h * w, w, 1};
}

struct ConstTensorRef {
  const void* data = nullptr;
  Strides stride{};
};
struct TensorRef {
  void* data = nullptr;
  Strides stride{};
};

// Elements from one low-resolution channel to the next in each of its coordinates, see Phase.
struct PhaseStrides {
  int64_t c, i, j;
};
// Where channels lie `step` elements apart, in the channel order of the call.
inline PhaseStrides phase_strides(const Geometry& g, int64_t step) {
  if (g.order == ChannelOrder::kCRD) return {g.phases() * step, g.r_w * step, step};
  return {step, g.r_w * g.channels * step, g.channels * step};
}

}  // namespace fused_subpixel
