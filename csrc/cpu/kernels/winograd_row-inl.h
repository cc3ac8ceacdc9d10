// SPDX-License-Identifier: BSD-3-Clause
// Convolutions with kernels two or more taps wide by Winograd's F(2, 3) and F(2, 2) along the rows: at most 3/4, for long
// rows 2/3 of the multiplications of a direct sum. cpu/winograd_row.h has the algorithm. The packed input tile, the
// OW-vectorised microkernel and the shuffled store are those of the direct kernels. Included by kernels.cpp only.
//
// Lanes are pairs of output pixels in a row, vectors are counted through the rows. Per block,
//   transformed  [channels of a K block][rows][8][pairs and halo]  the packed input tile as streams
//   weights      [4][ic][kernel_h][products][panel_oc]             transformed taps, for each panel
//   acc          [oc][4][vectors]                                  products, summed over K blocks
// With integer data every step is exact, as in the direct kernels, because the halves are powers of two.
#pragma once

#include "cpu/kernels/winograd_base-inl.h"
#include "cpu/winograd_row.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct WinogradRowWorker : WinogradBase<T, WinogradRowWorker<T>> {
  using Base = WinogradBase<T, WinogradRowWorker<T>>;
  using Base::acc, Base::conv, Base::group, Base::ic, Base::input, Base::L, Base::out, Base::packed,
      Base::panel_oc, Base::panels, Base::planar, Base::plan, Base::task, Base::tile, Base::transformed;
  using typename Base::S;
  static constexpr int kStored = Store<T>::kMaxStoredVectors;
  RowTaps taps;
  unsigned used = 0;  // streams, a bit each
  int64_t row_step, stream_step, position_step, planar_step;

  explicit WinogradRowWorker(const ConvTask& t) : Base(t), taps(row_taps(conv.kernel_w)) {
    row_step = task.winograd_channel_step / tile.rows;
    stream_step = row_step / kRowStreams;
    position_step = task.k_blocks[0].blocks[0].offsets.acc_step / kRowPositions;
    planar_step = task.scratch.winograd_planar / (panel_oc + 2);
    for (int position = 0; position < kRowPositions; ++position)
      for (int64_t q = 0; q < taps.products(position); ++q)
        used |= 1u << row_stream(row_factor(taps, position, q));
  }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = blocks_of_group(plan);
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) this->enter_group(item / blocks);
      const Block b = block_of(plan, item % blocks);
      const bool follows = item > begin && b.h > 0;
      pack_input<T>(task.source, conv, tile, group, b, kept_rows(tile, conv, follows ? plan.block_h : 0),
                    input, this->packing);
      const int64_t across = ceil_div(row_pairs(b.width, conv.dilation_w), int64_t{L});
      const int64_t k_blocks = task.k_blocks[0].count;
      for (int64_t k = 0; k < k_blocks; ++k) {
        transform_input(b, task.k_blocks[0].blocks[k], across);
        for (int64_t oc = 0, panel = 0; oc < conv.oc; oc += panel_oc, ++panel) {
          if (k + 1 == k_blocks)
            for (int64_t h = 0; h < b.height; ++h)
              out.fetch(oc, smaller(panel_oc, conv.oc - oc), out.at(absolute({0, h, 0, 0}, b)), b.width);
          for (int position = 0; position < kRowPositions; ++position)
            multiply(panels + panel * plan.panel_elements, task.k_blocks[position].blocks[k], position, oc,
                     across, b.height * across);
        }
      }
      for (int64_t oc = 0; oc < conv.oc; oc += panel_oc) transform_output(b, oc, across);
    }
  }

  // A ragged last vector of output channels reaches into the next product, which is written later, or into the slack. So the
  // positions are written in the order of memory.
  void pack_panel(int64_t g, int64_t panel, S* to) const {
    const int64_t R = panel_oc, W = conv.kernel_w;
    this->pack_taps(g, 0, ic, panel * panel_oc, panel_oc, panel_oc);
    const Vec<S> half = splat<S>(S(0.5));
    for (int position = 0; position < kRowPositions; ++position) {
      for (int64_t row = 0; row < ic * conv.kernel_h; ++row) {
        for (int64_t q = 0; q < taps.products(position); ++q) {
          const S* g0 = packed + (row * W + taps.first(q)) * R;
          const S *g1 = g0 + R, *g2 = g1 + R;
          for (int64_t t = 0; t < R; t += L, g0 += L, g1 += L, g2 += L) {
            Vec<S> v;
            if (q < taps.threes) {
              v = position == 0   ? load<S>(g0)
                  : position == 1 ? half * (load<S>(g0) + load<S>(g2)) + half * load<S>(g1)
                  : position == 2 ? half * (load<S>(g0) + load<S>(g2)) - half * load<S>(g1)
                                  : load<S>(g2);
            } else {
              v = position == 0 ? -load<S>(g0) : position == 1 ? load<S>(g0) + load<S>(g1) : -load<S>(g1);
            }
            store<S>(to + t, v);
          }
          to += R;
        }
      }
    }
  }

  // ---- input ---------------------------------------------------------------------------------------------------

  void transform_input(const Block& b, const KBlock& k, int64_t across) {
    const int64_t d = conv.dilation_w, channels = k.offsets.count / (conv.kernel_h * taps.products(0));
    const int64_t rows = (b.height - 1) * conv.stride_h + (conv.kernel_h - 1) * conv.dilation_h + 1;
    const int64_t n = row_stream_elements(across, L, conv.kernel_w, d);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < rows; ++y) {
        const S* from = input + k.input + c * tile.channel_step + y * tile.row_step;
        S* to = transformed + c * task.winograd_channel_step + y * row_step;
        if (d == 1) {
          for (int64_t p = 0; p < n; p += L) {
            Vec<S> x0 = load<S>(from + 2 * p), x1 = load<S>(from + 2 * p + L);
            Vec<S> x2 = load<S>(from + 2 * p + 2), x3 = load<S>(from + 2 * p + L + 2);
            unzip2<S>(x0, x1, Lanes<S>{});
            unzip2<S>(x2, x3, Lanes<S>{});
            store_factors(x0, x1, x2, x3, to + p);
          }
        } else {
          deinterleave_row(from, n + d, to);
          for (int64_t p = 0; p < n; p += L)
            store_factors(load<S>(to + p), load<S>(to + stream_step + p), load<S>(to + p + d),
                          load<S>(to + stream_step + p + d), to + p);
        }
      }
    }
  }

  // From the pixels x[0] .. x[3], counted in steps of the dilation, to all factors that any product has. What is going to be
  // written next is fetched, because stores leave the processor in order.
  FS_INLINE void store_factors(Vec<S> x0, Vec<S> x1, Vec<S> x2, Vec<S> x3, S* to) const {
    const Vec<S> factor[kRowStreams] = {x0, x1, x0 + x1, x1 + x2, x1 - x0, x2 - x1, x0 - x2, x1 - x3};
    FS_UNROLL
    for (int stream = 0; stream < kRowStreams; ++stream)
      if (used >> stream & 1) __builtin_prefetch(to + stream * stream_step + 2 * L, 1);
    FS_UNROLL
    for (int stream = 0; stream < kRowStreams; ++stream)
      if (used >> stream & 1) store<S>(to + stream * stream_step, factor[stream]);
  }

  // Runs of `dilation` pixels go to the two streams in turn, at least n elements of each. A run is copied by whole vectors,
  // whose surplus the next one overwrites.
  void deinterleave_row(const S* from, int64_t n, S* even) const {
    const int64_t d = conv.dilation_w;
    for (int64_t p = 0; p < n; p += d, from += 2 * d) {
      for (int64_t l = 0; l < d; l += L) {
        store<S>(even + p + l, load<S>(from + l));
        store<S>(even + stream_step + p + l, load<S>(from + d + l));
      }
    }
  }

  // ---- products and output -------------------------------------------------------------------------------------

  void multiply(const S* of_panel, const KBlock& block, int position, int64_t first_oc, int64_t across,
                int64_t vectors) {
    const OwVectorised<S> microkernel = ow_vectorised_of<S>(plan.tile_oc);
    const int64_t stored = smaller(panel_oc, conv.oc - first_oc);
    for (int64_t v0 = 0; v0 < vectors; v0 += plan.tile_pixels) {
      const S* pairs[kMaxTileVectors];
      for (int v = 0; v < plan.tile_pixels; ++v) {
        const int64_t at = smaller(v0 + v, vectors - 1);  // the last tile repeats a vector
        pairs[v] = transformed + at / across * conv.stride_h * row_step + at % across * L;
      }
      for (int64_t t = 0; t < stored; t += plan.tile_oc)
        microkernel(of_panel + block.weight + t, pairs, block.offsets,
                    acc + ((first_oc + t) * kRowPositions + position) * position_step + v0 * L);
    }
  }

  void transform_output(const Block& b, int64_t first_oc, int64_t across) {
    const int64_t stored = smaller(panel_oc, conv.oc - first_oc);
    for (int64_t h = 0; h < b.height; ++h) {
      for (int64_t oc = 0; oc < stored; ++oc)
        output_row_of(acc + (first_oc + oc) * kRowPositions * position_step + h * across * L, b.width, across,
                      planar + oc * planar_step);
      for (int64_t w = 0; w < b.width; w += kStored * L) {
        PixelVector pixels[kStored];
        int used = 0;
        for (int64_t x = w; x < smaller<int64_t>(w + kStored * L, b.width); x += L)
          pixels[used++] = absolute({0, h, x, static_cast<int>(smaller<int64_t>(L, b.width - x))}, b);
        out.store_planar(planar + w, planar_step, first_oc, stored, pixels, used);
      }
    }
  }

  // The pairs of a row of one output channel, as neighbouring pixels.
  void output_row_of(const S* m, int64_t width, int64_t across, S* row) const {
    const int64_t d = conv.dilation_w;
    S *first = planar + panel_oc * planar_step, *second = first + planar_step;
    for (int64_t p = 0; p < across * L; p += L) {
      const Vec<S> m1 = load<S>(m + position_step + p), m2 = load<S>(m + 2 * position_step + p);
      Vec<S> y0 = load<S>(m + p) + m1 + m2, y1 = m1 - m2 - load<S>(m + 3 * position_step + p);
      if (d == 1) {
        zip2<S>(y0, y1, Lanes<S>{});
        store<S>(row + 2 * p, y0);
        store<S>(row + 2 * p + L, y1);
      } else {
        store<S>(first + p, y0);
        store<S>(second + p, y1);
      }
    }
    if (d == 1) return;
    for (int64_t w = 0; w < width; w += 2 * d, first += d, second += d) {  // as in deinterleave_row
      for (int64_t l = 0; l < d; l += L) store<S>(row + w + l, load<S>(first + l));
      for (int64_t l = 0; l < d; l += L) store<S>(row + w + d + l, load<S>(second + l));
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
