// SPDX-License-Identifier: BSD-3-Clause
// The kernel of matrix tiles, see matrix_tiles.h. Pixels are packed as bfloat16 with channels as neighbours, so that a tile of
// them is loaded from wherever its first pixel lies. Weights are packed tile after tile. Sums go through memory to the store,
// pixel-major. Included by matrix.cpp only.
#pragma once

#include "cpu/kernels/conv-inl.h"
#include "cpu/kernels/tiles-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// P strips of pixels x Q columns of output channels.
template <int P, int Q>
FS_INLINE void multiply_strips(Tiles& tiles, const BFloat16* const* pixels, const float* weight,
                               const KOffsets& k, const TileSums& sums) {
  tiles.multiply<P, Q>(
      sums, {k.count, k.whole, k.pairs}, [&](int p, int64_t i) { return pixels[p] + k.at[i]; },
      k.column_step * static_cast<int64_t>(sizeof(BFloat16)),
      [&](int q, int64_t i) { return weight + i * k.weight_step + q * kTileElements; }, kTileRowBytes);
}

template <class T>
struct MatrixWorker : ConvWorker<T> {
  using Base = ConvWorker<T>;
  using Base::acc, Base::conv, Base::group, Base::L, Base::out, Base::plan, Base::task, Base::tile,
      Base::tiles;
  using typename Base::S;
  static_assert(sizeof(S) == 2 * sizeof(BFloat16),
                "a pair takes the place of a value of the arithmetic type");
  int64_t columns, tile_elements;  // of a panel's tile
  BFloat16* packed_input;

  explicit MatrixWorker(const ConvTask& t)
      : Base(t),
        columns(plan.tile_oc / kColumnOc),
        tile_elements(tiles_of_column(conv, plan.joined_taps) * columns * kTileElements),
        packed_input(reinterpret_cast<BFloat16*>(this->input)) {
    // nothing else is written to the channels that fill up a tile
    if (!task.in_place && conv.ic % kTileChannels != 0)
      std::memset(this->input, 0, sizeof(S) * static_cast<size_t>(task.scratch.input_tile));
  }

