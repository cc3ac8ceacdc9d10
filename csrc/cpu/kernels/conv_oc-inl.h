// SPDX-License-Identifier: BSD-3-Clause
// The OC-vectorised kernel: output channels in the vector lanes. Included by kernels.cpp only.
//
// A short sum takes less than a thousand cycles, so whatever is decided between two tiles takes a good part of the time.
// Everything that can be is decided once per block (place_tiles) or once per panel (Panel).
#pragma once

#include "cpu/kernels/conv-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct OcWorker : ConvWorker<T> {
  using Base = ConvWorker<T>;
  using Base::acc, Base::bias, Base::conv, Base::group, Base::k, Base::L, Base::out, Base::pixel_tiles,
      Base::plan, Base::task, Base::tile, Base::tiles;
  using typename Base::S;
  static constexpr int64_t kLine = 64 / sizeof(S);
  static constexpr int kToL2 = 2;
  PixelTile* pixel_tiles_end;
  Block placed{};  // the block whose tiles these are, or one of its size
  const S* ahead;  // if the input is read in place: where the next block's begins, or null

  explicit OcWorker(const ConvTask& t) : Base(t), pixel_tiles_end(pixel_tiles) {}

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = blocks_of_group(plan);
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) this->enter_group(item / blocks);
      const Block b = block_of(plan, item % blocks);
      const S* pixels = this->input_of(group, b, item > begin && b.h > 0);
      ahead = nullptr;
      if (task.in_place && item + 1 < end)
        ahead = this->source_at((item + 1) / blocks, block_of(plan, (item + 1) % blocks));
      const S* packed = this->panels;
      for (int64_t t = 0; t < tiles; t += plan.panel_tiles, packed += plan.panel_elements)
        run_panel(b, pixels, packed, t);
    }
  }

  // The tiles of a block, of sizes as even as possible: the first of a row take one pixel more, if the rest does not divide.
  void place_tiles(const Block& b) {
    if (b.images == placed.images && b.height == placed.height && b.width == placed.width) return;
    placed = b;
    pixel_tiles_end = pixel_tiles;
    const int64_t splits = ceil_div(b.width, plan.tile_pixels);
    for (int64_t n = 0; n < b.images; ++n) {
      for (int64_t h = 0; h < b.height; ++h) {
        for (int64_t s = 0, w = 0; s < splits; ++s) {
          const int count = static_cast<int>(b.width / splits + (s < b.width % splits));
          const PixelVector p{n, h, w, count};
          *pixel_tiles_end++ = {p, this->input_at(p), out.dest_pixel(p)};
          w += count;
        }
      }
    }
  }

  // What the tiles of a panel have in common.
  struct Panel {
    int64_t first_oc, stored;
    int most;  // pixels of a tile; others have one less
    OcVectorised<S> run_most, run_less;
    bool plain;  // see Store::plain
    T* dest;     // place of the block's first pixel
    S* direct;   // place of its first output channel, if microkernels store to the output; or null
    int64_t ahead_from, ahead_to;  // the channels that they fetch of the next block: whole cache lines
  };

  Panel panel_of(const Block& b, int64_t first_tile) const {
    Panel p{};
    p.first_oc = first_tile * plan.tile_oc;
    p.stored = smaller<int64_t>(plan.panel_tiles * plan.tile_oc, conv.oc - p.first_oc);
    p.most = pixel_tiles->pixels.count;
    p.run_most = oc_vectorised_of<S>(p.most, plan.tile_oc / L);
    p.run_less = oc_vectorised_of<S>(larger(p.most - 1, 1), plan.tile_oc / L);
    const PixelVector whole{b.n, b.h, b.w, static_cast<int>(b.width)};
    p.plain = task.dest.oc_contiguous && out.plain(whole, b.height, p.first_oc, p.stored);
    p.dest = out.at(whole);
    p.direct = p.plain && !task.has_zero_taps() ? out.direct(p.dest, p.first_oc, plan.tile_oc) : nullptr;
    const auto share = [&](int64_t t) { return t < tiles ? conv.ic * t / tiles / kLine * kLine : conv.ic; };
    p.ahead_from = share(first_tile);
    p.ahead_to = share(first_tile + plan.panel_tiles);
    return p;
  }

  void run_panel(const Block& b, const S* input, const S* packed, int64_t first_tile) {
    place_tiles(b);
    const Panel panel = panel_of(b, first_tile);
    const int64_t acc_step = plan.tile_oc * plan.tile_pixels * task.deferred_tiles;
    const S* origin[kMaxInterleavedVectors];
    const KBlocks* k_blocks[kMaxInterleavedVectors];
    for (int q = 0; q < plan.interleaved_tiles; ++q) {
      origin[q] = input + this->input_shift(panel.first_oc + q);
      k_blocks[q] = &this->k_blocks_of(group, panel.first_oc + q);
    }
    const bool defers_none = panel.direct && k_blocks[0]->count == 1;
    for (const PixelTile *t = pixel_tiles, *next; t < pixel_tiles_end; t = next) {
      next = defers_none ? pixel_tiles_end
                         : smaller(t + task.deferred_tiles, static_cast<const PixelTile*>(pixel_tiles_end));
      for (int64_t s = 0; s < task.k_blocks[0].count; ++s) {
        for (int q = 0; q < plan.interleaved_tiles; ++q) {
          const int64_t count = k_blocks[q]->count;
          if (s >= count) continue;
          const KBlock& block = k_blocks[q]->blocks[s];
          const bool last = s + 1 == count;
          accumulate(t, next, panel, block, packed + q * k * plan.tile_oc + block.weight,
                     origin[q] + block.input, acc + q * acc_step, last && panel.direct, last && q == 0);
        }
      }
      if (task.has_zero_taps()) check_tiles(t, next, panel.stored);
      if (!panel.direct) store_tiles(t, next, b, panel, acc_step);
    }
  }

  // One K block of some tiles, one after another. Conditions on single tiles stay out of this function, so that they take
  // none of its registers.
  FS_NOINLINE void accumulate(const PixelTile* t, const PixelTile* end, const Panel& panel,
                              const KBlock& block, const S* weight, const S* pixels, S* deferred, bool direct,
                              bool fetches) const {
    const int64_t deferred_step = plan.tile_oc;
    OcAcc<S> result{};
    result.bias = direct ? bias + panel.first_oc : nullptr;
    result.pixel_step = direct ? out.dest_step() : deferred_step;
    for (; t < end; ++t) {
      const int count = t->pixels.count;
      if (fetches) {
        out.fetch(panel.first_oc, panel.stored, panel.dest + t->dest, count);
        if (ahead) fetch_ahead(ahead + t->input, count, panel.ahead_from, panel.ahead_to);
      }
      result.earlier = block.offsets.add ? deferred : nullptr;
      result.to = direct ? panel.direct + t->dest : deferred;
      (count == panel.most ? panel.run_most : panel.run_less)(weight, pixels + t->input, block.offsets,
                                                              result);
      deferred += count * deferred_step;
    }
  }

  void check_tiles(const PixelTile* t, const PixelTile* end, int64_t stored) const {
    int64_t pixels = 0;
    for (; t < end; ++t) pixels += t->pixels.count;
    this->check_sums(acc, pixels, stored, plan.tile_oc);
  }

  FS_NOINLINE void store_tiles(const PixelTile* t, const PixelTile* tiles_end, const Block& b,
                               const Panel& panel, int64_t acc_step) const {
    S* from = acc;
    for (const PixelTile* end; t < tiles_end; t = end) {
      end = t + 1;
      if (panel.plain) {
        out.store_plain(from, plan.tile_oc, panel.first_oc, panel.stored, panel.dest + t->dest,
                        t->pixels.count);
        from += t->pixels.count * plan.tile_oc;
        continue;
      }
      PixelVector p = absolute(t->pixels, b);
      for (; end < tiles_end && end->pixels.w > 0; ++end) p.count += end->pixels.count;  // of the same row
      if (task.dest.oc_contiguous)
        out.store_pixels(from, plan.tile_oc, panel.first_oc, panel.stored, p);
      else
        out.store_transposed(from, plan.tile_oc, plan.interleaved_tiles, acc_step, panel.first_oc,
                             panel.stored, p);
      from += p.count * plan.tile_oc;
    }
  }

  // Input that is read in place comes from memory as the tiles ask for it, one broadcast at a time, and no hardware
  // prefetcher understands that. So every tile fetches its share of the same pixels of the next block, to the L2 cache: the first
  // one is full of this block. (This must be inlined: g++ takes a function that only prefetches for one without effect, and
  // drops its calls.)
  FS_INLINE void fetch_ahead(const S* pixel, int count, int64_t from, int64_t to) const {
    for (int64_t c = from; c < to; c += kLine)
      for (int x = 0; x < count; ++x) __builtin_prefetch(pixel + c + x * tile.column_step, 0, kToL2);
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
