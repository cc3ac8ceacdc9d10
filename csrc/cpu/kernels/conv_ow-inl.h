// SPDX-License-Identifier: BSD-3-Clause
// The OW-vectorised kernel: neighbouring pixels in the vector lanes. Included by kernels.cpp only.
#pragma once

#include "cpu/kernels/conv-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct OwWorker : ConvWorker<T> {
  using Base = ConvWorker<T>;
  using Base::acc, Base::conv, Base::group, Base::k, Base::L, Base::out, Base::plan, Base::task, Base::tiles;
  using typename Base::S;
  explicit OwWorker(const ConvTask& t) : Base(t) {}

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = blocks_of_group(plan);
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) this->enter_group(item / blocks);
      const Block b = block_of(plan, item % blocks);
      const S* pixels = this->input_of(group, b, item > begin && b.h > 0);
      const S* packed = this->panels;
      for (int64_t t = 0; t < tiles; t += plan.panel_tiles, packed += plan.panel_elements)
        panel(b, pixels, packed, t, smaller<int64_t>(plan.panel_tiles, tiles - t));
    }
  }

  // The output channels of register tiles first_tile .. first_tile + count - 1, for all pixels of a block.
  void panel(const Block& b, const S* input, const S* packed, int64_t first_tile, int64_t count) {
    const int V = plan.tile_pixels;
    const OwVectorised<S> microkernel = ow_vectorised_of<S>(plan.tile_oc);
    const int64_t first_oc = first_tile * plan.tile_oc;
    const int64_t stored = smaller(count * plan.tile_oc, conv.oc - first_oc);
    const int64_t vectors = b.images * b.height * ceil_div(b.width, L);
    PixelCursor cursor{b, L};
    for (int64_t v0 = 0; v0 < vectors; v0 += V) {
      PixelVector pixels[kMaxTileVectors];
      const S* at[kMaxTileVectors];
      const int valid = static_cast<int>(smaller<int64_t>(V, vectors - v0));
      for (int v = 0; v < V; ++v) {
        if (v < valid) {
          const PixelVector p = cursor.next();
          at[v] = input + this->input_at(p);
          pixels[v] = absolute(p, b);
        } else {
          at[v] = at[valid - 1];  // the last tile of a block repeats a vector and drops it
        }
      }
      for (int v = 0; v < valid; ++v) out.fetch(first_oc, stored, out.at(pixels[v]), pixels[v].count);
      for (int64_t s = 0; s < task.k_blocks[0].count; ++s) {
        for (int64_t t = 0; t < count; ++t) {
          const int64_t oc = first_oc + (plan.interleaved_tiles > 1 ? t : t * plan.tile_oc);
          const KBlocks& k_blocks = this->k_blocks_of(group, oc);
          if (s >= k_blocks.count) continue;
          const KBlock& block = k_blocks.blocks[s];
          const int64_t shift = this->input_shift(oc) + block.input;
          const S* from[kMaxTileVectors];
          for (int v = 0; v < V; ++v) from[v] = at[v] + shift;
          microkernel(packed + t * k * plan.tile_oc + block.weight, from, block.offsets,
                      acc + (oc - first_oc) * V * L);
        }
      }
      if (task.has_zero_taps())
        for (int v = 0; v < valid; ++v) this->check_sums(acc + v * L, stored, pixels[v].count, V * L);
      out.store_planar(acc, V * L, first_oc, stored, pixels, valid);
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
