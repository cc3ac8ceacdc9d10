// SPDX-License-Identifier: BSD-3-Clause
// The weight gradient: for each tap, a product of two matrices, the gradient [output channels][pixels] and the input that the
// tap reads [pixels][input channels]. Kernels of KxK taps, K = 3 or 2, are computed by Winograd's F(KxK, 2x2), with one such
// product for each of the (K + 1)^2 positions of transformed tiles of 2x2 pixels; the transforms come from the same points as
// those of F(2x2, KxK) in winograd-inl.h, and with integer data every step is exact. Included by kernels.cpp and matrix.cpp only.
//
// Both factors are packed with channels as neighbours, block by block. The channels of one are the lanes of a register tile,
// those of the other its columns. An item keeps the sums of some output and input channels in the cache:
//   sums  [segments][panels of lanes][tiles of columns][columns][vectors][lanes], then [output channels] of the bias
#pragma once

#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/microkernels-inl.h"
#include "cpu/kernels/pack_input-inl.h"
#include "cpu/kernels/pack_weight-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// One dimension of the transforms of F(KxK, 2x2): of the input (in place), of the gradient and of the sums. Those of K = 3 make
// the gradient twice and the sums half as large as usual.
template <class S, int K>
struct WeightGradTransform;

template <class S>
struct WeightGradTransform<S, 3> {
  using V = Vec<S>;
  static FS_INLINE void input(V& d0, V& d1, V& d2, V& d3) {
    const V v0 = d0 - d2, v1 = d1 + d2, v2 = d2 - d1, v3 = d1 - d3;
    d0 = v0;
    d1 = v1;
    d2 = v2;
    d3 = v3;
  }
  static FS_INLINE void gradient(V g0, V g1, V* to) {
    to[0] = g0;
    to[1] = g0 + g1;
    to[2] = g0 - g1;
    to[3] = g1;
  }
  static FS_INLINE void sums(const V* m, V* y) {
    const V half = splat<S>(S(0.5)), outer = half * (m[1] + m[2]), inner = half * (m[1] - m[2]);
    y[0] = m[0] + outer;
    y[1] = inner;
    y[2] = outer - m[3];
  }
};

template <class S>
struct WeightGradTransform<S, 2> {
  using V = Vec<S>;
  static FS_INLINE void input(V& d0, V& d1, V& d2) {
    d0 -= d1;
    d2 -= d1;
  }
  static FS_INLINE void gradient(V g0, V g1, V* to) {
    to[0] = g0;
    to[1] = g0 + g1;
    to[2] = g1;
  }
  static FS_INLINE void sums(const V* m, V* y) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
};

// The channels of one item.
struct ItemChannels {
  int64_t group, oc, output_channels, ic, input_channels;
};

// Walks the register tiles of one segment: f(tile).
struct ProductTile {
  int64_t lane;  // first lane
  int vectors;
  int64_t column;  // first column
  int columns;
  int64_t sums;  // place of its sums
};
template <int L, class F>
FS_INLINE void for_each_tile(const WeightGradPlan& plan, int64_t lanes, int64_t columns, F&& f) {
  const int64_t vectors = ceil_div(lanes, L), panels = even_parts(vectors, plan.tile_vectors);
  int64_t sums = 0;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = even_part(vectors, panels, panel);
    const int nv = static_cast<int>(even_part(vectors, panels, panel + 1) - first);
    const int64_t tiles = even_parts(columns, oc_tile_pixels(nv, kRegisters));
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t column = even_part(columns, tiles, tile);
      const int count = static_cast<int>(even_part(columns, tiles, tile + 1) - column);
      f(ProductTile{first * L, nv, column, count, sums});
      sums += int64_t{nv} * count * L;
    }
  }
}

template <class T>
struct WeightGradWorker {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  const WeightGradTask& task;
  const WeightGradPlan& plan;
  const ConvShape& conv;
  const InputTile &in, &out;  // packed tiles of the input and of the gradient
  S *input, *gradient, *packing, *arranged_input, *arranged_gradient, *own_sums;
  ProductOffset* pixels;
  int64_t count = 0;  // pixels of the block, or tiles

  // packs: it runs items, and does not only finish them
  WeightGradWorker(const WeightGradTask& t, bool packs)
      : task(t), plan(t.plan), conv(plan.shape), in(plan.input_tile), out(plan.gradient_tile) {
    const WeightGradTask::Scratch& s = task.scratch;
    Arena arena{static_cast<char*>(thread_scratch(static_cast<size_t>(s.bytes)))};
    pixels = arena.take<ProductOffset>(s.pixels);
    input = arena.take<S>(s.input_tile);
    gradient = arena.take<S>(s.gradient_tile);
    packing = arena.take<S>(s.packing);
    arranged_input = arena.take<S>(s.arranged_input);
    arranged_gradient = arena.take<S>(s.arranged_gradient);
    own_sums = arena.take<S>(s.sums);
    if (!packs) return;
    // whole vectors are read, gaps between pixels included
    std::memset(input, 0, sizeof(S) * static_cast<size_t>(s.input_tile));
    std::memset(gradient, 0, sizeof(S) * static_cast<size_t>(s.gradient_tile));
  }

