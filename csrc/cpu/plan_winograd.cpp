// SPDX-License-Identifier: BSD-3-Clause
// What Winograd's kernels would take, and the panels of WinogradScheme::kPasses.
#include <algorithm>
#include <cmath>

#include "cpu/plan_offers.h"
#include "cpu/winograd_row.h"

namespace fused_subpixel::cpu {
namespace {

// Measured on AVX-512, in cycles. One position of a vector of tiles of one channel, transformed; the same of a vector of channels of
// one tile.
constexpr double kWinogradInput = 5, kWinogradOutput = 3.8;
constexpr double kWinogradInnerInput = 4.5, kWinogradInnerOutput = 2.5;
// The same, written beyond the L2 cache and read again; one position of a kernel, read from there by another block. Intel's
// processors have 2 MiB of it and a slower cache behind, AMD's (Zen 4) 1 MiB and a faster one, whose loads hide behind
// multiply-adds.
bool fast_beyond_l2(const Target& t) { return t.l2_bytes <= int64_t{1} << 20; }
double winograd_streamed(const Target& t) { return fast_beyond_l2(t) ? 4 : 16; }
double winograd_read(const Target& t) { return fast_beyond_l2(t) ? 0.06 : 1; }
// The latter of a panel, whose positions follow one another.
constexpr double kWinogradPanelRead = 0.15;
// One position of a kernel, packed and transformed: in the cache; written beyond it and read again, a panel or a position at a
// time; and K block by K block as it is used.
constexpr double kWinogradWeights = 0.5, kWinogradFarWeights = 2.5, kWinogradWideWeights = 2,
                 kWinogradFreshWeights = 1.6;
// Of kWinogradRow: four positions of a vector of tiles of one output channel, transformed; one weight, packed and transformed.
constexpr double kWinogradRowOutput = 10, kWinogradRowWeights = 3;

// Of one phase: the window holds the taps of all phases, where they are and as late as their phase starts.
bool fits_winograd(const ConvProblem& p, const Target& t, bool single_phase) {
  const ConvShape& s = p.shape;
  if (s.ic == 0 || p.no_winograd || s.stride_h != 1 || s.stride_w != 1 || s.dilation_h != 1 ||
      s.dilation_w != 1 || t.element_bytes != 4)
    return false;
  if (!single_phase) return s.kernel_h == kWinogradTaps && s.kernel_w == kWinogradTaps;
  // The estimate does not know what each block costs besides its products, which are few if an image has few vectors of tiles.
  constexpr int kSide = winograd_side(ConvKernel::kWinograd);
  const int64_t tiles = ceil_div(s.lr_h - p.spared_h, kSide) * ceil_div(s.lr_w - p.spared_w, kSide);
  if (tiles <= 2 * t.lanes) return false;
  const auto fits = [](int64_t taps, int64_t spared) { return taps >= 2 && taps + spared <= kWinogradTaps; };
  return fits(s.kernel_h, p.spared_h) && fits(s.kernel_w, p.spared_w) && p.unused_h + p.unused_w > 0 &&
         s.lr_h > p.spared_h && s.lr_w > p.spared_w && p.phase_oc > 0 && p.phase_oc % t.lanes == 0 &&
         p.phase_interleave * t.lanes <= kMaxTransposedOc;
}

// Positions of a tile that are multiplied, on average of all phases.
double multiplied_positions(const ConvProblem& p, int side, bool single_phase) {
  if (!single_phase) return winograd_positions(side);
  return (side + kWinogradTaps - 1 - p.unused_h) * (side + kWinogradTaps - 1 - p.unused_w);
}
// A register tile must not hold output channels of two phases.
bool fits_winograd_tile(int oc, const Target& t, bool single_phase) {
  return !single_phase || t.lanes % oc == 0;
}

// Channels in the lanes: are they neighbours in memory, of the input and of the output? Small interleave groups of output channels
// will do as well, if a register tile holds whole ones. In panels of one phase the vectors of others would lie between those
// of a register tile.
bool fits_channel_lanes(const ConvProblem& p, int oc, bool single_phase) {
  const bool whole_groups =
      interleaves_in_registers(p.interleave) && (p.shape.oc <= oc || oc % p.interleave == 0);
  return p.ic_contiguous && (p.oc_contiguous || whole_groups) &&
         !(single_phase && (p.phase_interleave > 1 || p.phase_oc % oc != 0));
}

// Register tiles of a panel: one, where nothing interleaves because the lanes are channels.
int panel_tiles(const ConvProblem& p, const Target& t, int oc, bool channels_inner, int side, bool wide,
                bool single_phase) {
  return channels_inner ? 1
                        : whole_panel(p, t, oc, winograd_panel_oc(p.shape.ic, side, wide, t), single_phase);
}

// A register tile, and the cycles of its steps: of all channels for one position of a unit of tiles (WinogradTiles), and of one k of
// the register tile; and those to store a unit.
struct RegisterTile {
  int oc, pixels;
  bool channels_inner;
  double k, input, output, store;
};

template <class F>
void for_each_register_tile(const ConvProblem& p, const Target& t, int side, bool single, F&& f) {
  const ConvShape& s = p.shape;
  const double ic = static_cast<double>(s.ic), stored = static_cast<double>(s.oc), pixels = side * side;
  for (int oc : TileOc::values) {
    if (!fits_winograd_tile(oc, t, single)) continue;
    const int v = ow_tile_vectors(oc, t.registers);
    f(RegisterTile{oc, v, false, k_cycles(oc * v, oc, v, kHiddenPixels), ic * kWinogradInput,
                   stored * kWinogradOutput, stored * pixels * planar_store(p, t)});
  }
  const double input = static_cast<double>(ceil_div(s.ic, t.lanes)),
               output = static_cast<double>(ceil_div(s.oc, t.lanes));
  for (int nv : TileOcVectors::values) {
    const int oc = nv * t.lanes, tiles = oc_tile_pixels(nv, t.registers);
    if (fits_channel_lanes(p, oc, single))
      f(RegisterTile{oc, tiles, true, oc_k_cycles(tiles, nv, t), input * kWinogradInnerInput,
                     output * kWinogradInnerOutput,
                     output * pixels * (p.oc_contiguous ? kStoreContiguous : kStoreTransposed)});
  }
}

// What covers so many units, in register tiles: those of single tiles are of even sizes.
double covered_units(int64_t units, const RegisterTile& tile) {
  return tile.channels_inner ? static_cast<double>(units) : covered_vectors(units, tile.pixels);
}

void offer_winograd(const ConvProblem& p, const Target& t, ConvKernel kernel, WinogradScheme scheme,
                    bool single, Offers& offers) {
  const ConvShape s = winograd_shape(p, single);
  const int side = winograd_side(kernel);
  const int64_t tiles_of_image = ceil_div(s.lr_h, side) * ceil_div(s.lr_w, side);
  const int64_t positions_of_tile = winograd_positions(side);
  const double positions = static_cast<double>(positions_of_tile);
  const double multiplied = multiplied_positions(p, side, single);
  const double stored = static_cast<double>(s.oc), ic = static_cast<double>(s.ic);
  for_each_register_tile(p, t, side, single, [&](const RegisterTile& tile) {
    const WinogradTiles of_block = winograd_tiles(kernel, tile.channels_inner, tile.pixels, t);
    const int64_t unit = of_block.unit;
    const double tiles = static_cast<double>(ceil_div(s.oc, tile.oc));
    const bool wide = scheme != WinogradScheme::kPanels;
    if (wide != winograd_wide(s.ic, of_block, t)) return;
    const int64_t panel = tile.oc * panel_tiles(p, t, tile.oc, tile.channels_inner, side, wide, single);
    const int64_t most = winograd_most_units(scheme, s, panel, of_block, t);
    if (most == 0) return;
    // blocks of even sizes, enough for all threads
    const int64_t images = std::max<int64_t>(s.groups * s.batch, 1);
    const int64_t of_image = std::max<int64_t>(ceil_div(tiles_of_image, unit), 1);
    const int64_t blocks =
        std::max(ceil_div(of_image, most), std::min(ceil_div(t.threads, images), of_image));
    const double units =
        static_cast<double>(s.batch * blocks) * covered_units(ceil_div(of_image, blocks), tile);
    const double streamed =
        wide ? (ic + stored) * winograd_streamed(t) * static_cast<double>(unit) / t.lanes : 0;
    const bool stay = weights_stay(positions_of_tile * s.ic * round_up(s.oc, tile.oc), t);
    // the positions that a phase does not need are written too
    const double weights = wide   ? kWinogradWideWeights * positions / multiplied
                           : stay ? kWinogradWeights * std::min<double>(t.threads, blocks)
                                  : kWinogradFarWeights;
    const double read_again = wide ? 1 : tile.channels_inner && !stay ? kWinogradPanelRead : 0;
    const double read =
        static_cast<double>(std::max<int64_t>(s.batch * blocks - 1, 0)) * winograd_read(t) * read_again;
    const double of_position =
        units * (tiles / tile.pixels * ic * tile.k + streamed + tile.output) + ic * stored * (weights + read);
    offers.add({.kernel = kernel,
                .tile_oc = tile.oc,
                .tile_pixels = tile.pixels,
                .cycles = multiplied * of_position + positions * units * tile.input + units * tile.store,
                .single_phase = single,
                .scheme = scheme,
                .channels_inner = tile.channels_inner});
  });
}

// The same where an item transforms the weights that it uses: see WinogradPasses.
void offer_winograd_passes(const ConvProblem& p, const Target& t, ConvKernel kernel, bool single,
                           Offers& offers) {
  const ConvShape s = winograd_shape(p, single);
  const int side = winograd_side(kernel);
  const int64_t tiles_of_image = ceil_div(s.lr_h, side) * ceil_div(s.lr_w, side);
  const double positions = winograd_positions(side), multiplied = multiplied_positions(p, side, single),
               batch = static_cast<double>(s.batch);
  const double stored = static_cast<double>(s.oc), ic = static_cast<double>(s.ic);
  for_each_register_tile(p, t, side, single, [&](const RegisterTile& tile) {
    const int64_t unit = tile.channels_inner ? 1 : t.lanes, of_image = ceil_div(tiles_of_image, unit);
    const int64_t panel = tile.oc * panel_tiles(p, t, tile.oc, tile.channels_inner, side, true, single);
    const WinogradPasses by = winograd_passes(s, side, panel, t);
    if (by.passes == 0) return;
    const double tiles = static_cast<double>(ceil_div(s.oc, tile.oc)),
                 passes = static_cast<double>(by.passes);
    // a later K block adds to accumulators, so that no tile may compute any of them twice
    const auto rest = static_cast<int>(of_image % tile.pixels);
    const bool twice = !tile.channels_inner && rest > 0 && panel % ow_rest_oc(rest, t.registers) != 0;
    const double units =
        batch * (by.k_channels < s.ic && twice ? static_cast<double>(round_up(of_image, tile.pixels))
                                               : covered_units(of_image, tile));
    const double k_blocks = std::ceil(ic / static_cast<double>(by.k_channels));
    const int64_t items = std::max<int64_t>(s.groups * s.batch, 1) * by.passes;
    const double waiting = static_cast<double>(round_up(items, t.threads)) / static_cast<double>(items);
    const double accumulated = stored * static_cast<double>(unit) / t.lanes * kAccumulate * k_blocks;
    const double of_position = units * (tiles / tile.pixels * ic * tile.k + tile.output + accumulated) +
                               batch * ic * stored * kWinogradFreshWeights;
    offers.add({.kernel = kernel,
                .tile_oc = tile.oc,
                .tile_pixels = tile.pixels,
                .cycles = waiting * (multiplied * of_position + positions * units * passes * tile.input +
                                     units * tile.store),
                .single_phase = single,
                .scheme = WinogradScheme::kPasses,
                .channels_inner = tile.channels_inner});
  });
}

// As many taps as outputs at least, and steps of one: then the outputs of a tile share pixels.
bool fits_winograd_row(const ConvProblem& p, const Target& t, int outputs) {
  const ConvShape& s = p.shape;
  return s.ic > 0 && !p.no_winograd && s.kernel_w >= outputs && s.stride_w == 1 && t.element_bytes == 4;
}

void offer_winograd_row(const ConvProblem& p, const Target& t, int outputs, Offers& offers) {
  const ConvShape& s = p.shape;
  const RowScheme scheme{s.kernel_w, outputs};
  const double ic = static_cast<double>(s.ic), stored = static_cast<double>(s.oc), store = planar_store(p, t);
  const double positions = scheme.positions(), pixels = outputs;
  const int64_t across = ceil_div(scheme.tiles(s.lr_w, s.dilation_w), t.lanes);
  const double k = ic * static_cast<double>(s.kernel_h * scheme.products());
  const double blocks = std::ceil(k / positions / static_cast<double>(kMaxChain));
  // rows and columns of the halo, beside blocks of a usual size
  constexpr double kUsualRows = 4, kUsualColumns = 96;
  const double halo = (1 + static_cast<double>((s.kernel_w - 1) * s.dilation_w) / kUsualColumns) *
                      (1 + static_cast<double>((s.kernel_h - 1) * s.dilation_h) /
                               std::min(kUsualRows, static_cast<double>(std::max<int64_t>(s.lr_h, 1))));
  const double output = kWinogradRowOutput * positions / kRowPositions * (s.dilation_w == 1 ? 1 : 2);
  for (int oc : TileOc::values) {
    const int v = ow_tile_vectors(oc, t.registers);
    const double tiles = static_cast<double>(ceil_div(s.oc, oc));
    const double vectors = static_cast<double>(s.batch * round_up(s.lr_h * across, v));
    const bool stay = weights_stay(s.ic * s.kernel_h * scheme.products() * round_up(s.oc, oc), t);
    for (int64_t passes = 1; passes <= std::min<int64_t>(ceil_div(s.oc, oc), kMostRowPasses); ++passes) {
      // Every block reads all weights, from beyond the cache if they do not stay there. One of less than a register tile
      // would not do.
      const int64_t of_block =
          winograd_row_vectors(round_up(ceil_div(s.oc, passes), oc), scheme.positions(), t);
      if (of_block < std::min<int64_t>(v, s.lr_h * across)) continue;
      const double traffic = stay ? 0
                                  : std::ceil(vectors / static_cast<double>(std::max<int64_t>(of_block, 1))) *
                                        k * stored * t.element_bytes / kBytesPerCycle;
      const double cycles =
          vectors * (tiles / v * k * k_cycles(oc * v, oc, v, kHiddenPixels) +
                     stored * (positions * kAccumulate * blocks + output + pixels * store) +
                     static_cast<double>(passes) * ic * halo * winograd_row_input(outputs)) +
          k * stored * kWinogradRowWeights + traffic;
      offers.add({.kernel = ConvKernel::kWinogradRow,
                  .tile_oc = oc,
                  .tile_pixels = v,
                  .cycles = cycles,
                  .row_outputs = outputs});
    }
  }
}

}  // namespace

ConvShape winograd_shape(const ConvProblem& p, bool single_phase) {
  ConvShape s = p.shape;
  s.kernel_h = s.kernel_w = kWinogradTaps;
  if (single_phase) {
    s.lr_h -= p.spared_h;
    s.lr_w -= p.spared_w;
  }
  return s;
}

// Few tiles and their weights, in passes.
void set_passes(const ConvProblem& p, const Target& t, ConvPlan& plan) {
  const int side = winograd_side(plan.kernel);
  plan.interleaved_tiles = plan.single_phase ? static_cast<int>(p.phase_interleave) : 1;
  plan.panel_tiles = panel_tiles(p, t, plan.tile_oc, plan.channels_inner, side, true, plan.single_phase);
  const int64_t panel_oc = int64_t{plan.panel_tiles} * plan.tile_oc;
  const WinogradPasses by = winograd_passes(winograd_shape(p, plan.single_phase), side, panel_oc, t);
  plan.panels = ceil_div(p.shape.oc, panel_oc);
  plan.scheme = WinogradScheme::kPasses;
  plan.pass_panels = by.pass_panels;
  plan.k_channels = by.k_channels;
  plan.panel_elements = winograd_positions(side) * (by.k_channels * panel_oc + t.lanes);
}

void offer_winograd_kernels(const ConvProblem& p, const Target& t, Offers& offers) {
  for (ConvKernel kernel : {ConvKernel::kWinograd, ConvKernel::kWinograd4}) {
    if (kernel == ConvKernel::kWinograd4 && !p.inexact) continue;
    for (bool single : {false, true}) {
      if (!fits_winograd(p, t, single)) continue;
      for (WinogradScheme scheme : {WinogradScheme::kPanels, WinogradScheme::kPositions})
        offer_winograd(p, t, kernel, scheme, single, offers);
      offer_winograd_passes(p, t, kernel, single, offers);
    }
  }
  for (int outputs : {2, 4})
    if (fits_winograd_row(p, t, outputs)) offer_winograd_row(p, t, outputs, offers);
}

}  // namespace fused_subpixel::cpu
