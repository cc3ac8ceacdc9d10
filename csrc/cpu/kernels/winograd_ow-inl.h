// SPDX-License-Identifier: BSD-3-Clause
// Winograd's F(MxM, 3x3) with tiles in the vector lanes, by the OW-vectorised microkernel. Included by kernels.cpp only.
//
//   transformed  [positions][ic][tiles]
//   acc          [oc][positions][tiles]
#pragma once

#include "cpu/kernels/winograd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T, int M>
struct WinogradOwWorker : WinogradConv<T, M, WinogradOwWorker<T, M>> {
  using Conv = WinogradConv<T, M, WinogradOwWorker<T, M>>;
  using Conv::acc, Conv::conv, Conv::group, Conv::input, Conv::input_step, Conv::kPositions, Conv::kSide,
      Conv::L, Conv::out, Conv::panel_oc, Conv::planar, Conv::plan, Conv::position_step, Conv::task,
      Conv::tile, Conv::transformed, Conv::written;
  using typename Conv::S, typename Conv::Transform;
  int64_t channel_step;

  explicit WinogradOwWorker(const ConvTask& t) : Conv(t), channel_step(t.winograd_channel_step) {}

  static int64_t vectors_of(const Block& b) { return ceil_div(Conv::tiles_of(b), L); }
  int64_t register_tiles(const Block& b) const { return ceil_div(vectors_of(b), plan.tile_pixels); }

