// SPDX-License-Identifier: BSD-3-Clause
// What products of matrix tiles would take, and their panels.
#include <algorithm>

#include "cpu/matrix_tiles.h"
#include "cpu/plan_offers.h"

namespace fused_subpixel::cpu {
namespace {

// Measured on a processor with AMX, in cycles: of a pixel, 32 channels packed from neighbours, from planes, and one interleave
// group; 16 sums of a pixel, finished and stored as neighbours, and transposed; a weight, packed.
constexpr double kPackNeighbours = 6, kPackTransposed = 16, kPackGroup = 2.5;
constexpr double kStoreColumn = 6, kStoreColumnTransposed = 14, kPackWeight = 0.8;
// Output channels of a panel, unless they interleave in larger groups.
constexpr int64_t kMaxPanelOc = 64;

// Whole columns of 16 output channels in even panels, which hold whole interleave groups if these are interleaved in registers.
int matrix_panel_oc(const ConvProblem& p) {
  int64_t unit = kColumnOc;
  if (interleaves_in_registers(p.interleave))
    while (unit % p.interleave != 0) unit += kColumnOc;
  if (p.shape.oc <= kMaxPanelOc || unit > kMaxTransposedOc)
    return static_cast<int>(round_up(std::min(p.shape.oc, kMaxPanelOc), kColumnOc));
  const int64_t most = std::max(kMaxPanelOc / unit * unit, unit);
  return static_cast<int>(round_up(ceil_div(p.shape.oc, ceil_div(p.shape.oc, most)), unit));
}

// The same for tiles of one phase; 0: they cannot hold one.
int matrix_phase_oc(const ConvProblem& p) {
  const int64_t most = kMaxPanelOc / std::max<int64_t>(p.phase_interleave, 1) / kColumnOc;
  for (int64_t columns = std::max<int64_t>(most, 1); columns > 0; --columns)
    if (may_hold_one_phase(p, columns * kColumnOc)) return static_cast<int>(columns * kColumnOc);
  return 0;
}

bool joins_taps(const ConvProblem& p, bool single_phase) {
  return !single_phase && fits_joined_taps(p.shape) && p.mean_taps == static_cast<double>(p.shape.taps());
}

}  // namespace

void offer_matrix(const ConvProblem& p, const Target& t, Offers& offers) {
  const ConvShape& s = p.shape;
  if (t.matrix_tiles == MatrixTiles::kNone || p.no_winograd || s.ic == 0) return;
  const auto chunks = static_cast<double>(ceil_div(s.ic, kTileChannels));
  const double group_count = static_cast<double>(ceil_div(s.ic, p.ic_interleave));
  const double packed =
      chunks * (p.ic_interleave == 1 ? kPackTransposed : kPackNeighbours) +
      (p.ic_interleave == 1 || p.ic_interleave >= kTileChannels ? 0 : kPackGroup * group_count);
  const double weights = static_cast<double>(s.ic * s.oc * s.taps()) * kPackWeight;
  const auto of_pairs = [&](int64_t channels) {
    return static_cast<double>(channels / kTileChannels) * tile_cycles(t, kTileChannels / 2) +
           (channels % kTileChannels == 0
                ? 0
                : tile_cycles(t, static_cast<double>(ceil_div(channels % kTileChannels, 2))));
  };
  for (bool single : {false, true}) {
    const int oc = single ? matrix_phase_oc(p) : matrix_panel_oc(p);
    if (oc == 0) continue;
    const int64_t across = std::max<int64_t>(columns(p, single), 1);
    const double pixels = image_rows(p, single) * static_cast<double>(across);
    const double row = static_cast<double>(matrix_row(s, across));
    const double column_count = static_cast<double>(ceil_div(s.oc, oc) * oc / kColumnOc);
    const double taps = single ? p.mean_taps : static_cast<double>(s.taps());
    const double products = joins_taps(p, single)
                                ? static_cast<double>(s.kernel_h) * of_pairs(s.ic * s.kernel_w)
                                : taps * of_pairs(s.ic);
    const double store = p.oc_contiguous ? kStoreColumn : kStoreColumnTransposed;
    const double cycles = image_rows(p, single) * row / kStripPixels * column_count * products +
                          pixels * (packed + column_count * store) + weights;
    offers.add({ConvKernel::kMatrix, oc, kMatrixPixels, cycles, single});
  }
}

void set_matrix_panels(const ConvProblem& p, const Target& t, ConvPlan& plan) {
  plan.interleaved_tiles = plan.single_phase ? static_cast<int>(p.phase_interleave) : 1;
  plan.panel_tiles = plan.interleaved_tiles;
  plan.panels = ceil_div(p.shape.oc, int64_t{plan.panel_tiles} * plan.tile_oc);
  plan.pass_panels = 1;
  plan.joined_taps = joins_taps(p, plan.single_phase);
  plan.panel_elements = plan.panel_tiles * (plan.tile_oc / kColumnOc) *
                        tiles_of_column(p.shape, plan.joined_taps) * kTileElements;
  plan.weights_resident = weights_stay(plan.panels * plan.panel_elements, t);
}

}  // namespace fused_subpixel::cpu
