// SPDX-License-Identifier: BSD-3-Clause
// The geometry of one sub-pixel convolution, and of each phase of it.
#pragma once

#include <cstdint>

#include "common/pixel_shuffle.h"
#include "common/scalar.h"

namespace fused_subpixel {

// One sub-pixel convolution. Low-resolution convolution output: [batch, channels * r_h * r_w, lr_h, lr_w];
// shuffled: [batch, channels, lr_h * r_h, lr_w * r_w]; the output is the window of it that starts at
// (crop_top, crop_left) and has out_h x out_w pixels.
struct Geometry {
  int64_t batch, in_channels, in_h, in_w;
  int64_t channels;
  int64_t kernel_h, kernel_w;
  int64_t r_h, r_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left, pad_bottom, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;
  int64_t lr_h, lr_w;
  int64_t crop_top, crop_left, out_h, out_w;
  // Kernel padding: rows and columns of zeros that extend a transposed convolution's kernel to a multiple of its stride
  // r_h x r_w. The last so many phases lack the first row, or column, of taps, which is not read.
  int64_t kernel_pad_h, kernel_pad_w;
  ChannelOrder order;
  bool tf32;  // float32 may be computed as tf32 on GPUs, or with no larger error on CPUs

  FS_HOST_DEVICE int64_t phases() const { return r_h * r_w; }
  FS_HOST_DEVICE int64_t lr_channels() const { return channels * phases(); }
  FS_HOST_DEVICE ShuffleSizes<PlainDivisor<int64_t>> shuffle() const {
    return shuffle_sizes(channels, r_h, r_w);
  }
};

// The taps that phase (i, j) lacks because of the kernel padding: bit 0 for the first column, bit 1 for the first row.
constexpr int kLacksFirstColumn = 1, kLacksFirstRow = 2;
template <class Int>
FS_HOST_DEVICE int missing_taps(const PhaseOf<Int>& p, Int r_h, Int r_w, Int kernel_pad_h, Int kernel_pad_w) {
  return (p.j >= r_w - kernel_pad_w ? kLacksFirstColumn : 0) +
         (p.i >= r_h - kernel_pad_h ? kLacksFirstRow : 0);
}
inline int missing_taps(const Phase& p, const Geometry& g) {
  return missing_taps(p, g.r_h, g.r_w, g.kernel_pad_h, g.kernel_pad_w);
}
// Is a tap of those, by the number of taps in a row?
FS_HOST_DEVICE bool lacks_tap(int missing, int64_t tap, int64_t columns) {
  return ((missing & kLacksFirstColumn) && tap % columns == 0) ||
         ((missing & kLacksFirstRow) && tap < columns);
}

// One axis of the phases: what the crop and the kernel padding leave of the low-resolution grid and of the kernel.
struct PhaseAxis {
  int64_t r;       // phases
  int64_t crop;    // high-resolution pixels that the crop takes off the beginning
  int64_t lr;      // low-resolution pixels of the uncropped output
  int64_t pixels;  // the most that one phase stores: ceil(out / r)
  int64_t taps;    // of the padded kernel
  int64_t padded;  // phases that lack the first tap

  // If the crop stays within the first sub-pixel block, phases before it start one pixel later than the others, and
  // `pixels` low-resolution pixels suffice for each phase.
  bool starts_in_first_block() const { return crop < r && pixels > 0; }
  int64_t first_pixel(int64_t phase) const { return starts_in_first_block() && phase < crop ? 1 : 0; }
  int64_t spared_pixels() const { return starts_in_first_block() ? lr - pixels : 0; }
  double mean_taps() const {
    return static_cast<double>(taps) - static_cast<double>(padded) / static_cast<double>(r);
  }
};

struct PhaseGeometry {
  PhaseAxis h, w;
  explicit PhaseGeometry(const Geometry& g)
      : h{g.r_h, g.crop_top, g.lr_h, ceil_div(g.out_h, g.r_h), g.kernel_h, g.kernel_pad_h},
        w{g.r_w, g.crop_left, g.lr_w, ceil_div(g.out_w, g.r_w), g.kernel_w, g.kernel_pad_w} {}
};

}  // namespace fused_subpixel
