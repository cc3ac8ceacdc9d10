// SPDX-License-Identifier: BSD-3-Clause
// 3x3 convolutions by Winograd's F(2x2, 3x3) (Lavin and Gray, CVPR 2016): 16 multiplications for four outputs where the
// direct sum takes 36. The packed input tile, the OW-vectorised microkernel and the shuffled store are those of the direct
// kernels. The microkernel computes sixteen small matrix products, one per position of the 4x4 transformed tile. Included
// by kernels.cpp only.
//
// Lanes are 2x2 output tiles, counted through the pairs of rows. Per block,
//   transformed  [16][ic][tiles]        B^T d B of every 4x4 input tile
//   weights      [16][ic][panel_oc]     G g G^T, for one panel of output channels at a time
//   acc          [16][panel_oc][tiles]  their products, summed over input channels
// With integer data every step is exact, as in the direct kernels, because G's halves are powers of two.
#pragma once

#include "cpu/kernels/winograd_base-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct WinogradWorker : WinogradBase<T, WinogradWorker<T>> {
  using Base = WinogradBase<T, WinogradWorker<T>>;
  using Base::acc, Base::conv, Base::group, Base::ic, Base::input, Base::L, Base::out, Base::packed,
      Base::panel_oc, Base::panels, Base::planar, Base::plan, Base::task, Base::tile, Base::transformed;
  using typename Base::S;
  static constexpr int kPositions = 16;
  int64_t position_step, channel_step, input_step;
  typename Store<T>::Fetch written;

  explicit WinogradWorker(const ConvTask& t)
      : Base(t), position_step(t.winograd_position_step), channel_step(t.winograd_channel_step),
        input_step(t.winograd_input_step) {}

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = blocks_of_group(plan);
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) this->enter_group(item / blocks);
      const Block b = block_of(plan, item % blocks);
      const bool follows = item > begin && b.h > 0;
      load_block(b, kept_rows(tile, conv, follows ? plan.block_h : 0));
      const int64_t vectors = ceil_div(ceil_div(b.height, 2) * ceil_div(b.width, 2), L);
      const int64_t calls = kPositions * ceil_div(vectors, int64_t{plan.tile_pixels});  // of a tile's microkernel
      const int64_t pass_oc = plan.pass_panels * panel_oc;
      for (int64_t first = 0; first < conv.oc; first += pass_oc) {
        const int64_t pass_end = smaller(first + pass_oc, conv.oc);
        written.start(out, b, first, pass_end - first, calls * ceil_div(pass_end - first, int64_t{plan.tile_oc}));
        for (int position = 0; position < kPositions; ++position) {
          for (int64_t oc = first; oc < pass_end; oc += panel_oc)
            multiply(b, panels + oc / panel_oc * plan.panel_elements, position, vectors, oc - first,
                     smaller(panel_oc, pass_end - oc));
        }
        for (int64_t oc = first; oc < pass_end; oc += panel_oc)
          transform_output(b, oc, oc - first, smaller(panel_oc, pass_end - oc));
      }
    }
  }

  // Packs and transforms neighbouring channels at a time, which stay in the first cache in between.
  void load_block(const Block& b, int64_t kept) {
    const Source& source = task.source;
    const int64_t channels = source.output ? ic : source.interleave;
    for (int64_t c = 0; c < ic; c += channels) {
      pack_channels_of<T>(source, conv, tile, group, b, c, c + channels, kept, input, this->output_row);
      transform_input(c, c + channels, b.height, b.width);
    }
  }

  // One dimension of G g: (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2).
  static FS_INLINE void transform_taps(Vec<S> g0, Vec<S> g1, Vec<S> g2, Vec<S>* to) {
    const Vec<S> half = splat<S>(S(0.5)), outer = half * (g0 + g2), inner = half * g1;
    to[0] = g0;
    to[1] = outer + inner;
    to[2] = outer - inner;
    to[3] = g2;
  }

  void pack_panel(int64_t g, int64_t panel, S* to) const {
    const int64_t R = panel_oc;
    this->pack_taps(g, panel);
    // Lanes are output channels. A ragged last vector reaches into the next channel, which is written later, or into the
    // slack.
    for (int64_t c = 0; c < ic; ++c) {
      for (int64_t t = 0; t < R; t += L) {
        const S* g = packed + c * 9 * R + t;
        Vec<S> half[3][4], u[4][4];  // [tap row][position column], [position column][position row]
        FS_UNROLL
        for (int a = 0; a < 3; ++a)
          transform_taps(load<S>(g + 3 * a * R), load<S>(g + (3 * a + 1) * R), load<S>(g + (3 * a + 2) * R),
                         half[a]);
        FS_UNROLL
        for (int b = 0; b < 4; ++b) {
          transform_taps(half[0][b], half[1][b], half[2][b], u[b]);
          FS_UNROLL
          for (int a = 0; a < 4; ++a) store<S>(to + (4 * a + b) * position_step + c * R + t, u[b][a]);
        }
      }
    }
  }

  // One dimension of B^T d: (d0 - d2, d1 + d2, d2 - d1, d1 - d3).
  static FS_INLINE void transform_pixels(Vec<S>& d0, Vec<S>& d1, Vec<S>& d2, Vec<S>& d3) {
    const Vec<S> v0 = d0 - d2, v1 = d1 + d2, v2 = d2 - d1, v3 = d1 - d3;
    d0 = v0;
    d1 = v1;
    d2 = v2;
    d3 = v3;
  }

  // Transforms channels begin .. end - 1 of a packed block.
  void transform_input(int64_t begin, int64_t end, int64_t height, int64_t width) {
    const int64_t pairs = ceil_div(height, 2), across = ceil_div(width, 2);
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t h = 0; h < pairs; ++h) {
        const S* from = input + c * tile.channel_step + 2 * h * tile.row_step;
        S* to = transformed + c * channel_step + h * across;
        // the next row's first vector overwrites the surplus lanes of a row's last vector
        for (int64_t v = 0; v < across; v += L, from += 2 * L, to += L) {
          Vec<S> d[4][4];
          FS_UNROLL
          for (int a = 0; a < 4; ++a) {
            const S* at = from + a * tile.row_step;
            d[a][0] = load<S>(at);  // columns 2 t and 2 t + 1, after unzip2
            d[a][1] = load<S>(at + L);
            d[a][2] = load<S>(at + 2);  // columns 2 t + 2 and 2 t + 3
            d[a][3] = load<S>(at + L + 2);
            unzip2<S>(d[a][0], d[a][1], Lanes<S>{});
            unzip2<S>(d[a][2], d[a][3], Lanes<S>{});
            transform_pixels(d[a][0], d[a][1], d[a][2], d[a][3]);
          }
          FS_UNROLL
          for (int p = 0; p < 4; ++p) {
            transform_pixels(d[0][p], d[1][p], d[2][p], d[3][p]);
            FS_UNROLL
            for (int a = 0; a < 4; ++a) store<S>(to + (4 * a + p) * input_step, d[a][p]);
          }
        }
      }
    }
  }

  // first_acc: place of the panel's first output channel among the accumulators
  void multiply(const Block& b, const S* of_panel, int position, int64_t vectors, int64_t first_acc,
                int64_t stored) {
    const KOffsets& offsets = task.k_blocks[0].blocks[0].offsets;
    const OwVectorised<S> microkernel = ow_vectorised_of<S>(plan.tile_oc);
    const S* from = transformed + position * input_step;
    const S* weight = of_panel + position * position_step;
    for (int64_t v0 = 0; v0 < vectors; v0 += plan.tile_pixels) {
      const S* tiles[kMaxTileVectors];
      for (int v = 0; v < plan.tile_pixels; ++v) tiles[v] = from + smaller(v0 + v, vectors - 1) * L;
      for (int64_t t = 0; t < stored; t += plan.tile_oc) {
        written.step(out, b);
        microkernel(weight + t, tiles, offsets,
                    acc + ((first_acc + t) * kPositions + position) * channel_step + v0 * L);
      }
    }
  }

  // A^T m A of every tile, interleaved back to neighbouring pixels: two vectors in each of two rows.
  void transform_output(const Block& b, int64_t first_oc, int64_t first_acc, int64_t stored) {
    const int64_t across = ceil_div(b.width, 2);
    for (int64_t h = 0; h < b.height; h += 2) {
      for (int64_t w = 0; w < b.width; w += 2 * L) {
        PixelVector pixels[4];
        int used = 0;
        for (int64_t y = h; y < smaller(h + 2, b.height); ++y)
          for (int64_t x = w; x < smaller<int64_t>(w + 2 * L, b.width); x += L)
            pixels[used++] = absolute({0, y, x, static_cast<int>(smaller<int64_t>(L, b.width - x))}, b);
        const int per_row = b.width - w > L ? 2 : 1;
        for (int64_t oc = 0; oc < stored; ++oc) {
          const S* m = acc + (first_acc + oc) * kPositions * channel_step + h / 2 * across + w / 2;
          Vec<S> s[2][4];  // [output row][position column]
          FS_UNROLL
          for (int p = 0; p < 4; ++p) {
            const Vec<S> m0 = load<S>(m + p * channel_step), m1 = load<S>(m + (4 + p) * channel_step);
            const Vec<S> m2 = load<S>(m + (8 + p) * channel_step), m3 = load<S>(m + (12 + p) * channel_step);
            s[0][p] = m0 + m1 + m2;
            s[1][p] = m1 - m2 - m3;
          }
          S* to = planar + oc * 4 * L;
          FS_UNROLL
          for (int y = 0; y < 2; ++y) {
            Vec<S> even = s[y][0] + s[y][1] + s[y][2], odd = s[y][1] - s[y][2] - s[y][3];
            zip2<S>(even, odd, Lanes<S>{});
            store<S>(to + y * per_row * L, even);
            if (per_row == 2) store<S>(to + (2 * y + 1) * L, odd);
          }
        }
        out.store_planar(planar, 4 * L, first_oc, stored, pixels, used);
      }
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
