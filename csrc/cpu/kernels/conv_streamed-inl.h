// SPDX-License-Identifier: BSD-3-Clause
// The kernel for few pixels: nothing is packed of the weight, whose rows are read once, where they lie. Included by kernels.cpp
// only.
//
// Rows of an output channel (Conv2d): a sum is the dot product of such a row with a window of the input in the same order, with
// neighbouring elements of the row in the vector lanes.
// Rows of an input channel (ConvTranspose2d): the row times one pixel gives the products with all output channels and taps.
// These are summed over input channels, by the OC-vectorised microkernel, and then added up where the taps of an output overlap.
#pragma once

#include "cpu/kernels/conv-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// Adds the dot products of R rows of weights with P windows of pixels, x_step elements apart, to sums[r * sum_step + p].
// Registers: R * P accumulators, R vectors of weights, one of pixels.
template <class T, int R, int P>
void dot_rows(const T* const* rows, const Compute<T>* x, int64_t x_step, int64_t count, Compute<T>* sums,
              int64_t sum_step) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>, kVectors = (R * P + L - 1) / L * L;
  Vec<S> acc[kVectors] = {};
  const auto add = [&](int64_t k, auto&& load_weights) __attribute__((always_inline)) {
    Vec<S> w[R];
    FS_UNROLL
    for (int r = 0; r < R; ++r) w[r] = load_weights(rows[r] + k);
    FS_UNROLL
    for (int p = 0; p < P; ++p) {
      const Vec<S> pixels = load<S>(x + p * x_step + k);
      FS_UNROLL
      for (int r = 0; r < R; ++r) acc[r * P + p] += w[r] * pixels;
    }
  };
  int64_t k = 0;
  for (; k + L <= count; k += L) add(k, [](const T* from) { return load_widened<T>(from); });
  if (k < count) add(k, [&](const T* from) { return load_first<T>(from, count - k); });
  S folded[kVectors];
  FS_UNROLL
  for (int v = 0; v < kVectors; v += L) {
    fold<S>(acc + v);
    store<S>(folded + v, acc[v]);
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) sums[r * sum_step + p] += folded[r * P + p];
}

template <class T>
using DotRows = void (*)(const T* const*, const Compute<T>*, int64_t, int64_t, Compute<T>*, int64_t);
template <class T, int... P>
DotRows<T> dot_rows_from(int pixels, std::integer_sequence<int, P...>) {
  static constexpr DotRows<T> table[] = {&dot_rows<T, streamed_rows(kRegisters), P + 1>...};
  if (pixels < 1 || pixels > static_cast<int>(sizeof...(P))) __builtin_trap();
  return table[pixels - 1];
}
template <class T>
DotRows<T> dot_rows_of(int pixels) {
  return dot_rows_from<T>(pixels, std::make_integer_sequence<int, kMaxStreamedPixels>{});
}

template <class T>
struct StreamedWorker : ConvWorker<T> {
  using Base = ConvWorker<T>;
  using Base::acc, Base::conv, Base::group, Base::L, Base::out, Base::plan, Base::task;
  using typename Base::S;
  const StreamedRows& streamed;
  const Block all;                 // all pixels
  const int64_t of_image, pixels;  // outputs of an output channel
  int64_t packed_chunk = -1;       // of the group: whose windows `windows` holds
  S *windows, *products, *planar;

  explicit StreamedWorker(const ConvTask& t)
      : Base(t),
        streamed(t.streamed),
        all{0, conv.batch, 0, conv.lr_h, 0, conv.lr_w},
        of_image(conv.lr_h * conv.lr_w),
        pixels(conv.batch * of_image) {
    windows = this->arena.template take<S>(t.scratch.streamed_pixels);
    products = this->arena.template take<S>(t.scratch.streamed_products);
    planar = this->arena.template take<S>(t.scratch.streamed_planar);
  }

