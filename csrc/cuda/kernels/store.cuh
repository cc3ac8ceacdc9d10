// SPDX-License-Identifier: BSD-3-Clause
// What the two stores of the tensor-core convolutions share: the phases of a block's output channels, and its tiles.
#pragma once

#include "cuda/kernels/epilogue.cuh"

namespace fused_subpixel::cuda {

FS_DEVICE PhaseOf<int> phase_of(const ShuffledChannels& m, int counted) {
  return phase_of_channel(counted, shuffle_sizes(m.channels, m.r_h, m.r_w), m.order);
}
FS_DEVICE int lr_channel_of(const ShuffledChannels& m, int counted) {
  return channel_of_phase(phase_of(m, counted), shuffle_sizes(m.channels, m.r_h, m.r_w), m.call_order);
}

// The taps that a row of the weight lacks: 1 the first column + 2 the first row.
template <class Params>
FS_DEVICE int missing_taps_of(const Params& p, int counted) {
  return missing_taps(phase_of(p.map, counted), p.map.r_h, p.map.r_w, p.kernel_pad_h, p.kernel_pad_w);
}

// First pixel of a tile.
struct TileOrigin {
  int n, h, w;
};
template <class AnyPlan>
FS_DEVICE TileOrigin tile_origin(const AnyPlan& plan, int tile) {
  const int w = tile % plan.tiles_w, rest = tile / plan.tiles_w;
  return {rest / plan.tiles_h * plan.tile_n, rest % plan.tiles_h * plan.tile_h, w * plan.tile_w};
}

// A block whose output channels are of one phase may start one pixel later.
FS_DEVICE TileOrigin tile_origin(const MmaParams& p, int tile) {
  TileOrigin origin = tile_origin(p.plan, tile);
  if (p.plan.single_phase) {
    const PhaseOf<int> phase = phase_of(p.map, block_y() * p.plan.block_oc);
    origin.h += phase.i < p.crop_top, origin.w += phase.j < p.crop_left;
  }
  return origin;
}

}  // namespace fused_subpixel::cuda
