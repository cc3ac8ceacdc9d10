// SPDX-License-Identifier: BSD-3-Clause
// Matrix tiles: how a convolution in bfloat16 becomes products of small matrices, in tile registers (AMX) or in vectors
// (AVX512-BF16). A tile of pixels, 16 neighbours x 32 channels of one tap, times a tile of weights, 32 channels x 16 output
// channels, is added to 16 x 16 sums.
// The kernels include this file, so it names nothing of std:: that could be instantiated there.
#pragma once

#include "cpu/plan.h"

namespace fused_subpixel::cpu {

constexpr int kStripPixels = 16;    // rows of a tile of pixels, and of sums
constexpr int kTileChannels = 32;   // columns of a tile of pixels
constexpr int kColumnOc = 16;       // columns of a tile of weights, and of sums
constexpr int kTileElements = 256;  // float32 sums, or pairs of bfloat16: 1 KiB

// Taps of 32 channels in one K block: so many tiles of two columns of weights fit the first cache.
constexpr int kMatrixTaps = 18;
constexpr int kMatrixChain = kMatrixTaps * kTileChannels;
constexpr int kMatrixPixels = 32;  // of two strips, which a register tile computes together

// Do strips go from one row to the next, so that only what lies between two rows of the packed input tile is computed for
// nothing? Otherwise every row has strips of its own.
FS_HOST_DEVICE bool flat_strips(const ConvShape& s, int64_t width) {
  return s.stride_h == 1 && s.stride_w == 1 &&
         (s.kernel_w - 1) * s.dilation_w <= round_up(width, kStripPixels) - width;
}
// Pixels from one row of so many to the next.
FS_HOST_DEVICE int64_t matrix_row(const ConvShape& s, int64_t width) {
  return flat_strips(s, width) ? width + (s.kernel_w - 1) * s.dilation_w : round_up(width, kStripPixels);
}

// Do all channels of the taps of one kernel row, which are neighbours in a packed input tile without gaps, fit one tile? Then
// what follows them is multiplied by zeros, so that the pixels have to be finite.
FS_HOST_DEVICE bool fits_joined_taps(const ConvShape& s) {
  return s.kernel_w > 1 && s.stride_w == 1 && s.dilation_w == 1 && s.ic * s.kernel_w <= kTileChannels;
}
// Tiles of weights of one output channel column.
FS_HOST_DEVICE int64_t tiles_of_column(const ConvShape& s, bool joined_taps) {
  return joined_taps ? s.kernel_h : ceil_div(s.ic, kTileChannels) * s.taps();
}
// Floats from the sums of one interleaved tile to the next's. Strips at the end of a chunk, and one at the end of an image
// that is read in place, reach over the pixels of the chunk.
FS_HOST_DEVICE int64_t matrix_sums(const ConvPlan& plan) {
  return (plan.chunk_rows * plan.row_pixels + 2 * kStripPixels) * plan.tile_oc;
}

}  // namespace fused_subpixel::cpu
