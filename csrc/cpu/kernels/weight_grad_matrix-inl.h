// SPDX-License-Identifier: BSD-3-Clause
// The weight gradient by matrix tiles: 16 input channels of one tap x 32 pixels, times 32 pixels x 16 output channels. Both
// factors are packed as bfloat16 with channels as neighbours, and then rearranged: the input to planes, so that a tap is
// nothing but another address, and the gradient to pairs of pixels. Included by matrix.cpp only.
//
// Pixels are counted through the rows of the packed input tile. What lies between two rows of the gradient is zero, or every
// row has tiles of its own (WeightGradPlan::flat).
//   sums  [input channels / 16][taps][output channels / 16][16][16], then [output channels] of the bias
#pragma once

#include "cpu/kernels/tiles-inl.h"
#include "cpu/kernels/weight_grad-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// P rows of tiles of planes x Q columns of tiles of pairs, added to their sums. Steps are in bytes.
struct PixelProducts {
  const BFloat16* planes[2];
  const uint32_t* pairs;
  int64_t plane_step, pair_step;
  const ProductOffset* at;
  int64_t count;
  float* sums[2];
};
template <int P, int Q>
FS_INLINE void multiply_pixels(Tiles& tiles, const PixelProducts& m) {
  tiles.multiply<P, Q>(
      {{m.sums[0], m.sums[1]}, kTileElements, kColumnOc, true, kTileRows}, {m.count, m.count, 0},
      [&](int p, int64_t i) { return m.planes[p] + m.at[i].lanes; }, m.plane_step,
      [&](int q, int64_t i) { return m.pairs + m.at[i].column + q * kColumnOc; }, m.pair_step);
}

template <class T>
struct MatrixWeightGradWorker : WeightGradWorker<T> {
  using Base = WeightGradWorker<T>;
  using Base::conv, Base::count, Base::in, Base::L, Base::out, Base::packing, Base::pixels, Base::plan,
      Base::task;
  using typename Base::S;
  BFloat16 *packed_input, *packed_gradient, *planes;
  uint32_t* pairs;
  Block packed{};  // the block of this size that was packed last

  MatrixWeightGradWorker(const WeightGradTask& t, bool packs)
      : Base(t, packs),
        packed_input(reinterpret_cast<BFloat16*>(this->input)),
        packed_gradient(reinterpret_cast<BFloat16*>(this->gradient)),
        planes(reinterpret_cast<BFloat16*>(this->arranged_input)),
        pairs(reinterpret_cast<uint32_t*>(this->arranged_gradient)) {
    if (packs) std::memset(planes, 0, sizeof(S) * static_cast<size_t>(task.scratch.arranged_input));
  }

  void run(int64_t begin, int64_t end) {
    Tiles tiles;
    const int64_t blocks = plan.blocks();
    for (int64_t item = begin; item < end; ++item) {
      const int64_t slot = item % plan.slots, pair = item / plan.slots;
      const ItemChannels c = this->channels_of(pair);
      S* sums = this->sums_of(item);
      std::memset(sums, 0, sizeof(S) * static_cast<size_t>(task.sums));
      const int64_t first = even_part(blocks, plan.slots, slot),
                    last = even_part(blocks, plan.slots, slot + 1);
      for (int64_t block = first; block < last; ++block) {
        const Block b = block_of(plan, block);
        pack(b, c, kept_rows(in, conv, block > first && b.h > 0 ? plan.block_h : 0));
        if (c.ic == 0) add_bias(b, c, bias_of(sums));
        arrange_input(b, c);
        arrange_gradient(b, c);
        add_products(tiles, c, sums);
      }
      if (plan.slots == 1) finish(pair, sums);
    }
  }

  S* bias_of(S* sums) const { return sums + task.sums - round_up(plan.block_oc, kColumnOc); }

  void pack(const Block& b, const ItemChannels& c, int64_t kept) {
    pack_channels_of<T>(task.input, conv, in, c.group, b, c.ic, c.ic + c.input_channels, kept,
                        packed_input - c.ic, packing);
    // no more than the block's own pixels: zeros stay where it has none
    if (b.images != packed.images || b.height != packed.height || b.width != packed.width)
      std::memset(packed_gradient, 0, sizeof(S) * static_cast<size_t>(task.scratch.gradient_tile));
    packed = b;
    InputTile tile = out;
    tile.rows = b.height;
    tile.phase_columns = b.width;
    pack_channels_of<T>(task.gradient, task.gradient_shape, tile, c.group, b, c.oc, c.oc + c.output_channels,
                        0, packed_gradient - c.oc, packing);
  }