  ItemChannels channels_of(int64_t pair) const {
    const int64_t ic = pair % plan.blocks_ic * plan.block_ic, of_group = pair / plan.blocks_ic;
    const int64_t oc = of_group % plan.blocks_oc * plan.block_oc;
    return {of_group / plan.blocks_oc, oc, smaller(plan.block_oc, conv.oc - oc), ic,
            smaller(plan.block_ic, conv.ic - ic)};
  }
  int64_t lanes_of(const ItemChannels& c) const {
    return plan.input_in_lanes ? plan.of_input(c.input_channels) : c.output_channels;
  }
  int64_t columns_of(const ItemChannels& c) const {
    return plan.input_in_lanes ? c.output_channels : plan.of_input(c.input_channels);
  }
  S* sums_of(int64_t item) const {
    return plan.slots > 1 ? static_cast<S*>(task.partial) + item * task.sums : own_sums;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = plan.blocks();
    for (int64_t item = begin; item < end; ++item) {
      const int64_t slot = item % plan.slots, pair = item / plan.slots;
      const ItemChannels c = channels_of(pair);
      S* sums = sums_of(item);
      std::memset(sums, 0, sizeof(S) * static_cast<size_t>(task.sums));
      const int64_t first = even_part(blocks, plan.slots, slot),
                    last = even_part(blocks, plan.slots, slot + 1);
      for (int64_t block = first; block < last; ++block) {
        const Block b = block_of(plan, block);
        const int64_t kept = kept_rows(in, conv, block > first && b.h > 0 ? plan.block_h : 0);
        pack_channels_of<T>(task.input, conv, in, c.group, b, c.ic, c.ic + c.input_channels, kept,
                            input - c.ic, packing);
        pack_channels_of<T>(task.gradient, task.gradient_shape, out, c.group, b, c.oc,
                            c.oc + c.output_channels, 0, gradient - c.oc, packing);
        if (c.ic == 0) add_bias(b, c, sums + task.sums - round_up(plan.block_oc, L));
        if constexpr (__is_same(S, float)) {
          if (plan.winograd) {
            if (conv.kernel_h == 2)
              transform<2>(b, c);
            else
              transform<3>(b, c);
            add_products(c, sums);
            continue;
          }
        }
        locate_pixels(b);
        add_products(c, sums);
      }
      if (plan.slots == 1) finish(pair, sums);
    }
  }

  void locate_pixels(const Block& b) {
    count = 0;
    for (int64_t n = 0; n < b.images; ++n) {
      for (int64_t h = 0; h < b.height; ++h) {
        int64_t of_input = n * in.image_step + h * conv.stride_h * in.row_step;
        int64_t of_gradient = n * out.image_step + h * out.row_step;
        for (int64_t w = 0; w < b.width; ++w, of_input += in.column_step, of_gradient += out.column_step)
          locate(of_input, of_gradient);
      }
    }
  }
  FS_INLINE void locate(int64_t of_input, int64_t of_gradient) {
    const auto i = static_cast<int32_t>(of_input), g = static_cast<int32_t>(of_gradient);
    pixels[count++] = plan.input_in_lanes ? ProductOffset{i, g} : ProductOffset{g, i};
  }

  // The bias's gradient: sums of rows, which are added to those before.
  void add_bias(const Block& b, const ItemChannels& c, S* sums) const {
    constexpr int kAtOnce = 4;
    for (int64_t oc = 0; oc < c.output_channels; oc += kAtOnce * L) {
      const int64_t vectors = smaller<int64_t>(kAtOnce, ceil_div(c.output_channels - oc, L));
      for (int64_t n = 0; n < b.images; ++n) {
        for (int64_t h = 0; h < b.height; ++h) {
          const S* from = gradient + n * out.image_step + h * out.row_step + oc;
          Vec<S> total[kAtOnce]{};
          for (int64_t w = 0; w < b.width; ++w, from += out.column_step)
            for (int64_t v = 0; v < vectors; ++v) total[v] += load<S>(from + v * L);
          for (int64_t v = 0; v < vectors; ++v) {
            S* to = sums + oc + v * L;
            store<S>(to, load<S>(to) + total[v]);
          }
        }
      }
    }
  }

  // ---- Winograd ----------------------------------------------------------------------------------------------------

