// SPDX-License-Identifier: BSD-3-Clause
// Problem -> kernel, register tile and blocks. These are pure host functions, which the tests call for machines that they
// do not run on. The kernels include this file, so it names nothing of std:: that could be instantiated there.
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fused_subpixel::cpu {

enum class ConvKernel : int32_t {
  kOwVectorised,  // neighbouring pixels in the vector lanes: few output channels
  kOcVectorised,  // output channels in the vector lanes: wide layers, small images
  kWinograd,      // 3x3 in float arithmetic: OW-vectorised over transformed tiles of 2x2 pixels
  kWinogradRow,  // kernels two or more taps wide, the same over transformed tiles of pixels in a row (winograd_row.h)
  kWinograd4,  // as kWinograd, over tiles of 4x4 pixels, where float32 need not be exact
  kMatrix,     // bfloat16 by products of small matrices (matrix_tiles.h)
  kStreamed,   // few pixels: weights are not packed, but read once where they lie (docs/decisions/0033)
};
constexpr int kConvKernels = 7;
// Pixels along a side of a transformed tile of kWinograd and kWinograd4; 0: of another kernel.
FS_HOST_DEVICE constexpr int winograd_side(ConvKernel kernel) {
  return kernel == ConvKernel::kWinograd ? 2 : kernel == ConvKernel::kWinograd4 ? 4 : 0;
}
constexpr int winograd_positions(int side) { return (side + 2) * (side + 2); }
// Tiles of a row that are stored together, where the lanes are channels.
constexpr int64_t kWinogradStoredTiles = 8;
constexpr int kWinogradTaps = 3;  // along a side of the window that it takes for the kernel
// Are weights added to one another before they are multiplied?
FS_HOST_DEVICE bool is_winograd(ConvKernel kernel) {
  return winograd_side(kernel) > 0 || kernel == ConvKernel::kWinogradRow;
}

// How a block of kWinograd or kWinograd4 passes through the cache.
enum class WinogradScheme : int32_t {
  kPanels,  // all of its transformed pixels stay, and one panel of weights after the other passes over them
  kPositions,  // one position after the other, with the accumulators of all panels: wide layers
  kPasses,  // some input channels at a time, for a share of the panels, whose weights are transformed there: few tiles
};

// Must each weight be finite, because zeros of padding are multiplied by it, or because it is added to others?
FS_HOST_DEVICE bool needs_finite_weights(ConvKernel kernel) {
  return is_winograd(kernel) || kernel == ConvKernel::kMatrix;
}

// Which weights fill a row of consecutive elements of memory, in whatever order.
enum class WeightRow : int32_t {
  kNone,
  kOfOutput,  // all weights of an output channel, as in Conv2d
  kOfInput,   // all weights of an input channel, as in ConvTranspose2d. Rows are evenly apart
};

// ---- register tiles --------------------------------------------------------------------------------------------

// Output channels of the register tiles of the OW-vectorised microkernels.
using TileOc = IntList<1, 2, 3, 4, 5, 6, 8, 9, 12>;
// Vectors of output channels of the OC-vectorised microkernels, and of channels of the weight gradient's.
using TileOcVectors = IntList<1, 2, 3, 4>;
constexpr int kMaxTileLanes = 4;  // in vectors
// Output channels per interleave group that are interleaved in registers.
using RegisterInterleave = IntList<1, 2, 3, 4, 6, 8, 9, 12, 16>;

// Vectors of pixels that go with a number of output channels: accumulators, pixels and one broadcast weight must fit the
// register file.
constexpr int ow_tile_vectors(int oc, int registers) {
  const int v = (registers - 1) / (oc + 1);
  return v < 1 ? 1 : v > 8 ? 8 : v;
}
constexpr int kMaxTileVectors = 8;
// Output channels of the register tile for fewer vectors: the most that go with so many.
constexpr int ow_rest_oc(int vectors, int registers) {
  int most = 1;
  for (int oc : TileOc::values)
    if (ow_tile_vectors(oc, registers) >= vectors) most = oc;
  return most;
}
// The most pixels that go with a number of vectors of output channels.
constexpr int oc_tile_pixels(int vectors, int registers) {
  const int p = (registers - vectors - 1) / vectors;
  return p < 1 ? 1 : p > 14 ? 14 : p;
}

// kStreamed, of rows of an output channel: rows and, at most, pixels of a register tile.
constexpr int streamed_rows(int registers) { return registers < 32 ? 2 : 4; }
constexpr int kMaxStreamedPixels = 6;

// The most tiles that interleave; for OC-vectorised tiles, the most vectors of output channels in such a panel.
constexpr int kMaxInterleavedVectors = 8;
// Output channels of a panel that are transposed together, of any kernel.
constexpr int kMaxTransposedOc = 128;

// ---- what is planned -------------------------------------------------------------------------------------------

// How the kernels multiply matrix tiles of bfloat16.
enum class MatrixTiles : int32_t {
  kNone,
  kVectors,    // vectors of products of pairs (AVX512-BF16)
  kRegisters,  // tile registers (AMX)
};

struct Target {
  int lanes;      // of the arithmetic type
  int registers;  // vector registers
  int64_t l2_bytes;
  int threads;
  int element_bytes;         // of the arithmetic type
  MatrixTiles matrix_tiles;  // of this dtype
  bool half_rate;            // one multiply-add of a vector per cycle, not two: AVX-512 of AMD's Zen 4
};

// A convolution in low-resolution pixels. Output pixel (h, w), tap (a, b) reads input pixel
// (h * stride_h + a * dilation_h - pad_top, w * stride_w + b * dilation_w - pad_left).
struct ConvShape {
  int64_t batch, groups;
  int64_t ic, oc;  // input and output channels of one group
  int64_t lr_h, lr_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_top, pad_left;  // the plan does not depend on them
  FS_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }
};

