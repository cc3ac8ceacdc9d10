// SPDX-License-Identifier: BSD-3-Clause
// What the workers of Winograd's two kernels share: scratch, and the panels of transformed weights. Included by kernels.cpp
// only.
#pragma once

#include "cpu/kernels/conv-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// Worker::pack_panel(group, panel, to) transforms the weights of one panel.
template <class T, class Worker>
struct WinogradBase {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  const ConvTask& task;
  const ConvPlan& plan;
  const ConvShape& conv;
  const InputTile& tile;
  Store<T> out;
  S *input, *packing, *transformed, *packed, *weights, *acc, *planar, *bias, *slope;
  int64_t ic, panel_oc, group = -1;
  const S* panels;  // transformed weights of the group

  explicit WinogradBase(const ConvTask& t)
      : task(t), plan(t.plan), conv(plan.shape), tile(plan.input_tile), out(t.dest, t.epilogue) {
    ic = conv.ic;
    panel_oc = int64_t{plan.panel_tiles} * plan.tile_oc;
    const ConvScratch& s = task.scratch;
    Arena arena{static_cast<char*>(thread_scratch(static_cast<size_t>(s.bytes)))};
    input = arena.take<S>(s.input_tile);
    packing = arena.take<S>(s.packing);
    transformed = arena.take<S>(s.winograd_input);
    packed = arena.take<S>(s.winograd_packed);
    weights = arena.take<S>(s.weights);
    acc = arena.take<S>(s.acc);
    planar = arena.take<S>(s.winograd_planar);
    bias = arena.take<S>(s.oc);
    slope = arena.take<S>(s.oc);
    for (int64_t l = plan.block_n * tile.image_step; l < s.input_tile; ++l)
      input[l] = S(0);  // whole vectors are read past the end
  }

  void enter_group(int64_t g) {
    group = g;
    out.enter(task.oc.from(g * conv.oc), conv.oc, bias, slope);
    if (plan.weights_resident) pack_panels(g, 0, plan.panels, weights);
    if (plan.scheme == WinogradScheme::kPasses) return;
    panels = plan.weights_resident
                 ? weights
                 : static_cast<const S*>(task.panels) + g * plan.panels * plan.panel_elements;
  }

  void pack_panels(int64_t g, int64_t begin, int64_t end, S* to) const {
    for (int64_t p = begin; p < end; ++p, to += plan.panel_elements)
      static_cast<const Worker*>(this)->pack_panel(g, p, to);
  }

  // The weights of channels begin .. end - 1 of group g and of `count` output channels from `oc` on, `step` apart, as they are,
  // in `packed`: [channel][tap][width]. What no output channel has is zero.
  void pack_taps(int64_t g, int64_t begin, int64_t end, int64_t oc, int64_t count, int64_t width,
                 int64_t step = 1) const {
    const Weight& w = task.weight;
    const Taps& taps = task.k_blocks[0].taps;
    const int64_t at = g * conv.oc + oc, exist = smaller(count, ceil_div(conv.oc - oc, step));
    if (exist <= 0) {
      std::memset(packed, 0, sizeof(S) * static_cast<size_t>((end - begin) * taps.count * width));
      return;
    }
    const WeightOc of_panel{w.oc_offset + at, w.missing_taps ? w.missing_taps + at : nullptr, step, exist};
    FiniteCheck<S> check;
    pack_weight<T>(w, taps, w.ic_offset + g * ic + begin, end - begin, of_panel, width, 0, packed, check);
    check.report(task.nonfinite_weight);
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