  template <class F>
  void for_each_winograd_tile(const Block& b, F&& f) {
    count = 0;
    for (int64_t n = 0; n < b.images; ++n) {
      for (int64_t h = 0; h < b.height; h += 2) {
        const S* of_input = input + n * in.image_step + h * in.row_step;
        const S* of_gradient = gradient + n * out.image_step + h * out.row_step;
        for (int64_t w = 0; w < b.width; w += 2)
          f(of_input + w * in.column_step, of_gradient + w * out.column_step);
      }
    }
  }

  template <int K>
  void transform(const Block& b, const ItemChannels& c) {
    for_each_winograd_tile(b, [&](const S* of_input, const S* of_gradient) {
      S* to = arranged_input + count * task.winograd_input_step;
      for (int64_t ic = 0; ic < c.input_channels; ic += L)
        transform_input(of_input + ic, to + ic, std::make_index_sequence<K + 1>{});
      to = arranged_gradient + count * task.winograd_gradient_step;
      for (int64_t oc = 0; oc < c.output_channels; oc += L) transform_gradient<K>(of_gradient + oc, to + oc);
      locate(count * task.winograd_input_step, count * task.winograd_gradient_step);
    });
  }

  // Fetches what is going to be written: stores leave the processor in order, so that each would wait for its own cache line.
  static constexpr int64_t kTilesAhead = 2;
  template <int kPositions>
  static FS_INLINE void fetch_positions(const S* to, int64_t step) {
    FS_UNROLL
    for (int position = 0; position < kPositions; ++position) __builtin_prefetch(to + position * step, 1);
  }

  template <size_t... P>
  FS_INLINE void transform_input(const S* from, S* to, std::index_sequence<P...>) const {
    constexpr int kSide = sizeof...(P);
    using Transform = WeightGradTransform<S, kSide - 1>;
    fetch_positions<kSide * kSide>(to + kTilesAhead * task.winograd_input_step, task.winograd_input_position);
    Vec<S> d[kSide][kSide];
    FS_UNROLL
    for (int a = 0; a < kSide; ++a) {
      FS_UNROLL
      for (int b = 0; b < kSide; ++b) d[a][b] = load<S>(from + a * in.row_step + b * in.column_step);
      Transform::input(d[a][P]...);
    }
    FS_UNROLL
    for (int b = 0; b < kSide; ++b) {
      Transform::input(d[P][b]...);
      FS_UNROLL
      for (int a = 0; a < kSide; ++a) store<S>(to + (kSide * a + b) * task.winograd_input_position, d[a][b]);
    }
  }

  template <int K>
  FS_INLINE void transform_gradient(const S* from, S* to) const {
    using Transform = WeightGradTransform<S, K>;
    fetch_positions<(K + 1) * (K + 1)>(to + kTilesAhead * task.winograd_gradient_step,
                                       task.winograd_gradient_position);
    Vec<S> half[2][K + 1];
    FS_UNROLL
    for (int a = 0; a < 2; ++a)
      Transform::gradient(load<S>(from + a * out.row_step),
                          load<S>(from + a * out.row_step + out.column_step), half[a]);
    FS_UNROLL
    for (int b = 0; b <= K; ++b) {
      Vec<S> g[K + 1];
      Transform::gradient(half[0][b], half[1][b], g);
      FS_UNROLL
      for (int a = 0; a <= K; ++a) store<S>(to + ((K + 1) * a + b) * task.winograd_gradient_position, g[a]);
    }
  }

  // ---- products ----------------------------------------------------------------------------------------------------

  void add_products(const ItemChannels& c, S* sums) const {
    const int64_t lanes = lanes_of(c), columns = columns_of(c), segments = plan.segments();
    const int64_t chains = even_parts(count, plan.chain);
    for (int64_t chain = 0; chain < chains; ++chain) {
      const ProductOffset* at = pixels + even_part(count, chains, chain);
      const int64_t length = even_part(count, chains, chain + 1) - even_part(count, chains, chain);
      for (int64_t segment = 0; segment < segments; ++segment) {
        const S* of_input = plan.winograd ? arranged_input + segment * task.winograd_input_position
                                          : input + task.segment_input[segment];
        const S* of_gradient =
            plan.winograd ? arranged_gradient + segment * task.winograd_gradient_position : gradient;
        const S* in_lanes = plan.input_in_lanes ? of_input : of_gradient;
        const S* in_columns = plan.input_in_lanes ? of_gradient : of_input;
        S* to = sums + segment * task.segment_step;
        for_each_tile<L>(plan, lanes, columns, [&](const ProductTile& tile) {
          sum_products_of<S>(tile.columns, tile.vectors)(in_lanes + tile.lane, in_columns + tile.column, at,
                                                         length, to + tile.sums);
        });
      }
    }
  }

  // ---- from sums to the weight -------------------------------------------------------------------------------------