struct ConvProblem {
  ConvShape shape;
  int64_t
      interleave;  // output channels per interleave group, which are contiguous after the shuffle; 0: there are none
  bool oc_contiguous;  // whole vectors of output channels are contiguous after the shuffle (channels_last)
  // What single-phase tiles save. If a crop takes one pixel off some phases only, these start one pixel later, and lr_h,
  // lr_w can be smaller by so much. If some phases lack taps, a tile has as many taps as its phase.
  int64_t spared_h, spared_w;  // 0 or 1
  double mean_taps;            // of all phases
  // Output channels of one phase, and how many phases interleave in the order of output channels: 1 if the channels of a
  // phase are neighbours. phase_oc 0: tiles cannot hold a single phase.
  int64_t phase_oc, phase_interleave;
  // Outer rows and columns of a tile that Winograd's kernel transforms, which single-phase tiles need not multiply, because
  // their taps begin later or end earlier than those of all phases together; mean of all phases, 0 to 2.
  double unused_h, unused_w;
  int64_t
      ic_interleave;  // input channels that are neighbours in memory at least, also in an output that is applied
  bool ic_contiguous;  // neighbouring input channels are neighbours in memory (channels_last)
  bool planar_input;   // each input channel is a plane (NCHW)
  bool no_winograd;    // each weight must be multiplied as it is, and by no zeros of padding
  bool no_zero_taps;   // and no pixel by a zero in place of a missing tap
  bool inexact;        // float32 with an error like that of tf32 will do
  WeightRow weight_row;
  int64_t row_length;   // elements, in one group
  bool row_by_tap;      // a row has all channels of one tap, then those of the next
  int64_t read_pixels;  // input pixels of an image that some output depends on
  int64_t phases;       // output channels for each channel after the shuffle
};

// A packed input tile: the zero-padded input of one block with its halo. Its columns are split by stride phase, so that
// neighbouring output pixels read neighbouring columns. Either columns or channels are neighbours.
struct InputTile {
  int64_t rows, stride_phases, phase_columns;
  int64_t row_step, column_step, channel_step, image_step;  // in elements
};

// A block is block_n images x block_h rows x block_w columns of low-resolution output, computed from one packed input
// tile. Work items are pairs of a block and a group, or passes over them.
struct ConvPlan {
  ConvShape shape;  // lr_h and lr_w are without spared pixels
  int64_t spared_h, spared_w;
  ConvKernel kernel;
  int tile_oc;  // output channels of a register tile
  // vectors of pixels (of Winograd's kernels: of tiles); kOcVectorised, kMatrix: the most pixels; channels_inner of Winograd's
  // kernels: the most tiles
  int tile_pixels;
  int row_outputs;  // kWinogradRow: pixels of a tile, 2 or 4
  bool single_phase;
  // Register tiles that are stored together form a panel of packed weights. If interleaved_tiles > 1, this is their number,
  // and their output channels interleave because phases alternate. Otherwise they follow one another.
  int panel_tiles, interleaved_tiles;
  int64_t panels, panel_elements;  // panels of one group; elements of one panel
  // Winograd's kernels: a pass computes so many panels, whose accumulators of all positions are kept until its end, from
  // k_channels input channels at a time (of kWinogradRow, see winograd_row_block). Of kPasses and of kWinogradRow every pass is
  // an item of its own. But for kPasses, weights are transformed before the items run, or when a thread enters a group.
  WinogradScheme scheme;
  int64_t pass_panels, k_channels;
  int64_t block_n, block_h, block_w;
  int64_t blocks_n, blocks_h, blocks_w;
  int64_t items;
  bool weights_resident;  // every thread packs the weights of a group for itself, into its share of the cache
  bool parallel;          // false: so small that waking threads costs more than it saves
  // The packed input tile's channels are neighbours, otherwise its columns are. kWinograd, kWinograd4: and the lanes are channels.
  bool channels_inner;
  InputTile input_tile;
  // kStreamed: an item computes so many output channels, or, of rows of an input channel, the phases of so many channels after
  // the shuffle, over all pixels. Products are summed over row_chunk elements of a row, or so many rows, at a time.
  WeightRow weight_row;
  int64_t parts, part_channels, row_chunk;
  // kMatrix: so many rows of a block are computed before they are stored. Sums of one row are row_pixels apart from those of
  // the next. flat: strips of pixels go from one row to the next.
  // joined_taps: one tile multiplies all channels of a row of taps.
  int64_t chunk_rows, row_pixels;
  bool flat, joined_taps;
  // Estimate for the best tile of each kernel; negative if the kernel cannot compute this.
  double cycles[kConvKernels];
};

ConvPlan plan_conv(const ConvProblem& problem, const Target& target);

InputTile input_tile(const ConvShape& shape, int64_t block_h, int64_t block_w, int lanes,
                     bool channels_inner);
// The same for whole tiles of side x side pixels.
InputTile winograd_input_tile(const ConvShape& shape, int64_t block_h, int64_t block_w, int side, int lanes,
                              bool channels_inner);

// From the first pixel of a packed input tile to that of a channel and tap.
FS_HOST_DEVICE int64_t input_tile_offset(const ConvShape& shape, const InputTile& tile, int64_t channel,
                                         int64_t a, int64_t b) {
  const int64_t column = b * shape.dilation_w;
  return channel * tile.channel_step + a * shape.dilation_h * tile.row_step +
         (column % shape.stride_w * tile.phase_columns + column / shape.stride_w) * tile.column_step;
}

}  // namespace fused_subpixel::cpu
