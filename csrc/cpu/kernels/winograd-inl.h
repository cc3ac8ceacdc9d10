// SPDX-License-Identifier: BSD-3-Clause
// 3x3 convolutions by Winograd's F(2x2, 3x3) (Lavin and Gray, CVPR 2016): 16 multiplications for four outputs where
// the direct sum takes 36. Everything is the direct kernel's: the strip, the register tile - sixteen small matrix
// products, one per position of the 4x4 transformed tile - and the shuffled store. Included by kernels.cpp only.
//
// Lanes are tiles: 2x2 output cells, counted through the pairs of rows. Per block,
//   input   [16][channels][tiles]      B^T d B of every 4x4 input tile
//   filter  [16][channels][panel rows] G g G^T, for one panel of rows at a time
//   sums    [16][panel rows][tiles]    their products, summed over channels
// With integer data every step is exact, as in the direct kernel: G's halves are powers of two.
#pragma once

#include "cpu/kernels/conv-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct WinogradWorker {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  static constexpr int kPositions = 16;
  const ConvTask& task;
  const CpuPlan& plan;
  StripShape shape;
  Store<T> out;
  GroupRows<T> rows;
  S *strip, *output_row, *input, *packed, *filter, *sums, *planar;
  int64_t* at;  // of the transformed input's channels
  int64_t channels, panel_rows, position_step, tile_step, group = -1;
  bool resident;

  explicit WinogradWorker(const ConvTask& t)
      : task(t),
        plan(t.plan),
        shape(winograd_strip(strip_problem(t.window), plan.block_h, plan.block_w, L)),
        out(t.dest, t.epilogue, t.window),
        rows{t, {}, {}, {}, {}, {}, {}, {}} {
    channels = task.window.channels;
    panel_rows = int64_t{plan.panel_tiles} * plan.tile_rows;
    const int64_t padded = plan.panels * panel_rows + L;
    resident = plan.filter_resident;
    // The vectors of a block, with room for those that its last register tile computes in vain, and for the lanes too many
    // of its last row.
    const int64_t pairs = ceil_div(plan.block_h, 2), across = ceil_div(plan.block_w, 2), V = plan.tile_pixels;
    const int64_t rows_end = (pairs - 1) * across + ceil_div(across, L) * L;
    const int64_t vectors = larger(ceil_div(ceil_div(pairs * across, L), V) * V, ceil_div(rows_end, L));
    // Neighbouring channels in different cache sets, unless a register tile reads one after the other without a gap.
    tile_step = (vectors % 2 == 0 && vectors > V ? vectors + 1 : vectors) * L;
    const int64_t strip_size = plan.block_n * shape.image_step + 4 * L,
                  input_size = kPositions * channels * tile_step;
    const int64_t output_size = output_row_size(task.source, shape);
    const int64_t packed_size = channels * 9 * panel_rows + L;
    position_step = channels * panel_rows + L;
    const int64_t filter_size = resident ? plan.panels * plan.panel_elements : 0;
    const int64_t sums_size = kPositions * panel_rows * tile_step, planar_size = panel_rows * 4 * L;
    Arena arena{static_cast<char*>(thread_scratch(
        Arena::bytes<int64_t>(channels) + Arena::bytes<S>(strip_size) + Arena::bytes<S>(output_size) +
        Arena::bytes<S>(input_size) + Arena::bytes<S>(packed_size) + Arena::bytes<S>(filter_size) +
        Arena::bytes<S>(sums_size) + Arena::bytes<S>(planar_size) + GroupRows<T>::bytes(padded)))};
    at = arena.take<int64_t>(channels);
    for (int64_t c = 0; c < channels; ++c) at[c] = c * tile_step;
    strip = arena.take<S>(strip_size), output_row = arena.take<S>(output_size);
    input = arena.take<S>(input_size), packed = arena.take<S>(packed_size);
    filter = arena.take<S>(filter_size), sums = arena.take<S>(sums_size), planar = arena.take<S>(planar_size);
    rows.place(arena, padded);
    for (int64_t l = 0; l < 4 * L; ++l)
      strip[plan.block_n * shape.image_step + l] = S(0);  // vector over-read
  }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = plan.blocks_n * plan.blocks_h * plan.blocks_w;
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) enter_group(item / blocks);
      const Block b = block_of(plan, task.window, item % blocks);
      const bool follows = item > begin && b.h > 0;
      pack_strip<T>(task.source, task.window, shape, group, b.n, b.images, b.h, b.w, strip,
                    follows ? plan.block_h : 0, output_row);
      const int64_t vectors = transform_input(b.height, b.width);
      for (int64_t row = 0, panel = 0; row < task.dest.rows; row += panel_rows, ++panel) {
        const S* transformed = filter + panel * plan.panel_elements;
        const int64_t stored = smaller(panel_rows, task.dest.rows - row);
        for (int position = 0; position < kPositions; ++position) {
          if (position + 1 == kPositions)
            for (int64_t h = 0; h < b.height; ++h)
              out.fetch(row, stored, out.at(absolute({0, h, 0, 0}, b)), b.width);
          multiply(transformed, position, vectors, stored);
        }
        transform_output(b, row, stored);
      }
    }
  }

  void enter_group(int64_t g) {
    group = g;
    out.table = rows.enter(g);
    if (resident)
      pack_panels(g, 0, plan.panels, filter);
    else
      filter = static_cast<S*>(task.panels) + g * plan.panels * plan.panel_elements;
  }

  // One dimension of G g: (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2).
  static FS_INLINE void transform_taps(Vec<S> g0, Vec<S> g1, Vec<S> g2, Vec<S>* to) {
    const Vec<S> half = splat<S>(S(0.5)), outer = half * (g0 + g2), inner = half * g1;
    to[0] = g0, to[1] = outer + inner, to[2] = outer - inner, to[3] = g2;
  }

  void pack_panels(int64_t g, int64_t begin, int64_t end, S* to) const {
    for (int64_t p = begin; p < end; ++p, to += plan.panel_elements) pack_panel(g, p, to);
  }

  void pack_panel(int64_t g, int64_t panel, S* to) const {
    const int64_t all = task.dest.rows, R = panel_rows, row = panel * R;
    const FilterRows of_group{task.filter.row_offset + g * all,
                              task.filter.lacks ? task.filter.lacks + g * all : nullptr, 1, all};
    FiniteCheck<S> check;
    pack_filter<T>(task.filter, {task.filter.tap_offset, 9, 3, true}, g, channels,
                   of_group.from(row, smaller(R, all - row)), R, 0, packed, check);
    check.tell(task.infinite_filter);
    // Lanes are rows. A ragged last vector spills into the next channel, which is written after it, or into the slack.
    for (int64_t c = 0; c < channels; ++c) {
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
    d0 = v0, d1 = v1, d2 = v2, d3 = v3;
  }

  // Of a block; returns the number of tile vectors.
  int64_t transform_input(int64_t height, int64_t width) {
    const int64_t pairs = ceil_div(height, 2), across = ceil_div(width, 2);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t h = 0; h < pairs; ++h) {
        const S* from = strip + c * shape.channel_step + 2 * h * shape.row_step;
        S* to = input + c * tile_step + h * across;
        // the lanes too many of a row's last vector are overwritten by the next row's first
        for (int64_t v = 0; v < across; v += L, from += 2 * L, to += L) {
          Vec<S> d[4][4];
          FS_UNROLL
          for (int a = 0; a < 4; ++a) {
            const S* at = from + a * shape.row_step;
            d[a][0] = load<S>(at), d[a][1] = load<S>(at + L);          // columns 2 t, 2 t + 1
            d[a][2] = load<S>(at + 2), d[a][3] = load<S>(at + L + 2);  // columns 2 t + 2, 2 t + 3
            unzip2<S>(d[a][0], d[a][1], Lanes<S>{});
            unzip2<S>(d[a][2], d[a][3], Lanes<S>{});
            transform_pixels(d[a][0], d[a][1], d[a][2], d[a][3]);
          }
          FS_UNROLL
          for (int p = 0; p < 4; ++p) {
            transform_pixels(d[0][p], d[1][p], d[2][p], d[3][p]);
            FS_UNROLL
            for (int a = 0; a < 4; ++a) store<S>(to + (4 * a + p) * channels * tile_step, d[a][p]);
          }
        }
      }
    }
    return ceil_div(pairs * across, L);
  }

  void multiply(const S* transformed, int position, int64_t vectors, int64_t stored) {
    const StripMap map{at, channels, 1, panel_rows, kPositions * tile_step, false};
    const PixelTile<S> run_tile = pixel_tile_of<S>(plan.tile_rows);
    const S* from = input + position * channels * tile_step;
    const S* weights = transformed + position * position_step;
    for (int64_t v0 = 0; v0 < vectors; v0 += plan.tile_pixels) {
      const S* tiles[8];
      for (int v = 0; v < plan.tile_pixels; ++v) tiles[v] = from + smaller(v0 + v, vectors - 1) * L;
      for (int64_t t = 0; t < stored; t += plan.tile_rows)
        run_tile(weights + t, tiles, map, sums + (t * kPositions + position) * tile_step + v0 * L);
    }
  }

  // A^T m A of every tile, interleaved back to neighbouring pixels: two vectors in each of two rows.
  void transform_output(const Block& b, int64_t first_row, int64_t stored) {
    const int64_t across = ceil_div(b.width, 2);
    for (int64_t h = 0; h < b.height; h += 2) {
      for (int64_t w = 0; w < b.width; w += 2 * L) {
        PixelVector pixels[4];
        int used = 0;
        for (int64_t y = h; y < smaller(h + 2, b.height); ++y)
          for (int64_t x = w; x < smaller<int64_t>(w + 2 * L, b.width); x += L)
            pixels[used++] = absolute({0, y, x, static_cast<int>(smaller<int64_t>(L, b.width - x))}, b);
        const int per_row = b.width - w > L ? 2 : 1;
        for (int64_t row = 0; row < stored; ++row) {
          const S* m = sums + row * kPositions * tile_step + h / 2 * across + w / 2;
          Vec<S> s[2][4];  // [output row][position column]
          FS_UNROLL
          for (int p = 0; p < 4; ++p) {
            const Vec<S> m0 = load<S>(m + p * tile_step), m1 = load<S>(m + (4 + p) * tile_step);
            const Vec<S> m2 = load<S>(m + (8 + p) * tile_step), m3 = load<S>(m + (12 + p) * tile_step);
            s[0][p] = m0 + m1 + m2, s[1][p] = m1 - m2 - m3;
          }
          S* to = planar + row * 4 * L;
          FS_UNROLL
          for (int y = 0; y < 2; ++y) {
            Vec<S> even = s[y][0] + s[y][1] + s[y][2], odd = s[y][1] - s[y][2] - s[y][3];
            zip2<S>(even, odd, Lanes<S>{});
            store<S>(to + y * per_row * L, even);
            if (per_row == 2) store<S>(to + (2 * y + 1) * L, odd);
          }
        }
        out.store_planar(planar, 4 * L, first_row, stored, pixels, used);
      }
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