  // Writes the weights of a pair of channel blocks from the sums of its slots, which lie one after the other.
  void finish(int64_t pair, const S* sums) const {
    const ItemChannels c = channels_of(pair);
    const int64_t lanes = lanes_of(c);
    FiniteCheck<S> check;
    for_each_tile<L>(plan, lanes, columns_of(c), [&](const ProductTile& tile) {
      for (int p = 0; p < tile.columns; ++p) {
        for (int v = 0; v < tile.vectors; ++v) {
          const int64_t lane = tile.lane + v * L;
          const S* from = sums + tile.sums + (p * tile.vectors + v) * L;
          const int64_t exist = smaller<int64_t>(L, lanes - lane);
          if constexpr (__is_same(S, float)) {
            if (plan.winograd) {
              if (conv.kernel_h == 2)
                finish_winograd<2>(from, c, lane, exist, tile.column + p, check);
              else
                finish_winograd<3>(from, c, lane, exist, tile.column + p, check);
              continue;
            }
          }
          for (int64_t segment = 0; segment < plan.segments(); ++segment) {
            const Vec<S> total = sum_slots(from + segment * task.segment_step);
            write<1>(&total, c, lane, exist, tile.column + p, task.segment_weight[segment]);
          }
        }
      }
    });
    if (plan.winograd) check.report(task.nonfinite);
    if (c.ic > 0) return;
    for (int64_t oc = 0; oc < c.output_channels; oc += L) {
      S total[L];
      store<S>(total, sum_slots(sums + task.sums - round_up(plan.block_oc, L) + oc));
      for (int64_t l = 0; l < smaller<int64_t>(L, c.output_channels - oc); ++l)
        write_bias(c.group * conv.oc + c.oc + oc + l, total[l]);
    }
  }
  void write_bias(int64_t oc, S total) const {
    const int64_t channel = task.lr_channel[oc];
    if (task.arithmetic_bias)
      static_cast<S*>(task.grad_bias)[channel] = total;
    else
      static_cast<T*>(task.grad_bias)[channel] = narrow<T>(total);
  }

  Vec<S> sum_slots(const S* from) const {
    Vec<S> total = load<S>(from);
    for (int64_t slot = 1; slot < plan.slots; ++slot) total += load<S>(from + slot * task.sums);
    return total;
  }

  template <int K>
  void finish_winograd(const S* from, const ItemChannels& c, int64_t lane, int64_t exist, int64_t column,
                       FiniteCheck<S>& check) const {
    using Transform = WeightGradTransform<S, K>;
    Vec<S> half[K + 1][K];  // [position row][tap column]
    FS_UNROLL
    for (int a = 0; a <= K; ++a) {
      Vec<S> m[K + 1];
      FS_UNROLL
      for (int b = 0; b <= K; ++b) m[b] = sum_slots(from + ((K + 1) * a + b) * task.segment_step);
      Transform::sums(m, half[a]);
    }
    Vec<S> taps[K * K];
    FS_UNROLL
    for (int b = 0; b < K; ++b) {
      Vec<S> m[K + 1], y[K];
      FS_UNROLL
      for (int a = 0; a <= K; ++a) m[a] = half[a][b];
      Transform::sums(m, y);
      FS_UNROLL
      for (int a = 0; a < K; ++a) taps[K * a + b] = check(y[a]);
    }
    write<K * K>(taps, c, lane, exist, column, 0);
  }

  // All taps, or one that lies at `offset`, of the lanes from `lane` on that exist, and of one column.
  template <int kTaps>
  FS_INLINE void write(const Vec<S>* taps, const ItemChannels& c, int64_t lane, int64_t exist, int64_t column,
                       int64_t offset) const {
    const int64_t* of_gradient = task.gradient_weight + c.group * conv.oc + c.oc;
    const int64_t* of_lanes = (plan.input_in_lanes ? task.input_weight : of_gradient) + lane;
    const int64_t of_column = (plan.input_in_lanes ? of_gradient : task.input_weight)[column];
    T* weight = static_cast<T*>(task.grad_weight) + c.ic * task.input_weight_step + offset + of_column;
    if (task.dense_weight && plan.input_in_lanes && exist == L && conv.taps() == kTaps) {  // all neighbours
      Vec<S> v[kTaps];
      FS_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) v[tap] = taps[tap];
      interleave<S, kTaps>(v);
      FS_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) store_narrowed<T>(weight + of_lanes[0] + tap * L, v[tap]);
      return;
    }
    S stored[kTaps * L];
    FS_UNROLL
    for (int tap = 0; tap < kTaps; ++tap) store<S>(stored + tap * L, taps[tap]);
    for (int64_t l = 0; l < exist; ++l)
      for (int tap = 0; tap < kTaps; ++tap)
        weight[of_lanes[l] + (kTaps > 1 ? task.tap_weight[tap] : 0)] = narrow<T>(stored[tap * L + l]);
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
