// SPDX-License-Identifier: BSD-3-Clause
// What the two stores of the tensor-core convolutions share: the phases of a block's output channels, and its tiles.
#pragma once

#include "cuda/kernels/epilogue.cuh"

namespace fused_subpixel::cuda {

FS_DEVICE PhaseOf<int> phase_of(const ShuffledChannels& m, int counted) {
  return phase_of_channel(counted, m.sizes, m.order);
}
FS_DEVICE int lr_channel_of(const ShuffledChannels& m, int counted) {
  return channel_of_phase(phase_of(m, counted), m.sizes, m.call_order);
}

// The taps that a row of the weight lacks: 1 the first column + 2 the first row.
template <class Params>
FS_DEVICE int missing_taps_of(const Params& p, const PhaseOf<int>& phase) {
  const ShuffleSizes<SmallDivisor>& sizes = p.map.sizes;
  return missing_taps(phase, sizes.r_h.divisor, sizes.r_w.divisor, p.kernel_pad_h, p.kernel_pad_w);
}

// First pixel of a tile.
struct TileOrigin {
  int n, h, w;
};
template <class Params>
FS_DEVICE TileOrigin plain_tile_origin(const Params& p, int tile) {
  const auto rest = static_cast<int>(p.tiles_w.divide(static_cast<uint32_t>(tile)));
  const auto image = static_cast<int>(p.tiles_h.divide(static_cast<uint32_t>(rest)));
  return {image * p.plan.tile_n, (rest - image * p.plan.tiles_h) * p.plan.tile_h,
          (tile - rest * p.plan.tiles_w) * p.plan.tile_w};
}

// A block whose output channels are of one phase may start one pixel later.
FS_DEVICE TileOrigin tile_origin(const MmaParams& p, int tile) {
  TileOrigin origin = plain_tile_origin(p, tile);
  if (p.plan.single_phase) {
    const PhaseOf<int> phase = phase_of(p.map, block_y() * p.plan.block_oc);
    origin.h += phase.i < p.crop_top, origin.w += phase.j < p.crop_left;
  }
  return origin;
}

}  // namespace fused_subpixel::cuda
