// SPDX-License-Identifier: BSD-3-Clause
// Problem -> kernel, tile and blocks: pure host functions, testable without the hardware they plan for.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace fused_subpixel {

// ---- CPU ---------------------------------------------------------------------------------------------------------
enum class CpuKernel : int32_t {
  kPixelLanes,    // neighbouring pixels in the vector lanes: few output channels
  kChannelLanes,  // output channels in the vector lanes: wide layers, small images
  kWinograd,      // 3x3 in float arithmetic: pixel lanes over transformed tiles of 2x2 pixels
};

// Tile heights of the pixel-lane kernels, and how many pixel vectors go with each: sums + pixels + one broadcast
// must fit the register file.
constexpr int kTileRows[] = {1, 2, 3, 4, 5, 6, 8, 9, 12};
constexpr int pixel_vectors(int rows, int registers) {
  const int v = (registers - 1) / (rows + 1);
  return v < 1 ? 1 : v > 8 ? 8 : v;
}
// Weight-gradient tile: columns per tile, no broadcast needed but T gradient vectors pass through one register.
constexpr int gradient_columns(int rows, int registers) {
  const int v = pixel_vectors(rows, registers);
  return v > 4 ? 4 : v;  // more column pointers than that spill
}
// Channel-lane tile: the most pixels for a number of row vectors.
constexpr int channel_pixels(int vectors, int registers) {
  const int p = (registers - vectors - 1) / vectors;
  return p < 1 ? 1 : p > 14 ? 14 : p;
}

// The most turns, and, of channel lanes, the most vectors of rows in a panel whose tiles take turns.
constexpr int kMostTurnVectors = 8;

struct CpuTarget {
  int lanes;      // of the arithmetic type
  int registers;  // vector registers
  int64_t l2_bytes;
  int threads;
  int element_bytes;  // of the arithmetic type
};

// What the plan needs to know of a problem; see Window and Destination in cpu/conv_task.h.
struct CpuProblem {
  int64_t batch, groups, channels, rows;  // channels, rows: of one group
  int64_t lr_h, lr_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t run;      // rows that interleave into one contiguous run of the output; 0: none
  bool rows_dense;  // neighbouring rows are neighbours in memory (channels_last output)
  // What a kernel saves whose tiles hold one phase each. Where a crop takes a pixel off some phases only, it can do with
  // that many rows and columns of pixels less; and where some phases lack taps, with the taps of an average phase.
  int64_t late_h, late_w;
  double phase_taps;
  // Rows of a phase, which follow one another, or whose neighbours lie phase_turns apart; 0: phases mix.
  int64_t phase_rows, phase_turns;
  bool source_dense;   // neighbouring channels of the source are neighbours in memory (channels_last input)
  bool source_planes;  // its planes may be packed with channels as neighbours all the same
  bool direct;         // every product is one of a pixel and a weight: no Winograd
};

// A block is block_n images x block_h rows x block_w columns of low-resolution output, computed from one
// zero-padded strip of its input. Work items are (block, group) pairs.
struct CpuPlan {
  CpuKernel kernel;
  int tile_rows;    // rows per register tile (kChannelLanes: row vectors * lanes)
  int tile_pixels;  // vectors of pixels (kWinograd: of tiles); kChannelLanes: the most pixels
  bool phased;      // each tile holds one phase: the problem's late_h, late_w and phase_taps apply
  // Row tiles that are stored together. turns > 1: so many, which take neighbouring rows in turns, for phases alternate;
  // else they follow one another.
  int panel_tiles, turns;
  int64_t panels, panel_elements;  // of one group's filter; of the packed filter of a panel
  int64_t block_n, block_h, block_w;
  int64_t blocks_n, blocks_h, blocks_w;
  int64_t items;
  bool filter_resident;  // every thread packs a group's filter for itself, into its share of the cache
  bool parallel;         // false: so small that waking threads costs more than it saves
  bool channels_inner;   // the strip's channels are neighbours, else its columns are
};

CpuPlan plan_cpu_conv(const CpuProblem& problem, const CpuTarget& target);
CpuPlan plan_cpu_weight_grad(const CpuProblem& problem, const CpuTarget& target);

// Strip geometry shared by plan and packer: columns are split by stride phase, so that a tile always reads
// neighbouring pixels. Pixel lanes want columns side by side, rounded up for whole vectors; channel lanes are content
// with either, and where channels are neighbours in the source, packing them so is a plain copy.
struct StripShape {
  int64_t rows, phases, phase_columns, row_step, column_step, channel_step, image_step;  // steps in elements
};
StripShape strip_shape(const CpuProblem& problem, int64_t block_h, int64_t block_w, int lanes,
                       bool channels_inner);
// The same for whole 2x2 tiles.
StripShape winograd_strip(const CpuProblem& problem, int64_t block_h, int64_t block_w, int lanes);

}  // namespace fused_subpixel