  void run(int64_t begin, int64_t end) {
    const bool of_output = plan.weight_row == WeightRow::kOfOutput;
    for (int64_t item = begin; item < end; ++item) {
      if (item / plan.parts != group) {
        this->enter_group(item / plan.parts);
        packed_chunk = -1;
        if (!of_output) pack_pixels();
      }
      const int64_t first = item % plan.parts * plan.part_channels;
      if (of_output)
        multiply_outputs(first, smaller(plan.part_channels, conv.oc - first));
      else
        multiply_inputs(first, smaller(plan.part_channels, streamed.channels - first));
    }
  }

  // Sums [channel][pixel] of output channels that follow one another.
  void store_sums(const S* sums, int64_t first_oc, int64_t count) const {
    const int64_t most = streamed.stored_channels;
    for (int64_t oc = 0; oc < count; oc += most, sums += most * pixels) {
      const int64_t stored = smaller(most, count - oc);
      PixelVector vectors[kMaxStoredVectors];
      int64_t from[kMaxStoredVectors];
      int filled = 0;
      const auto flush = [&] {
        for (int64_t q = 0; q < stored; ++q)
          for (int v = 0; v < filled; ++v)
            store<S>(planar + (q * filled + v) * L, load<S>(sums + q * pixels + from[v]));
        out.store_planar(planar, filled * L, first_oc + oc, stored, vectors, filled);
        filled = 0;
      };
      for (PixelCursor cursor{all, L}; cursor.n < conv.batch;) {
        const PixelVector p = cursor.next();
        from[filled] = (p.n * conv.lr_h + p.h) * conv.lr_w + p.w;
        vectors[filled++] = p;
        if (filled == kMaxStoredVectors) flush();
      }
      if (filled > 0) flush();
    }
  }

  // The same [pixel][channel], step apart.
  void store_pixels(S* sums, int64_t step, int64_t first_oc, int64_t count) const {
    for (PixelCursor cursor{all, L}; cursor.n < conv.batch;) {
      const PixelVector p = cursor.next();
      out.store_pixels(sums + ((p.n * conv.lr_h + p.h) * conv.lr_w + p.w) * step, step, first_oc, count, p);
    }
  }

  // ---- rows of an output channel ---------------------------------------------------------------------------------

  // The windows of all pixels, in the order of a row's elements begin .. begin + count - 1.
  void pack_windows(int64_t begin, int64_t count) const {
    const Source& s = task.source;
    const int64_t step = streamed.channel_step, from_step = channel_stride();
    S* to = windows;
    for (PixelCursor cursor{all, 1}; cursor.n < conv.batch; to += streamed.window_step) {
      const PixelVector p = cursor.next();
      for (int64_t tap = 0; tap < conv.taps(); ++tap) {
        const int64_t y = p.h * conv.stride_h + tap / conv.kernel_w * conv.dilation_h - conv.pad_top;
        const int64_t x = p.w * conv.stride_w + tap % conv.kernel_w * conv.dilation_w - conv.pad_left;
        const int64_t at = streamed.at[tap] - begin;  // of the first channel; of those in the chunk:
        const int64_t first = larger<int64_t>(ceil_div(-at, step), 0);
        const int64_t end = smaller<int64_t>(ceil_div(count - at, step), conv.ic);
        S* of_tap = to + at;
        if (y < 0 || y >= s.hr_h || x < 0 || x >= s.hr_w) {
          for (int64_t c = first; c < end; ++c) of_tap[c * step] = S(0);
          continue;
        }
        const T* from = source_of_group() + p.n * s.batch_stride + y * s.row_stride + x * s.col_stride;
        if (step == 1 && from_step == 1) {
          for (int64_t c = first; c < end; ++c) of_tap[c] = S(widen(from[c]));
        } else {
          for (int64_t c = first; c < end; ++c) of_tap[c * step] = S(widen(from[c * from_step]));
        }
      }
      for (int64_t e = count; e < round_up(count, L); ++e) to[e] = S(0);
    }
  }

  const T* source_of_group() const {
    return static_cast<const T*>(task.source.data) + task.source.channel_offset[group * conv.ic];
  }
  int64_t channel_stride() const {  // of a plain tensor
    const int64_t* offset = task.source.channel_offset;
    return conv.ic > 1 ? offset[1] - offset[0] : 0;
  }

