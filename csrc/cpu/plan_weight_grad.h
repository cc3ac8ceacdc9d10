// SPDX-License-Identifier: BSD-3-Clause
// How the weight gradient is computed: products of the gradient of one pixel with the input pixels that its taps read, summed
// over all pixels. The kernels include this file, so it names nothing of std:: that could be instantiated there.
#pragma once

#include "cpu/plan.h"

namespace fused_subpixel::cpu {

// The channels of one of the two factors, the gradient or the input, lie in the vector lanes of a register tile; those of
// the other, its columns, are broadcast. Input channels of neighbouring taps are neighbours too, if merged_taps.
struct WeightGradPlan {
  ConvShape shape;
  // 3x3 in float arithmetic by Winograd's F(3x3, 2x2): 16 products for 2x2 pixels of the gradient instead of 36. 2x2 by
  // F(2x2, 2x2): 9 instead of 16
  bool winograd;
  bool matrix;  // in tile registers, see kernels/weight_grad_matrix-inl.h
  bool input_in_lanes;
  bool merged_taps;
  int tile_vectors;  // of lanes of a register tile, at most
  int tile_columns;  // that go with so many vectors, at most
  // An item sums over one slot's share of the blocks of pixels, for block_oc output and block_ic input channels of a group.
  int64_t block_oc, block_ic, blocks_oc, blocks_ic;
  int64_t block_n, block_h, block_w;  // pixels that are packed together
  int64_t blocks_n, blocks_h, blocks_w;
  int64_t tiles;  // pixels of a block, of winograd tiles of 2x2 pixels
  int64_t chain;  // so many of them are summed in registers
  int64_t slots;  // each has sums of its own, which are added in order
  int64_t items;
  bool parallel;                        // false: so small that waking threads costs more than it saves
  InputTile input_tile, gradient_tile;  // of block_ic and block_oc channels, which are neighbours
  int64_t row_pixels;  // matrix: from one row to the next; flat: tiles go from one to the next
  bool flat;
  // Estimates for all threads together, of the best way of each kind; negative if it cannot be used.
  double winograd_cycles, direct_cycles, matrix_cycles;

  FS_HOST_DEVICE int64_t pairs() const { return shape.groups * blocks_oc * blocks_ic; }
  FS_HOST_DEVICE int64_t blocks() const { return blocks_n * blocks_h * blocks_w; }
  FS_HOST_DEVICE int64_t positions() const { return (shape.kernel_h + 1) * (shape.kernel_w + 1); }
  // Of the products of one item: those of a position, or of a tap or row of taps.
  FS_HOST_DEVICE int64_t segments() const {
    return winograd ? positions() : merged_taps ? shape.kernel_h : shape.taps();
  }
  // Columns or lanes that a segment has of so many input channels.
  FS_HOST_DEVICE int64_t of_input(int64_t channels) const {
    return merged_taps ? channels * shape.kernel_w : channels;
  }
};

// The gradient as the input of a convolution of one tap.
ConvShape gradient_shape(ConvShape shape);

struct WeightGradProblem {
  ConvShape shape;
  bool planar_input, planar_gradient;  // channels are not neighbours in memory
  bool
      no_winograd;  // something is not finite: nothing may be added before it is multiplied, nor multiplied by zeros
};
WeightGradPlan plan_weight_grad(const WeightGradProblem& problem, const Target& target);

inline double estimate(const WeightGradPlan& plan) {
  return plan.winograd ? plan.winograd_cycles : plan.matrix ? plan.matrix_cycles : plan.direct_cycles;
}

// Elements from one transformed tile to the next: whole vectors, an odd number if they are many, so that neighbours fall into
// different cache sets.
FS_HOST_DEVICE int64_t winograd_pixel_step(int64_t channels, int64_t lanes) {
  const int64_t vectors = ceil_div(channels, lanes);
  return (vectors <= 4 ? vectors : vectors | 1) * lanes;
}

// `count` in as few parts of at most `most` as possible, of nearly the same size: where part `part` begins.
FS_HOST_DEVICE int64_t even_parts(int64_t count, int64_t most) { return ceil_div(count, most); }
FS_HOST_DEVICE int64_t even_part(int64_t count, int64_t parts, int64_t part) { return count * part / parts; }

}  // namespace fused_subpixel::cpu
