// SPDX-License-Identifier: BSD-3-Clause
// Problem -> CUDA kernel, tile and shared memory: pure host functions, testable without a GPU.
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "common/op_arguments.h"

namespace fused_subpixel::cuda {

enum class Kernel : int32_t {
  kGeneric,  // one thread per result: everything
  kMma,      // implicit GEMM on the tensor cores (mma.sync), sm_80 and up
  kWgmma,    // the same on Hopper's (wgmma), wide layers
};

// Why the tensor cores do not compute a problem.
enum class Refusal : int32_t {
  kNone,
  kOldGpu,            // compute capability below 8.0
  kFloat64,           // summed in float64, which these kernels cannot
  kExactFloat32,      // torch's settings do not allow tf32
  kGroups,            // more than one
  kManyChannels,      // more, or a larger filter, than the kernels count
  kLargeTile,         // what one tile reads does not fit into shared memory
  kStridedInputGrad,  // the input gradient of a strided convolution is no convolution of the gradient
  kLargeGradient,     // an activation's is to be applied, to more than unshuffle_reduce counts
};

// How a tile is staged in shared memory before it is stored. As float32, for any epilogue and alignment; or finished, as the
// 16-byte vectors of the output, row by row of the tile or pixel by pixel. Then all loads are of whole vectors too, and
// the kernel has no code for anything else.
enum class Staging : int32_t { kFloats, kTileRows, kPixels };

struct Target {
  int sm;  // compute capability, 80 for 8.0
  int multiprocessors;
  int64_t shared_bytes;  // that a block may have at most
};

// A convolution as the kernels see it, forward or input gradient: `oc` outputs for each low-resolution pixel, summed
// over `channels` and taps.
struct Problem {
  DType dtype;
  int64_t batch, ic, oc, groups;
  int64_t lr_h, lr_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t interleave;  // output channels that are contiguous in one high-resolution row
  bool tf32;           // float32 may be computed as tf32
  int vector;          // neighbouring channels of a pixel that can be copied at once
  bool wgmma;          // Hopper's kernels were compiled
  bool
      whole_vectors;  // the output takes whole 16-byte vectors, with no epilogue that needs float32: see problem.h
  bool
      weight_vectors;  // the weight can be copied from where it is in whole 16-byte vectors of input channels
  int64_t image_step, row_step, col_step;  // of the input, in elements
  bool whole_blocks;                       // of the input: a crop cuts no sub-pixel block
  // If output channels are sorted by phase, phase_oc to each, single-phase tiles may do with less: low-resolution
  // pixels that suffice if the phases that the crop takes off the first row or column begin a pixel later; and taps, where
  // phases lack the first row or column of them: the fewest of a phase, and what share of them all an average one has.
  // Else phase_oc is 0.
  int64_t phase_oc, phase_h, phase_w, least_taps;
  double mean_taps_share;
};

// mma.sync tile: kMmaPixels pixels (M) by block_oc output channels (N).
constexpr int kMmaPixels = 128;
// Of the store of elements: floats between rows of the staging area, so that rows start in different banks; and what it
// must know of each output channel. Of the store of vectors: what it must know of each output channel, and of each row of
// low-resolution pixels of the tile.
constexpr int kStagingPad = 8, kOcInfoBytes = 24, kOcPlaceBytes = 32, kLineBytes = 16;
// Of the table of a tile's pixels.
constexpr int kPixelTableEntry = 4;
// The tile shapes that are compiled, for the planner and for the launch.
using MmaBlockOc = IntList<16, 32, 48, 64, 128>;
using MmaBlockKBytes = IntList<32, 64>;
using WgmmaBlockKBytes = IntList<64, 128>;
using WeightGradTaps = IntList<1, 4, 9>;  // for which a block computes sums
constexpr int kUnpackedBlockOc = 64;      // wider tiles leave no registers to read the weight where it is
constexpr int kUnpairedBlockOc =
    32;  // wider tiles stage vectors only of channels that are neighbours two by two
// wgmma tile: as many pixels, 16 x 8 of one image or 8 x 8 of two, by one number of columns. Eight pixels of a row are
// what the hardware reads at once.
constexpr int kWgmmaBlockOc = 128, kWgmmaTileWidth = 8, kWgmmaStages = 4;
// Output channels that a block of the kernel that packs the weight takes, of one block of k, and how many taps at most:
// those of 3x3.
constexpr int kPackOc = 8, kPackTaps = 9;

struct Plan {
  Kernel kernel;
  Refusal refusal;
  int block_oc;       // of a block's tile
  int block_k_bytes;  // of a pixel's channels that are in shared memory at a time, 32 or 64; kWgmma: 64 or 128
  int k_blocks;
  int tile_n, tile_h, tile_w;  // images x rows x columns of pixels
  int tiles_n, tiles_h, tiles_w;
  int halo_h, halo_w;
  bool single_phase;  // tiles are of one phase each, see Problem
  Staging staging;
  bool lists_pixels;  // a tile's are found once, by a table in shared memory
  bool resident;      // the whole filter of a row block stays in shared memory, blocks go from tile to tile
  bool packs_weight;  // first; else a resident filter is read from the weight itself
  int step_taps;      // taps whose weights come at a time
  int steps;          // per k_block
  int stages, pixel_stages;  // ring buffers of filter steps and of pixel k_blocks
  int grid_x, grid_y;
  int threads;
  int64_t pixel_stage_bytes, filter_step_bytes, shared_bytes;
  // In shared memory; pixels are at 0. table_offset: the store's tables.
  int64_t filter_offset, staging_offset, pixel_table_offset, table_offset;
  int64_t packed_bytes;    // of the packed filter, in global memory; 0 without one
  int pixel_plane;         // in shared memory: pixels from one vector of channels to the next, with padding
  int64_t barrier_offset;  // kWgmma: in shared memory
  bool vectorised() const { return staging != Staging::kFloats; }
};

const char* words_of(Refusal refusal);

// What can be told without a tile.
Refusal refusal_of(const Problem& problem, const Target& target);
Plan plan_conv(const Problem& problem, const Target& target);

// Weight gradient: output channels by (input channel, tap), summed over pixels that are shared among blocks.
constexpr int kGradWarps = 4, kGradWarpOc = 16, kGradWarpIc = 32;
// Pixels of a tile: what fits into shared memory of all GPUs. For tf32, so many bytes of padding are between pixels.
constexpr int grad_pixels(int64_t element_bytes) { return kMmaPixels * 2 / static_cast<int>(element_bytes); }
constexpr int grad_padding(int64_t element_bytes) { return element_bytes == 4 ? 32 : 0; }

struct WeightGradPlan {
  Kernel kernel;
  Refusal refusal;
  int tile_n, tile_h, tile_w;  // images x rows x columns of pixels
  int tiles_n, tiles_h, tiles_w;
  int halo_h, halo_w;
  int oc_warps;  // warps along output channels; the other kGradWarps / oc_warps are along input channels
  int taps;      // of a block: 1, 4 or 9
  int oc_blocks, ic_blocks, tap_blocks;
  int splits;  // of the pixels; each has sums of its own
  int64_t gradient_block_bytes, input_block_bytes, stage_bytes, table_offset, shared_bytes;
  int64_t partial_bytes;  // of the sums, in global memory
};
WeightGradPlan plan_weight_grad(const Problem& problem, const Target& target);

// Unshuffle and bias sums. A vector is 16 bytes of a low-resolution pixel's channels. A block takes block_vectors of them
// and goes over tiles of block_pixels pixels. A thread makes one vector of one pixel at a time.
constexpr int kUnshuffleThreads = 256;
struct UnshuffleReducePlan {
  // Neighbouring threads read neighbouring pixels, and vectors cross shared memory before they are stored. Else
  // neighbouring threads take neighbouring vectors.
  bool by_pixel;
  int vectors;  // of a pixel, with the padding
  int block_vectors, vector_blocks;
  int block_pixels;    // a power of two
  int tiles, splits;   // of the pixels; each split has bias sums of its own
  int threads, pitch;  // pitch: vectors from one pixel to the next in shared memory
  int64_t stage_bytes, sums_offset, shared_bytes;
  int64_t partial_bytes;  // of the bias sums, in global memory
};
UnshuffleReducePlan plan_unshuffle_reduce(DType dtype, int64_t lr_channels, int64_t pixels, bool by_pixel,
                                          const Target& target);

}  // namespace fused_subpixel::cuda
