// SPDX-License-Identifier: BSD-3-Clause
// The tables of a pass that follow from geometry and strides: where each channel lies in its source, its weight and its
// destination. For plan*.cpp only.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv_task.h"

namespace fused_subpixel::cpu {

// The low-resolution channels, sorted within each group so that neighbours in memory are neighbours in the table.
struct OcOrder {
  std::vector<Phase> phase;
  std::vector<int64_t> channel;
};

// The order of a shuffled tensor's channels, used for the destination (forward) and for the source (gradients).
struct ShuffledOc {
  OcOrder order;
  int64_t interleave;  // output channels per interleave group; 0: there are none
  bool channels_last;
};

// Low-resolution rows and columns that only the phases above and left of the crop need, if these phases can start one
// pixel later instead. 0 or 1: the packed input tile has one row and column more for it. A transposed convolution never
// spares more, because its crop stays within the first sub-pixel block. The stride must be 1, because with a stride the
// next pixel is in another place of the packed input tile than one row or column further.
struct SparedPixels {
  int64_t h, w;
};
SparedPixels spared_pixels(const Geometry& g);

// single_phase: the order that ConvPlan::single_phase needs. The channels of a phase are neighbours, or in NCHW r_w apart,
// and the columns of a sub-pixel block that start later follow the others.
OcOrder oc_order(const Geometry& g, bool channels_last, bool single_phase);
ShuffledOc shuffled_oc(const Geometry& g, const Strides& s);
// Output channels per interleave group of a tensor with the strides s; 0: there are none.
int64_t shuffled_interleave(const Geometry& g, const Strides& s, const std::vector<Phase>& phase);
// The same for a tensor that is not shuffled, the gradient of the input.
int64_t plain_interleave(const Strides& s, int64_t per_group);

struct SourceTables {
  std::vector<int64_t> offset;
  std::vector<int32_t> row, col;
};
// The convolution's input.
Source input_source(const Geometry& g, const Strides& s, SourceTables& tables);
// A shuffled tensor, read as the low-resolution channels it came from, in the order of `phases`.
Source shuffled_source(const Geometry& g, const Strides& s, const std::vector<Phase>& phases,
                       int64_t interleave, SourceTables& tables);

struct OcTables {
  std::vector<int64_t> dest, residual, interleave_left, hr_channel, lr_channel;
  std::vector<int32_t> hr_row, hr_col;
  std::vector<uint8_t> first_row, first_col;
  OcTable view() const;
};
// Where the order's channels go in the destination and in the residual of a task, whose plan is known.
OcTables oc_tables(const Geometry& g, const OcOrder& order, const ConvTask& task);
// The same for output that is not shuffled.
OcTables plain_oc_tables(int64_t channels, const ConvTask& task);

Weight::Dense weight_density(const Strides& s, const Geometry& g);
// Element offsets of the taps. flipped: the kernel is rotated by 180 degrees.
std::vector<int64_t> tap_offsets(const Geometry& g, const Strides& s, bool flipped);

}  // namespace fused_subpixel::cpu
