// SPDX-License-Identifier: BSD-3-Clause
// The channel <-> pixel map of the periodic shuffle, written once for CPU, CUDA and tests.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FS_HOST_DEVICE __host__ __device__
#else
#define FS_HOST_DEVICE
#endif

namespace fused_subpixel {

enum class ChannelOrder : int32_t { kCRD = 0, kDCR = 1 };

// Where a low-resolution channel lands: high-resolution channel c, phase (i, j) inside the r_h x r_w cell.
struct Phase {
  int64_t c, i, j;
};

// kCRD: channel = (c * r_h + i) * r_w + j   (PyTorch PixelShuffle, ONNX DepthToSpace CRD)
// kDCR: channel = (i * r_w + j) * C + c     (TensorFlow depth_to_space, ONNX DepthToSpace DCR)
FS_HOST_DEVICE inline Phase phase_of_channel(int64_t channel, int64_t channels, int64_t r_h, int64_t r_w,
                                             ChannelOrder order) {
  if (order == ChannelOrder::kCRD) return {channel / (r_h * r_w), channel / r_w % r_h, channel % r_w};
  const int64_t cell = channel / channels;
  return {channel % channels, cell / r_w, cell % r_w};
}

FS_HOST_DEVICE inline int64_t channel_of_phase(Phase p, int64_t channels, int64_t r_h, int64_t r_w,
                                               ChannelOrder order) {
  if (order == ChannelOrder::kCRD) return (p.c * r_h + p.i) * r_w + p.j;
  return (p.i * r_w + p.j) * channels + p.c;
}

}  // namespace fused_subpixel
