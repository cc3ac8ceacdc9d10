// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_blocks.h"

#include <algorithm>

#include "cpu/matrix_tiles.h"
#include "cpu/winograd_row.h"

namespace fused_subpixel::cpu {
namespace {

// A block's packed input tile, with its output if that is written soon after, shares the L2 cache with the weights and,
// if threads come in pairs, with the other thread. If the weights do not stay packed, larger blocks pack them less often.
constexpr int64_t kInputShareOfL2 = 3, kInputShareOfL2Repacking = 2;
// Blocks of a 1x1 convolution share no pixels, and most are read where they are. Small blocks leave room in the cache for
// what is fetched for the next block.
constexpr int64_t kPixelShareOfL2 = 8;
// A K block of kWinogradRow: its products per position, whose pixels stay in the first cache, and its transformed pixels.
constexpr int64_t kRowChain = kMaxChain / 2, kStreamsShareOfL2 = 4;
// Narrower blocks would pack fewer halo rows and still be slower, because memory is fast on long rows.
constexpr int64_t kNarrowEnough = 256;
// Output channels of a panel of Winograd's weights, and what the panel may take at most.
constexpr int64_t kWinogradPanelOc = 32, kWinogradPanelShareOfL2 = 2;
// One position of a wide block takes such a share, and all positions so many times the cache, which is how much passes
// through it (and as much memory as thread_scratch keeps).
constexpr int64_t kWidePositionShareOfL2 = 3, kWideTimesL2 = 4;
// Vectors of tiles of an image whose weights are transformed where they are used, at most.
constexpr int64_t kPassVectors = 8;

// Splits `size` into at least `parts` equal pieces, a multiple of `quantum` each.
int64_t piece(int64_t size, int64_t parts, int64_t quantum) {
  return round_up(ceil_div(size, parts), quantum);
}

// Splits `size` into pieces of at most `most`, a multiple of `quantum` each, and into the number of them that keeps threads
// busiest, if `others` items share each piece.
int64_t even_piece(int64_t size, int64_t most, int64_t quantum, int64_t others, int64_t threads) {
  const int64_t fewest = ceil_div(size, most);
  const int64_t limit = std::min({std::max<int64_t>(2 * fewest, threads), fewest + 4 * threads, size});
  int64_t best = most;
  double best_use = 0;
  for (int64_t parts = fewest; parts <= limit; ++parts) {
    const int64_t even = std::min(size, piece(size, parts, quantum)), items = others * ceil_div(size, even);
    const double use = static_cast<double>(items) / static_cast<double>(round_up(items, threads));
    if (use > best_use) {
      best_use = use;
      best = even;
    }
    if (use == 1) break;
  }
  return best;
}

void set_blocks(const ConvShape& s, int64_t n, int64_t h, int64_t w, ConvPlan& plan) {
  plan.block_n = n;
  plan.block_h = h;
  plan.block_w = w;
  plan.blocks_n = ceil_div(s.batch, n);
  plan.blocks_h = ceil_div(s.lr_h, h);
  plan.blocks_w = ceil_div(s.lr_w, w);
  plan.items = s.groups * plan.blocks_n * plan.blocks_h * plan.blocks_w;
}

// Units of tiles, transformed and with their accumulators, that the cache holds besides a panel of weights.
int64_t cached_units(int64_t ic, int64_t panel_oc, const WinogradTiles& tiles, const Target& t) {
  const int64_t of_position = t.element_bytes * winograd_positions(tiles.side);
  const int64_t per_unit = of_position * (ic + panel_oc) * tiles.unit;
  return std::max<int64_t>((t.l2_bytes - t.l2_bytes / 8 - of_position * ic * panel_oc) / per_unit, 1);
}

// Units of a block, at most.
int64_t block_units(int64_t ic, int64_t panel_oc, const WinogradTiles& tiles, const Target& t) {
  const int64_t cached = cached_units(ic, panel_oc, tiles, t);
  // Measured on AVX-512: blocks of half to three quarters of the cache take up to 10 % less time than those that fill it.
  return std::max(cached * 3 / 4, std::min(cached, tiles.of_register_tile));
}
int64_t wide_block_units(int64_t ic, int64_t oc, const WinogradTiles& tiles, const Target& t) {
  const int64_t channel = tiles.unit * t.element_bytes;
  return std::max<int64_t>(
      std::min(t.l2_bytes / kWidePositionShareOfL2 / (ic * channel),
               kWideTimesL2 * t.l2_bytes / (winograd_positions(tiles.side) * (ic + oc) * channel)),
      1);
}

// What a block of kWinogradRow takes at most.
int64_t row_cache(const Target& t) { return t.l2_bytes / 8 * 5; }

}  // namespace

double multiply_adds(const ConvShape& s) {
  return static_cast<double>(s.batch) * s.groups * s.ic * s.oc * s.lr_h * s.lr_w * s.kernel_h * s.kernel_w;
}

int64_t winograd_panel_oc(int64_t ic, int side, bool wide, const Target& t) {
  if (wide) return kWinogradPanelOc;
  return std::min(kWinogradPanelOc,
                  t.l2_bytes / kWinogradPanelShareOfL2 / (winograd_positions(side) * ic * t.element_bytes));
}

bool winograd_wide(int64_t ic, const WinogradTiles& tiles, const Target& t) {
  const int64_t panel_oc = winograd_panel_oc(ic, tiles.side, false, t);
  return panel_oc < kWinogradPanelOc || cached_units(ic, panel_oc, tiles, t) < 2 * tiles.of_register_tile;
}

int64_t winograd_most_units(WinogradScheme scheme, const ConvShape& s, int64_t panel_oc,
                            const WinogradTiles& tiles, const Target& t) {
  return scheme == WinogradScheme::kPositions ? wide_block_units(s.ic, s.oc, tiles, t)
                                              : block_units(s.ic, panel_oc, tiles, t);
}

WinogradPasses winograd_passes(const ConvShape& s, int side, int64_t panel_oc, const Target& t) {
  const int64_t vectors = ceil_div(ceil_div(s.lr_h, side) * ceil_div(s.lr_w, side), t.lanes);
  if (vectors < 1 || vectors > kPassVectors) return {0, 0, 0};
  // a K block of weights and pixels takes half of such a share of the cache, and the accumulators the other half
  const int64_t vector = winograd_positions(side) * t.lanes * t.element_bytes;
  const int64_t half = t.l2_bytes * 3 / 8;
  const int64_t most_channels = std::max<int64_t>(half / (vector * vectors + vector / t.lanes * panel_oc), 1);
  const int64_t channels = round_up(ceil_div(s.ic, ceil_div(s.ic, most_channels)), t.lanes);
  const int64_t panels = ceil_div(s.oc, panel_oc);
  const int64_t most_panels = std::max<int64_t>(half / (vector * vectors * panel_oc), 1);
  const int64_t images = std::max<int64_t>(s.groups * s.batch, 1);
  const int64_t fewest = std::max(ceil_div(panels, most_panels), ceil_div(t.threads, images));
  const int64_t passes = std::min(panels, round_up(fewest, ceil_div(t.threads, images)));
  const int64_t pass_panels = ceil_div(panels, passes);
  return {ceil_div(panels, pass_panels), pass_panels, std::min(channels, s.ic)};
}

InputTile winograd_input_tile(const ConvShape& s, int64_t block_h, int64_t block_w, int side, int lanes,
                              bool channels_inner) {
  const int64_t across = side * (channels_inner ? 1 : lanes);
  return input_tile(s, round_up(block_h, side), round_up(block_w, across), lanes, channels_inner);
}

InputTile input_tile(const ConvShape& s, int64_t block_h, int64_t block_w, int lanes, bool channels_inner) {
  InputTile tile{};
  tile.rows = (block_h - 1) * s.stride_h + (s.kernel_h - 1) * s.dilation_h + 1;
  // a stride larger than the kernel skips the other phases
  tile.stride_phases = std::min(s.stride_w, (s.kernel_w - 1) * s.dilation_w + 1);
  const int64_t reach = (s.kernel_w - 1) * s.dilation_w / s.stride_w;
  // With an odd number of vectors between channels, or columns, neighbours fall into different cache sets.
  const auto odd_vectors = [lanes](int64_t n) {
    return round_up(n, lanes) + (ceil_div(n, lanes) % 2 ? 0 : lanes);
  };
  if (channels_inner) {
    tile.phase_columns = block_w + reach;
    tile.channel_step = 1;
    tile.column_step = odd_vectors(s.ic);
    tile.row_step = tile.stride_phases * tile.phase_columns * tile.column_step;
    tile.image_step = tile.rows * tile.row_step;
  } else {
    tile.phase_columns = round_up(block_w, lanes) + reach;  // whole vectors are read
    tile.column_step = 1;
    tile.row_step = tile.stride_phases * tile.phase_columns;
    tile.channel_step = odd_vectors(tile.rows * tile.row_step);
    tile.image_step = s.ic * tile.channel_step;
  }
  return tile;
}

void choose_blocks(const ConvShape& s, const Target& t, int64_t extra_elements_per_pixel, ConvPlan& plan) {
  const bool shares_nothing = plan.channels_inner && s.kernel_h == 1 && s.kernel_w == 1;
  const int64_t share = shares_nothing          ? kPixelShareOfL2
                        : plan.weights_resident ? kInputShareOfL2
                                                : kInputShareOfL2Repacking;
  const int64_t budget = std::max<int64_t>(t.l2_bytes / share / t.element_bytes, 1 << 14);  // in elements
  const int64_t quantum = plan.kernel == ConvKernel::kOwVectorised ? t.lanes : plan.tile_pixels;
  const int64_t H = std::max<int64_t>(s.lr_h, 1), W = std::max<int64_t>(s.lr_w, 1),
                N = std::max<int64_t>(s.batch, 1);
  const auto elements = [&](int64_t h, int64_t w) {
    return input_tile(s, h, w, t.lanes, plan.channels_inner).image_step +
           h * round_up(w, t.lanes) * extra_elements_per_pixel;
  };
  // Every width gets the tallest block that fits. The best width packs least per pixel.
  int64_t w = W, h = 1;
  double best = -1;
  for (int64_t splits = 1;; splits += std::max<int64_t>(1, splits / 8)) {
    const int64_t width = std::min(W, piece(W, splits, quantum));
    const int64_t one = elements(1, width), row = (elements(3, width) - one) / 2;
    const int64_t height = std::clamp<int64_t>((budget - one) / std::max<int64_t>(row, 1) + 1, 1, H);
    const double cost = static_cast<double>(elements(height, width)) / static_cast<double>(height * width);
    const bool fits = one <= budget;
    if (best < 0 || !fits || cost < best) {
      best = fits ? cost : -1;
      w = width;
      h = height;
    }
    if (fits && width <= std::max(quantum, kNarrowEnough)) break;
    if (width <= quantum) break;
  }
  int64_t n = 1;
  if (h == H && w == W) n = std::clamp<int64_t>(budget / elements(h, w), 1, N);

  plan.parallel = t.threads > 1 && multiply_adds(s) >= kParallelMinimum;
  if (plan.parallel) {
    // Even shares: images are split first, then rows, into the number of items that keeps the threads busiest.
    n = std::min(n, ceil_div(N, t.threads));
    n = ceil_div(N,
                 round_up(ceil_div(N, n), s.groups % t.threads == 0 || ceil_div(N, n) == N ? 1 : t.threads));
    const int64_t images = s.groups * ceil_div(N, n);
    h = even_piece(H, h, 1, images * ceil_div(W, w), t.threads);
    if (H == 1) w = even_piece(W, w, quantum, images, t.threads);
  } else {
    h = ceil_div(H, ceil_div(H, h));
  }
  set_blocks(s, n, h, w, plan);
  plan.input_tile = input_tile(s, h, w, t.lanes, plan.channels_inner);
}

// The same with bfloat16 in the packed input tile, and the rows that are stored together.
void choose_matrix_blocks(const ConvShape& s, const Target& t, int64_t extra_elements_per_pixel,
                          ConvPlan& plan) {
  constexpr int64_t kSumsBytes = 32 << 10;  // of a chunk
  Target pairs = t;
  pairs.lanes = kTileChannels;
  pairs.element_bytes = 2;
  choose_blocks(s, pairs, extra_elements_per_pixel, plan);
  // With an odd number of cache lines between many pixels, neighbours fall into different cache sets.
  InputTile& tile = plan.input_tile;
  const int64_t lines = ceil_div(s.ic, kTileChannels);
  tile.column_step = plan.joined_taps ? s.ic : (lines <= 4 ? lines : lines | 1) * kTileChannels;
  tile.row_step = tile.stride_phases * tile.phase_columns * tile.column_step;
  tile.image_step = tile.rows * tile.row_step;
  plan.row_pixels = matrix_row(s, plan.block_w);
  plan.flat = flat_strips(s, plan.block_w);
  const int64_t row_bytes = plan.row_pixels * plan.interleaved_tiles * plan.tile_oc * t.element_bytes;
  plan.chunk_rows = std::clamp<int64_t>(kSumsBytes / row_bytes, 1, plan.block_h);
}

// Winograd's kernel transforms a block as a whole, and every panel of weights passes over it. So blocks stay in the cache
// with one panel. Among these shapes the best leaves the fewest vectors of tiles empty and threads idle. Of planar input it
// also reads the fewest rows, because each row of a channel lies far from the others. Rows that two blocks share are kept.
void choose_winograd_blocks(const ConvShape& s, bool planar_input, const Target& t, ConvPlan& plan) {
  const int64_t H = std::max<int64_t>(s.lr_h, 1), W = std::max<int64_t>(s.lr_w, 1);
  const WinogradTiles tiles = winograd_tiles(plan.kernel, plan.channels_inner, plan.tile_pixels, t);
  const int64_t U = tiles.unit, V = tiles.of_register_tile, M = tiles.side;
  const auto set_tile = [&] {
    plan.input_tile =
        winograd_input_tile(s, plan.block_h, plan.block_w, tiles.side, t.lanes, plan.channels_inner);
  };
  plan.parallel = t.threads > 1 && multiply_adds(s) >= kParallelMinimum;
  if (plan.scheme == WinogradScheme::kPasses) {
    set_blocks(s, 1, H, W, plan);
    plan.items *= ceil_div(plan.panels, plan.pass_panels);
    set_tile();
    return;
  }
  // a panel's weights through the cache, or from beyond it, in vectors of tiles
  const double pass = (plan.scheme == WinogradScheme::kPanels ? 0.3 : 1) * static_cast<double>(t.lanes / U);
  // cycles to begin with a row of a channel, beside its products for a vector of tiles (measured on an Emerald Rapids)
  constexpr double kRow = 100;
  const double products = static_cast<double>(winograd_positions(winograd_side(plan.kernel)) * s.oc) / 2;
  const double row_of_tiles = planar_input ? static_cast<double>(M) * kRow / std::max(products, 1.) : 0;
  const int64_t most = winograd_most_units(plan.scheme, s, plan.panel_tiles * plan.tile_oc, tiles, t);
  const int64_t threads = plan.parallel ? t.threads : 1;
  int64_t w = W, h = M;
  double best = -1;
  for (int64_t splits = 1;; splits += std::max<int64_t>(1, splits / 8)) {
    const int64_t width = std::min(W, piece(W, splits, M * U)), across = ceil_div(width, M);
    const int64_t others = s.groups * s.batch * ceil_div(W, width);
    for (int64_t rows = 1; M * rows < H + M; ++rows) {
      const int64_t units = ceil_div(rows * across, U);
      if (units > most && (rows > 1 || width > M * U * V)) break;
      const int64_t rounds = ceil_div(others * ceil_div(H, M * rows), threads);
      const double cost = static_cast<double>(rounds) *
                          (covered_vectors(units, V) + pass + static_cast<double>(rows) * row_of_tiles);
      if (best < 0 || cost < best) {
        best = cost;
        w = width;
        h = M * rows;
      }
    }
    if (width <= M * U * V) break;
  }
  set_blocks(s, 1, std::min(h, H), w, plan);
  set_tile();
}

int64_t winograd_row_vectors(int64_t oc, int positions, const Target& t) {
  const int64_t left = row_cache(t) - t.l2_bytes / kStreamsShareOfL2;
  return left / (oc * positions * t.lanes * t.element_bytes);
}

WinogradRowBlock winograd_row_block(const ConvShape& s, int64_t height, int64_t width, const ConvPlan& plan,
                                    const Target& t) {
  // With an odd number of vectors between streams and positions, neighbours fall into different cache sets.
  const int64_t L = t.lanes, d = s.dilation_w;
  const auto odd_vectors = [L](int64_t n) { return (ceil_div(n, L) | 1) * L; };
  const RowScheme scheme{s.kernel_w, plan.row_outputs};
  const int64_t rows = (height - 1) * s.stride_h + (s.kernel_h - 1) * s.dilation_h + 1;
  WinogradRowBlock b{};
  b.vectors = ceil_div(scheme.tiles(width, d), L);
  b.stream_step = odd_vectors(scheme.stream_elements(b.vectors, t.lanes, d));
  const int64_t channel = rows * scheme.streams() * b.stream_step;
  const int64_t most = std::min({s.ic, kRowChain / (s.kernel_h * scheme.products(0)),
                                 t.l2_bytes / kStreamsShareOfL2 / t.element_bytes / channel});
  b.channels = ceil_div(s.ic, ceil_div(s.ic, std::max<int64_t>(most, 1)));
  b.streams = b.channels * channel;
  b.acc_step = odd_vectors(round_up(height * b.vectors, plan.tile_pixels) * L);
  b.acc = plan.pass_panels * plan.panel_tiles * plan.tile_oc * scheme.positions() * b.acc_step;
  return b;
}

// Each K block of the weights passes over a block once, so blocks are as large as leave the transformed pixels of a K block
// and all accumulators of a pass in the cache. Among these the best wastes the least time on idle lanes and threads, halo
// columns, accumulators that are added to, pixels that are transformed for several passes, and weights that come from far away.
void choose_winograd_row_blocks(const ConvShape& s, const Target& t, ConvPlan& plan) {
  const RowScheme scheme{s.kernel_w, plan.row_outputs};
  const int64_t H = std::max<int64_t>(s.lr_h, 1), W = std::max<int64_t>(s.lr_w, 1);
  const int64_t L = t.lanes, d = s.dilation_w, N = scheme.outputs;
  const double oc = static_cast<double>(s.oc);
  const double products = oc * static_cast<double>(s.ic * s.kernel_h * scheme.products());
  const double weights = plan.weights_resident ? 0 : products * t.element_bytes / kBytesPerCycle;
  plan.parallel = t.threads > 1 && multiply_adds(s) >= kParallelMinimum;
  const int64_t threads = plan.parallel ? t.threads : 1;
  // whole runs of `dilation` pixels, as many as so many vectors hold, or fewer vectors if there are as many blocks
  const auto width_of = [&](int64_t vectors) {
    const auto whole_runs = [&](int64_t v) { return std::max<int64_t>(v * L / d, 1) * d * N; };
    const int64_t blocks = ceil_div(W, whole_runs(vectors));
    while (vectors > 1 && ceil_div(W, whole_runs(vectors - 1)) == blocks) --vectors;
    return std::min(W, whole_runs(vectors));
  };
  const auto cost_of = [&](const WinogradRowBlock& b, int64_t height, int64_t width, int64_t passes) {
    const int64_t items = s.groups * s.batch * ceil_div(W, width) * ceil_div(H, height) * passes;
    const double vectors = static_cast<double>(round_up(height * b.vectors, plan.tile_pixels));
    const double accumulated = oc * static_cast<double>(scheme.positions() * ceil_div(s.ic, b.channels));
    const double transformed = static_cast<double>(b.streams / b.channels / scheme.streams() / L * s.ic);
    const double of_passes = vectors * (products / 2 + accumulated * kAccumulate) + weights;
    return static_cast<double>(ceil_div(items, threads)) *
           (of_passes / static_cast<double>(passes) + transformed * winograd_row_input(plan.row_outputs));
  };
  // if nothing fits, as little as possible
  int64_t w = width_of(1), h = 1, pass_panels = ceil_div(plan.panels, kMostRowPasses);
  double best = -1;
  const auto try_width = [&](int64_t width, int64_t passes) {
    for (int64_t height = 1; height <= H; ++height) {
      const WinogradRowBlock b = winograd_row_block(s, height, width, plan, t);
      if ((b.streams + b.acc) * t.element_bytes > row_cache(t)) return height > 1;
      const double cost = cost_of(b, height, width, passes);
      if (best >= 0 && cost >= best) continue;
      best = cost;
      w = width;
      h = height;
      pass_panels = plan.pass_panels;
    }
    return true;
  };
  for (int64_t passes = 1; passes <= std::min(plan.panels, kMostRowPasses); ++passes) {
    plan.pass_panels = ceil_div(plan.panels, passes);
    if (ceil_div(plan.panels, plan.pass_panels) < passes) continue;
    for (int64_t vectors = 1;; vectors += std::max<int64_t>(1, vectors / 8))
      if (!try_width(width_of(vectors), passes) || width_of(vectors) == W) break;
  }
  plan.pass_panels = pass_panels;
  set_blocks(s, 1, h, w, plan);
  plan.items *= ceil_div(plan.panels, pass_panels);
  ConvShape with_zero = s;  // the last tap of zero has a pixel
  if (scheme.ends_with_zero()) ++with_zero.kernel_w;
  plan.input_tile = input_tile(with_zero, h, w, t.lanes, false);
}

}  // namespace fused_subpixel::cpu
