// SPDX-License-Identifier: BSD-3-Clause
// What the workers of both direct kernels share: for each item (block, group) they pack the input tile and, once per group,
// the weights. conv_ow-inl.h and conv_oc-inl.h add what runs a panel's microkernels. Included by kernels.cpp and matrix.cpp only.
#pragma once

#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/microkernels-inl.h"
#include "cpu/kernels/pack_input-inl.h"
#include "cpu/kernels/pack_weight-inl.h"
#include "cpu/kernels/store-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct ConvWorker {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  const ConvTask& task;
  const ConvPlan& plan;
  const ConvShape& conv;
  const InputTile& tile;
  Store<T> out;
  Arena arena;
  S *input, *packing, *weights, *weight_planes, *acc, *bias, *slope;
  PixelTile* pixel_tiles;
  int64_t tiles, k, group = -1;  // register tiles of a group; k values of an output channel
  const S* panels;               // packed weights of the group

  explicit ConvWorker(const ConvTask& t)
      : task(t),
        plan(t.plan),
        conv(plan.shape),
        tile(plan.input_tile),
        out(t.dest, t.epilogue),
        arena{static_cast<char*>(thread_scratch(static_cast<size_t>(t.scratch.bytes)))} {
    tiles = ceil_div(conv.oc, plan.tile_oc);
    k = conv.ic * conv.taps();
    const ConvScratch& s = task.scratch;
    input = arena.take<S>(s.input_tile);
    packing = arena.take<S>(s.packing);
    weights = arena.take<S>(s.weights);
    weight_planes = arena.take<S>(s.weight_planes);
    acc = arena.take<S>(s.acc);
    bias = arena.take<S>(s.oc);
    slope = arena.take<S>(s.oc);
    pixel_tiles = arena.take<PixelTile>(s.pixel_tiles);
    if (!task.in_place && plan.kernel != ConvKernel::kMatrix)
      for (int64_t l = 0; l < 2 * L; ++l)
        input[plan.block_n * tile.image_step + l] = S(0);  // whole vectors are read past the end
  }

  // The K blocks of an output channel of group g, and so of all output channels of its tile.
  const KBlocks& k_blocks_of(int64_t g, int64_t oc) const {
    return task.k_blocks[task.k_by_missing_taps ? task.weight.missing_taps[g * conv.oc + oc] : 0];
  }

  // ---- input ---------------------------------------------------------------------------------------------------

  int64_t input_at(const PixelVector& p) const {
    return p.n * tile.image_step + p.h * conv.stride_h * tile.row_step + p.w * tile.column_step;
  }
  // From where the packed input tile's first pixel is for all output channels to where it is for this one.
  int64_t input_shift(int64_t oc) const {
    return (out.table.first_row[oc] ? tile.row_step : 0) + (out.table.first_col[oc] ? tile.column_step : 0);
  }
  const S* source_at(int64_t g, const Block& b) const {
    const Source& s = task.source;
    return static_cast<const S*>(s.data) + s.channel_offset[g * conv.ic] + b.n * s.batch_stride +
           b.h * s.row_stride + b.w * s.col_stride;
  }
  // Points at, or packs, the part of the source that a block reads. follows: the packed input tile still holds the block
  // above.
  const S* input_of(int64_t g, const Block& b, bool follows) const {
    if (task.in_place) return source_at(g, b);
    pack_input<T>(task.source, conv, tile, g, b, kept_rows(tile, conv, follows ? plan.block_h : 0), input,
                  packing);
    return input;
  }

  // ---- output --------------------------------------------------------------------------------------------------

  // Reports sums that may be NaN because a pixel met a zero: `rows` rows of `count` values.
  FS_NOINLINE void check_sums(const S* from, int64_t rows, int64_t count, int64_t row_step) const {
    FiniteCheck<S> check;
    for (int64_t row = 0; row < rows; ++row, from += row_step) {
      int64_t e = 0;
      for (; e + L <= count; e += L) check(load<S>(from + e));
      for (; e < count; ++e) check(from[e]);
    }
    check.report(task.nonfinite_pixel);
  }

  // ---- weights -------------------------------------------------------------------------------------------------

  void enter_group(int64_t g) {
    group = g;
    out.enter(task.oc.from(g * conv.oc), conv.oc, bias, slope);
    if (plan.weights_resident) pack_panels(g, 0, plan.panels, weights);
    panels = plan.weights_resident
                 ? weights
                 : static_cast<const S*>(task.panels) + g * plan.panels * plan.panel_elements;
  }

  // Packs panels begin .. end - 1, as many tiles at a time as follow one another and have the same taps.
  void pack_panels(int64_t g, int64_t begin, int64_t end, S* to) const {
    const int64_t all = conv.oc, panel_oc = plan.panel_tiles * plan.tile_oc, tile_step = k * plan.tile_oc,
                  last = smaller(end * panel_oc, all);
    const Weight& w = task.weight;
    FiniteCheck<S> check;
    const auto pack = [&](int64_t oc, int64_t step, int64_t count) {
      const int64_t at = g * all + oc;
      const WeightOc packed{w.oc_offset + at, task.has_zero_taps() ? w.missing_taps + at : nullptr, step,
                            count};
      pack_weight<T>(w, k_blocks_of(g, oc).taps, w.ic_offset + g * conv.ic, conv.ic, packed, plan.tile_oc,
                     tile_step, to, check);
      to += ceil_div(count, plan.tile_oc) * tile_step;
    };
    if (plan.interleaved_tiles > 1) {
      for (int64_t panel = begin * panel_oc; panel < last; panel += panel_oc)
        for (int64_t q = 0; q < plan.interleaved_tiles; ++q)
          pack(panel + q, plan.interleaved_tiles, plan.tile_oc);
      return check.report(task.nonfinite_weight);
    }
    const int64_t alike = !task.k_by_missing_taps ? all
                          : plan.single_phase     ? all / (task.dest.r_h * task.dest.r_w)
                                                  : 1;
    for (int64_t oc = begin * panel_oc, next; oc < last; oc = next) {
      next = smaller((oc / alike + 1) * alike, last);
      pack(oc, 1, next - oc);
    }
    check.report(task.nonfinite_weight);
  }
};

// ---- workers and their queue ----------------------------------------------------------------------------------------

template <class F>
void for_each_range(WorkQueue& queue, F&& f) {
  for (WorkQueue::Range r = queue.take(); r.begin < r.end; r = queue.take()) f(r.begin, r.end);
}

template <class Worker>
void run_worker(const ConvTask& task, WorkQueue& items) {
  Worker worker(task);
  for_each_range(items, [&](int64_t begin, int64_t end) { worker.run(begin, end); });
}

template <class Worker>
void pack_all_panels(const ConvTask& task, WorkQueue& queue) {
  const Worker worker(task);
  for_each_range(queue, [&](int64_t begin, int64_t end) {
    auto* to = static_cast<typename Worker::S*>(task.panels);
    const int64_t panels = task.plan.panels;
    for (int64_t p = begin, next; p < end; p = next) {
      const int64_t group = p / panels, first = group * panels;
      next = smaller(first + panels, end);
      worker.pack_panels(group, p - first, next - first, to + p * task.plan.panel_elements);
    }
  });
}

}  // namespace fused_subpixel::cpu::FS_ISA
