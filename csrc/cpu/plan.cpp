// SPDX-License-Identifier: BSD-3-Clause
// The cost model: estimates the cycles of every register tile that can compute a problem, and takes the cheapest.
//
// Decisions, and what is known of the gain of each. bench/results records no decision apart from the others, so the gains
// below have yet to be measured one by one.
//   kernel             README's and docs' tables compare whole plans; Winograd needs 16 multiplications instead of 36
//   single_phase       saves the spared pixels, and the taps that phases lack: 9 of 16 products of a 3x3 kernel with
//                      stride 2 remain; of Winograd's products of a 4x4 kernel, 36 of 64 (docs/decisions/0031)
//   interleaved_tiles  makes single-phase tiles possible in NCHW, where the phases of a row alternate
//   panel_tiles        whole interleave groups are interleaved in registers (kStoreInterleaved, kStoreScalarPerLane below),
//                      and several tiles share the pixels of a K block (tiles_in_first_cache)
//   weights_resident   saves one pass of all threads over the weights; large weights are packed once for all threads
//   scheme             large weights over few tiles do not pass through memory (docs/decisions/0024)
//   channels_inner     OC-vectorised tiles read few cache lines, and channels_last is packed by plain copies
//   parallel           waking threads costs about 20 us
// plan_pass.cpp decides about in_place, plan_k_blocks.cpp about K blocks and deferred_tiles, and the kernels about what is
// prefetched (conv_oc-inl.h, pack_input-inl.h). docs/cpu_kernels.md gives the reasons.
#include "cpu/plan.h"

#include <algorithm>
#include <cmath>

#include "cpu/matrix_tiles.h"
#include "cpu/plan_blocks.h"
#include "cpu/winograd_row.h"

