// SPDX-License-Identifier: BSD-3-Clause
// Winograd's F(MxM, 3x3) with channels in the vector lanes, by the OC-vectorised microkernel, where channels are neighbours in
// memory. Nothing is transposed or interleaved, and a block may have any number of tiles. Included by kernels.cpp only.
//
//   transformed  [positions][tiles][ic]
//   acc          [register tiles of output channels][positions][tiles][tile_oc]
#pragma once

#include "cpu/kernels/winograd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T, int M>
struct WinogradOcWorker : WinogradConv<T, M, WinogradOcWorker<T, M>> {
  using Conv = WinogradConv<T, M, WinogradOcWorker<T, M>>;
  using Conv::acc, Conv::conv, Conv::group, Conv::input, Conv::input_step, Conv::kPositions, Conv::kSide,
      Conv::L, Conv::out, Conv::planar, Conv::plan, Conv::position_step, Conv::task, Conv::tile,
      Conv::transformed, Conv::written;
  using typename Conv::S, typename Conv::Transform;
  static constexpr int64_t kStoredTiles = kWinogradStoredTiles;
  int64_t tile_step, acc_step;

  explicit WinogradOcWorker(const ConvTask& t) : Conv(t) {
    const KOffsets& offsets = t.k_blocks[0].blocks[0].offsets;
    tile_step = offsets.column_step;
    acc_step = offsets.acc_step;
  }

  int64_t register_tiles(const Block& b) const { return ceil_div(Conv::tiles_of(b), plan.tile_pixels); }

  // The pixels of a row of tiles, in the packed input tile or in the source. Outside of the image there are zeros.
  struct Rows {
    const S* first[kSide];    // the first pixel of each row; null: the row is outside
    int64_t step[kSide];      // from one pixel to the next
    int64_t column, columns;  // of the first pixel, in an image of so many
  };
  Rows rows_at(const Block& b, int64_t h) const {
    Rows rows;
    if (!task.in_place) {
      for (int a = 0; a < kSide; ++a) {
        rows.first[a] = input + (h + a) * tile.row_step;
        rows.step[a] = tile.column_step;
      }
      rows.column = 0;
      rows.columns = tile.phase_columns;
      return rows;
    }
    const Source& source = task.source;
    const int64_t first = group * conv.ic, column = b.w - conv.pad_left;
    rows.column = column + source.channel_col[first];
    rows.columns = source.hr_w;
    const S* from = static_cast<const S*>(source.data) + source.channel_offset[first] +
                    b.n * source.batch_stride + column * source.col_stride;
    for (int a = 0; a < kSide; ++a) {
      const int64_t row = b.h + h + a - conv.pad_top, in_image = row + source.channel_row[first];
      const bool inside = in_image >= 0 && in_image < source.hr_h;
      rows.first[a] = inside ? from + row * source.row_stride : nullptr;
      rows.step[a] = inside ? source.col_stride : 0;
    }
    return rows;
  }

  // Neighbouring tiles share two columns of pixels, so those of a row follow one another. A ragged last vector of channels reads
  // and writes the gaps behind them.
  template <bool kChecks>
  void transform_input_of(const Block& b, int64_t begin, int64_t end, int64_t origin) {
    constexpr std::make_index_sequence<kSide> sides;
    constexpr int kShared = kSide - M;
    static const Vec<S> zeros{};
    const int64_t across = ceil_div(b.width, M);
    for (int64_t h = 0; h < b.height; h += M) {
      const Rows rows = rows_at(b, h);
      for (int64_t c = begin; c < end; c += L) {
        const S* from[kSide];
        for (int a = 0; a < kSide; ++a)
          from[a] = rows.first[a] ? rows.first[a] + c : reinterpret_cast<const S*>(&zeros);
        int64_t column = rows.column;
        S* to = transformed + h / M * across * tile_step + c - origin;
        Vec<S> columns[kSide][kSide];  // [column of pixels][position row]
        const auto add_column = [&](int p) {
          const bool inside = static_cast<uint64_t>(column) < static_cast<uint64_t>(rows.columns);
          FS_UNROLL
          for (int a = 0; a < kSide; ++a) {
            columns[p][a] = inside ? load<S>(from[a]) : Vec<S>{};
            from[a] += rows.step[a];
          }
          this->transform_pixels(columns[p], 1, sides);
          ++column;
        };
        FS_UNROLL
        for (int p = 0; p < kShared; ++p) add_column(p);
        for (int64_t w = 0; w < across; ++w, to += tile_step) {
          this->fetch_positions(to + kTilesAhead * tile_step, input_step);
          FS_UNROLL
          for (int p = kShared; p < kSide; ++p) add_column(p);
          Vec<S> d[kSide][kSide];  // [position row][position column]
          FS_UNROLL
          for (int a = 0; a < kSide; ++a) {
            FS_UNROLL
            for (int p = 0; p < kSide; ++p) d[a][p] = columns[p][a];
            this->transform_pixels(d[a], 1, sides);
            FS_UNROLL
            for (int p = 0; p < kSide; ++p) store<S>(to + (kSide * a + p) * input_step, d[a][p]);
          }
          FS_UNROLL
          for (int p = 0; p < kShared; ++p) {
            FS_UNROLL
            for (int a = 0; a < kSide; ++a) columns[p][a] = columns[p + M][a];
          }
          if constexpr (kChecks) this->check_pixels(d, end - c);
        }
      }
    }
  }

