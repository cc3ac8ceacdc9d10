// SPDX-License-Identifier: BSD-3-Clause
// Blocks and their pixels. Included by kernels.cpp and matrix.cpp only.
#pragma once

#include "cpu/conv_task.h"
#include "cpu/kernels/simd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

struct Block {
  int64_t n, images, h, height, w, width;
};

template <class Plan>
FS_INLINE int64_t blocks_of_group(const Plan& plan) {
  return plan.blocks_n * plan.blocks_h * plan.blocks_w;
}

// Blocks follow one another downwards, so that a packed input tile keeps the rows that it shares with the one before.
template <class Plan>
FS_INLINE Block block_of(const Plan& plan, int64_t index) {
  const ConvShape& conv = plan.shape;
  Block b;
  b.h = index % plan.blocks_h * plan.block_h;
  index /= plan.blocks_h;
  b.w = index % plan.blocks_w * plan.block_w;
  index /= plan.blocks_w;
  b.n = index * plan.block_n;
  b.width = smaller(plan.block_w, conv.lr_w - b.w);
  b.height = smaller(plan.block_h, conv.lr_h - b.h);
  b.images = smaller(plan.block_n, conv.batch - b.n);
  return b;
}

// Walks the vectors of pixels of a block: w fastest, then h, then image.
struct PixelCursor {
  const Block& block;
  int lanes;
  int64_t n = 0, h = 0, w = 0;
  PixelVector next() {
    PixelVector p{n, h, w, static_cast<int>(smaller<int64_t>(lanes, block.width - w))};
    w += lanes;
    if (w >= block.width) {
      w = 0;
      ++h;
    }
    if (h >= block.height) {
      h = 0;
      ++n;
    }
    return p;
  }
};

// Pixels that are counted from a block's first pixel, counted from the image's.
FS_INLINE PixelVector absolute(PixelVector p, const Block& b) {
  p.n += b.n;
  p.h += b.h;
  p.w += b.w;
  return p;
}

}  // namespace fused_subpixel::cpu::FS_ISA
