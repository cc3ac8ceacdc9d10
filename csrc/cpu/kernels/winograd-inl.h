// SPDX-License-Identifier: BSD-3-Clause
// 3x3 convolutions by Winograd's F(MxM, 3x3) (Lavin and Gray, CVPR 2016), M = 2 or 4: 16 multiplications for 4 outputs, or
// 36 for 16, where the direct sum takes 36 or 144. The packed input tile, the microkernels and the shuffled store are those of
// the direct kernels. The microkernels compute (M + 2)^2 small matrix products, one per position of the transformed tile.
// What both workers share is here: the transforms of one dimension, the order of steps, and panels of transformed weights.
// winograd_ow-inl.h has tiles in the vector lanes, winograd_oc-inl.h channels. Included by kernels.cpp only.
//
// MxM output tiles are counted through the rows of tiles. Per block,
//   transformed  B^T d B of every (M+2)x(M+2) input tile, by positions
//   weights      [positions][ic][panel_oc]  G g G^T, for one panel of output channels at a time
//   acc          their products, for pass_panels panels at a time
// With M = 2 and integer data every step is exact, as in the direct kernels, because G's halves are powers of two.
#pragma once

#include "cpu/kernels/winograd_base-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// One dimension of the three transforms: G g, B^T d (in place) and A^T m.
template <class S, int M>
struct WinogradTransform;

