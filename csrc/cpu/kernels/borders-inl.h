// SPDX-License-Identifier: BSD-3-Clause
// Borders of output channels whose weights are not all finite. The packed input tile has zeros outside of the source, and
// an infinite weight times zero is NaN. Here the border pixels of such output channels are computed again, from the products
// whose pixels exist. The code is scalar, because such weights are rare. Included by kernels.cpp only.
#pragma once

#include "cpu/kernels/conv-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct BorderWorker : ConvWorker<T> {
  using Base = ConvWorker<T>;
  using Base::conv, Base::group, Base::L, Base::out, Base::plan, Base::task, Base::tile;
  using typename Base::S;
  explicit BorderWorker(const ConvTask& t) : Base(t) {}

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = blocks_of_group(plan);
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) this->enter_group(item / blocks);
      const Block b = block_of(plan, item % blocks);
      const S* pixels = this->input_of(group, b, false);
      for (int64_t oc = 0; oc < conv.oc; ++oc)
        if (!finite(oc)) redo(b, pixels, oc);
    }
  }

  void redo(const Block& b, const S* pixels, int64_t oc) const {
    const int64_t top = out.table.first_row[oc] - conv.pad_top,
                  left = out.table.first_col[oc] - conv.pad_left;
    for (PixelCursor cursor{b, 1}; cursor.n < b.images;) {
      const PixelVector at = cursor.next(), place = absolute(at, b);
      const int64_t y = place.h * conv.stride_h + top, x = place.w * conv.stride_w + left;
      if (window_exists(y, x)) continue;
      S acc[L] = {};
      each_weight(oc, [&](int64_t c, int64_t a, int64_t tap_w, S weight) {
        if (exists(group * conv.ic + c, y + a * conv.dilation_h, x + tap_w * conv.dilation_w))
          acc[0] +=
              weight *
              pixels[this->input_at(at) + this->input_shift(oc) + input_tile_offset(conv, tile, c, a, tap_w)];
      });
      out.store_planar(acc, L, oc, 1, &place, 1);
    }
  }

  // The weights that an output channel has, as f(channel, tap row, tap column, weight).
  template <class F>
  void each_weight(int64_t oc, F&& f) const {
    const Weight& w = task.weight;
    const int64_t at = group * conv.oc + oc;
    const int missing = w.missing_taps ? w.missing_taps[at] : 0;
    for (int64_t c = 0; c < conv.ic; ++c) {
      const T* from = static_cast<const T*>(w.data) + w.oc_offset[at] + w.ic_offset[group * conv.ic + c];
      for (int64_t a = missing & kLacksFirstRow ? 1 : 0; a < conv.kernel_h; ++a)
        for (int64_t b = missing & kLacksFirstColumn ? 1 : 0; b < conv.kernel_w; ++b)
          f(c, a, b, S(widen(from[w.tap_offset[a * conv.kernel_w + b]])));
    }
  }
  bool finite(int64_t oc) const {
    FiniteCheck<S> check;
    each_weight(oc, [&](int64_t, int64_t, int64_t, S weight) { check(weight); });
    return check.finite();
  }

  bool exists(int64_t channel, int64_t y, int64_t x) const {
    const Source& s = task.source;
    const int64_t hr_y = y * s.row_scale + s.channel_row[channel],
                  hr_x = x * s.col_scale + s.channel_col[channel];
    return hr_y >= 0 && hr_y < s.hr_h && hr_x >= 0 && hr_x < s.hr_w;
  }
  // Do the pixels from (y, x) on exist in all channels?
  bool window_exists(int64_t y, int64_t x) const {
    const int64_t y_end = y + (conv.kernel_h - 1) * conv.dilation_h,
                  x_end = x + (conv.kernel_w - 1) * conv.dilation_w;
    for (int64_t c = group * conv.ic; c < (group + 1) * conv.ic; ++c)
      if (!exists(c, y, x) || !exists(c, y_end, x_end)) return false;
    return true;
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
