// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_in_place.h"

#include "cpu/matrix_tiles.h"

namespace fused_subpixel::cpu {

void read_in_place(DType dtype, const Target& t, ConvTask& task) {
  const Source& source = task.source;
  ConvPlan& plan = task.plan;
  const ConvShape& s = plan.shape;
  const bool plain = plan.channels_inner && !source.output && source.interleave == s.ic &&
                     source.row_scale == 1 && source.col_scale == 1;
  if (is_winograd(plan.kernel)) {
    task.in_place = plain && dtype == DType::kFloat32 && s.ic % t.lanes == 0;
    return;
  }
  const bool matrix = plan.kernel == ConvKernel::kMatrix;
  // Pixels that the first cache puts into the same set: a tile of more than it has ways would have to load them all the time.
  constexpr int64_t kSameSet = 4096, kWays = 8;
  const int64_t pixel_bytes = source.col_stride * element_bytes(dtype);
  const bool collide = pixel_bytes % kSameSet == 0 && plan.tile_pixels > kWays;
  const bool fits = matrix ? s.ic % kTileChannels == 0 && s.ic <= kMatrixChain && plan.block_w == s.lr_w &&
                                 source.row_stride == s.lr_w * source.col_stride &&
                                 s.lr_h * s.lr_w >= kStripPixels
                           : (dtype == DType::kFloat32 || dtype == DType::kFloat64) && !collide;
  task.in_place = plain && fits && s.taps() == 1 && s.stride_h == 1 && s.stride_w == 1 &&
                  s.lr_h + plan.spared_h == source.hr_h && s.lr_w + plan.spared_w == source.hr_w;
  if (!task.in_place) return;
  plan.input_tile.image_step = source.batch_stride;
  plan.input_tile.row_step = source.row_stride;
  plan.input_tile.column_step = source.col_stride;
}

}  // namespace fused_subpixel::cpu
