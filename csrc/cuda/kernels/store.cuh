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

// Bias and slope, of an activation that has one, on what a lane holds of 16 pixels x 8 output channels in the order of mma's
// d. Staging then adds late_bias, which is nothing.
FS_DEVICE bool has_slopes(Activation activation) {
  return activation == Activation::kLeakyReLU || activation == Activation::kPReLU;
}
template <class Columns>
FS_DEVICE void apply_slopes(const Columns& at, float* acc) {
  FS_UNROLL
  for (int q = 0; q < 4; ++q) {
    const auto& of = q % 2 ? at.right : at.left;
    const float v = acc[q] + of.bias;
    acc[q] = v > 0.f ? v : v * of.slope;
  }
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

// What a block leaves out if its output channels are of one phase: taps, as missing_taps_of() tells, and the first
// low-resolution row or column of the image, if the crop takes the phase off it.
struct LeftOut {
  int taps, rows, columns;
};
FS_DEVICE LeftOut left_out(const MmaParams& p, int block_oc) {
  if (!p.plan.single_phase) return {0, 0, 0};
  const PhaseOf<int> phase = phase_of(p.map, block_y() * block_oc);
  return {missing_taps_of(p, phase), phase.i < p.crop_top, phase.j < p.crop_left};
}
FS_DEVICE TileOrigin tile_origin(const MmaParams& p, int tile, const LeftOut& out) {
  const TileOrigin origin = plain_tile_origin(p, tile);
  return {origin.n, origin.h + out.rows, origin.w + out.columns};
}

}  // namespace fused_subpixel::cuda
