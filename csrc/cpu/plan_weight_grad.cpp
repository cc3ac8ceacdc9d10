// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_weight_grad.h"

#include <algorithm>

#include "cpu/matrix_tiles.h"
#include "cpu/plan_blocks.h"

namespace fused_subpixel::cpu {
namespace {

// Sums of an item, and a block's packed and transformed pixels, may take such shares of the L2 cache.
constexpr int64_t kSumsShareOfL2 = 4, kPixelsShareOfL2 = 2;
// The lanes of a chain stay in the first cache.
constexpr int64_t kLanesBytes = 32 << 10;
// Vectors of channels up to which a pixel is packed without a gap, so that one register tile reads all of it.
constexpr int64_t kVectorsWithoutGap = 4;

// In cycles, measured on AVX-512. A vector of channels of one pixel: packed; of the beginning of a row of pixels, if channels
// are planes. A position of a vector of channels of one tile: transformed, of the input and of the gradient. A vector of sums
// of one chain, added to those before. One weight, finished: from lanes of input channels, which are neighbours in the weight
// if there is one tap or Winograd, and otherwise.
constexpr double kPack = 5, kPackPlanes = 500, kTransformInput = 5, kTransformGradient = 4, kAddSums = 3.5;
constexpr double kFinish = 0.7, kFinishApart = 3;

// The same of matrix tiles, measured on a processor with AMX: 16 channels of one pixel, rearranged, of the input and of the
// gradient.
constexpr double kArrangeInput = 8, kArrangeGradient = 5;
// Pixels of a chain, whose pairs stay in the first cache.
constexpr int64_t kMatrixPixelChain = 16 * kTileChannels;

int64_t vectors_of(int64_t channels, const Target& t) { return ceil_div(channels, t.lanes); }

// Elements from one pixel to the next.
int64_t column_step(int64_t channels, const Target& t) {
  const int64_t vectors = vectors_of(channels, t);
  return vectors <= kVectorsWithoutGap ? channels : (vectors | 1) * t.lanes;
}

// One pixel's products of a segment, and its vectors of sums.
struct Products {
  double cycles, sums;
};
// Calls f(count, size) for the two sizes of even_parts.
template <class F>
void for_each_size(int64_t count, int64_t most, F&& f) {
  const int64_t parts = even_parts(count, most);
  if (parts == 0) return;
  const int64_t larger = count % parts;
  f(parts - larger, count / parts);
  if (larger > 0) f(larger, count / parts + 1);
}
Products products(int64_t lane_channels, int64_t columns, int most_vectors, const Target& t) {
  Products found{0, 0};
  for_each_size(vectors_of(lane_channels, t), most_vectors, [&](int64_t panels, int64_t nv) {
    for_each_size(columns, oc_tile_pixels(static_cast<int>(nv), t.registers), [&](int64_t tiles, int64_t p) {
      found.cycles += static_cast<double>(panels * tiles) * oc_k_cycles(p, nv, t);
    });
    found.sums += static_cast<double>(panels * nv * columns);
  });
  return found;
}

// Channels of one block, of `channels` in `blocks`: whole vectors, if there are several.
int64_t block_channels(int64_t channels, int64_t blocks, const Target& t) {
  return blocks <= 1 ? channels : std::min(channels, round_up(ceil_div(channels, blocks), t.lanes));
}

// The channels of an item: its sums stay in the cache, and little is packed and transformed again for other items.
void choose_channels(const Target& t, WeightGradPlan& plan) {
  const ConvShape& s = plan.shape;
  const int64_t of_pair = plan.winograd ? plan.positions() : s.taps();
  const int64_t most = std::max<int64_t>(t.l2_bytes / kSumsShareOfL2 / t.element_bytes / of_pair, 1);
  const double positions = static_cast<double>(plan.positions());
  const double of_input = plan.winograd ? positions * kTransformInput + 4 * kPack : kPack;
  const double of_gradient = plan.winograd ? positions * kTransformGradient + 4 * kPack : kPack;
  double best = -1;
  const int64_t last = plan.merged_taps ? 1 : std::max<int64_t>(vectors_of(s.ic, t), 1);
  for (int64_t parts = 1; parts <= last;
       parts = parts < last ? std::min(parts + std::max<int64_t>(1, parts / 8), last) : last + 1) {
    const int64_t ic = block_channels(s.ic, parts, t);
    int64_t oc = s.oc;
    if (ic * oc > most)
      oc = std::min(std::max<int64_t>(most / std::max<int64_t>(ic, 1) / t.lanes, 1) * t.lanes, s.oc);
    oc = block_channels(s.oc, ceil_div(s.oc, oc), t);
    if (ic * oc > most && parts < last) continue;
    const double blocks_oc = static_cast<double>(ceil_div(s.oc, oc)),
                 blocks_ic = static_cast<double>(ceil_div(s.ic, std::max<int64_t>(ic, 1)));
    const double cost = blocks_oc * static_cast<double>(s.ic) * of_input +
                        blocks_ic * static_cast<double>(s.oc) * of_gradient;
    if (best >= 0 && cost >= best) continue;
    best = cost;
    plan.block_ic = ic;
    plan.block_oc = oc;
  }
  plan.blocks_ic = std::max<int64_t>(ceil_div(s.ic, std::max<int64_t>(plan.block_ic, 1)), 1);
  plan.blocks_oc = ceil_div(s.oc, plan.block_oc);
}

// Sums of their own for as many threads as there would be idle otherwise.
int64_t choose_slots(int64_t pairs, const Target& t) {
  int64_t best = 1;
  double best_use = 0;
  for (int64_t slots = 1; slots <= t.threads; ++slots) {
    const int64_t items = pairs * slots;
    const double use = static_cast<double>(items) / static_cast<double>(round_up(items, t.threads));
    if (use > best_use + 0.02) {
      best_use = use;
      best = slots;
    }
  }
  return best;
}

// Do tiles of pixels go from one row to the next? See flat_strips in matrix_tiles.h.
bool flat_pixels(const ConvShape& s, int64_t width) {
  return s.stride_h == 1 && s.stride_w == 1 &&
         (s.kernel_w - 1) * s.dilation_w <= round_up(width, kTileChannels) - width;
}

InputTile tile_without_gap(ConvShape s, int64_t channels, int64_t h, int64_t w, const Target& t) {
  s.ic = channels;
  InputTile tile = input_tile(s, h, w, t.lanes, true);
  tile.column_step = std::max<int64_t>(column_step(channels, t), 1);
  tile.row_step = tile.stride_phases * tile.phase_columns * tile.column_step;
  tile.image_step = tile.rows * tile.row_step;
  return tile;
}

struct Blocks {
  InputTile input, gradient;
  int64_t tiles;  // pixels, or Winograd's tiles, of one image
  int64_t elements;
};

// A packed tile of bfloat16 whose rows have so many pixels.
InputTile matrix_tile(const ConvShape& s, int64_t channels, int64_t h, int64_t w, int64_t row_pixels) {
  InputTile tile = input_tile(s, h, w, kTileChannels, true);
  tile.column_step = std::max<int64_t>(round_up(channels, kTileChannels), kTileChannels);
  tile.row_step = std::max(tile.stride_phases * tile.phase_columns, row_pixels) * tile.column_step;
  tile.image_step = tile.rows * tile.row_step;
  return tile;
}
Blocks matrix_blocks(const WeightGradPlan& plan, int64_t h, int64_t w) {
  const ConvShape& s = plan.shape;
  const int64_t row = s.stride_w == 1 ? w + (s.kernel_w - 1) * s.dilation_w : 0;
  const bool flat = flat_pixels(s, w);
  const int64_t pitch = flat ? row : round_up(w, kTileChannels);
  Blocks b{};
  b.tiles = flat ? round_up((h - 1) * pitch + w, kTileChannels) : h * pitch;
  b.input = matrix_tile(s, plan.block_ic, h, w, 0);
  b.gradient = matrix_tile(gradient_shape(s), plan.block_oc, h, w, pitch);
  // zeros as far as tiles of the last row reach
  b.gradient.image_step = std::max(b.tiles, h * pitch) * b.gradient.column_step;
  b.elements = b.input.image_step + b.gradient.image_step;  // bfloat16, twice: packed and rearranged
  return b;
}

Blocks blocks_of(const WeightGradPlan& plan, int64_t h, int64_t w, const Target& t) {
  if (plan.matrix) return matrix_blocks(plan, h, w);
  const int64_t side = plan.winograd ? 2 : 1;
  Blocks b{};
  b.input = tile_without_gap(plan.shape, plan.block_ic, round_up(h, side), round_up(w, side), t);
  b.gradient =
      tile_without_gap(gradient_shape(plan.shape), plan.block_oc, round_up(h, side), round_up(w, side), t);
  b.tiles = ceil_div(h, side) * ceil_div(w, side);
  b.elements = b.input.image_step + b.gradient.image_step;
  if (plan.winograd)
    b.elements += plan.positions() * b.tiles *
                  (winograd_pixel_step(plan.block_ic, t.lanes) + winograd_pixel_step(plan.block_oc, t.lanes));
  return b;
}

double finish_cycles(const WeightGradPlan& plan) {
  const ConvShape& s = plan.shape;
  const bool neighbours = plan.matrix || (plan.input_in_lanes && (plan.winograd || s.taps() == 1));
  return (neighbours ? kFinish : kFinishApart) * static_cast<double>(s.groups * s.oc * s.ic * s.taps());
}

// The register tile: which factor is in the lanes, and how many vectors of it.
Products choose_tile(const Target& t, WeightGradPlan& plan) {
  const ConvShape& s = plan.shape;
  const int64_t of_input = plan.of_input(plan.block_ic), side = plan.winograd ? 2 : 1;
  // pixels of all items together, which each pay their products
  const double pixels =
      static_cast<double>(s.batch * ceil_div(s.lr_h, side) * ceil_div(s.lr_w, side) * plan.pairs());
  Products best{-1, 0};
  double least = -1;
  bool in_lanes = false;
  for (bool input_in_lanes : {false, true}) {
    for (int nv : TileOcVectors::values) {
      const int64_t chain =
          std::clamp<int64_t>(kLanesBytes / (nv * t.lanes * t.element_bytes), 16, kMaxChain);
      const Products found = input_in_lanes ? products(of_input, plan.block_oc, nv, t)
                                            : products(plan.block_oc, of_input, nv, t);
      const double of_pixel = found.cycles + found.sums * kAddSums / static_cast<double>(chain);
      plan.input_in_lanes = input_in_lanes;
      const double cycles = pixels * static_cast<double>(plan.segments()) * of_pixel + finish_cycles(plan);
      if (least >= 0 && cycles >= least) continue;
      least = cycles;
      best = found;
      in_lanes = input_in_lanes;
      plan.tile_vectors = nv;
      plan.tile_columns = oc_tile_pixels(nv, t.registers);
      plan.chain = chain;
    }
  }
  plan.input_in_lanes = in_lanes;
  return best;
}

// The blocks of pixels, and what all takes.
double choose_pixels(const WeightGradProblem& p, const Products& of_pixel, const Target& t,
                     WeightGradPlan& plan) {
  const ConvShape& s = p.shape;
  const int64_t H = std::max<int64_t>(s.lr_h, 1), W = std::max<int64_t>(s.lr_w, 1),
                N = std::max<int64_t>(s.batch, 1);
  const int64_t side = plan.winograd ? 2 : 1;
  const int64_t budget = t.l2_bytes / kPixelsShareOfL2 / t.element_bytes;
  const double ic = static_cast<double>(vectors_of(plan.block_ic, t)),
               oc = static_cast<double>(vectors_of(plan.block_oc, t));
  // of one item and block
  const auto cost = [&](const Blocks& b, int64_t images, int64_t h, int64_t w) {
    const double tiles = static_cast<double>(images * b.tiles);
    // rows that a block shares with the one above it move, which takes half as long
    const double rows = 0.5 * static_cast<double>(h * s.stride_h + b.input.rows);
    const auto row = [](int64_t columns, bool planar) {
      return kPack * static_cast<double>(columns) + (planar ? kPackPlanes : 0);
    };
    const double packed = static_cast<double>(images) *
                          (rows * ic * row(b.input.stride_phases * b.input.phase_columns, p.planar_input) +
                           static_cast<double>(h) * oc * row(w, p.planar_gradient));
    const double transformed = plan.winograd ? tiles * static_cast<double>(plan.positions()) *
                                                   (ic * kTransformInput + oc * kTransformGradient)
                               : plan.matrix ? tiles * (ic * kArrangeInput + oc * kArrangeGradient)
                                             : 0;
    const double chains = static_cast<double>(ceil_div(images * b.tiles, plan.chain));
    return packed + transformed +
           static_cast<double>(plan.segments()) *
               (tiles * of_pixel.cycles + chains * of_pixel.sums * kAddSums);
  };
  double best = -1;
  for (int64_t splits = 1;; splits += std::max<int64_t>(1, splits / 8)) {
    const int64_t w = std::min(W, round_up(ceil_div(W, splits), side));
    for (int64_t h = std::min(side, H); h <= H;
         h = h < H ? std::min(h + std::max<int64_t>(h / 8 / side, 1) * side, H) : H + 1) {
      const Blocks b = blocks_of(plan, h, w, t);
      if (b.elements > budget && (h > side || w > side)) break;
      int64_t n = 1;
      if (h == H && w == W)
        n = std::clamp<int64_t>(std::min(budget / b.elements, ceil_div(2 * plan.chain, b.tiles)), 1,
                                ceil_div(N, plan.slots));
      const int64_t blocks = ceil_div(N, n) * ceil_div(H, h) * ceil_div(W, w);
      // shares of whole blocks
      const double all = cost(b, n, h, w) * static_cast<double>(round_up(blocks, plan.slots));
      if (best >= 0 && all >= best) continue;
      best = all;
      plan.block_n = n;
      plan.block_h = h;
      plan.block_w = w;
    }
    if (w <= side) break;
  }
  const Blocks b = blocks_of(plan, plan.block_h, plan.block_w, t);
  plan.input_tile = b.input;
  plan.gradient_tile = b.gradient;
  plan.blocks_n = ceil_div(s.batch, plan.block_n);
  plan.blocks_h = ceil_div(s.lr_h, plan.block_h);
  plan.blocks_w = ceil_div(s.lr_w, plan.block_w);
  plan.tiles = plan.block_n * b.tiles;
  plan.flat = plan.matrix && flat_pixels(s, plan.block_w);
  if (plan.matrix) plan.row_pixels = b.gradient.row_step / b.gradient.column_step;
  return static_cast<double>(plan.pairs()) * best + finish_cycles(plan);
}

// Register tiles have one shape, of matrix tiles.
Products matrix_products(const Target& t, WeightGradPlan& plan) {
  plan.tile_vectors = 2;
  plan.tile_columns = 2 * kColumnOc;
  plan.chain = kMatrixPixelChain;
  const auto tiles =
      static_cast<double>(ceil_div(plan.block_ic, kStripPixels) * ceil_div(plan.block_oc, kColumnOc));
  return {tiles * tile_cycles(t, kTileChannels / 2) / kTileChannels, tiles * kStripPixels};
}

bool fits_winograd(const ConvShape& s, const Target& t) {
  return s.kernel_h == s.kernel_w && (s.kernel_h == 2 || s.kernel_h == 3) && s.stride_h == 1 &&
         s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1 && t.element_bytes == 4;
}

}  // namespace

ConvShape gradient_shape(ConvShape s) {
  s.ic = s.oc;
  s.kernel_h = s.kernel_w = s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = 1;
  s.pad_top = s.pad_left = 0;
  return s;
}

WeightGradPlan plan_weight_grad(const WeightGradProblem& p, const Target& t) {
  enum Kind { kDirect, kWinograd, kMatrix, kKinds };
  const ConvShape& s = p.shape;
  WeightGradPlan best{};
  double least = -1, cycles[kKinds] = {-1, -1, -1};
  const bool parallel = t.threads > 1 && multiply_adds(s) >= kParallelMinimum;
  Target target = t;
  if (!parallel) target.threads = 1;
  for (Kind kind : {kDirect, kWinograd, kMatrix}) {
    if (kind == kWinograd && (p.no_winograd || !fits_winograd(s, t))) continue;
    if (kind == kMatrix && (p.no_winograd || t.matrix_tiles == MatrixTiles::kNone || s.ic == 0)) continue;
    WeightGradPlan plan{};
    plan.shape = s;
    plan.parallel = parallel;
    plan.winograd = kind == kWinograd;
    plan.matrix = kind == kMatrix;
    plan.merged_taps = kind == kDirect && s.stride_w == 1 && s.dilation_w == 1 && s.kernel_w > 1 &&
                       vectors_of(s.ic, t) <= kVectorsWithoutGap;
    Target of_kind = target;
    if (plan.matrix) of_kind.lanes = kColumnOc;
    choose_channels(of_kind, plan);
    plan.slots = choose_slots(plan.pairs(), of_kind);
    const Products of_pixel = plan.matrix ? matrix_products(t, plan) : choose_tile(of_kind, plan);
    cycles[kind] = choose_pixels(p, of_pixel, of_kind, plan);
    if (least >= 0 && cycles[kind] >= least) continue;
    least = cycles[kind];
    best = plan;
  }
  best.direct_cycles = cycles[kDirect];
  best.winograd_cycles = cycles[kWinograd];
  best.matrix_cycles = cycles[kMatrix];
  best.slots = std::clamp<int64_t>(best.blocks(), 1, best.slots);
  best.items = best.pairs() * best.slots;
  return best;
}

}  // namespace fused_subpixel::cpu
