// SPDX-License-Identifier: BSD-3-Clause
// The channel <-> pixel map of the periodic shuffle: the only copy, for CPU, CUDA and tests.
#pragma once

#include <cstdint>

#include "common/divisor.h"

namespace fused_subpixel {

enum class ChannelOrder : int32_t { kCRD = 0, kDCR = 1 };

// Where a low-resolution channel lands: high-resolution channel c, phase (i, j) of the sub-pixel block r_h x r_w.
template <class Int>
struct PhaseOf {
  Int c, i, j;
};
using Phase = PhaseOf<int64_t>;

// The sizes of a shuffle, each with the way to divide by it: PlainDivisor on the host, a multiplication on GPUs.
template <class Divisor>
struct ShuffleSizes {
  Divisor channels, r_h, r_w;  // channels: of high resolution
};

// kCRD: channel = (c * r_h + i) * r_w + j   (PyTorch PixelShuffle, ONNX DepthToSpace CRD)
// kDCR: channel = (i * r_w + j) * C + c     (TensorFlow depth_to_space, ONNX DepthToSpace DCR)
template <class Divisor, class Int = typename Divisor::Int>
FS_HOST_DEVICE PhaseOf<Int> phase_of_channel(Int channel, const ShuffleSizes<Divisor>& sizes,
                                             ChannelOrder order) {
  PhaseOf<Int> p;
  if (order == ChannelOrder::kDCR) {
    const Int phase = sizes.channels.divide(channel);
    p.i = sizes.r_w.divide(phase);
    p.j = phase - p.i * sizes.r_w.divisor;
    p.c = channel - phase * sizes.channels.divisor;
  } else {
    const Int row = sizes.r_w.divide(channel);
    p.j = channel - row * sizes.r_w.divisor;
    p.c = sizes.r_h.divide(row);
    p.i = row - p.c * sizes.r_h.divisor;
  }
  return p;
}

template <class Divisor, class Int = typename Divisor::Int>
FS_HOST_DEVICE Int channel_of_phase(const PhaseOf<Int>& p, const ShuffleSizes<Divisor>& sizes,
                                    ChannelOrder order) {
  if (order == ChannelOrder::kCRD) return (p.c * sizes.r_h.divisor + p.i) * sizes.r_w.divisor + p.j;
  return (p.i * sizes.r_w.divisor + p.j) * sizes.channels.divisor + p.c;
}

template <class Int>
FS_HOST_DEVICE ShuffleSizes<PlainDivisor<Int>> shuffle_sizes(Int channels, Int r_h, Int r_w) {
  return {{channels}, {r_h}, {r_w}};
}

}  // namespace fused_subpixel
