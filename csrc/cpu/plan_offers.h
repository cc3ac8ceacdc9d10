// SPDX-License-Identifier: BSD-3-Clause
// What the estimates of all kernels share. For plan.cpp, plan_winograd.cpp, plan_matrix.cpp and plan_streamed.cpp.
#pragma once

#include "cpu/plan_blocks.h"

namespace fused_subpixel::cpu {

// A register tile of a kernel, and what the problem would take with it.
struct Choice {
  ConvKernel kernel;
  int tile_oc, tile_pixels;
  double cycles;
  bool single_phase = false;
  WinogradScheme scheme = WinogradScheme::kPanels;
  int row_outputs = 0;
  bool channels_inner = false;  // of kWinograd and kWinograd4
};

// The cheapest offer, and what the best tile of each kernel would take.
struct Offers {
  Choice best{ConvKernel::kOwVectorised, 1, 1, -1, false};
  double cycles[kConvKernels] = {-1, -1, -1, -1, -1, -1, -1};

  void add(const Choice& c) {
    if (best.cycles < 0 || c.cycles < best.cycles) best = c;
    double& of_kernel = cycles[static_cast<int>(c.kernel)];
    if (of_kernel < 0 || c.cycles < of_kernel) of_kernel = c.cycles;
  }
};

// For the vectors of pixels that k_cycles counts.
constexpr double kHiddenPixels = 0.3;

// A vector of accumulators of neighbouring output channels, finished and stored; of neighbouring pixels.
constexpr double kStoreContiguous = 3;
constexpr double kStoreInterleaved = 3, kStoreTransposed = 14, kStoreScalarPerLane = 2;

inline bool interleaves_in_registers(int64_t interleave) {
  return contains(RegisterInterleave{}, interleave);
}

inline double planar_store(const ConvProblem& p, const Target& t) {
  return interleaves_in_registers(p.interleave) ? kStoreInterleaved
         : p.oc_contiguous                      ? kStoreTransposed
                                                : kStoreScalarPerLane * t.lanes;
}

// The tiles of a panel: whole interleave groups, so that they interleave in registers. Winograd's weights are transformed
// with output channels in the lanes, and take whole vectors as well, up to most_oc, if there are so many output channels.
inline int whole_panel(const ConvProblem& p, const Target& t, int oc, int64_t most_oc = 0,
                       bool single_phase = false) {
  const ConvShape& s = p.shape;
  if (single_phase) return static_cast<int>(p.phase_interleave * t.lanes / oc);  // a vector of each phase
  const int64_t tiles = ceil_div(s.oc, oc);
  int panel = 1;
  if (interleaves_in_registers(p.interleave))
    while (panel < tiles && panel * oc % p.interleave != 0) ++panel;
  if (most_oc > 0)
    for (int more = panel; more <= tiles && more * oc <= most_oc; more += panel)
      if (more * oc % t.lanes == 0) return more;
  return panel;
}

// Can tiles of so many output channels hold one phase each, and does that save anything?
inline bool may_hold_one_phase(const ConvProblem& p, int64_t oc) {
  const ConvShape& s = p.shape;
  const bool saves = p.spared_h + p.spared_w > 0 || p.mean_taps < static_cast<double>(s.taps());
  return saves && s.lr_h > p.spared_h && s.lr_w > p.spared_w && p.phase_oc > 0 && p.phase_oc % oc == 0 &&
         p.phase_interleave <= kMaxInterleavedVectors;
}

// Low-resolution rows and columns, of tiles that hold a single phase each or mixed ones.
inline double image_rows(const ConvProblem& p, bool single_phase) {
  return static_cast<double>(p.shape.batch * (p.shape.lr_h - (single_phase ? p.spared_h : 0)));
}
inline int64_t columns(const ConvProblem& p, bool single_phase) {
  return p.shape.lr_w - (single_phase ? p.spared_w : 0);
}

// Do the packed weights of a group stay in each thread's cache?
inline bool weights_stay(int64_t elements, const Target& t) {
  return elements * t.element_bytes <= t.l2_bytes / kWeightsShareOfL2;
}

// Every tile of a kernel that can compute the problem.
void offer_winograd_kernels(const ConvProblem& problem, const Target& target, Offers& offers);
void offer_matrix(const ConvProblem& problem, const Target& target, Offers& offers);
void offer_streamed(const ConvProblem& problem, const Target& target, Offers& offers);

// The panels, or parts and blocks, of a plan whose kernel and tile are known.
void set_passes(const ConvProblem& problem, const Target& target, ConvPlan& plan);
void set_matrix_panels(const ConvProblem& problem, const Target& target, ConvPlan& plan);
void set_streamed_parts(const ConvProblem& problem, const Target& target, ConvPlan& plan);

// What Winograd's kernel computes: kernels as large as its window, without spared pixels.
ConvShape winograd_shape(const ConvProblem& problem, bool single_phase);

}  // namespace fused_subpixel::cpu
