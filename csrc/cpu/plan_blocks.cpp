// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_blocks.h"

#include <algorithm>

namespace fused_subpixel::cpu {
namespace {

// A block's packed input tile, with its output if that is written soon after, shares the L2 cache with the weights and,
// if threads come in pairs, with the other thread. If the weights do not stay packed, larger blocks pack them less often.
constexpr int64_t kInputShareOfL2 = 3, kInputShareOfL2Repacking = 2;
// Blocks of a 1x1 convolution share no pixels, and most are read where they are. Small blocks leave room in the cache for
// what is fetched for the next block.
constexpr int64_t kPixelShareOfL2 = 8;
// Narrower blocks would pack fewer halo rows and still be slower, because memory is fast on long rows.
constexpr int64_t kNarrowEnough = 256;
// Output channels whose transformed accumulators are kept at a time, and what their weights may take at most.
constexpr int64_t kWinogradPanelOc = 32, kWinogradPanelShareOfL2 = 2;
// Multiply-adds below which one thread is faster than waking the others (about 20 us of work).
constexpr double kParallelMinimum = 1e6;

// Splits `size` into at least `parts` equal pieces, a multiple of `quantum` each.
int64_t piece(int64_t size, int64_t parts, int64_t quantum) {
  return round_up(ceil_div(size, parts), quantum);
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

}  // namespace

double multiply_adds(const ConvShape& s) {
  return static_cast<double>(s.batch) * s.groups * s.ic * s.oc * s.lr_h * s.lr_w * s.kernel_h * s.kernel_w;
}

int64_t winograd_panel_oc(int64_t ic, const Target& t) {
  return std::min(kWinogradPanelOc, t.l2_bytes / kWinogradPanelShareOfL2 / (16 * ic * t.element_bytes));
}

int64_t winograd_block_vectors(int64_t ic, int64_t panel_oc, const Target& t) {
  const int64_t per_vector = 16 * (ic + panel_oc) * t.lanes * t.element_bytes;
  return std::max<int64_t>((t.l2_bytes - t.l2_bytes / 8 - 16 * ic * panel_oc * t.element_bytes) / per_vector,
                           1);
}

InputTile winograd_input_tile(const ConvShape& s, int64_t block_h, int64_t block_w, int lanes) {
  return input_tile(s, round_up(block_h, 2), round_up(block_w, 2 * lanes), lanes, false);
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
    const int64_t others = s.groups * ceil_div(N, n) * ceil_div(W, w);
    int64_t parts = ceil_div(H, h);
    double best_use = 0;
    const int64_t most = std::min({std::max<int64_t>(2 * parts, t.threads), parts + 4 * t.threads, H});
    for (int64_t more = parts; more <= most; ++more) {
      const int64_t real = ceil_div(H, ceil_div(H, more)), items = others * real;
      const double use = static_cast<double>(items) / static_cast<double>(round_up(items, t.threads));
      if (use > best_use) {
        best_use = use;
        parts = real;
      }
      if (use == 1) break;
    }
    h = ceil_div(H, parts);
  } else {
    h = ceil_div(H, ceil_div(H, h));
  }
  set_blocks(s, n, h, w, plan);
  plan.input_tile = input_tile(s, h, w, t.lanes, plan.channels_inner);
}

// Winograd's kernel transforms a block as a whole, and every panel of weights passes over it. So blocks stay in the cache
// with one panel. Among these shapes the best leaves the fewest vectors of tiles empty and threads idle.
void choose_winograd_blocks(const ConvShape& s, const Target& t, ConvPlan& plan) {
  constexpr double kPass = 0.3;  // a panel's weights through the cache, in vectors of tiles
  const int64_t H = std::max<int64_t>(s.lr_h, 1), W = std::max<int64_t>(s.lr_w, 1);
  const int64_t L = t.lanes, V = plan.tile_pixels;
  const int64_t most = winograd_block_vectors(s.ic, plan.panel_tiles * plan.tile_oc, t);
  plan.parallel = t.threads > 1 && multiply_adds(s) >= kParallelMinimum;
  const int64_t threads = plan.parallel ? t.threads : 1;
  int64_t w = W, h = 2;
  double best = -1;
  for (int64_t splits = 1;; splits += std::max<int64_t>(1, splits / 8)) {
    const int64_t width = std::min(W, piece(W, splits, 2 * L)), across = ceil_div(width, 2);
    const int64_t others = s.groups * s.batch * ceil_div(W, width);
    for (int64_t pairs = 1; 2 * pairs < H + 2; ++pairs) {
      const int64_t vectors = ceil_div(pairs * across, L);
      if (vectors > most && (pairs > 1 || width > 2 * L * V)) break;
      const int64_t rounds = ceil_div(others * ceil_div(H, 2 * pairs), threads);
      const double cost = static_cast<double>(rounds) * (static_cast<double>(round_up(vectors, V)) + kPass);
      if (best < 0 || cost < best) {
        best = cost;
        w = width;
        h = 2 * pairs;
      }
    }
    if (width <= 2 * L * V) break;
  }
  set_blocks(s, 1, std::min(h, H), w, plan);
  plan.input_tile = winograd_input_tile(s, plan.block_h, plan.block_w, t.lanes);
}

}  // namespace fused_subpixel::cpu