  void add_bias(const Block& b, const ItemChannels& c, S* sums) const {
    for (int64_t oc = 0; oc < c.output_channels; oc += L) {
      Vec<S> total = load<S>(sums + oc);
      for (int64_t n = 0; n < b.images; ++n)
        for (int64_t h = 0; h < b.height; ++h) {
          const BFloat16* from = packed_gradient + n * out.image_step + h * out.row_step + oc;
          Vec<S> row{};
          for (int64_t w = 0; w < b.width; ++w) row += load_widened<BFloat16>(from + w * out.column_step);
          total += row;
        }
      store<S>(sums + oc, total);
    }
  }

  // Pairs of pixels of L channels become 2 L pixels of each channel.
  void arrange_input(const Block& b, const ItemChannels& c) const {
    const int64_t row = in.stride_phases * in.phase_columns;
    for (int64_t ic = 0; ic < c.input_channels; ic += L) {
      for (int64_t y = 0; y < b.images * in.rows; ++y) {
        const BFloat16* from = packed_input + y / in.rows * in.image_step + y % in.rows * in.row_step + ic;
        BFloat16* to = planes + ic * task.plane_step + y * row;
        for (int64_t x = 0; x < row; x += 2 * L) {
          Vec<S> v[L];
          FS_UNROLL
          for (int l = 0; l < L; ++l) {
            const BFloat16* pixel = from + (x + 2 * l) * in.column_step;
            v[l] = bit_cast<Vec<S>>(
                join_pair(load_widened<BFloat16>(pixel), load_widened<BFloat16>(pixel + in.column_step)));
          }
          transpose<S>(v);
          FS_UNROLL
          for (int l = 0; l < L; ++l) std::memcpy(to + l * task.plane_step + x, &v[l], sizeof(v[l]));
        }
      }
    }
  }

  // Pairs of pixels, and where the tiles of both factors begin.
  void arrange_gradient(const Block& b, const ItemChannels& c) {
    const int64_t image = plan.flat ? round_up((b.height - 1) * plan.row_pixels + b.width, kTileChannels)
                                    : b.height * plan.row_pixels;
    const int64_t of_pair = task.pair_step, row = in.stride_phases * in.phase_columns;
    count = 0;
    uint32_t* to = pairs;
    for (int64_t n = 0; n < b.images; ++n) {
      const BFloat16* from = packed_gradient + n * out.image_step;
      for (int64_t p = 0; p < image; p += 2, from += 2 * out.column_step, to += of_pair) {
        if (p % kTileChannels == 0) {
          const int64_t h = plan.flat ? 0 : p / plan.row_pixels, w = plan.flat ? p : p % plan.row_pixels;
          pixels[count++] = {static_cast<int32_t>((n * in.rows + h * conv.stride_h) * row + w),
                             static_cast<int32_t>(to - pairs)};
        }
        for (int64_t oc = 0; oc < c.output_channels; oc += L) {
          const Bits32 v = join_pair(load_widened<BFloat16>(from + oc),
                                     load_widened<BFloat16>(from + out.column_step + oc));
          std::memcpy(to + oc, &v, sizeof(v));
        }
      }
    }
  }

  // Chains of pixels whose pairs stay in the first cache.
  void add_products(Tiles& tiles, const ItemChannels& c, S* sums) const {
    const int64_t rows = ceil_div(c.input_channels, kStripPixels) * conv.taps(), taps = conv.taps(),
                  columns = ceil_div(c.output_channels, kColumnOc);
    const int64_t chains = even_parts(count, plan.chain / kTileChannels);
    for (int64_t chain = 0; chain < chains; ++chain) {
      const int64_t first = even_part(count, chains, chain);
      PixelProducts m{{},
                      nullptr,
                      task.plane_step * int64_t{sizeof(BFloat16)},
                      task.pair_step * int64_t{sizeof(uint32_t)},
                      pixels + first,
                      even_part(count, chains, chain + 1) - first,
                      {}};
      for (int64_t column = 0; column < columns; column += 2) {
        m.pairs = pairs + column * kColumnOc;
        for (int64_t r = 0; r < rows; r += 2) {
          for (int64_t p = 0; p < smaller<int64_t>(2, rows - r); ++p) {
            m.planes[p] =
                planes + (r + p) / taps * kStripPixels * task.plane_step + task.segment_input[(r + p) % taps];
            m.sums[p] = sums + ((r + p) * columns_of_item() + column) * kTileElements;
          }
          const bool two = column + 1 < columns;
          if (r + 1 < rows)
            two ? multiply_pixels<2, 2>(tiles, m) : multiply_pixels<2, 1>(tiles, m);
          else
            two ? multiply_pixels<1, 2>(tiles, m) : multiply_pixels<1, 1>(tiles, m);
        }
      }
    }
  }
  int64_t columns_of_item() const { return ceil_div(plan.block_oc, kColumnOc); }