  void multiply_outputs(int64_t first, int64_t count) {
    constexpr int64_t R = streamed_rows(kRegisters);
    const int64_t splits = ceil_div(pixels, int64_t{plan.tile_pixels});
    const Weight& w = task.weight;
    const T* data = static_cast<const T*>(w.data) + streamed.first;
    const int64_t* offset = w.oc_offset + group * conv.oc + first;
    for (int64_t q = 0; q < count * pixels; ++q) acc[q] = S(0);
    for (int64_t e = 0; e < streamed.length; e += plan.row_chunk) {
      const int64_t of_chunk = smaller(plan.row_chunk, streamed.length - e);
      if (packed_chunk != e) pack_windows(e, of_chunk);
      packed_chunk = e;
      for (int64_t oc = 0; oc < round_up(count, int64_t{R}); oc += R) {
        // the last tile repeats a row and drops it
        const T* rows[R];
        for (int64_t r = 0; r < R; ++r) rows[r] = data + offset[smaller(oc + r, count - 1)] + e;
        S surplus[R * kMaxStreamedPixels] = {};
        for (int64_t s = 0, p = 0; s < splits; ++s) {
          const auto some = static_cast<int>(pixels / splits + (s < pixels % splits));
          const bool whole = oc + R <= count;
          S* sums = whole ? acc + oc * pixels + p : surplus;
          const int64_t step = whole ? pixels : some;
          dot_rows_of<T>(some)(rows, windows + p * streamed.window_step, streamed.window_step, of_chunk, sums,
                               step);
          if (!whole) {
            for (int64_t r = 0; r < R; ++r)
              for (int64_t x = 0; x < some; ++x) {
                if (oc + r < count) acc[(oc + r) * pixels + p + x] += surplus[r * step + x];
                surplus[r * step + x] = S(0);
              }
          }
          p += some;
        }
      }
    }
    // A weight that is not finite makes all sums of its row so, also where it meets zeros of padding.
    FiniteCheck<S> check;
    for (int64_t q = 0; q < count * pixels; ++q) check(acc[q]);
    check.report(task.nonfinite_pixel);
    store_sums(acc, first, count);
  }

  // ---- rows of an input channel ----------------------------------------------------------------------------------

  // All pixels that are read of the batch, [input channel][pixel].
  void pack_pixels() {
    const T* from = source_of_group();
    const int64_t from_step = channel_stride();
    S* to = windows;
    for (int64_t c = 0; c < conv.ic; ++c)
      for (int64_t n = 0; n < conv.batch; ++n)
        for (int64_t p = 0; p < streamed.read_pixels; ++p)
          *to++ = S(widen(from[n * task.source.batch_stride + c * from_step + streamed.at[p]]));
  }

  // Columns of a row, begin .. begin + count - 1, and where their products go: [tile][pixel][column of the tile].
  struct Columns {
    int64_t begin, count, row, tile, products;
    int64_t tiles() const { return ceil_div(count, tile); }
    // The first column of a tile. The last one may begin earlier, because nothing is read beyond the row.
    int64_t at(int64_t t) const { return smaller(begin + t * tile, row - tile); }
    int64_t product(int64_t column, int64_t read) const {
      const int64_t t = (column - begin) / tile;
      return products + t * read * tile + column - at(t);
    }
  };