template <class S>
struct WinogradTransform<S, 2> {  // points 0, 1, -1
  using V = Vec<S>;
  static FS_INLINE void taps(V g0, V g1, V g2, V* to) {
    const V half = splat<S>(S(0.5)), outer = half * (g0 + g2), inner = half * g1;
    to[0] = g0;
    to[1] = outer + inner;
    to[2] = outer - inner;
    to[3] = g2;
  }
  static FS_INLINE void pixels(V& d0, V& d1, V& d2, V& d3) {
    const V v0 = d0 - d2, v1 = d1 + d2, v2 = d2 - d1, v3 = d1 - d3;
    d0 = v0;
    d1 = v1;
    d2 = v2;
    d3 = v3;
  }
  static FS_INLINE void products(const V* m, V* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

template <class S>
struct WinogradTransform<S, 4> {  // points 0, 1, -1, 2, -2
  using V = Vec<S>;
  static FS_INLINE void taps(V g0, V g1, V g2, V* to) {
    const V outer = g0 + g2, wide = g0 + S(4) * g2;
    to[0] = S(1. / 4) * g0;
    to[1] = S(-1. / 6) * (outer + g1);
    to[2] = S(-1. / 6) * (outer - g1);
    to[3] = S(1. / 24) * (wide + S(2) * g1);
    to[4] = S(1. / 24) * (wide - S(2) * g1);
    to[5] = g2;
  }
  static FS_INLINE void pixels(V& d0, V& d1, V& d2, V& d3, V& d4, V& d5) {
    const V even = d4 - S(4) * d2, odd = d3 - S(4) * d1, near = d4 - d2, far = S(2) * (d3 - d1);
    const V v0 = S(4) * (d0 - d2) + near, v5 = S(4) * (d1 - d3) + (d5 - d3);
    d0 = v0;
    d1 = even + odd;
    d2 = even - odd;
    d3 = near + far;
    d4 = near - far;
    d5 = v5;
  }
  static FS_INLINE void products(const V* m, V* y) {
    const V sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum1 + sum2;
    y[1] = difference1 + S(2) * difference2;
    y[2] = sum1 + S(4) * sum2;
    y[3] = difference1 + S(8) * difference2 + m[5];
  }
};

// Worker::transform_input_of<checks>(block, begin, end, origin) transforms channels begin .. end - 1 of a packed block; `origin`
// goes to the first place. Worker::multiply(...) computes one position of a panel, and Worker::transform_outputs(block, first, end)
// finishes and stores output channels. Worker::register_tiles(block) are those of one position and so many output channels.
template <class T, int M, class Worker>
struct WinogradConv : WinogradBase<T, Worker> {
  using Base = WinogradBase<T, Worker>;
  using Base::conv, Base::group, Base::ic, Base::input, Base::L, Base::out, Base::packed, Base::panel_oc,
      Base::panels, Base::plan, Base::task, Base::tile, Base::weights;
  using typename Base::S;
  using Transform = WinogradTransform<S, M>;
  static constexpr int kSide = M + 2, kPositions = winograd_positions(M);
  int64_t position_step, input_step;
  typename Store<T>::Fetch written;
  FiniteCheck<S> pixels;  // of single phases

  explicit WinogradConv(const ConvTask& t)
      : Base(t), position_step(t.winograd_position_step), input_step(t.winograd_input_step) {}
  Worker& worker() { return static_cast<Worker&>(*this); }

  void run(int64_t begin, int64_t end) {
    const bool in_passes = plan.scheme == WinogradScheme::kPasses;
    const int64_t blocks = blocks_of_group(plan);
    const int64_t passes = in_passes ? ceil_div(plan.panels, plan.pass_panels) : 1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t g = item / passes / blocks;
      if (g != group) this->enter_group(g);
      const Block b = block_of(plan, item / passes % blocks);
      const bool follows = item > begin && b.h > 0;
      const int64_t kept = kept_rows(tile, conv, follows ? plan.block_h : 0);
      if (in_passes)
        run_pass(b, item % passes * plan.pass_panels * panel_oc);
      else
        run_panels(b, kept);
    }
    if (must_be_finite()) pixels.report(task.nonfinite_pixel);
  }

  void run_panels(const Block& b, int64_t kept) {
    load_block(b, kept, 0, ic);
    const int64_t pass_oc = plan.pass_panels * panel_oc;
    const KOffsets& offsets = task.k_blocks[0].blocks[0].offsets;
    for (int64_t first = 0; first < conv.oc; first += pass_oc) {
      const int64_t pass_end = smaller(first + pass_oc, conv.oc);
      start_fetching(b, first, pass_end - first);
      for (int position = 0; position < kPositions; ++position) {
        for (int64_t oc = first; oc < pass_end; oc += panel_oc)
          worker().multiply(b, offsets, panels + oc / panel_oc * plan.panel_elements, position, oc,
                            oc - first, smaller(panel_oc, pass_end - oc));
      }
      worker().transform_outputs(b, first, pass_end);
    }
  }

  // Few tiles and many weights: each item is a pass of its own. Its channels and their weights are transformed a K block at a
  // time, which stays in the cache.
  void run_pass(const Block& b, int64_t first) {
    const int64_t pass_end = smaller(first + plan.pass_panels * panel_oc, conv.oc);
    KOffsets offsets = task.k_blocks[0].blocks[0].offsets;
    written.stop();
    for (int64_t c = 0, next; c < ic; c = next) {
      next = smaller(c + plan.k_channels, ic);
      load_block(b, 0, c, next);
      offsets.count = next - c;
      offsets.add = c > 0;
      if (next == ic) start_fetching(b, first, pass_end - first);
      for (int64_t oc = first; oc < pass_end; oc += panel_oc) {
        pack_weights(group, oc, c, next, weights);
        for (int position = 0; position < kPositions; ++position)
          worker().multiply(b, offsets, weights, position, oc, oc - first, smaller(panel_oc, pass_end - oc));
      }
    }
    worker().transform_outputs(b, first, pass_end);
  }

  static int64_t tiles_of(const Block& b) { return ceil_div(b.height, M) * ceil_div(b.width, M); }
  // The output of `count` output channels from `first` on, while these are multiplied.
  void start_fetching(const Block& b, int64_t first, int64_t count) {
    const int64_t calls = kPositions * worker().register_tiles(b) * ceil_div(count, plan.tile_oc);
    written.start(out, b, first, count, calls);
  }

  // Packs and transforms channels begin .. end - 1; as few at a time as the source has as neighbours, which stay in the first
  // cache in between. Larger groups than a K block are packed before its first, and so are all channels of a tile whose
  // channels are neighbours.
  void load_block(const Block& b, int64_t kept, int64_t begin, int64_t end) {
    const Source& source = task.source;
    if (task.in_place) return transform_input(b, begin, end, begin);
    const auto pack = [&](int64_t first, int64_t last) {
      pack_channels_of<T>(source, conv, tile, group, b, first, last, kept, input, this->packing);
    };
    if (plan.channels_inner || source.output || plan.k_channels % source.interleave != 0) {
      if (begin == 0) pack(0, ic);
      transform_input(b, begin, end, begin);
      return;
    }
    for (int64_t c = begin; c < end; c += source.interleave) {
      pack(c, c + source.interleave);
      transform_input(b, c, c + source.interleave, begin);
    }
  }

  void transform_input(const Block& b, int64_t begin, int64_t end, int64_t origin) {
    must_be_finite() ? worker().template transform_input_of<true>(b, begin, end, origin)
                     : worker().template transform_input_of<false>(b, begin, end, origin);
  }

  void pack_panel(int64_t g, int64_t panel, S* to) const { pack_weights(g, panel * panel_oc, 0, ic, to); }

  // The panel that begins with output channel oc, channels begin .. end - 1 of it. Packs and transforms neighbouring channels
  // and, in whole vectors, output channels at a time, which stay in the first cache in between.
  void pack_weights(int64_t g, int64_t oc, int64_t begin, int64_t end, S* to) const {
    for (int64_t t = (panel_oc - 1) / L * L; t >= 0; t -= L) {
      for (int64_t c = begin, next; c < end; c = next) {
        next = c + 2 * L > end ? end : c + L;
        S* const to_channel = to + (c - begin) * panel_oc + t;
        if (plan.single_phase) {
          const int64_t from = phase_oc(oc, t);
          this->pack_taps(g, c, next, from, L, L, plan.interleaved_tiles);
          if (from < conv.oc) transform_weights<true>(next - c, to_channel, phase_of(g, from));
        } else {
          this->pack_taps(g, c, next, oc + t, smaller<int64_t>(panel_oc - t, L), L);
          transform_weights<false>(next - c, to_channel, {});
        }
      }
    }
  }

  // Fetches what is going to be written, a vector of each position. Stores leave the processor in order, so that each would
  // wait for its own cache line.
  static FS_INLINE void fetch_positions(const S* to, int64_t step) {
    FS_UNROLL
    for (int position = 0; position < kPositions; ++position) __builtin_prefetch(to + position * step, 1);
  }

  // ---- single phases -------------------------------------------------------------------------------------------
  // Each vector of a panel's output channels has one phase. If the phases of a row interleave in the order of output channels,
  // the vectors of so many phases follow one another.

  // Output channel of the panel that begins with oc, of place t in it, the first of a vector; and the place of channel c of it.
  int64_t phase_oc(int64_t oc, int64_t t) const {
    const int64_t phases = plan.interleaved_tiles;
    return oc + t / (phases * L) * phases * L + t / L % phases;
  }
  int64_t place_of(int64_t c) const {
    const int64_t phases = plan.interleaved_tiles, within = c % (phases * L);
    return c - within + within % phases * L + within / phases;
  }

  // Where the taps of a phase begin in the window, and which outer positions they need.
  struct WindowPhase {
    int64_t row = 0, column = 0;
    bool top = true, bottom = true, left = true, right = true;
    bool needs(int position) const {
      const int a = position / kSide, b = position % kSide;
      return (a > 0 || top) && (a < kSide - 1 || bottom) && (b > 0 || left) && (b < kSide - 1 || right);
    }
  };
  WindowPhase phase_of(int64_t g, int64_t oc) const {
    const int64_t at = g * conv.oc + oc, row = task.oc.first_row[at], column = task.oc.first_col[at];
    const int lacks = task.weight.missing_taps ? task.weight.missing_taps[at] : 0;
    return {row,
            column,
            row == 0 && !(lacks & kLacksFirstRow),
            row + conv.kernel_h == kWinogradTaps,
            column == 0 && !(lacks & kLacksFirstColumn),
            column + conv.kernel_w == kWinogradTaps};
  }

  // Of L output channels, which are the lanes. Those of the panel's last, ragged vector reach into the next channel, which is
  // written later, or into the slack.
  template <bool kSinglePhase>
  void transform_weights(int64_t channels, S* to, const WindowPhase& phase) const {
    for (int64_t c = 0; c < channels; ++c) {
      const S* g = packed + c * conv.taps() * L;
      const auto tap = [&](int a, int b) {
        if constexpr (!kSinglePhase) return load<S>(g + (3 * a + b) * L);
        const int64_t y = a - phase.row, x = b - phase.column;
        const bool exists = y >= 0 && y < conv.kernel_h && x >= 0 && x < conv.kernel_w;
        return exists ? load<S>(g + (y * conv.kernel_w + x) * L) : Vec<S>{};
      };
      S* of_channel = to + c * panel_oc;
      fetch_positions(of_channel + 4 * panel_oc, position_step);
      Vec<S> half[3][kSide], u[kSide][kSide];  // [tap row][position column], [position column][position row]
      FS_UNROLL
      for (int a = 0; a < 3; ++a) Transform::taps(tap(a, 0), tap(a, 1), tap(a, 2), half[a]);
      FS_UNROLL
      for (int b = 0; b < kSide; ++b) {
        Transform::taps(half[0][b], half[1][b], half[2][b], u[b]);
        FS_UNROLL
        for (int a = 0; a < kSide; ++a) store<S>(of_channel + (kSide * a + b) * position_step, u[b][a]);
      }
    }
  }

  template <size_t... C>
  static FS_INLINE void transform_pixels(Vec<S>* d, int step, std::index_sequence<C...>) {
    Transform::pixels(d[C * static_cast<size_t>(step)]...);
  }

  // F(2, 3) adds three pixels to compute an output of a phase that has two taps. Where phases have fewer taps than the window, or
  // begin later, all pixels must be finite.
  bool must_be_finite() const { return plan.single_phase || task.weight.missing_taps; }
  // Those of `lanes` lanes: they are if the sum of the four outermost positions is, in which each pixel occurs.
  FS_INLINE void check_pixels(const Vec<S> (*d)[kSide], int64_t lanes) {
    constexpr int kLast = kSide - 1;
    const Vec<S> corners = (d[0][0] + d[0][kLast]) + (d[kLast][0] + d[kLast][kLast]);
    if (lanes >= L) {
      pixels(corners);
      return;
    }
    S some[L];
    store<S>(some, corners);
    for (int64_t l = 0; l < lanes; ++l) pixels(some[l]);
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
