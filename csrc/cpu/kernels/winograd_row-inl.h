// SPDX-License-Identifier: BSD-3-Clause
// Convolutions with kernels two or more taps wide by Winograd's F(2, 3) and F(2, 2) along the rows, in tiles of two or four
// outputs: 3/4 of the multiplications of a direct sum for two taps, about 1/2 for long rows. cpu/winograd_row.h has the
// algorithm. The packed input tile, the OW-vectorised microkernel and the shuffled store are those of the direct kernels.
// Included by kernels.cpp only.
//
// Lanes are tiles of kOutputs pixels in a row, vectors are counted through the rows. Per block,
//   transformed  [channels of a K block][rows][streams][tiles and halo]  the packed input tile as streams
//   weights      [positions][ic][kernel_h][products][panel_oc]           transformed taps, for each panel
//   acc          [oc of a pass][positions][vectors]                      products, summed over K blocks
// With integer data every step is exact, as in the direct kernels, because the halves are powers of two.
#pragma once

#include "cpu/kernels/winograd_base-inl.h"
#include "cpu/winograd_row.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T, int kOutputs>
struct WinogradRowWorker : WinogradBase<T, WinogradRowWorker<T, kOutputs>> {
  using Base = WinogradBase<T, WinogradRowWorker<T, kOutputs>>;
  using Base::acc, Base::conv, Base::group, Base::ic, Base::input, Base::L, Base::out, Base::packed,
      Base::panel_oc, Base::panels, Base::planar, Base::plan, Base::task, Base::tile, Base::transformed;
  using typename Base::S;
  static constexpr int kStored = kMaxStoredVectors;
  static constexpr int kParts = RowScheme{0, kOutputs}.parts(), kPositions = kParts * kRowPositions;
  static constexpr int kSignals = 4;  // of a part, which the factors of a tile take
  RowScheme scheme;
  RowTaps taps[kParts];
  unsigned used[kParts];
  int64_t row_step, stream_step, position_step, planar_step;
  FiniteCheck<S> pixels;  // of rows that end with a tap of zero

  explicit WinogradRowWorker(const ConvTask& t) : Base(t), scheme{conv.kernel_w, kOutputs} {
    row_step = task.winograd_channel_step / tile.rows;
    stream_step = row_step / scheme.streams();
    position_step = task.k_blocks[0].blocks[0].offsets.acc_step / kPositions;
    planar_step = task.winograd_planar_step;
    for (int part = 0; part < kParts; ++part) {
      taps[part] = scheme.taps(part);
      used[part] = scheme.used(part);
    }
  }

