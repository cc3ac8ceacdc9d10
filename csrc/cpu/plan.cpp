// SPDX-License-Identifier: BSD-3-Clause
// The cost model: estimates the cycles of every register tile that can compute a problem, and takes the cheapest. The direct
// kernels are here, plan_winograd.cpp, plan_matrix.cpp and plan_streamed.cpp have the others.
//
// Decisions, and what is known of the gain of each. bench/results records no decision apart from the others, so the gains
// below have yet to be measured one by one.
//   kernel             README's and docs' tables compare whole plans; Winograd needs 16 multiplications instead of 36
//   single_phase       saves the spared pixels, and the taps that phases lack: 9 of 16 products of a 3x3 kernel with
//                      stride 2 remain; of Winograd's products of a 4x4 kernel, 36 of 64 (docs/decisions/0031)
//   interleaved_tiles  makes single-phase tiles possible in NCHW, where the phases of a row alternate
//   panel_tiles        whole interleave groups are interleaved in registers (kStoreInterleaved, kStoreScalarPerLane),
//                      and several tiles share the pixels of a K block (tiles_in_first_cache)
//   weights_resident   saves one pass of all threads over the weights; large weights are packed once for all threads
//   row_outputs        five taps need 11 multiplications instead of 14, eleven 23 instead of 30 (docs/decisions/0032)
//   scheme             large weights over few tiles do not pass through memory (docs/decisions/0024)
//   weight_row         over few pixels nothing of a wide layer's weight is packed (docs/decisions/0033)
//   channels_inner     OC-vectorised tiles read few cache lines, and channels_last is packed by plain copies; Winograd's
//                      kernel transposes nothing, and computes as many tiles as there are (docs/decisions/0037)
//   parallel           waking threads costs about 20 us
// plan_pass.cpp decides about in_place, plan_k_blocks.cpp about K blocks and deferred_tiles, and the kernels about what is
// prefetched (conv_oc-inl.h, pack_input-inl.h). docs/cpu_kernels.md gives the reasons.
#include "cpu/plan.h"

#include <algorithm>

#include "cpu/plan_offers.h"
#include "cpu/winograd_row.h"