  // The panel that begins with output channel oc. first_acc: its place among the accumulators. Register tiles are of sizes as even
  // as possible.
  void multiply(const Block& b, const KOffsets& offsets, const S* of_panel, int position, int64_t oc,
                int64_t first_acc, int64_t stored) {
    const int64_t tiles = Conv::tiles_of(b), calls = register_tiles(b),
                  larger_calls = tiles - tiles / calls * calls;
    const int least = static_cast<int>(tiles / calls), vectors = plan.tile_oc / L;
    const OcVectorised<S> run_least = oc_vectorised_of<S>(least, vectors),
                          run_more = larger_calls > 0 ? oc_vectorised_of<S>(least + 1, vectors) : nullptr;
    for (int64_t t = 0; t < stored; t += plan.tile_oc) {
      if (plan.single_phase && !this->phase_of(group, this->phase_oc(oc, t)).needs(position)) continue;
      const S* from = transformed + position * input_step;
      const S* weight = of_panel + position * position_step + t;
      OcAcc<S> result{nullptr, nullptr, acc_of(first_acc + t, position), plan.tile_oc};
      for (int64_t call = 0; call < calls; ++call) {
        const int count = least + (call < larger_calls);
        written.step(out, b);
        result.earlier = offsets.add ? result.to : nullptr;
        (call < larger_calls ? run_more : run_least)(weight, from, offsets, result);
        from += count * tile_step;
        result.to += count * plan.tile_oc;
      }
    }
  }
  S* acc_of(int64_t oc, int position) const {
    return acc + (oc / plan.tile_oc * kPositions + position) * acc_step;
  }

  void transform_outputs(const Block& b, int64_t first, int64_t end) {
    for (int64_t oc = first; oc < end; oc += plan.tile_oc) {
      const int64_t stored = smaller<int64_t>(plan.tile_oc, end - oc);
      plan.single_phase ? transform_output<true>(b, oc, acc_of(oc - first, 0), stored)
                        : transform_output<false>(b, oc, acc_of(oc - first, 0), stored);
    }
  }

  // A^T m A of every tile, into M rows of M pixels for each of a few tiles. `planar` holds pixels with their channels here.
  template <bool kSinglePhase>
  void transform_output(const Block& b, int64_t oc, const S* m, int64_t stored) {
    const auto phase = kSinglePhase ? this->phase_of(group, oc) : typename Conv::WindowPhase{};
    const int64_t across = ceil_div(b.width, M), row_step = kStoredTiles * M * plan.tile_oc;
    for (int64_t h = 0; h < b.height; h += M) {
      for (int64_t w = 0; w < across; w += kStoredTiles) {
        const int64_t tiles = smaller(kStoredTiles, across - w);
        for (int64_t x = 0; x < tiles; ++x) {
          const S* of_tile = m + (h / M * across + w + x) * plan.tile_oc;
          S* to = planar + x * M * plan.tile_oc;
          for (int64_t v = 0; v < stored; v += L)
            transform_tile<kSinglePhase>(of_tile + v, phase, to + v, row_step);
        }
        const auto count = static_cast<int>(smaller(tiles * M, b.width - w * M));
        for (int64_t y = 0; y < smaller<int64_t>(M, b.height - h); ++y)
          store_row(planar + y * row_step, oc, stored, absolute({0, h + y, w * M, count}, b));
      }
    }
  }

  void store_row(S* pixels, int64_t oc, int64_t stored, const PixelVector& p) const {
    if (task.dest.oc_contiguous)
      out.store_pixels(pixels, plan.tile_oc, oc, stored, p);
    else
      out.store_transposed(pixels, plan.tile_oc, 1, 0, oc, stored, p);
  }

  template <bool kSinglePhase>
  FS_INLINE void transform_tile(const S* m, const typename Conv::WindowPhase& phase, S* to,
                                int64_t row_step) const {
    Vec<S> s[kSide][M];  // [position column][output row]
    FS_UNROLL
    for (int p = 0; p < kSide; ++p) {
      Vec<S> column[kSide];
      FS_UNROLL
      for (int a = 0; a < kSide; ++a) {
        const int position = kSide * a + p;
        column[a] = !kSinglePhase || phase.needs(position) ? load<S>(m + position * acc_step) : Vec<S>{};
      }
      Transform::products(column, s[p]);
    }
    FS_UNROLL
    for (int y = 0; y < M; ++y) {
      Vec<S> row[kSide], pixels[M];
      FS_UNROLL
      for (int p = 0; p < kSide; ++p) row[p] = s[p][y];
      Transform::products(row, pixels);
      FS_UNROLL
      for (int x = 0; x < M; ++x) store<S>(to + y * row_step + x * plan.tile_oc, pixels[x]);
    }
  }

 private:
  static constexpr int64_t kTilesAhead = 2;
};

}  // namespace fused_subpixel::cpu::FS_ISA
