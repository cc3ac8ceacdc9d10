// SPDX-License-Identifier: BSD-3-Clause
// The channel <-> pixel map of the periodic shuffle, written once for CPU, CUDA and tests.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define FS_HOST_DEVICE __host__ __device__
#else
#define FS_HOST_DEVICE
#endif

namespace fused_subpixel {

enum class ChannelOrder : int32_t { kCRD = 0, kDCR = 1 };

// Where a low-resolution channel lands: high-resolution channel c, phase (i, j) inside the r_h x r_w cell. A GPU divides
// 64 bits by a function call, so that kernels count in 32 where that is enough.
template <class Int>
struct PhaseOf {
  Int c, i, j;
};
using Phase = PhaseOf<int64_t>;
template <class Int>
using Given =
    std::common_type_t<Int>;  // of a parameter: converted to Int, which is int64_t if it is not named

// kCRD: channel = (c * r_h + i) * r_w + j   (PyTorch PixelShuffle, ONNX DepthToSpace CRD)
// kDCR: channel = (i * r_w + j) * C + c     (TensorFlow depth_to_space, ONNX DepthToSpace DCR)
template <class Int = int64_t>
FS_HOST_DEVICE inline PhaseOf<Int> phase_of_channel(Given<Int> channel, Given<Int> channels, Given<Int> r_h,
                                                    Given<Int> r_w, ChannelOrder order) {
  if (order == ChannelOrder::kCRD) return {channel / (r_h * r_w), channel / r_w % r_h, channel % r_w};
  const Int cell = channel / channels;
  return {channel % channels, cell / r_w, cell % r_w};
}

template <class Int = int64_t>
FS_HOST_DEVICE inline Int channel_of_phase(PhaseOf<Int> p, Given<Int> channels, Given<Int> r_h,
                                           Given<Int> r_w, ChannelOrder order) {
  if (order == ChannelOrder::kCRD) return (p.c * r_h + p.i) * r_w + p.j;
  return (p.i * r_w + p.j) * channels + p.c;
}

}  // namespace fused_subpixel