  // (Of half types no plan asks for this: the microkernel loads weights of the arithmetic type.)
  void multiply_inputs(int64_t first, int64_t count) {
    const int64_t W = plan.tile_oc, read = conv.batch * streamed.read_pixels;
    const Weight& w = task.weight;
    // the columns of a channel are neighbours, or those of all channels for each of them
    const int64_t of_channel = streamed.channel_step,
                  runs = streamed.length / (streamed.channels * of_channel);
    const auto columns = [&](int64_t run) {
      const Columns one{0, count * of_channel, streamed.length, W, 0};
      return Columns{run * streamed.channels * of_channel + first * of_channel, count * of_channel,
                     streamed.length, W, run * one.tiles() * read * W};
    };
    const int64_t splits = ceil_div(read, int64_t{plan.tile_pixels});
    for (int64_t c = 0; c < conv.ic; c += plan.row_chunk) {
      KOffsets offsets = streamed.offsets;
      offsets.count = smaller(plan.row_chunk, conv.ic - c);
      const S* rows = static_cast<const S*>(w.data) + w.ic_offset[group * conv.ic + c] + streamed.first;
      for (int64_t run = 0; run < runs; ++run) {
        const Columns some = columns(run);
        for (int64_t t = 0; t < some.tiles(); ++t) {
          S* to = products + some.products + t * read * W;
          for (int64_t s = 0, p = 0; s < splits; ++s) {
            const auto of_tile = static_cast<int>(read / splits + (s < read % splits));
            const OcAcc<S> result{c > 0 ? to : nullptr, nullptr, to, W};
            oc_vectorised_of<S>(of_tile, static_cast<int>(W / L))(rows + some.at(t), windows + c * read + p,
                                                                  offsets, result);
            p += of_tile;
            to += of_tile * W;
          }
        }
      }
    }
    FiniteCheck<S> check;
    for (int64_t q = 0; q < runs * columns(0).tiles() * read * W; q += L) check(load<S>(products + q));
    check.report(task.nonfinite_pixel);
    const auto each_tap = [&](int64_t oc, auto&& add) {
      for (int64_t tap = 0; tap < conv.taps(); ++tap) {
        if (w.missing_taps && lacks_tap(w.missing_taps[oc], tap, conv.kernel_w)) continue;
        const int64_t column = w.oc_offset[oc] + w.tap_offset[tap] - streamed.first;
        const Columns of_run = columns(column / (streamed.channels * of_channel));
        add(products + of_run.product(column, read), tap);
      }
    };
    // The output channels of these channels are neighbours, or those of a phase are.
    const int64_t phases = conv.oc / streamed.channels;
    const bool by_phase = phases > 1 && out.table.hr_channel[0] != out.table.hr_channel[1];
    for (int64_t phase = 0; phase < (by_phase ? phases : 1); ++phase) {
      const int64_t first_oc = by_phase ? phase * streamed.channels + first : first * phases;
      const int64_t summed = by_phase ? count : count * phases, oc = group * conv.oc + first_oc;
      if (by_pixel(phases, by_phase)) {
        const int64_t step = round_up(summed, L);
        for (int64_t q = 0; q < step * pixels; ++q) acc[q] = S(0);
        for (int64_t q = 0; q < summed; q += L)
          each_tap(oc + q, [&](const S* product, int64_t tap) {
            add_products(product, tap, [&](int64_t pixel, const S* from) {
              S* to = acc + pixel * step + q;
              store<S>(to, load<S>(to) + load<S>(from));
            });
          });
        store_pixels(acc, step, first_oc, summed);
        continue;
      }
      for (int64_t q = 0; q < summed; ++q) {
        S* sums = acc + q * pixels;
        for (int64_t x = 0; x < pixels; ++x) sums[x] = S(0);
        each_tap(oc + q, [&](const S* product, int64_t tap) {
          add_products(product, tap, [&](int64_t pixel, const S* from) { sums[pixel] += *from; });
        });
      }
      store_sums(acc, first_oc, summed);
    }
  }

  // Are channels neighbours, in a row and in the output?
  bool by_pixel(int64_t phases, bool by_phase) const {
    return task.dest.oc_contiguous && streamed.channel_step == 1 && (by_phase || phases == 1);
  }

  // f(pixel, its product), for each pixel that has this tap.
  template <class F>
  void add_products(const S* product, int64_t tap, F&& f) const {
    const int64_t begin = streamed.reads_begin[tap], end = streamed.reads_begin[tap + 1];
    for (int64_t n = 0; n < conv.batch; ++n, product += streamed.read_pixels * plan.tile_oc)
      for (int64_t q = begin; q < end; ++q)
        f(n * of_image + streamed.reads[q].output, product + streamed.reads[q].input * plan.tile_oc);
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