  // Writes the weights of a pair of channel blocks from the sums of its slots.
  void finish(int64_t pair, const S* sums) const {
    const ItemChannels c = this->channels_of(pair);
    FiniteCheck<S> check;
    for (int64_t oc = 0; oc < c.output_channels; oc += L)
      for (int64_t ic = 0; ic < c.input_channels; ic += L) finish_square(sums, c, oc, ic, check);
    check.report(task.nonfinite);
    if (c.ic > 0) return;
    for (int64_t oc = 0; oc < c.output_channels; oc += L) {
      S total[L];
      store<S>(total, this->sum_slots(sums + task.sums - round_up(plan.block_oc, kColumnOc) + oc));
      for (int64_t l = 0; l < smaller<int64_t>(L, c.output_channels - oc); ++l)
        this->write_bias(c.group * conv.oc + c.oc + oc + l, total[l]);
    }
  }

  // The weights of L x L channels. Those of an output channel are neighbours, unless the weight is a transposed convolution's.
  void finish_square(const S* sums, const ItemChannels& c, int64_t oc, int64_t ic,
                     FiniteCheck<S>& check) const {
    constexpr int64_t kTapsAtOnce = 16;
    const int64_t taps = conv.taps(), columns = columns_of_item();
    const int64_t outputs = smaller<int64_t>(L, c.output_channels - oc),
                  inputs = smaller<int64_t>(L, c.input_channels - ic);
    const int64_t* of_gradient = task.gradient_weight + c.group * conv.oc + c.oc + oc;
    T* const weight = static_cast<T*>(task.grad_weight) + (c.ic + ic) * task.input_weight_step;
    S square[kTapsAtOnce][L * L];  // [tap][output channel][input channel]
    for (int64_t first = 0; first < taps; first += kTapsAtOnce) {
      const int64_t count = smaller(kTapsAtOnce, taps - first);
      for (int64_t tap = 0; tap < count; ++tap) {
        const int64_t tile = (ic / kStripPixels * taps + first + tap) * columns + oc / kColumnOc;
        const S* from = sums + tile * kTileElements + ic % kStripPixels * kColumnOc + oc % kColumnOc;
        Vec<S> v[L];
        FS_UNROLL
        for (int l = 0; l < L; ++l) v[l] = l < inputs ? this->sum_slots(from + l * kColumnOc) : Vec<S>{};
        transpose<S>(v);
        for (int l = 0; l < L; ++l) store<S>(square[tap] + l * L, l < outputs ? check(v[l]) : v[l]);
      }
      const auto whole = [&](auto interleaved) {
        constexpr int kTaps = decltype(interleaved)::value;
        for (int64_t o = 0; o < outputs; ++o) {
          Vec<S> v[kTaps];
          FS_UNROLL
          for (int tap = 0; tap < kTaps; ++tap) v[tap] = load<S>(square[tap] + o * L);
          interleave<S, kTaps>(v);
          FS_UNROLL
          for (int tap = 0; tap < kTaps; ++tap) store_narrowed<T>(weight + of_gradient[o] + tap * L, v[tap]);
        }
      };
      if (task.dense_weight && count == taps && inputs == L &&
          try_dispatch(RegisterInterleave{}, taps, whole))
        return;
      for (int64_t o = 0; o < outputs; ++o)
        for (int64_t i = 0; i < inputs; ++i)
          for (int64_t tap = 0; tap < count; ++tap)
            weight[of_gradient[o] + i * task.input_weight_step + task.tap_weight[first + tap]] =
                narrow<T>(square[tap][o * L + i]);
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
