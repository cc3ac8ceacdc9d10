// SPDX-License-Identifier: BSD-3-Clause
// What the launcher hands to the CUDA kernels, by value: sizes, strides in elements, device pointers. No torch in here.
#pragma once

#include <cstdint>

#include "common/op_arguments.h"
#include "cuda/plan.h"

namespace fused_subpixel::cuda {

struct EpilogueParams {
  const void* bias;   // or null; index bias_c * c + bias_o * convolution channel
  const void* prelu;  // or null; index prelu_c * c + prelu_o * convolution channel
  const void* residual;
  Strides residual_stride;
  int bias_c, bias_o, prelu_c, prelu_o;
  Activation activation;
  ResidualKind residual_kind;
  bool clamped;
  double negative_slope, clamp_min, clamp_max;
  float negative_slope_f, clamp_min_f,
      clamp_max_f;           // a conversion for each value would cost more than its sum
  float floor_f, ceiling_f;  // the clamp, and relu or relu6 with it
};

// Everything of one operator, for the generic kernels.
struct GenericParams {
  Geometry g;
  const void* input;  // forward and weight gradient
  const void* weight;
  const void* grad_output;
  void* output;     // of forward; the input's or the weight's gradient else
  void* grad_bias;  // weight gradient
  Strides input_stride, weight_stride, grad_stride, output_stride;
  PhaseStrides weight_rows;  // forward: of weight, instead of weight_stride.n
  bool weight_flipped;       // forward: its taps, by 180 degrees
  bool channels_last;        // order in which threads walk through the output
  EpilogueParams epilogue;
  SavedOutput saved;  // of the gradients
};

// The place of channel s of a pixel. Channels are counted so that neighbours are neighbours in memory where there are
// any: a plain tensor's as they are, those of a shuffled tensor by phase_of_channel in `order`, which is kDCR -
// (i, j, c) - for channels_last tensors and kCRD for contiguous ones.
struct ShuffledChannels {
  ShuffleSizes<SmallDivisor> sizes;
  ChannelOrder order;       // of the counting
  ChannelOrder call_order;  // of the operator: which convolution channel a phase is
};

// Steps through a [batch, channels, h, w] tensor, plain or shuffled, that is read at low-resolution pixels.
struct PixelStrides {
  int64_t batch, row, col;  // of low-resolution pixels
  int64_t channel, hr_row, hr_col;
};

// Such a tensor.
struct PixelSource {
  const void* data;
  PixelStrides stride;
  ShuffledChannels map;
  int total;  // channels of a low-resolution pixel
  int crop_top, crop_left, hr_h, hr_w;
  bool whole_blocks;  // no crop cuts a sub-pixel block
  int vector;         // elements that can be copied at once
  bool
      by_pixel;  // neighbouring threads take neighbouring pixels (contiguous layout), not neighbouring channels
};

// How a tile of pixels with its halo is read from a source.
struct PixelLoad {
  PixelSource source;
  int batch, stride_h, stride_w, pad_top, pad_left;
  SmallDivisor halo_w, halo_h, halo_pixels;  // halo_pixels: of all images of the tile
};

// Where the elements of a weight are. Steps, in elements: by channels of the convolution, by those of the input, and by taps,
// which may be flipped by 180 degrees.
struct WeightSource {
  const void* data;
  PhaseStrides lr_channel;
  int64_t in_channel, tap_h, tap_w;
  int64_t first_tap;
};

// The packed weight: [block of oc][block of k][tap] and then block_oc x block_k_bytes in the layout of shared memory. kMma:
// [column][block_k_bytes], 16-byte vectors swizzled; kWgmma: [vector][column][16 bytes].
struct PackParams {
  WeightSource weight;
  void* packed;
  int oc, ic, kernel_h, kernel_w;
  int block_oc, blocks;  // blocks: of threads, by (block of oc, k_block, 8 channels, taps)
  Divisor k_blocks, oc_parts, tap_parts, taps;
  bool k_nearer;           // neighbours of k are nearer in the weight than those of oc
  SmallDivisor across[2];  // taps of a row, of those that lack none and of those that lack the first
  ShuffledChannels
      map;  // of the low-resolution channels: the output (forward) or the input channels (input gradient)
  bool map_oc;
  bool whole_vectors;  // see has_whole_vectors; then there are as many blocks as taps, and no oc_parts
  // The last so many phases lack the first row (column) of taps: zeros, never read.
  int kernel_pad_h, kernel_pad_w;
  bool skips_missing_taps;  // a row block is of one phase, and begins with the taps that it has
};

// The taps that the output channels of a block have: all from (first_a, first_b) on.
struct TapRange {
  int first_a, first_b;
  SmallDivisor across;  // taps of a row
  int taps, steps;      // steps: per k_block
};

// The store of vectors, if the plan is vectorised. A tile is staged as the vectors to be stored, by (line, b, a), where a
// line is a row of low-resolution pixels. If pixels have whole vectors of an interleave group, b is a pixel of the line
// and a a vector of the block's output channels; else b is an interleave group and a a vector of its stretch of the line.
struct VectorStoreParams {
  SmallDivisor a, b;                  // how many there are of each
  int step_a, step_b, step_line;      // from a thread's vector to its next one
  int vectors;                        // of a tile
  int line_elements, pixel_elements;  // of the staging area
  SmallDivisor stretch;               // output channels that are staged together
  int stretch_step;                   // elements from one stretch to the next
  int place_a, place_b;               // of a vector in the table of places: place_a * a + place_b * b
  int element_a, element_b;           // in its row of the output, in the same way
  int places, place_columns;          // of the table, and output channels from one to the next
  bool pairs, eights;                 // output channels 2k and 2k + 1 are neighbours; 8k to 8k + 7
};

struct MmaParams {
  PixelLoad load;
  const void* packed;
  WeightSource weight;  // if the plan reads it directly
  void* output;
  // Output channels come in interleave groups, which are contiguous in a high-resolution row: group u is channel u / r_h
  // of the map, high-resolution row u % r_h.
  int64_t out_batch_stride, out_row_stride, out_group_stride;  // high-resolution rows; u / r_h
  int oc, interleave, per_column;  // per_column: elements of one high-resolution column, interleave / r_w
  ShuffledChannels map;            // of the output channels
  int lr_h, lr_w;
  int crop_top, crop_left, out_h, out_w;
  int kernel_w, taps, dilation_h, dilation_w;
  int kernel_pad_h, kernel_pad_w;  // as PackParams have them, where blocks leave taps out
  TapRange
      ranges[4];  // of blocks that lack none; and, where they are of one phase each, see missing_taps_of()
  int tiles;
  EpilogueParams epilogue;
  Plan plan;
  SmallDivisor tile_w, tile_h;
  Divisor tiles_w, tiles_h;
  SmallDivisor store_slots, store_segments, store_groups,
      store_interleave;  // divisors and counts of the store loop
  bool whole_groups;  // every block has whole groups, so that a tile row of a group is one stretch of memory
  VectorStoreParams vectors;
};

struct ShuffleParams {
  const void* input;
  void* output;  // dense, in one of the two layouts
  Strides input_stride;
  int64_t lines, line_length, line_slots;  // rows of the output; elements and 16-byte slots of each
  Divisor slots, channels, rows;           // line_slots; of the output
  ShuffleSizes<Divisor> shuffle;           // its channels: of high resolution
  ChannelOrder order;
  bool channels_last, inverse;
};

constexpr int kLayoutTile = 64;  // pixels, and channels, of a block
// A copy of a [batch, channels, height, width] tensor as [batch, height * width, padded], zeros after its channels.
struct LayoutParams {
  const void* input;
  void* output;
  Strides stride;                       // of input
  int channels, padded, pixels, tiles;  // pixels of an image; tiles of these
  Divisor width;
};

struct WeightGradParams {
  PixelLoad input, gradient;
  float* partial;  // [split][row][channel * taps + tap], and the bias in a last column
  void* grad_weight;
  void* grad_bias;
  ShuffledChannels map;  // of the output channels
  int oc, ic, kernel_h, kernel_w, dilation_h, dilation_w;
  WeightGradPlan plan;
  SmallDivisor tile_w, tile_h;
  Divisor tiles_w, tiles_h;
};

struct UnshuffleReduceParams {
  PixelSource gradient;  // its map's order is that of the weight's rows
  const void* output;    // or null: there is no activation whose gradient is to be applied
  PixelStrides output_stride;
  Activation activation;
  ShuffleSizes<Divisor> shuffle;  // of the map
  void* lr_grad;
  void* partial;    // [split][channel], float or double
  void* grad_bias;  // or null
  int pixels;       // of low resolution, of all images
  Divisor lr_h, lr_w;
  double negative_slope;
  float negative_slope_f;
  UnshuffleReducePlan plan;
  Divisor vector_blocks, block_vectors, block_pixels;
};

}  // namespace fused_subpixel::cuda
