// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan.h"

#include <algorithm>

namespace fused_subpixel {
namespace {

// A block's strip, with its output where that comes soon after, shares the L2 cache with the filter and, where
// threads come in pairs, with the other thread. (Fetching the next strip ahead of time, by prefetch instructions
// among the tiles, made everything slower.) While the filter does not stay packed, larger blocks pack it less often.
constexpr int64_t kStripShareOfL2 = 3, kStripShareOfL2Repacking = 2, kFilterShareOfL2 = 8;
// Where neighbouring blocks share nothing, and a block is mostly read where it lies: what the next one reads is fetched
// meanwhile.
constexpr int64_t kPixelShareOfL2 = 8;
// Channel lanes read all channels of a few pixels. Where channels are neighbours, these fill few cache lines; packing planes
// so, value by value, pays where each value is multiplied by that many vectors of rows.
constexpr int64_t kTransposedProducts = 64;
// Memory wants long rows: narrower blocks would pack fewer halo rows and still be slower.
constexpr int64_t kNarrowEnough = 256;
// Rows of transformed sums that are kept at a time, and what their filters may take at most.
constexpr int64_t kWinogradPanelRows = 32, kWinogradPanelShareOfL2 = 2;
// Multiply-adds below which one thread is faster than waking the others (about 20 us of work).
constexpr double kParallelMinimum = 1e6;

bool interleaves_in_registers(int64_t run) {
  for (int64_t m : {1, 2, 3, 4, 6, 8, 9, 12, 16})
    if (run == m) return true;
  return false;
}

// Cycles of one (channel, tap) step of a register tile: two multiply-adds and two loads per cycle, unaligned vectors
// count twice, and fewer than eight sums wait for one another. Loads that hide cost a little all the same, pixel
// vectors most, for each comes from the L2 cache. (Weights measured on AVX-512, tiles of equal sums against each other.)
constexpr double kHiddenBroadcast = 0.05, kHiddenFilter = 0.1, kHiddenPixels = 0.3;
// Of a convolution, whose taps in a row read the same cache lines of pixels: the first of them. (Measured on AVX2, pixel
// against channel lanes: kernels one to three taps wide.)
constexpr double kHiddenFirstTap = 1.2;
double step_cycles(int64_t sums, int64_t broadcasts, int64_t vectors, double hidden_vector) {
  const int64_t loads = broadcasts + 2 * vectors;
  return static_cast<double>(std::max<int64_t>({sums, loads, 8})) / 2 +
         kHiddenBroadcast * static_cast<double>(broadcasts) + hidden_vector * static_cast<double>(vectors);
}

double multiply_adds(const CpuProblem& p) {
  return static_cast<double>(p.batch) * p.groups * p.channels * p.rows * p.lr_h * p.lr_w * p.kernel_h *
         p.kernel_w;
}

// Measured on AVX-512: cycles to finish and store one vector of sums.
constexpr double kWinogradInput = 110, kWinogradOutput = 60;  // one vector of tiles, transformed
constexpr double kWinogradFilter = 8;                         // one 3x3 filter, packed and transformed
constexpr double kWinogradScalarFilter = 30;  // the same where the rows of a panel are no whole vectors
constexpr double kStoreRun = 3, kStoreDense = 3, kStoreTransposed = 14, kStoreScalarPerLane = 2;

// As many as leave the L2 cache its other share.
int64_t winograd_panel_rows(const CpuProblem& p, const CpuTarget& t) {
  return std::min(kWinogradPanelRows,
                  t.l2_bytes / kWinogradPanelShareOfL2 / (16 * p.channels * t.element_bytes));
}
// Vectors of tiles that stay in the cache, transformed, with a panel of so many rows and its sums.
int64_t winograd_block_vectors(const CpuProblem& p, const CpuTarget& t, int64_t rows) {
  const int64_t per_vector = 16 * (p.channels + rows) * t.lanes * t.element_bytes;
  return std::max<int64_t>(
      (t.l2_bytes - t.l2_bytes / 8 - 16 * p.channels * rows * t.element_bytes) / per_vector, 1);
}

// Tiles that make a panel: whole runs, so that they interleave in registers; for Winograd, whose filter is transformed
// with rows in the lanes, whole vectors too where there are that many.
int whole_panel(const CpuProblem& p, const CpuTarget& t, bool winograd, int rows) {
  const int64_t tiles = ceil_div(p.rows, rows);
  int panel = 1;
  if (interleaves_in_registers(p.run))
    while (panel < tiles && panel * rows % p.run != 0) ++panel;
  if (winograd)
    for (int more = panel; more <= tiles && more * rows <= winograd_panel_rows(p, t); more += panel)
      if (more * rows % t.lanes == 0) return more;
  return panel;
}

struct Choice {
  CpuKernel kernel;
  int tile_rows, tile_pixels;
  double cycles;
  bool phased = false;
};

// Whether tiles of so many rows can hold one phase each, and save anything so.
bool may_hold_one_phase(const CpuProblem& p, int64_t rows) {
  const bool saves = p.late_h + p.late_w > 0 || p.phase_taps < static_cast<double>(p.kernel_h * p.kernel_w);
  return saves && p.lr_h > p.late_h && p.lr_w > p.late_w && p.phase_rows > 0 && p.phase_rows % rows == 0 &&
         p.phase_turns <= kMostTurnVectors;
}

// The pixels that are left to a kernel whose tiles do.
CpuProblem without_late_pixels(CpuProblem p) {
  p.lr_h -= p.late_h, p.lr_w -= p.late_w;
  p.kernel_h += p.late_h, p.kernel_w += p.late_w;  // of the strip
  return p;
}

Choice choose_conv_tile(const CpuProblem& p, const CpuTarget& t) {
  Choice best{CpuKernel::kPixelLanes, 1, 1, -1};
  const auto offer = [&](Choice c) {
    if (best.cycles < 0 || c.cycles < best.cycles) best = c;
  };
  const double channels = static_cast<double>(p.channels);
  // products per value, and low-resolution rows and columns, of tiles that hold one phase each or do not
  const auto products = [&](bool phased) {
    return channels * (phased ? p.phase_taps : static_cast<double>(p.kernel_h * p.kernel_w));
  };
  const auto image_rows = [&](bool phased) {
    return static_cast<double>(p.batch * (p.lr_h - (phased ? p.late_h : 0)));
  };
  const auto columns = [&](bool phased) { return p.lr_w - (phased ? p.late_w : 0); };
  const double store = interleaves_in_registers(p.run) ? kStoreRun
                       : p.rows_dense                  ? kStoreTransposed
                                                       : kStoreScalarPerLane * t.lanes;
  const double hidden_pixels = kHiddenFirstTap / static_cast<double>(p.kernel_w);
  for (int rows : kTileRows) {
    const int v = pixel_vectors(rows, t.registers);
    const double tiles = static_cast<double>(ceil_div(p.rows, rows));
    for (bool phased : {false, true}) {
      if (phased && !may_hold_one_phase(p, rows)) continue;
      const double vectors = image_rows(phased) * static_cast<double>(ceil_div(columns(phased), t.lanes));
      offer({CpuKernel::kPixelLanes, rows, v,
             tiles * vectors / v * products(phased) * step_cycles(rows * v, rows, v, hidden_pixels) +
                 static_cast<double>(p.rows) * vectors * store,
             phased});
    }
  }
  for (int nv = 1; nv <= 4; ++nv) {
    const int most = channel_pixels(nv, t.registers);
    const bool phased = may_hold_one_phase(p, nv * t.lanes) && p.phase_turns * nv <= kMostTurnVectors;
    const int64_t splits = ceil_div(columns(phased), most), pixels = ceil_div(columns(phased), splits);
    const double tiles = static_cast<double>(ceil_div(p.rows, nv * t.lanes));
    // of NCHW, tiles whose pixels fit a vector together are stored together
    const int64_t together = std::max<int64_t>(t.lanes / pixels, 1);
    const double stored = p.rows_dense
                              ? kStoreDense * static_cast<double>(pixels)
                              : kStoreTransposed * static_cast<double>(round_up(together * pixels, t.lanes)) /
                                    static_cast<double>(together);
    offer({CpuKernel::kChannelLanes, nv * t.lanes, static_cast<int>(pixels),
           tiles * image_rows(phased) * static_cast<double>(splits) *
               (products(phased) * step_cycles(pixels * nv, pixels, nv, kHiddenFilter) + nv * stored),
           phased});
  }
  // A filter that is transformed for every block must be so in whole vectors of rows, two at least.
  const bool fits_winograd = p.channels > 0 && !p.direct &&
                             winograd_panel_rows(p, t) >= std::min<int64_t>(p.rows, 2 * t.lanes) &&
                             p.kernel_h == 3 && p.kernel_w == 3 && p.stride_h == 1 && p.stride_w == 1 &&
                             p.dilation_h == 1 && p.dilation_w == 1 && t.element_bytes == 4;
  if (fits_winograd) {
    const int64_t L = t.lanes, pairs = ceil_div(p.lr_h, 2), across = ceil_div(p.lr_w, 2);
    const double stored = static_cast<double>(p.rows);
    for (int rows : kTileRows) {
      const int v = pixel_vectors(rows, t.registers);
      const double tiles = static_cast<double>(ceil_div(p.rows, rows));
      const int64_t panel = whole_panel(p, t, true, rows) * rows;
      // blocks that hold little more than a tile's vectors are one pair of rows high
      const bool low = winograd_block_vectors(p, t, panel) < 2 * v;
      const double vectors = static_cast<double>(p.batch * (low ? pairs * round_up(ceil_div(across, L), v)
                                                                : round_up(ceil_div(pairs * across, L), v)));
      const double filter = panel % t.lanes == 0 ? kWinogradFilter : kWinogradScalarFilter;
      offer({CpuKernel::kWinograd, rows, v,
             vectors * (tiles / v * 16 * channels * step_cycles(rows * v, rows, v, kHiddenPixels) +
                        channels * kWinogradInput + stored * (kWinogradOutput + 4 * store)) +
                 channels * stored * filter});
    }
  }
  return best;
}

// Splits `size` into at least `parts` equal pieces, a multiple of `quantum` each.
int64_t piece(int64_t size, int64_t parts, int64_t quantum) {
  return round_up(ceil_div(size, parts), quantum);
}

void set_blocks(const CpuProblem& p, int64_t n, int64_t h, int64_t w, CpuPlan& plan) {
  plan.block_n = n, plan.block_h = h, plan.block_w = w;
  plan.blocks_n = ceil_div(p.batch, n), plan.blocks_h = ceil_div(p.lr_h, h),
  plan.blocks_w = ceil_div(p.lr_w, w);
  plan.items = p.groups * plan.blocks_n * plan.blocks_h * plan.blocks_w;
}

void choose_blocks(const CpuProblem& p, const CpuTarget& t, int64_t extra_elements_per_pixel, CpuPlan& plan) {
  const bool shares_nothing = plan.channels_inner && p.kernel_h == 1 && p.kernel_w == 1;
  const int64_t share = shares_nothing         ? kPixelShareOfL2
                        : plan.filter_resident ? kStripShareOfL2
                                               : kStripShareOfL2Repacking;
  const int64_t budget = std::max<int64_t>(t.l2_bytes / share / t.element_bytes, 1 << 14);  // in elements
  const int64_t quantum = plan.kernel == CpuKernel::kPixelLanes ? t.lanes : plan.tile_pixels;
  const int64_t H = std::max<int64_t>(p.lr_h, 1), W = std::max<int64_t>(p.lr_w, 1),
                N = std::max<int64_t>(p.batch, 1);
  const auto strip_elements = [&](int64_t h, int64_t w) {
    return strip_shape(p, h, w, t.lanes, plan.channels_inner).image_step +
           h * round_up(w, t.lanes) * extra_elements_per_pixel;
  };
  // Of all widths, each with the tallest block that fits, the one with the least packing per pixel.
  int64_t w = W, h = 1;
  double best = -1;
  for (int64_t splits = 1;; splits += std::max<int64_t>(1, splits / 8)) {
    const int64_t width = std::min(W, piece(W, splits, quantum));
    const int64_t one = strip_elements(1, width), row = (strip_elements(3, width) - one) / 2;
    const int64_t height = std::clamp<int64_t>((budget - one) / std::max<int64_t>(row, 1) + 1, 1, H);
    const double cost =
        static_cast<double>(strip_elements(height, width)) / static_cast<double>(height * width);
    const bool fits = one <= budget;
    if (best < 0 || !fits || cost < best) best = fits ? cost : -1, w = width, h = height;
    if (fits && width <= std::max(quantum, kNarrowEnough)) break;
    if (width <= quantum) break;
  }
  int64_t n = 1;
  if (h == H && w == W) n = std::clamp<int64_t>(budget / strip_elements(h, w), 1, N);

  plan.parallel = t.threads > 1 && multiply_adds(p) >= kParallelMinimum;
  if (plan.parallel) {
    // Even shares: split images first, then rows, for the number of items that keeps the threads busiest.
    n = std::min(n, ceil_div(N, t.threads));
    n = ceil_div(N,
                 round_up(ceil_div(N, n), p.groups % t.threads == 0 || ceil_div(N, n) == N ? 1 : t.threads));
    const int64_t others = p.groups * ceil_div(N, n) * ceil_div(W, w);
    int64_t parts = ceil_div(H, h);
    double best_use = 0;
    const int64_t most = std::min({std::max<int64_t>(2 * parts, t.threads), parts + 4 * t.threads, H});
    for (int64_t more = parts; more <= most; ++more) {
      const int64_t real = ceil_div(H, ceil_div(H, more)), items = others * real;
      const double use = static_cast<double>(items) / static_cast<double>(round_up(items, t.threads));
      if (use > best_use) best_use = use, parts = real;
      if (use == 1) break;
    }
    h = ceil_div(H, parts);
  } else {
    h = ceil_div(H, ceil_div(H, h));
  }
  set_blocks(p, n, h, w, plan);
}

// Winograd transforms a block as a whole, and every panel of the filter passes over it: blocks that stay in the cache
// with one panel, and among these the shape that leaves the fewest vectors of tiles empty and threads idle.
void choose_winograd_blocks(const CpuProblem& p, const CpuTarget& t, CpuPlan& plan) {
  constexpr double kPass = 0.3;  // of a panel's filter through the cache, in vectors of tiles
  const int64_t H = std::max<int64_t>(p.lr_h, 1), W = std::max<int64_t>(p.lr_w, 1);
  const int64_t L = t.lanes, V = plan.tile_pixels, rows = plan.panel_tiles * plan.tile_rows;
  const int64_t most = winograd_block_vectors(p, t, rows);
  plan.parallel = t.threads > 1 && multiply_adds(p) >= kParallelMinimum;
  const int64_t threads = plan.parallel ? t.threads : 1;
  int64_t w = W, h = 2;
  double best = -1;
  for (int64_t splits = 1;; splits += std::max<int64_t>(1, splits / 8)) {
    const int64_t width = std::min(W, piece(W, splits, 2 * L)), across = ceil_div(width, 2);
    const int64_t others = p.groups * p.batch * ceil_div(W, width);
    for (int64_t pairs = 1; 2 * pairs < H + 2; ++pairs) {
      const int64_t vectors = ceil_div(pairs * across, L);
      if (vectors > most && (pairs > 1 || width > 2 * L * V)) break;
      const int64_t rounds = ceil_div(others * ceil_div(H, 2 * pairs), threads);
      const double cost = static_cast<double>(rounds) * (static_cast<double>(round_up(vectors, V)) + kPass);
      if (best < 0 || cost < best) best = cost, w = width, h = 2 * pairs;
    }
    if (width <= 2 * L * V) break;
  }
  set_blocks(p, 1, std::min(h, H), w, plan);
}

}  // namespace

StripShape winograd_strip(const CpuProblem& p, int64_t block_h, int64_t block_w, int lanes) {
  return strip_shape(p, round_up(block_h, 2), round_up(block_w, 2 * lanes), lanes, false);
}

StripShape strip_shape(const CpuProblem& p, int64_t block_h, int64_t block_w, int lanes,
                       bool channels_inner) {
  StripShape s;
  s.rows = (block_h - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
  // of a stride past the kernel, only the phases that the kernel meets
  s.phases = std::min(p.stride_w, (p.kernel_w - 1) * p.dilation_w + 1);
  const int64_t reach = (p.kernel_w - 1) * p.dilation_w / p.stride_w;
  // an odd number of vectors between channels, or columns: neighbours fall into different cache sets
  const auto odd_vectors = [lanes](int64_t n) {
    return round_up(n, lanes) + (ceil_div(n, lanes) % 2 ? 0 : lanes);
  };
  if (channels_inner) {
    s.phase_columns = block_w + reach;
    s.channel_step = 1, s.column_step = odd_vectors(p.channels);
    s.row_step = s.phases * s.phase_columns * s.column_step;
    s.image_step = s.rows * s.row_step;
  } else {
    s.phase_columns = round_up(block_w, lanes) + reach;
    s.column_step = 1, s.row_step = s.phases * s.phase_columns;
    s.channel_step = odd_vectors(s.rows * s.row_step);
    s.image_step = p.channels * s.channel_step;
  }
  return s;
}

CpuPlan plan_cpu_conv(const CpuProblem& p, const CpuTarget& t) {
  const Choice choice = choose_conv_tile(p, t);
  CpuPlan plan{};
  plan.kernel = choice.kernel, plan.tile_rows = choice.tile_rows, plan.tile_pixels = choice.tile_pixels;
  const int64_t tiles = ceil_div(p.rows, plan.tile_rows);
  const bool winograd = plan.kernel == CpuKernel::kWinograd;
  const int64_t taps = winograd ? 16 : p.kernel_h * p.kernel_w;
  const int64_t tile_bytes = p.channels * taps * plan.tile_rows * t.element_bytes;
  plan.filter_resident = tiles * tile_bytes <= t.l2_bytes / kFilterShareOfL2;
  plan.phased = choice.phased;
  plan.turns = plan.phased ? static_cast<int>(p.phase_turns) : 1;
  plan.panel_tiles = plan.turns > 1                            ? plan.turns
                     : plan.kernel == CpuKernel::kChannelLanes ? 1
                                                               : whole_panel(p, t, winograd, plan.tile_rows);
  if (winograd) {
    // the transformed input of a block passes once per panel: panels as large as the filter's share of the cache
    const int64_t whole = plan.panel_tiles;  // tiles that keep runs together
    const int64_t most =
        std::min(winograd_panel_rows(p, t) / plan.tile_rows, t.l2_bytes / kFilterShareOfL2 / tile_bytes);
    const int64_t panels = ceil_div(tiles, std::max(whole, most / whole * whole));
    plan.panel_tiles = static_cast<int>(round_up(ceil_div(tiles, panels), whole));
  }
  plan.panels = ceil_div(tiles, plan.panel_tiles);
  plan.panel_elements =
      p.channels * taps * plan.tile_rows * plan.panel_tiles + (winograd ? taps * t.lanes : 0);
  const bool planes_pay = p.source_planes && p.rows * taps >= kTransposedProducts * t.lanes;
  plan.channels_inner = plan.kernel == CpuKernel::kChannelLanes && (p.source_dense || planes_pay);
  if (winograd)
    choose_winograd_blocks(p, t, plan);
  else  // where the filter does not stay, the strip is read many times over: it alone counts
    choose_blocks(plan.phased ? without_late_pixels(p) : p, t, plan.filter_resident ? p.rows : 0, plan);
  return plan;
}

CpuPlan plan_cpu_weight_grad(const CpuProblem& p, const CpuTarget& t) {
  CpuPlan plan{};
  plan.kernel = CpuKernel::kPixelLanes;
  const int64_t columns = p.channels * p.kernel_h * p.kernel_w;
  double best = -1;
  for (int rows : kTileRows) {
    const int v = gradient_columns(rows, t.registers);
    // loads: every gradient row is a vector of its own
    const double cycles = static_cast<double>(ceil_div(p.rows, rows) * ceil_div(columns, v)) *
                          step_cycles(rows * v, rows, v, kHiddenPixels);
    if (best < 0 || cycles < best) best = cycles, plan.tile_rows = rows, plan.tile_pixels = v;
  }
  plan.panel_tiles = plan.turns = 1;
  plan.filter_resident = true;
  choose_blocks(p, t, p.rows, plan);
  return plan;
}

}  // namespace fused_subpixel