  // An item is a pass over a block. Those of one block follow one another.
  void run(int64_t begin, int64_t end) {
    const int64_t blocks = blocks_of_group(plan), passes = ceil_div(plan.panels, plan.pass_panels);
    const int64_t pass_oc = plan.pass_panels * panel_oc;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t g = item / passes / blocks, pass = item % passes;
      if (g != group) this->enter_group(g);
      const Block b = block_of(plan, item / passes % blocks);
      if (item == begin || pass == 0) {
        const bool follows = item > begin && b.h > 0;
        pack_input<T>(task.source, conv, tile, group, b, kept_rows(tile, conv, follows ? plan.block_h : 0),
                      input, this->packing);
      }
      run_pass(b, pass * pass_oc, smaller((pass + 1) * pass_oc, conv.oc));
    }
    if (must_be_finite()) pixels.report(task.nonfinite_pixel);
  }

  void run_pass(const Block& b, int64_t first, int64_t end) {
    const int64_t across = ceil_div(scheme.tiles(b.width, conv.dilation_w), int64_t{L});
    const int64_t k_blocks = task.k_blocks[0].count;
    for (int64_t k = 0; k < k_blocks; ++k) {
      transform_input(b, task.k_blocks[0].blocks[k], across);
      for (int64_t oc = first; oc < end; oc += panel_oc) {
        if (k + 1 == k_blocks)
          for (int64_t h = 0; h < b.height; ++h)
            out.fetch(oc, smaller(panel_oc, end - oc), out.at(absolute({0, h, 0, 0}, b)), b.width);
        for (int position = 0; position < kPositions; ++position)
          multiply(panels + oc / panel_oc * plan.panel_elements, task.k_blocks[position].blocks[k], position,
                   smaller(panel_oc, end - oc), oc - first, across, b.height * across);
      }
    }
    for (int64_t oc = first; oc < end; oc += panel_oc) transform_output(b, oc, oc - first, across);
  }

  // A ragged last vector of output channels reaches into the next product, which is written later, or into the slack. So the
  // positions are written in the order of memory.
  void pack_panel(int64_t g, int64_t panel, S* to) const {
    const int64_t R = panel_oc, W = conv.kernel_w;
    this->pack_taps(g, 0, ic, panel * panel_oc, panel_oc, panel_oc);
    const Vec<S> half = splat<S>(S(0.5));
    for (int part = 0; part < kParts; ++part) {
      const RowTaps& t = taps[part];
      for (int position = 0; position < kRowPositions; ++position) {
        for (int64_t row = 0; row < ic * conv.kernel_h; ++row) {
          for (int64_t q = 0; q < t.products(position); ++q) {
            const S* from = packed + row * W * R;
            const auto tap = [&](int64_t i) { return tap_of_part(from, part, t.first(q) + i); };
            for (int64_t r = 0; r < R; r += L, from += L) {
              Vec<S> v;
              if (q < t.threes) {
                v = position == 0   ? tap(0)
                    : position == 1 ? half * (tap(0) + tap(2)) + half * tap(1)
                    : position == 2 ? half * (tap(0) + tap(2)) - half * tap(1)
                                    : tap(2);
              } else {
                v = position == 0 ? -tap(0) : position == 1 ? tap(0) + tap(1) : -tap(1);
              }
              store<S>(to + r, v);
            }
            to += R;
          }
        }
      }
    }
  }
  FS_INLINE Vec<S> tap_of_part(const S* row, int part, int64_t i) const {
    const auto tap = [&](int64_t x) { return x < conv.kernel_w ? load<S>(row + x * panel_oc) : Vec<S>{}; };
    if constexpr (kOutputs == 2) return tap(i);
    return part == 0 ? tap(2 * i) : part == 1 ? tap(2 * i) + tap(2 * i + 1) : tap(2 * i + 1);
  }

  // ---- input ---------------------------------------------------------------------------------------------------

  void transform_input(const Block& b, const KBlock& k, int64_t across) {
    const int64_t d = conv.dilation_w, channels = k.offsets.count / (conv.kernel_h * taps[0].products(0));
    const int64_t rows = (b.height - 1) * conv.stride_h + (conv.kernel_h - 1) * conv.dilation_h + 1;
    const int64_t n = scheme.stream_elements(across, L, d), step = task.winograd_pixel_step;
    const int64_t read = b.width + (conv.kernel_w - (scheme.ends_with_zero() ? 0 : 1)) * d;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < rows; ++y) {
        const S* from = input + k.input + c * tile.channel_step + y * tile.row_step;
        S* to = transformed + c * task.winograd_channel_step + y * row_step;
        if (must_be_finite()) check_pixels(from, read);
        if (kOutputs == 2 && d == 1) {
          for (int64_t p = 0; p < n; p += L) {
            Vec<S> x[kSignals] = {load<S>(from + 2 * p), load<S>(from + 2 * p + L), load<S>(from + 2 * p + 2),
                                  load<S>(from + 2 * p + L + 2)};
            unzip2<S>(x[0], x[1], Lanes<S>{});
            unzip2<S>(x[2], x[3], Lanes<S>{});
            store_factors(x, 0, to + p);
          }
          continue;
        }
        S* const pixel = planar;
        deinterleave_row(from, n + 2 * d, pixel, step);
        for (int64_t p = 0; p < n; p += L) {
          Vec<S> x[2 * kOutputs + 1];
          FS_UNROLL
          for (int i = 0; i < 2 * kOutputs + 1; ++i)
            x[i] = load<S>(pixel + i % kOutputs * step + i / kOutputs * d + p);
          store_parts(x, to + p);
        }
      }
    }
  }

  FS_INLINE void store_parts(const Vec<S>* x, S* to) const {
    if constexpr (kOutputs == 2) {
      store_factors(x, 0, to);
    } else {
      Vec<S> signal[kParts][kSignals];
      FS_UNROLL
      for (int i = 0; i < kSignals; ++i) {
        signal[0][i] = x[2 * i] - x[2 * i + 1];
        signal[1][i] = x[2 * i + 1];
        signal[2][i] = x[2 * i + 2] - x[2 * i + 1];
      }
      for (int part = 0; part < kParts; ++part) to = store_factors(signal[part], part, to);
    }
  }

  // All factors of a part that any product has, from its signal. What is going to be written next is fetched, because stores
  // leave the processor in order. Returns where the next part begins.
  FS_INLINE S* store_factors(const Vec<S>* s, int part, S* to) const {
    const Vec<S> factor[kPartStreams] = {s[0],        s[1],        s[0] + s[1], s[1] + s[2],
                                         s[1] - s[0], s[2] - s[1], s[0] - s[2], s[1] - s[3]};
    FS_UNROLL
    for (int stream = 0; stream < kPartStreams; ++stream)
      if (used[part] >> stream & 1) {
        __builtin_prefetch(to + 2 * L, 1);
        store<S>(to, factor[stream]);
        to += stream_step;
      }
    return to;
  }

  // Runs of `dilation` pixels go to kOutputs rows in turn, `step` apart, at least n elements of each. A run is copied by whole
  // vectors, whose surplus the next one overwrites.
  void deinterleave_row(const S* from, int64_t n, S* to, int64_t step) const {
    const int64_t d = conv.dilation_w;
    if (d == 1) {
      for (int64_t p = 0; p < n; p += L, from += kOutputs * L) {
        Vec<S> v[kOutputs];
        FS_UNROLL
        for (int i = 0; i < kOutputs; ++i) v[i] = load<S>(from + i * L);
        deinterleave<S, kOutputs>(v);
        FS_UNROLL
        for (int i = 0; i < kOutputs; ++i) store<S>(to + i * step + p, v[i]);
      }
      return;
    }
    for (int64_t p = 0; p < n; p += d, from += kOutputs * d)
      for (int64_t l = 0; l < d; l += L) {
        FS_UNROLL
        for (int i = 0; i < kOutputs; ++i) store<S>(to + i * step + p + l, load<S>(from + i * d + l));
      }
  }

  // Is some pixel added for an output that does not read it: of a tap of zero, or of one that a phase lacks?
  bool must_be_finite() const { return scheme.ends_with_zero() || task.weight.missing_taps; }
  void check_pixels(const S* from, int64_t n) {
    int64_t x = 0;
    for (; x + L <= n; x += L) pixels(load<S>(from + x));
    for (; x < n; ++x) pixels(from[x]);
  }

  // ---- products and output -------------------------------------------------------------------------------------

  // `stored` output channels of a panel. first_acc: the place of the first among the accumulators
  void multiply(const S* of_panel, const KBlock& block, int position, int64_t stored, int64_t first_acc,
                int64_t across, int64_t vectors) {
    const OwVectorised<S> microkernel = ow_vectorised_of<S>(plan.tile_oc);
    for (int64_t v0 = 0; v0 < vectors; v0 += plan.tile_pixels) {
      const S* tiles[kMaxTileVectors];
      for (int v = 0; v < plan.tile_pixels; ++v) {
        const int64_t at = smaller(v0 + v, vectors - 1);  // the last register tile repeats a vector
        tiles[v] = transformed + at / across * conv.stride_h * row_step + at % across * L;
      }
      for (int64_t t = 0; t < stored; t += plan.tile_oc)
        microkernel(of_panel + block.weight + t, tiles, block.offsets,
                    acc + ((first_acc + t) * kPositions + position) * position_step + v0 * L);
    }
  }

  void transform_output(const Block& b, int64_t first_oc, int64_t first_acc, int64_t across) {
    const int64_t stored = smaller(panel_oc, conv.oc - first_oc);
    for (int64_t h = 0; h < b.height; ++h) {
      for (int64_t oc = 0; oc < stored; ++oc)
        output_row_of(acc + (first_acc + oc) * kPositions * position_step + h * across * L, b.width, across,
                      planar + oc * planar_step);
      for (int64_t w = 0; w < b.width; w += kStored * L) {
        PixelVector vectors[kStored];
        int count = 0;
        for (int64_t x = w; x < smaller<int64_t>(w + kStored * L, b.width); x += L)
          vectors[count++] = absolute({0, h, x, static_cast<int>(smaller<int64_t>(L, b.width - x))}, b);
        out.store_planar(planar + w, planar_step, first_oc, stored, vectors, count);
      }
    }
  }

  // The tiles of a row of one output channel, as neighbouring pixels.
  void output_row_of(const S* m, int64_t width, int64_t across, S* row) const {
    const int64_t d = conv.dilation_w;
    S* const apart = planar + panel_oc * planar_step;
    for (int64_t p = 0; p < across * L; p += L) {
      Vec<S> y[kOutputs];
      outputs_of(m + p, y);
      if (d == 1) interleave<S, kOutputs>(y);
      FS_UNROLL
      for (int i = 0; i < kOutputs; ++i)
        store<S>(d == 1 ? row + kOutputs * p + i * L : apart + i * planar_step + p, y[i]);
    }
    if (d == 1) return;
    for (int64_t w = 0, p = 0; w < width; w += kOutputs * d, p += d)  // as in deinterleave_row
      for (int i = 0; i < kOutputs; ++i)
        for (int64_t l = 0; l < d; l += L)
          store<S>(row + w + i * d + l, load<S>(apart + i * planar_step + p + l));
  }

  FS_INLINE void outputs_of(const S* m, Vec<S>* y) const {
    Vec<S> part[kParts][2];
    FS_UNROLL
    for (int q = 0; q < kParts; ++q, m += kRowPositions * position_step) {
      const Vec<S> m1 = load<S>(m + position_step), m2 = load<S>(m + 2 * position_step);
      part[q][0] = load<S>(m) + m1 + m2;
      part[q][1] = m1 - m2 - load<S>(m + 3 * position_step);
    }
    FS_UNROLL
    for (int i = 0; i < 2; ++i) {
      if constexpr (kOutputs == 2) {
        y[i] = part[0][i];
      } else {
        y[2 * i] = part[0][i] + part[1][i];
        y[2 * i + 1] = part[1][i] + part[2][i];
      }
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