namespace fused_subpixel::cpu {
namespace {

// Packing planes with channels as neighbours, value by value, pays if each value is multiplied by that many vectors of
// output channels.
constexpr int64_t kTransposedProducts = 64;

bool interleaves_in_registers(int64_t interleave) { return contains(RegisterInterleave{}, interleave); }

// For the vectors that k_cycles counts. The taps of one kernel row read the same cache lines of pixels, so that the first of
// them pays for all. (Measured on AVX2, OW- against OC-vectorised: kernels one to three taps wide.)
constexpr double kHiddenPixels = 0.3, kHiddenFirstTap = 1.2;

// Measured on AVX-512, in cycles. One position of a vector of tiles of one channel, transformed.
constexpr double kWinogradInput = 5, kWinogradOutput = 3.8;
// The same, written beyond the L2 cache and read again. Intel's processors have 2 MiB of it and a slower cache behind, AMD's
// (Zen 4) 1 MiB and a faster one.
double winograd_streamed(const Target& t) { return t.l2_bytes > int64_t{1} << 20 ? 16 : 4; }
// One position of a 3x3 kernel, packed and transformed: in the cache; the same, written beyond it and read again; and K block
// by K block as it is used.
constexpr double kWinogradWeights = 0.5, kWinogradFarWeights = 2.5, kWinogradFreshWeights = 1.6;
// A weight, packed beyond the cache and read again.
constexpr double kFarWeight = 3;
// A vector of pairs of one output channel, transformed; one weight of the same kernel, packed and transformed.
constexpr double kWinogradRowOutput = 10, kWinogradRowWeights = 3;
// A vector of accumulators, finished and stored.
constexpr double kStoreInterleaved = 3, kStoreContiguous = 3, kStoreTransposed = 14, kStoreScalarPerLane = 2;

// Tiles that share a K block of the pixels in the first cache: as many as that could hold the weights of.
int64_t tiles_in_first_cache(int64_t k, int64_t tile_oc, const Target& t) {
  constexpr int64_t kWeightBytes = 32 << 10;
  return std::max<int64_t>(
      kWeightBytes / std::max<int64_t>(std::min(k, kMaxChain) * tile_oc * t.element_bytes, 1), 1);
}

// The tiles of a panel: whole interleave groups, so that they interleave in registers. Winograd's weights are transformed
// with output channels in the lanes, and take whole vectors as well, up to most_oc, if there are so many output channels.
int whole_panel(const ConvProblem& p, const Target& t, int oc, int64_t most_oc = 0,
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
bool may_hold_one_phase(const ConvProblem& p, int64_t oc) {
  const ConvShape& s = p.shape;
  const bool saves = p.spared_h + p.spared_w > 0 || p.mean_taps < static_cast<double>(s.taps());
  return saves && s.lr_h > p.spared_h && s.lr_w > p.spared_w && p.phase_oc > 0 && p.phase_oc % oc == 0 &&
         p.phase_interleave <= kMaxInterleavedVectors;
}

struct Choice {
  ConvKernel kernel;
  int tile_oc, tile_pixels;
  double cycles;
  bool single_phase;
  WinogradScheme scheme = WinogradScheme::kPanels;
};

// The cheapest offer, and what the best tile of each kernel would take.
struct Offers {
  Choice best{ConvKernel::kOwVectorised, 1, 1, -1, false};
  double cycles[kConvKernels] = {-1, -1, -1, -1, -1, -1};

  void add(const Choice& c) {
    if (best.cycles < 0 || c.cycles < best.cycles) best = c;
    double& of_kernel = cycles[static_cast<int>(c.kernel)];
    if (of_kernel < 0 || c.cycles < of_kernel) of_kernel = c.cycles;
  }
};

// k values per pixel, and low-resolution rows and columns, of tiles that hold a single phase each or mixed ones.
double k_of(const ConvProblem& p, bool single_phase) {
  return static_cast<double>(p.shape.ic) * (single_phase ? p.mean_taps : static_cast<double>(p.shape.taps()));
}
double image_rows(const ConvProblem& p, bool single_phase) {
  return static_cast<double>(p.shape.batch * (p.shape.lr_h - (single_phase ? p.spared_h : 0)));
}
int64_t columns(const ConvProblem& p, bool single_phase) {
  return p.shape.lr_w - (single_phase ? p.spared_w : 0);
}

// Do the packed weights of a group stay in each thread's cache?
bool weights_stay(int64_t elements, const Target& t) {
  return elements * t.element_bytes <= t.l2_bytes / kWeightsShareOfL2;
}
double direct_weights(const ConvProblem& p, const Target& t) {
  const ConvShape& s = p.shape;
  const int64_t of_group = s.ic * s.oc * s.taps();
  return weights_stay(of_group, t) ? 0 : kFarWeight * static_cast<double>(s.groups * of_group);
}

double planar_store(const ConvProblem& p, const Target& t) {
  return interleaves_in_registers(p.interleave) ? kStoreInterleaved
         : p.oc_contiguous                      ? kStoreTransposed
                                                : kStoreScalarPerLane * t.lanes;
}

void offer_ow_vectorised(const ConvProblem& p, const Target& t, Offers& offers) {
  const double store = planar_store(p, t);
  const double hidden_pixels = kHiddenFirstTap / static_cast<double>(p.shape.kernel_w);
  for (int oc : TileOc::values) {
    const int v = ow_tile_vectors(oc, t.registers);
    const double tiles = static_cast<double>(ceil_div(p.shape.oc, oc));
    for (bool single : {false, true}) {
      if (single && !may_hold_one_phase(p, oc)) continue;
      const double vectors =
          image_rows(p, single) * static_cast<double>(ceil_div(columns(p, single), t.lanes));
      const double cycles = tiles * vectors / v * k_of(p, single) * k_cycles(oc * v, oc, v, hidden_pixels) +
                            static_cast<double>(p.shape.oc) * vectors * store + direct_weights(p, t);
      offers.add({ConvKernel::kOwVectorised, oc, v, cycles, single});
    }
  }
}

void offer_oc_vectorised(const ConvProblem& p, const Target& t, Offers& offers) {
  for (int nv : TileOcVectors::values) {
    const int most = oc_tile_pixels(nv, t.registers), oc = nv * t.lanes;
    const bool single = may_hold_one_phase(p, oc) && p.phase_interleave * nv <= kMaxInterleavedVectors;
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
            (k_of(p, single) * k_cycles(pixels * nv, pixels, nv, kHiddenWeights) + nv * stored) +
        direct_weights(p, t);
    offers.add({ConvKernel::kOcVectorised, oc, static_cast<int>(pixels), cycles, single});
  }
}

// Of one phase: the window holds the taps of all phases, where they are and as late as their phase starts.
bool fits_winograd(const ConvProblem& p, const Target& t, bool single_phase) {
  const ConvShape& s = p.shape;
  if (s.ic == 0 || p.no_winograd || s.stride_h != 1 || s.stride_w != 1 || s.dilation_h != 1 ||
      s.dilation_w != 1 || t.element_bytes != 4)
    return false;
  if (!single_phase) return s.kernel_h == kWinogradTaps && s.kernel_w == kWinogradTaps;
  // The estimate does not know what each block costs besides its products, which are few if an image is one vector of tiles.
  constexpr int kSide = winograd_side(ConvKernel::kWinograd);
  const int64_t tiles = ceil_div(s.lr_h - p.spared_h, kSide) * ceil_div(s.lr_w - p.spared_w, kSide);
  if (tiles <= t.lanes) return false;
  const auto fits = [](int64_t taps, int64_t spared) { return taps >= 2 && taps + spared <= kWinogradTaps; };
  return fits(s.kernel_h, p.spared_h) && fits(s.kernel_w, p.spared_w) && p.unused_h + p.unused_w > 0 &&
         s.lr_h > p.spared_h && s.lr_w > p.spared_w && p.phase_oc > 0 && p.phase_oc % t.lanes == 0 &&
         p.phase_interleave * t.lanes <= kMaxTransposedOc;
}

// What Winograd's kernel computes: kernels as large as its window, without spared pixels.
ConvShape winograd_shape(const ConvProblem& p, bool single_phase) {
  ConvShape s = p.shape;
  s.kernel_h = s.kernel_w = kWinogradTaps;
  if (single_phase) {
    s.lr_h -= p.spared_h;
    s.lr_w -= p.spared_w;
  }
  return s;
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

void offer_winograd(const ConvProblem& p, const Target& t, ConvKernel kernel, WinogradScheme scheme,
                    bool single, Offers& offers) {
  const ConvShape s = winograd_shape(p, single);
  const int side = winograd_side(kernel);
  const int64_t L = t.lanes, tiles_of_image = ceil_div(s.lr_h, side) * ceil_div(s.lr_w, side);
  const int64_t positions_of_tile = winograd_positions(side);
  const double positions = static_cast<double>(positions_of_tile), pixels = side * side;
  const double multiplied = multiplied_positions(p, side, single);
  const double stored = static_cast<double>(s.oc), ic = static_cast<double>(s.ic), store = planar_store(p, t);
  for (int oc : TileOc::values) {
    if (!fits_winograd_tile(oc, t, single)) continue;
    const int v = ow_tile_vectors(oc, t.registers);
    const double tiles = static_cast<double>(ceil_div(s.oc, oc));
    const bool wide = scheme != WinogradScheme::kPanels;
    if (wide != winograd_wide(s.ic, side, v, t)) continue;
    const int64_t panel = whole_panel(p, t, oc, winograd_panel_oc(s.ic, side, wide, t), single) * oc;
    const int64_t most = winograd_most_vectors(scheme, s, panel, side, v, t);
    if (most == 0) continue;
    // blocks of even sizes, enough for all threads
    const int64_t images = std::max<int64_t>(s.groups * s.batch, 1);
    const int64_t of_image = std::max<int64_t>(ceil_div(tiles_of_image, L), 1);
    const int64_t blocks =
        std::max(ceil_div(of_image, most), std::min(ceil_div(t.threads, images), of_image));
    const double vectors =
        static_cast<double>(s.batch * blocks) * covered_vectors(ceil_div(of_image, blocks), v);
    const double streamed = wide ? (ic + stored) * winograd_streamed(t) : 0;
    const bool stay = weights_stay(positions_of_tile * s.ic * round_up(s.oc, oc), t);
    const double weights = wide   ? kWinogradWeights
                           : stay ? kWinogradWeights * std::min<double>(t.threads, blocks)
                                  : kWinogradFarWeights;
    // written once, and read beyond the L2 cache by every block, at half the speed of one thread alone
    const double traffic =
        wide ? (1 + 2 * static_cast<double>(s.batch * blocks)) * t.element_bytes / kBytesPerCycle : 0;
    const double of_position = vectors * (tiles / v * ic * k_cycles(oc * v, oc, v, kHiddenPixels) + streamed +
                                          stored * kWinogradOutput) +
                               ic * stored * (weights + traffic);
    offers.add({kernel, oc, v,
                multiplied * of_position + positions * vectors * ic * kWinogradInput +
                    vectors * stored * pixels * store,
                single, scheme});
  }
}

// The same where an item transforms the weights that it uses: see WinogradPasses.
void offer_winograd_passes(const ConvProblem& p, const Target& t, ConvKernel kernel, bool single,
                           Offers& offers) {
  const ConvShape s = winograd_shape(p, single);
  const int side = winograd_side(kernel);
  const int64_t of_image = ceil_div(ceil_div(s.lr_h, side) * ceil_div(s.lr_w, side), t.lanes);
  const double positions = winograd_positions(side), pixels = side * side,
               multiplied = multiplied_positions(p, side, single), batch = static_cast<double>(s.batch);
  const double stored = static_cast<double>(s.oc), ic = static_cast<double>(s.ic), store = planar_store(p, t);
  for (int oc : TileOc::values) {
    if (!fits_winograd_tile(oc, t, single)) continue;
    const int v = ow_tile_vectors(oc, t.registers);
    const int64_t panel = whole_panel(p, t, oc, winograd_panel_oc(s.ic, side, true, t), single) * oc;
    const WinogradPasses by = winograd_passes(s, side, panel, t);
    if (by.passes == 0) continue;
    const double tiles = static_cast<double>(ceil_div(s.oc, oc)), passes = static_cast<double>(by.passes);
    // a later K block adds to accumulators, so that no tile may compute any of them twice
    const auto rest = static_cast<int>(of_image % v);
    const bool twice = rest > 0 && panel % ow_rest_oc(rest, t.registers) != 0;
    const double vectors = batch * (by.k_channels < s.ic && twice ? static_cast<double>(round_up(of_image, v))
                                                                  : covered_vectors(of_image, v));
    const double k_blocks = std::ceil(ic / static_cast<double>(by.k_channels));
    const int64_t items = std::max<int64_t>(s.groups * s.batch, 1) * by.passes;
    const double waiting = static_cast<double>(round_up(items, t.threads)) / static_cast<double>(items);
    const double of_position = vectors * (tiles / v * ic * k_cycles(oc * v, oc, v, kHiddenPixels) +
                                          stored * (kWinogradOutput + kAccumulate * k_blocks)) +
                               batch * ic * stored * kWinogradFreshWeights;
    offers.add({kernel, oc, v,
                waiting * (multiplied * of_position + positions * vectors * passes * ic * kWinogradInput +
                           vectors * stored * pixels * store),
                single, WinogradScheme::kPasses});
  }
}

// Two taps at least, and steps of one: then a pair of outputs shares pixels.
bool fits_winograd_row(const ConvProblem& p, const Target& t) {
  const ConvShape& s = p.shape;
  return s.ic > 0 && !p.no_winograd && s.kernel_w > 1 && s.stride_w == 1 && t.element_bytes == 4;
}

void offer_winograd_row(const ConvProblem& p, const Target& t, Offers& offers) {
  const ConvShape& s = p.shape;
  const double ic = static_cast<double>(s.ic), stored = static_cast<double>(s.oc), store = planar_store(p, t);
  const RowTaps taps = row_taps(s.kernel_w);
  const int64_t across = ceil_div(row_pairs(s.lr_w, s.dilation_w), t.lanes);
  const double k = ic * static_cast<double>(s.kernel_h * taps.products());
  const double blocks = std::ceil(k / kRowPositions / static_cast<double>(kMaxChain));
  // rows and columns of the halo, beside blocks of a usual size
  constexpr double kUsualRows = 4, kUsualPairs = 48;
  const double halo = (1 + static_cast<double>((s.kernel_w - 1) * s.dilation_w) / (2 * kUsualPairs)) *
                      (1 + static_cast<double>((s.kernel_h - 1) * s.dilation_h) /
                               std::min(kUsualRows, static_cast<double>(std::max<int64_t>(s.lr_h, 1))));
  const double interleave = s.dilation_w == 1 ? 0 : kWinogradRowOutput;
  for (int oc : TileOc::values) {
    const int v = ow_tile_vectors(oc, t.registers);
    const double tiles = static_cast<double>(ceil_div(s.oc, oc));
    const double vectors = static_cast<double>(s.batch * round_up(s.lr_h * across, v));
    // Every block reads all weights, from beyond the cache if they do not stay there. One of less than a register tile would
    // not do.
    const int64_t of_block = winograd_row_vectors(round_up(s.oc, oc), t);
    if (of_block < std::min<int64_t>(v, s.lr_h * across)) continue;
    const bool stay = weights_stay(s.ic * s.kernel_h * taps.products() * round_up(s.oc, oc), t);
    const double traffic = stay ? 0
                                : std::ceil(vectors / static_cast<double>(of_block)) * k * stored *
                                      t.element_bytes / kBytesPerCycle;
    const double cycles =
        vectors *
            (tiles / v * k * k_cycles(oc * v, oc, v, kHiddenPixels) +
             stored * (kRowPositions * kAccumulate * blocks + kWinogradRowOutput + interleave + 2 * store) +
             ic * halo * kWinogradRowInput) +
        k * stored * kWinogradRowWeights + traffic;
    offers.add({ConvKernel::kWinogradRow, oc, v, cycles, false});
  }
}

// ---- matrix tiles --------------------------------------------------------------------------------------------------

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

// Few tiles and their weights, in passes.
void set_passes(const ConvProblem& p, const Target& t, ConvPlan& plan) {
  const int side = winograd_side(plan.kernel);
  plan.interleaved_tiles = plan.single_phase ? static_cast<int>(p.phase_interleave) : 1;
  plan.panel_tiles =
      whole_panel(p, t, plan.tile_oc, winograd_panel_oc(p.shape.ic, side, true, t), plan.single_phase);
  const int64_t panel_oc = int64_t{plan.panel_tiles} * plan.tile_oc;
  const WinogradPasses by = winograd_passes(winograd_shape(p, plan.single_phase), side, panel_oc, t);
  plan.panels = ceil_div(p.shape.oc, panel_oc);
  plan.scheme = WinogradScheme::kPasses;
  plan.pass_panels = by.pass_panels;
  plan.k_channels = by.k_channels;
  plan.panel_elements = winograd_positions(side) * (by.k_channels * panel_oc + t.lanes);
}

void set_panels(const ConvProblem& p, const Target& t, ConvPlan& plan) {
  const ConvShape& s = p.shape;
  const int64_t tiles = ceil_div(s.oc, plan.tile_oc);
  const int side = winograd_side(plan.kernel);
  const bool winograd = side > 0, row = plan.kernel == ConvKernel::kWinogradRow;
  const bool wide = plan.scheme != WinogradScheme::kPanels;
  const int64_t taps = winograd ? winograd_positions(side)
                       : row    ? s.kernel_h * row_taps(s.kernel_w).products()
                                : s.taps();
  const int64_t tile_bytes = s.ic * taps * plan.tile_oc * t.element_bytes;
  plan.weights_resident = weights_stay(s.ic * taps * tiles * plan.tile_oc, t);
  plan.interleaved_tiles = plan.single_phase ? static_cast<int>(p.phase_interleave) : 1;
  if (plan.interleaved_tiles > 1 && !winograd)
    plan.panel_tiles = plan.interleaved_tiles;
  else if (plan.kernel == ConvKernel::kOcVectorised)
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
  for (ConvKernel kernel : {ConvKernel::kWinograd, ConvKernel::kWinograd4}) {
    if (kernel == ConvKernel::kWinograd4 && !p.inexact) continue;
    for (bool single : {false, true}) {
      if (!fits_winograd(p, t, single)) continue;
      for (WinogradScheme scheme : {WinogradScheme::kPanels, WinogradScheme::kPositions})
        offer_winograd(p, t, kernel, scheme, single, offers);
      offer_winograd_passes(p, t, kernel, single, offers);
    }
  }
  if (fits_winograd_row(p, t)) offer_winograd_row(p, t, offers);
  offer_matrix(p, t, offers);
  const Choice& choice = offers.best;

  ConvPlan plan{};
  plan.shape = p.shape;
  plan.kernel = choice.kernel;
  plan.tile_oc = choice.tile_oc;
  plan.tile_pixels = choice.tile_pixels;
  plan.single_phase = choice.single_phase;
  plan.scheme = choice.scheme;
  for (int kernel = 0; kernel < kConvKernels; ++kernel) plan.cycles[kernel] = offers.cycles[kernel];
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
    choose_winograd_blocks(winograd_shape(p, plan.single_phase), t, plan);
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