namespace fused_subpixel::cpu {
namespace {

// Packing planes with channels as neighbours, value by value, pays if each value is multiplied by that many vectors of
// output channels.
constexpr int64_t kTransposedProducts = 64;

// The taps of one kernel row read the same cache lines of pixels, so that the first of them pays for all. (Measured on AVX2, OW-
// against OC-vectorised: kernels one to three taps wide.)
constexpr double kHiddenFirstTap = 1.2;
// What an OC-vectorised tile takes besides its products where tiles of one vector come into question, see oc_k_cycles.
constexpr double kOcTile = 30;
// A weight, packed in the cache; packed beyond it and read again.
constexpr double kNearWeight = 1, kFarWeight = 3;

// Tiles that share a K block of the pixels in the first cache: as many as that could hold the weights of.
int64_t tiles_in_first_cache(int64_t k, int64_t tile_oc, const Target& t) {
  constexpr int64_t kWeightBytes = 32 << 10;
  return std::max<int64_t>(
      kWeightBytes / std::max<int64_t>(std::min(k, kMaxChain) * tile_oc * t.element_bytes, 1), 1);
}

// k values per pixel, of tiles that hold a single phase each or mixed ones.
double k_of(const ConvProblem& p, bool single_phase) {
  return static_cast<double>(p.shape.ic) * (single_phase ? p.mean_taps : static_cast<double>(p.shape.taps()));
}
double direct_weights(const ConvProblem& p, const Target& t) {
  const ConvShape& s = p.shape;
  const int64_t of_group = s.ic * s.oc * s.taps();
  return (weights_stay(of_group, t) ? kNearWeight : kFarWeight) * static_cast<double>(s.groups * of_group);
}

void offer_ow_vectorised(const ConvProblem& p, const Target& t, Offers& offers) {
  const double store = planar_store(p, t);
  const double hidden_pixels = kHiddenFirstTap / static_cast<double>(p.shape.kernel_w);
  for (int oc : TileOc::values) {
    const int v = ow_tile_vectors(oc, t.registers);
    const double tiles = static_cast<double>(ceil_div(p.shape.oc, oc));
    for (bool single : {false, true}) {
      if (single ? !may_hold_one_phase(p, oc) : p.no_zero_taps && oc > 1) continue;
      const double vectors =
          image_rows(p, single) * static_cast<double>(ceil_div(columns(p, single), t.lanes));
      const double cycles = tiles * vectors / v * k_of(p, single) * k_cycles(oc * v, oc, v, hidden_pixels) +
                            static_cast<double>(p.shape.oc) * vectors * store + direct_weights(p, t);
      offers.add({ConvKernel::kOwVectorised, oc, v, cycles, single});
    }
  }
}

void offer_oc_vectorised(const ConvProblem& p, const Target& t, Offers& offers) {
  // In NCHW, pixels and results are transposed, and tiles of one vector gain nothing.
  const bool one_vector = t.half_rate && p.ic_contiguous && p.oc_contiguous;
  const auto of_k = [&](int64_t pixels, int64_t nv) {
    return one_vector ? oc_k_cycles(pixels, nv, t) : k_cycles(pixels * nv, pixels, nv, kHiddenWeights);
  };
  for (int nv : TileOcVectors::values) {
    const int most = oc_tile_pixels(nv, t.registers), oc = nv * t.lanes;
    const bool single = may_hold_one_phase(p, oc) && p.phase_interleave * nv <= kMaxInterleavedVectors;
    if (p.no_zero_taps && !single) continue;
    const int64_t across = std::max<int64_t>(columns(p, single), 1), splits = ceil_div(across, most),
                  pixels = ceil_div(across, splits);
    const double tiles = static_cast<double>(ceil_div(p.shape.oc, oc));
    // in NCHW, tiles whose pixels fit one vector are stored together
    const int64_t together = std::max<int64_t>(t.lanes / pixels, 1);
    const double stored = p.oc_contiguous
                              ? kStoreContiguous * static_cast<double>(pixels)
                              : kStoreTransposed * static_cast<double>(round_up(together * pixels, t.lanes)) /
                                    static_cast<double>(together);
    const double cycles =
        tiles * image_rows(p, single) * static_cast<double>(splits) *
            (k_of(p, single) * of_k(pixels, nv) + nv * stored + (one_vector ? kOcTile : 0)) +
        direct_weights(p, t);
    offers.add({ConvKernel::kOcVectorised, oc, static_cast<int>(pixels), cycles, single});
  }
}

void set_panels(const ConvProblem& p, const Target& t, ConvPlan& plan) {
  const ConvShape& s = p.shape;
  const int64_t tiles = ceil_div(s.oc, plan.tile_oc);
  const int side = winograd_side(plan.kernel);
  const bool winograd = side > 0, row = plan.kernel == ConvKernel::kWinogradRow;
  const bool wide = plan.scheme != WinogradScheme::kPanels;
  const bool oc_lanes = plan.kernel == ConvKernel::kOcVectorised || plan.channels_inner;
  const int64_t taps = winograd ? winograd_positions(side)
                       : row    ? s.kernel_h * RowScheme{s.kernel_w, plan.row_outputs}.products()
                                : s.taps();
  const int64_t tile_bytes = s.ic * taps * plan.tile_oc * t.element_bytes;
  plan.weights_resident = weights_stay(s.ic * taps * tiles * plan.tile_oc, t);
  plan.interleaved_tiles = plan.single_phase ? static_cast<int>(p.phase_interleave) : 1;
  if (plan.interleaved_tiles > 1 && !winograd)
    plan.panel_tiles = plan.interleaved_tiles;
  else if (oc_lanes)
    plan.panel_tiles = 1;
  else
    plan.panel_tiles = whole_panel(p, t, plan.tile_oc, winograd ? winograd_panel_oc(s.ic, side, wide, t) : 0,
                                   winograd && plan.single_phase);
  if (plan.interleaved_tiles == 1 && (row || plan.kernel == ConvKernel::kOwVectorised)) {
    const int64_t whole = plan.panel_tiles, shared = tiles_in_first_cache(s.ic * taps, plan.tile_oc, t);
    plan.panel_tiles = static_cast<int>(std::min(std::max(whole, shared / whole * whole), tiles));
  }
  if (winograd) {
    // A block's transformed input passes once per panel, so panels are as large as the weights' share of the cache.
    const int64_t whole = plan.panel_tiles;  // tiles that keep interleave groups together
    const int64_t most_oc = winograd_panel_oc(s.ic, side, wide, t) / plan.tile_oc;
    const int64_t most = wide ? most_oc : std::min(most_oc, t.l2_bytes / kWeightsShareOfL2 / tile_bytes);
    const int64_t panels = ceil_div(tiles, std::max(whole, most / whole * whole));
    plan.panel_tiles = static_cast<int>(round_up(ceil_div(tiles, panels), whole));
  }
  plan.panels = ceil_div(tiles, plan.panel_tiles);
  plan.pass_panels = wide ? plan.panels : 1;
  plan.k_channels = s.ic;
  plan.panel_elements = s.ic * taps * plan.tile_oc * plan.panel_tiles + (winograd ? taps * t.lanes
                                                                         : row    ? t.lanes
                                                                                  : 0);
}

}  // namespace

ConvPlan plan_conv(const ConvProblem& p, const Target& t) {
  Offers offers;
  offer_ow_vectorised(p, t, offers);
  offer_oc_vectorised(p, t, offers);
  offer_winograd_kernels(p, t, offers);
  offer_matrix(p, t, offers);
  offer_streamed(p, t, offers);
  const Choice& choice = offers.best;

  ConvPlan plan{};
  plan.shape = p.shape;
  plan.kernel = choice.kernel;
  plan.tile_oc = choice.tile_oc;
  plan.tile_pixels = choice.tile_pixels;
  plan.single_phase = choice.single_phase;
  plan.scheme = choice.scheme;
  plan.row_outputs = choice.row_outputs;
  plan.channels_inner = choice.channels_inner;
  for (int kernel = 0; kernel < kConvKernels; ++kernel) plan.cycles[kernel] = offers.cycles[kernel];
  if (plan.kernel == ConvKernel::kStreamed) {
    set_streamed_parts(p, t, plan);
    return plan;
  }
  if (plan.scheme == WinogradScheme::kPasses)
    set_passes(p, t, plan);
  else if (plan.kernel == ConvKernel::kMatrix)
    set_matrix_panels(p, t, plan);
  else
    set_panels(p, t, plan);
  if (plan.single_phase) {
    plan.spared_h = p.spared_h;
    plan.spared_w = p.spared_w;
    plan.shape.lr_h -= p.spared_h;
    plan.shape.lr_w -= p.spared_w;
  }
  if (winograd_side(plan.kernel) > 0) {
    choose_winograd_blocks(winograd_shape(p, plan.single_phase), p.planar_input, t, plan);
    return plan;
  }
  if (plan.kernel == ConvKernel::kWinogradRow) {
    choose_winograd_row_blocks(p.shape, t, plan);
    return plan;
  }
  const bool planes_pay = p.planar_input && p.shape.oc * p.shape.taps() >= kTransposedProducts * t.lanes;
  plan.channels_inner = plan.kernel == ConvKernel::kMatrix ||
                        (plan.kernel == ConvKernel::kOcVectorised && (p.ic_contiguous || planes_pay));
  // the packed input tile holds one more row and column, for the phases that start one pixel later
  ConvShape with_halo = plan.shape;
  with_halo.kernel_h += plan.spared_h;
  with_halo.kernel_w += plan.spared_w;
  // Weights that do not stay make many passes over the packed input tile: that alone counts.
  const int64_t of_pixel = plan.weights_resident ? p.shape.oc : 0;
  if (plan.kernel == ConvKernel::kMatrix)
    choose_matrix_blocks(with_halo, t, of_pixel, plan);
  else
    choose_blocks(with_halo, t, of_pixel, plan);
  return plan;
}

}  // namespace fused_subpixel::cpu