  void run(int64_t begin, int64_t end) {
    Tiles matrices;
    const int64_t blocks = blocks_of_group(plan);
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) enter_group(item / blocks);
      const Block b = block_of(plan, item % blocks);
      const BFloat16* pixels = pixels_of(b, item > begin && b.h > 0);
      const S* packed = this->panels;
      for (int64_t t = 0; t < tiles; t += plan.panel_tiles, packed += plan.panel_elements)
        run_panel(matrices, b, pixels, packed, t * plan.tile_oc);
    }
  }

  const BFloat16* pixels_of(const Block& b, bool follows) const {
    const Source& s = task.source;
    if (task.in_place)
      return static_cast<const BFloat16*>(s.data) + s.channel_offset[group * conv.ic] + b.n * s.batch_stride +
             b.h * s.row_stride;
    pack_input<T>(s, conv, tile, group, b, kept_rows(tile, conv, follows ? plan.block_h : 0), packed_input,
                  this->packing);
    if (plan.joined_taps) check_pixels(b);
    return packed_input;
  }
  // Of joined taps, see fits_joined_taps.
  void check_pixels(const Block& b) const {
    FiniteCheck<S> check;
    for (int64_t e = 0; e < b.images * tile.image_step; e += L)
      check(load_widened<BFloat16>(packed_input + e));
    check.report(task.nonfinite_weight);
  }

  // The output channels of a panel, for all pixels of a block, some rows at a time.
  void run_panel(Tiles& matrices, const Block& b, const BFloat16* input, const S* packed,
                 int64_t first_oc) const {
    const int64_t stored = smaller<int64_t>(plan.panel_tiles * plan.tile_oc, conv.oc - first_oc);
    const PixelVector whole{b.n, b.h, b.w, static_cast<int>(b.width)};
    const bool plain = task.dest.oc_contiguous && out.plain(whole, b.height, first_oc, stored);
    S* const sums = acc + kStripPixels * plan.tile_oc;
    for (int64_t n = 0; n < b.images; ++n) {
      for (int64_t h = 0; h < b.height; h += plan.chunk_rows) {
        const int64_t rows = smaller(plan.chunk_rows, b.height - h);
        for (int q = 0; q < plan.interleaved_tiles; ++q) {
          const KBlocks& k = this->k_blocks_of(group, first_oc + q);
          const BFloat16* from = input + n * tile.image_step + h * conv.stride_h * tile.row_step +
                                 this->input_shift(first_oc + q);
          for (const KBlock* block = k.blocks; block < k.blocks + k.count; ++block)
            multiply(
                matrices,
                {rows, b.width, (conv.lr_h - b.h - h) * plan.row_pixels, first_oc, stored,
                 block + 1 == k.blocks + k.count && q == 0 ? out.at(absolute({n, h, 0, 1}, b)) : nullptr},
                from + block->input, block->offsets, packed + q * tile_elements + block->weight,
                sums + q * matrix_sums(plan));
        }
        for (int64_t row = 0; row < rows; ++row) {
          const PixelVector p{b.n + n, b.h + h + row, b.w, static_cast<int>(b.width)};
          S* from = sums + row * plan.row_pixels * plan.tile_oc;
          if (task.has_zero_taps()) this->check_sums(from, p.count, stored, plan.tile_oc);
          if (plain)
            out.store_plain(from, plan.tile_oc, first_oc, stored, out.at(p), p.count);
          else if (task.dest.oc_contiguous)
            out.store_pixels(from, plan.tile_oc, first_oc, stored, p);
          else
            out.store_transposed(from, plan.tile_oc, plan.interleaved_tiles, matrix_sums(plan), first_oc,
                                 stored, p);
        }
      }
    }
  }

  // The pixels of some rows; how many the image has from the first on; and what is going to be stored, of output channels
  // first_oc .. first_oc + stored - 1 from `dest` on: null if it is not to be fetched yet.
  struct Rows {
    int64_t rows, width, left, first_oc, stored;
    const T* dest;
  };
  // One K block. Where one row's pixels follow another's, strips go from one to the next, and the pixels between them are
  // computed for nothing.
  void multiply(Tiles& matrices, const Rows& r, const BFloat16* input, const KOffsets& k, const S* weight,
                S* sums) const {
    const int64_t row_step = conv.stride_h * tile.row_step, across = ceil_div(r.width, kStripPixels);
    const int64_t pixels = plan.flat ? (r.rows - 1) * plan.row_pixels + r.width : r.width;  // in one go
    const int64_t strips = plan.flat ? ceil_div(pixels, kStripPixels) : r.rows * across;
    const BFloat16* from[2];
    TileSums to{{}, kColumnOc, plan.tile_oc, k.add, kStripPixels};
    const auto locate = [&](int p, int64_t strip, int64_t column) {
      const int64_t row = plan.flat ? 0 : strip / across;
      int64_t pixel = (plan.flat ? strip : strip % across) * kStripPixels;
      to.rows = smaller<int64_t>(pixels - pixel, kStripPixels);
      if (task.in_place && pixel > r.left - kStripPixels) {  // nothing is read past the image
        pixel = r.left - kStripPixels;
        to.rows = kStripPixels;
      }
      from[p] = input + row * row_step + pixel * tile.column_step;
      to.at[p] = sums + (row * plan.row_pixels + pixel) * plan.tile_oc + column * kColumnOc;
    };
    // Fetches what is going to be stored, see Store::fetch.
    const auto fetch = [&](int64_t strip) {
      const int64_t pixel =
          plan.flat ? strip * kStripPixels : strip / across * plan.row_pixels + strip % across * kStripPixels;
      const int64_t row = pixel / plan.row_pixels, column = pixel % plan.row_pixels;
      const int64_t count = smaller<int64_t>(kMatrixPixels, r.width - column);
      if (row < r.rows && count > 0)
        out.fetch(r.first_oc, r.stored, r.dest + out.dest_pixel({0, row, column, 1}), count);
    };
    for (int64_t c = 0; c < columns; c += 2, weight += 2 * kTileElements) {
      const bool two = c + 1 < columns;
      for (int64_t strip = 0; strip < strips; strip += 2) {
        locate(0, strip, c);
        if (c == 0 && r.dest) fetch(strip);
        if (strip + 1 < strips) {
          locate(1, strip + 1, c);
          two ? multiply_strips<2, 2>(matrices, from, weight, k, to)
              : multiply_strips<2, 1>(matrices, from, weight, k, to);
        } else {
          two ? multiply_strips<1, 2>(matrices, from, weight, k, to)
              : multiply_strips<1, 1>(matrices, from, weight, k, to);
        }
      }
    }
  }

  // ---- weights -----------------------------------------------------------------------------------------------------

  void enter_group(int64_t g) {
    group = g;
    out.enter(task.oc.from(g * conv.oc), conv.oc, this->bias, this->slope);
    if (plan.weights_resident) pack_panels(g, 0, plan.panels, this->weights);
    this->panels = plan.weights_resident
                       ? this->weights
                       : static_cast<const S*>(task.panels) + g * plan.panels * plan.panel_elements;
  }

  // Tiles of weights, [panel][interleaved tile][channels][tap][column].
  void pack_panels(int64_t g, int64_t begin, int64_t end, S* to) const {
    FiniteCheck<S> check;
    const int64_t panel_oc = plan.panel_tiles * plan.tile_oc;
    for (int64_t panel = begin; panel < end; ++panel, to += plan.panel_elements)
      for (int64_t q = 0; q < plan.interleaved_tiles; ++q)
        pack_tiles(g, panel * panel_oc + q, to + q * tile_elements, check);
    check.report(task.nonfinite_weight);
  }

  // Those of output channels first_oc, first_oc + interleaved_tiles, ...
  void pack_tiles(int64_t g, int64_t first_oc, S* to, FiniteCheck<S>& check) const {
    const Weight& w = task.weight;
    const Taps& taps = this->k_blocks_of(g, first_oc).taps;
    const int64_t step = plan.interleaved_tiles,
                  exist = smaller<int64_t>(plan.tile_oc, ceil_div(conv.oc - first_oc, step));
    for (int64_t c = 0; c < conv.ic; c += kTileChannels, to += taps.count * columns * kTileElements) {
      const int64_t channels = smaller<int64_t>(kTileChannels, conv.ic - c);
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t begin = column * kColumnOc, oc = g * conv.oc + first_oc + begin * step;
        const int64_t count = smaller<int64_t>(kColumnOc, exist - begin);
        if (count > 0)
          pack_weight<T>(
              w, taps, w.ic_offset + g * conv.ic + c, channels,
              {w.oc_offset + oc, task.has_zero_taps() ? w.missing_taps + oc : nullptr, step, count},
              kColumnOc, 0, this->weight_planes, check);
        if (plan.joined_taps)
          for (int64_t a = 0; a < conv.kernel_h; ++a)
            pair_joined(this->weight_planes + a * conv.kernel_w * kColumnOc, count > 0,
                        to + (a * columns + column) * kTileElements);
        else
          for (int64_t tap = 0; tap < taps.count; ++tap)
            pair_channels(this->weight_planes + tap * kColumnOc, count > 0 ? channels : 0,
                          taps.count * kColumnOc, to + (tap * columns + column) * kTileElements);
      }
    }
  }

  // The same of a row of taps, [tap][channel], from planes [channel][tap].
  void pair_joined(const S* planes, bool exist, S* to) const {
    const auto of = [&](int64_t k, int64_t v) {
      const int64_t tap = k / conv.ic, channel = k % conv.ic;
      return exist && tap < conv.kernel_w ? load<S>(planes + (channel * conv.taps() + tap) * kColumnOc + v)
                                          : Vec<S>{};
    };
    for (int64_t k = 0; k < kTileChannels; k += 2)
      for (int64_t v = 0; v < kColumnOc; v += L, to += L)
        store<S>(to, bit_cast<Vec<S>>(join_pair(of(k, v), of(k + 1, v))));
  }

  // Pairs of channels become neighbours; missing channels are zero.
  static void pair_channels(const S* planes, int64_t channels, int64_t channel_step, S* to) {
    const auto of = [&](int64_t channel, int64_t v) {
      return channel < channels ? load<S>(planes + channel * channel_step + v) : Vec<S>{};
    };
    for (int64_t c = 0; c < kTileChannels; c += 2)
      for (int64_t v = 0; v < kColumnOc; v += L, to += L)
        store<S>(to, bit_cast<Vec<S>>(join_pair(of(c, v), of(c + 1, v))));
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
