// SPDX-License-Identifier: BSD-3-Clause
// How a plan cuts its output into blocks. For plan*.cpp only.
#pragma once

#include "cpu/plan.h"

namespace fused_subpixel::cpu {

constexpr int64_t kWeightsShareOfL2 = 8;
// Products that are summed in one chain of additions.
constexpr int64_t kMaxChain = 256;
// Cycles of kWinogradRow to transform one vector of tiles of one input channel, by the pixels of a tile.
constexpr double winograd_row_input(int outputs) { return outputs == 2 ? 22 : 36; }
// The same to load and store a vector of accumulators that the next K block adds to.
constexpr double kAccumulate = 1;
// At which weights come from beyond the L2 cache.
constexpr double kBytesPerCycle = 8;

// Multiply-adds below which one thread is faster than waking the others (about 20 us of work).
constexpr double kParallelMinimum = 1e6;

double multiply_adds(const ConvShape& shape);

// Cycles of one k (channel, tap) of a register tile: two multiply-adds and two loads per cycle, unaligned vectors count
// twice, and fewer than eight accumulators wait for one another. Loads that hide behind multiply-adds cost a little all the
// same: a broadcast, and a vector of weights or of other pixels. (Measured on AVX-512 with tiles of as many accumulators
// each.)
constexpr double kHiddenBroadcast = 0.05, kHiddenWeights = 0.1;
inline double k_cycles(int64_t acc, int64_t broadcasts, int64_t vectors, double hidden_vector) {
  const int64_t loads = broadcasts + 2 * vectors, slots = acc > loads ? acc : loads;
  return static_cast<double>(slots > 8 ? slots : 8) / 2 + kHiddenBroadcast * static_cast<double>(broadcasts) +
         hidden_vector * static_cast<double>(vectors);
}

// The same of a register tile of the OC-vectorised microkernel. One vector of weights is multiplied by pixels that are operands
// in memory, without an instruction to load them. Where a multiply-add takes a whole cycle there is time for that, and with fewer
// instructions a processor looks further ahead. (Measured on Zen 4: up to 12 % less time where pixels come from the L3 cache.)
inline double oc_k_cycles(int64_t pixels, int64_t vectors, const Target& target) {
  if (target.half_rate && vectors == 1) return k_cycles(pixels, 0, 1, kHiddenWeights);
  return k_cycles(pixels * vectors, pixels, vectors, kHiddenWeights);
}

// A product of two matrix tiles of so many pairs, in the same cycles. (Measured on a processor with AMX; and on one of AMD's with
// AVX512-BF16, which multiplies a vector of pairs in the time of a vector of float32. Assumed for the shorter vectors of NEON.)
inline double tile_cycles(const Target& target, double pairs) {
  constexpr double kRegisters = 20, kLanesOfPair = 8.4 * 16;
  return target.matrix_tiles == MatrixTiles::kRegisters ? kRegisters : kLanesOfPair / target.lanes * pairs;
}

// The time of `vectors` vectors of tiles in register tiles of tile_vectors, in that of one vector. Those that fill no
// register tile go to another one, which waits more for its loads.
inline double covered_vectors(int64_t vectors, int64_t tile_vectors) {
  constexpr double kRest = 0.2;
  return static_cast<double>(vectors) + (vectors % tile_vectors == 0 ? 0 : kRest);
}

// Sets the blocks and the packed input tile of a plan whose kernel, tile and panels are known. extra_elements_per_pixel:
// what a block keeps in the cache for each of its pixels besides the packed input tile.
void choose_blocks(const ConvShape& shape, const Target& target, int64_t extra_elements_per_pixel,
                   ConvPlan& plan);
void choose_matrix_blocks(const ConvShape& shape, const Target& target, int64_t extra_elements_per_pixel,
                          ConvPlan& plan);
void choose_winograd_blocks(const ConvShape& shape, bool planar_input, const Target& target, ConvPlan& plan);
void choose_winograd_row_blocks(const ConvShape& shape, const Target& target, ConvPlan& plan);

// What a block of so many pixels takes for kWinogradRow, in elements; the plan's tile, panels and passes are known.
struct WinogradRowBlock {
  int64_t vectors;      // of tiles, in a row
  int64_t stream_step;  // from one stream of a transformed row to the next
  int64_t channels;     // of a K block
  int64_t streams;      // of all rows of a K block
  int64_t acc_step;     // from the accumulators of one position to those of the next
  int64_t acc;          // of all output channels of a pass
};
constexpr int64_t kMostRowPasses = 4;
// Vectors of tiles of a block, at most, so that the accumulators of so many output channels stay in the cache.
int64_t winograd_row_vectors(int64_t oc, int positions, const Target& target);
WinogradRowBlock winograd_row_block(const ConvShape& shape, int64_t height, int64_t width,
                                    const ConvPlan& plan, const Target& target);

// Tiles of side x side pixels are counted in units: vectors of them, or single ones if the lanes are channels. A register tile has
// so many units.
struct WinogradTiles {
  int side;
  int64_t unit, of_register_tile;
};
inline WinogradTiles winograd_tiles(ConvKernel kernel, bool channels_inner, int64_t tile_pixels,
                                    const Target& t) {
  return {winograd_side(kernel), channels_inner ? 1 : t.lanes, tile_pixels};
}

// Blocks of kWinograd and kWinograd4, whose tiles have side x side pixels. Usually a block stays in the L2 cache,
// transformed, with one panel of weights and its accumulators. In wide layers that is less than two register tiles. There it
// passes through the cache position by position.
bool winograd_wide(int64_t ic, const WinogradTiles& tiles, const Target& target);
// Output channels of a panel of transformed weights, at most.
int64_t winograd_panel_oc(int64_t ic, int side, bool wide, const Target& target);
// Units of a block, at most, of each scheme but kPasses.
int64_t winograd_most_units(WinogradScheme scheme, const ConvShape& shape, int64_t panel_oc,
                            const WinogradTiles& tiles, const Target& target);

// How an image of few tiles is computed as one block by WinogradScheme::kPasses; 0 passes: it has too many tiles for that.
struct WinogradPasses {
  int64_t passes, pass_panels, k_channels;
};
WinogradPasses winograd_passes(const ConvShape& shape, int side, int64_t panel_oc, const Target& target);

}  // namespace fused_subpixel::cpu
