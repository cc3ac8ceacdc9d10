// SPDX-License-Identifier: BSD-3-Clause
// Rows of weights that kStreamed can read where they lie. For plan*.cpp only.
#pragma once

#include <vector>

#include "cpu/plan_pass.h"

namespace fused_subpixel::cpu {

struct WeightRows {
  WeightRow kind = WeightRow::kNone;
  int64_t first = 0,
          length =
              0;  // as in StreamedRows; elements that meet nothing but padding at either end do not count
  int64_t channels = 0, channel_step = 0;
  int64_t step = 0;                     // kOfInput: from one input channel's row to the next
  std::vector<int64_t> read_h, read_w;  // rows and columns of the input that some output depends on
};

// The source and the offsets of the pass are known, in its order of output channels. channel: the channel after the shuffle of
// each of them.
WeightRows weight_rows(const ConvShape& shape, const ConvPass& pass, const std::vector<int64_t>& channel);

// Sets the task's tables of rows, and the scratch of a worker.
void set_streamed(const Target& target, const WeightRows& rows, ConvPass& pass);

}  // namespace fused_subpixel::cpu