  template <bool kChecks>
  void transform_input_of(const Block& b, int64_t begin, int64_t end, int64_t origin) {
    const int64_t rows = ceil_div(b.height, M), across = ceil_div(b.width, M);
    constexpr std::make_index_sequence<kSide> sides;
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t h = 0; h < rows; ++h) {
        const S* from = input + c * tile.channel_step + M * h * tile.row_step;
        S* to = transformed + (c - origin) * channel_step + h * across;
        // the next row's first vector overwrites the surplus lanes of a row's last vector
        for (int64_t v = 0; v < across; v += L, from += M * L, to += L) {
          this->fetch_positions(to + 2 * L, input_step);
          Vec<S> d[kSide][kSide];
          FS_UNROLL
          for (int a = 0; a < kSide; ++a) {
            Vec<S> first[M], last[M];  // columns M t .. M t + M - 1, and those of the next tile
            FS_UNROLL
            for (int p = 0; p < M; ++p) {
              first[p] = load<S>(from + a * tile.row_step + p * L);
              last[p] = load<S>(from + a * tile.row_step + M + p * L);
            }
            deinterleave<S, M>(first);
            deinterleave<S, M>(last);
            FS_UNROLL
            for (int p = 0; p < kSide; ++p) d[a][p] = p < M ? first[p] : last[p - M];
            this->transform_pixels(d[a], 1, sides);
          }
          FS_UNROLL
          for (int p = 0; p < kSide; ++p) {
            this->transform_pixels(&d[0][p], kSide, sides);
            FS_UNROLL
            for (int a = 0; a < kSide; ++a) store<S>(to + (kSide * a + p) * input_step, d[a][p]);
          }
          if constexpr (kChecks) this->check_pixels(d, across - v);
        }
      }
    }
  }

  // The panel that begins with output channel oc. first_acc: its place among the accumulators
  void multiply(const Block& b, const KOffsets& offsets, const S* of_panel, int position, int64_t oc,
                int64_t first_acc, int64_t stored) {
    const int64_t vectors = vectors_of(b);
    if (!plan.single_phase)
      return multiply_tiles(b, offsets, of_panel, position, vectors, first_acc, stored, panel_oc);
    for (int64_t t = 0; t < stored; t += L)
      if (this->phase_of(group, this->phase_oc(oc, t)).needs(position))
        multiply_tiles(b, offsets, of_panel + t, position, vectors, first_acc + t, L, L);
  }
  // `packed_oc` output channels are there to be multiplied, `stored` of them are needed.
  void multiply_tiles(const Block& b, const KOffsets& offsets, const S* of_panel, int position,
                      int64_t vectors, int64_t first_acc, int64_t stored, int64_t packed_oc) {
    const S* from = transformed + position * input_step;
    const S* weight = of_panel + position * position_step;
    const S* tiles[kMaxTileVectors];
    const auto run = [&](OwVectorised<S> microkernel, int64_t v0, int64_t t) {
      written.step(out, b);
      microkernel(weight + t, tiles, offsets,
                  acc + ((first_acc + t) * kPositions + position) * channel_step + v0 * L);
    };
    const OwVectorised<S> microkernel = ow_vectorised_of<S>(plan.tile_oc);
    for (int64_t v0 = 0; v0 < vectors; v0 += plan.tile_pixels) {
      const auto count = static_cast<int>(smaller<int64_t>(plan.tile_pixels, vectors - v0));
      for (int v = 0; v < plan.tile_pixels; ++v) tiles[v] = from + smaller(v0 + v, vectors - 1) * L;
      if (count < plan.tile_pixels) {
        const OwRest<S> rest = ow_rest_of<S>(count);
        // The last tile computes again what it shares with the one before, unless it adds to that.
        if (rest.oc <= packed_oc && !(offsets.add && packed_oc % rest.oc != 0)) {
          for (int64_t t = 0; t < stored; t += rest.oc) run(rest.run, v0, smaller(t, packed_oc - rest.oc));
          continue;
        }
      }
      for (int64_t t = 0; t < stored; t += plan.tile_oc) run(microkernel, v0, t);
    }
  }

  void transform_outputs(const Block& b, int64_t first, int64_t end) {
    for (int64_t oc = first; oc < end; oc += panel_oc) {
      const int64_t stored = smaller(panel_oc, end - oc);
      plan.single_phase ? transform_output<true>(b, oc, oc - first, stored)
                        : transform_output<false>(b, oc, oc - first, stored);
    }
  }

  // A^T m A of every tile, interleaved back to neighbouring pixels: M vectors in each of M rows.
  template <bool kSinglePhase>
  void transform_output(const Block& b, int64_t first_oc, int64_t first_acc, int64_t stored) {
    const int64_t across = ceil_div(b.width, M);
    for (int64_t h = 0; h < b.height; h += M) {
      for (int64_t w = 0; w < b.width; w += M * L) {
        PixelVector pixels[M * M];
        int used = 0;
        for (int64_t y = h; y < smaller(h + M, b.height); ++y)
          for (int64_t x = w; x < smaller<int64_t>(w + M * L, b.width); x += L)
            pixels[used++] = absolute({0, y, x, static_cast<int>(smaller<int64_t>(L, b.width - x))}, b);
        const auto per_row = smaller<int64_t>(ceil_div(b.width - w, int64_t{L}), M);
        for (int64_t oc = 0; oc < stored; ++oc) {
          const int64_t place = kSinglePhase ? this->place_of(oc) : oc;
          const typename Conv::WindowPhase phase =
              kSinglePhase ? this->phase_of(group, first_oc + oc) : typename Conv::WindowPhase{};
          const S* m = acc + (first_acc + place) * kPositions * channel_step + h / M * across + w / M;
          Vec<S> s[kSide][M];  // [position column][output row]
          FS_UNROLL
          for (int p = 0; p < kSide; ++p) {
            Vec<S> column[kSide];
            FS_UNROLL
            for (int a = 0; a < kSide; ++a)
              column[a] = !kSinglePhase || phase.needs(kSide * a + p)
                              ? load<S>(m + (kSide * a + p) * channel_step)
                              : Vec<S>{};
            Transform::products(column, s[p]);
          }
          S* to = planar + oc * M * M * L;
          FS_UNROLL
          for (int y = 0; y < M; ++y) {
            Vec<S> row[kSide], v[M];
            FS_UNROLL
            for (int p = 0; p < kSide; ++p) row[p] = s[p][y];
            Transform::products(row, v);
            interleave<S, M>(v);
            FS_UNROLL
            for (int x = 0; x < M; ++x)
              if (x < per_row) store<S>(to + (y * per_row + x) * L, v[x]);
          }
        }
        out.store_planar(planar, M * M * L, first_oc, stored, pixels, used);
      }
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
