// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_k_blocks.h"

#include <algorithm>

#include "cpu/matrix_tiles.h"
#include "cpu/plan_blocks.h"
#include "cpu/winograd_row.h"

namespace fused_subpixel::cpu {
namespace {

// Tiles that are computed before they are stored, and the bytes that their accumulators take at most.
constexpr int64_t kMaxDeferredTiles = 8, kDeferredBytes = 8 << 10;

// One chain of additions over a wide layer would lose digits, because its rounding error grows with its length. That of
// blocks added up hardly does. If several tiles of a panel interleave block by block, that part of the weights should also
// stay in the first cache: weight_bytes is what one k of it takes there, or 0. Returns the channels of a block.
int64_t block_channels(int64_t ic, int64_t taps, int64_t weight_bytes) {
  constexpr int64_t kWeightBytes = 16 << 10;
  const int64_t k = weight_bytes > 0 ? std::min(kMaxChain, kWeightBytes / weight_bytes) : kMaxChain;
  const int64_t most = std::max<int64_t>(k / std::max<int64_t>(taps, 1), 1);
  return ic > 0 ? ceil_div(ic, ceil_div(ic, most)) : 0;
}

// The blocks for output channels that lack the first_a first rows and first_b first columns of taps.
KBlocks make_blocks(const ConvTask& task, int64_t first_a, int64_t first_b, int64_t acc_step,
                    int64_t weight_bytes, KTables& tables) {
  const ConvShape& s = task.plan.shape;
  const InputTile& tile = task.plan.input_tile;
  for (int64_t a = first_a; a < s.kernel_h; ++a)
    for (int64_t b = first_b; b < s.kernel_w; ++b)
      tables.tap_offset.push_back(task.weight.tap_offset[a * s.kernel_w + b]);
  const auto taps = static_cast<int64_t>(tables.tap_offset.size());
  const int64_t channels = block_channels(s.ic, taps, weight_bytes), most = channels * taps;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t a = first_a; a < s.kernel_h; ++a)
      for (int64_t b = first_b; b < s.kernel_w; ++b) tables.at.push_back(input_tile_offset(s, tile, c, a, b));
  tables.at.push_back(0);
  for (int64_t c = 0; c < s.ic; c += channels)
    tables.blocks.push_back({.offsets = {.at = tables.at.data(),
                                         .count = std::min(most, (s.ic - c) * taps),
                                         .column_step = tile.column_step,
                                         .weight_step = task.plan.tile_oc,
                                         .acc_step = acc_step,
                                         .add = c > 0},
                             .weight = c * taps * task.plan.tile_oc,
                             .input = c * tile.channel_step});
  return {.taps = {.offset = tables.tap_offset.data(),
                   .count = taps,
                   .columns = s.kernel_w,
                   .all = taps == s.taps()},
          .blocks = tables.blocks.data(),
          .count = static_cast<int64_t>(tables.blocks.size())};
}

void set_direct(const Target& t, ConvPass& pass) {
  ConvTask& task = pass.task;
  const ConvPlan& plan = task.plan;
  const bool oc_vectorised = plan.kernel == ConvKernel::kOcVectorised;
  const int64_t L = t.lanes, pixels = plan.tile_pixels * (oc_vectorised ? 1 : L);
  const int64_t weight_bytes = oc_vectorised ? plan.tile_oc * t.element_bytes : 0;
  const int64_t acc_step = pixels * plan.interleaved_tiles;
  task.k_by_missing_taps = (plan.single_phase || plan.tile_oc == 1) && task.weight.missing_taps;
  for (int missing = 0; missing < (task.k_by_missing_taps ? 4 : 1); ++missing)
    task.k_blocks[missing] =
        make_blocks(task, missing & kLacksFirstRow ? 1 : 0, missing & kLacksFirstColumn ? 1 : 0, acc_step,
                    weight_bytes, pass.k[missing]);
  // A tile whose output is contiguous and that has one K block is stored at once. Others share a K block of the weights,
  // or a vector of pixels.
  const int64_t tile_acc = plan.panel_tiles * plan.tile_oc * pixels;
  const bool at_once = !oc_vectorised || (task.k_blocks[0].count == 1 && task.dest.oc_contiguous);
  task.deferred_tiles =
      at_once ? 1 : std::clamp<int64_t>(kDeferredBytes / (tile_acc * t.element_bytes), 1, kMaxDeferredTiles);

  const int64_t tiles = ceil_div(plan.shape.oc, plan.tile_oc);
  ConvScratch& s = task.scratch;
  s.input_tile = task.in_place ? 0 : plan.block_n * plan.input_tile.image_step + 2 * L;
  s.packing = packing_elements(task.source, plan.input_tile, t.lanes);
  s.weights = plan.weights_resident ? plan.panels * plan.panel_elements : 0;
  s.acc = task.deferred_tiles * tile_acc + L;
  s.pixel_tiles = oc_vectorised ? plan.block_n * plan.block_h * ceil_div(plan.block_w, plan.tile_pixels) : 0;
  s.oc = tiles * plan.tile_oc + L;
}

// K blocks of kMatrix: an entry is one tap of 32 channels, and as many as the weights of two columns fit the first cache.
void set_matrix(ConvPass& pass) {
  ConvTask& task = pass.task;
  const ConvPlan& plan = task.plan;
  const ConvShape& s = plan.shape;
  const InputTile& tile = plan.input_tile;
  const int64_t columns = plan.tile_oc / kColumnOc, all = ceil_div(s.ic, kTileChannels);
  task.k_by_missing_taps = plan.single_phase && task.weight.missing_taps;
  for (int missing = 0; missing < (task.k_by_missing_taps ? 4 : 1); ++missing) {
    KTables& tables = pass.k[missing];
    const int64_t first_a = missing & kLacksFirstRow ? 1 : 0, first_b = missing & kLacksFirstColumn ? 1 : 0;
    for (int64_t a = first_a; a < s.kernel_h; ++a)
      for (int64_t b = first_b; b < s.kernel_w; ++b)
        tables.tap_offset.push_back(task.weight.tap_offset[a * s.kernel_w + b]);
    const auto taps = static_cast<int64_t>(tables.tap_offset.size());
    const int64_t blocks = ceil_div(all, std::max<int64_t>(kMatrixTaps / std::max<int64_t>(taps, 1), 1));
    const int64_t most = ceil_div(all, blocks);
    for (int64_t c = 0; c < most; ++c)
      for (int64_t a = first_a; a < s.kernel_h; ++a)
        for (int64_t b = first_b; b < (plan.joined_taps ? 1 : s.kernel_w); ++b)
          tables.at.push_back(input_tile_offset(s, tile, c * kTileChannels, a, b));
    const int64_t whole = plan.joined_taps ? 0 : s.ic / kTileChannels;  // tiles of channels
    const int64_t rest = plan.joined_taps ? s.ic * s.kernel_w : s.ic % kTileChannels;
    for (int64_t c = 0; c < all; c += most)
      tables.blocks.push_back(
          {.offsets = {.at = tables.at.data(),
                       .count = plan.joined_taps ? s.kernel_h : std::min(most, all - c) * taps,
                       .column_step = tile.column_step,
                       .weight_step = columns * kTileElements,
                       .acc_step = 0,
                       .add = c > 0,
                       .whole = std::clamp<int64_t>(whole - c, 0, most) * taps,
                       .pairs = ceil_div(rest, 2)},
           .weight = c * taps * columns * kTileElements,
           .input = c * kTileChannels});
    task.k_blocks[missing] = {.taps = {.offset = tables.tap_offset.data(),
                                       .count = taps,
                                       .columns = s.kernel_w,
                                       .all = taps == s.taps()},
                              .blocks = tables.blocks.data(),
                              .count = static_cast<int64_t>(tables.blocks.size())};
  }

  // pairs of bfloat16 in the place of values
  ConvScratch& scratch = task.scratch;
  scratch.input_tile =
      task.in_place
          ? 0
          : ceil_div(plan.block_n * tile.image_step + 2 * kStripPixels * tile.column_step + 2 * kTileChannels,
                     2);
  scratch.packing = std::max(packing_elements(task.source, tile, kTileChannels), ceil_div(tile.row_step, 2));
  scratch.weights = plan.weights_resident ? plan.panels * plan.panel_elements : 0;
  scratch.weight_planes = kTileChannels * s.taps() * kColumnOc;
  scratch.acc = plan.interleaved_tiles * matrix_sums(plan);
  scratch.oc = plan.panels * plan.panel_tiles * plan.tile_oc + kColumnOc;
}

void set_winograd(const Target& t, ConvPass& pass) {
  ConvTask& task = pass.task;
  const ConvPlan& plan = task.plan;
  const int64_t L = t.lanes, V = plan.tile_pixels;
  const bool passes = plan.scheme == WinogradScheme::kPasses;
  const int64_t ic = plan.k_channels;                      // transformed at a time
  const int64_t of_weights = passes ? ic : plan.shape.ic;  // the same of weights
  const int64_t panel_oc = int64_t{plan.panel_tiles} * plan.tile_oc;
  const int side = winograd_side(plan.kernel);
  const int64_t positions = winograd_positions(side);
  const int64_t rows = ceil_div(plan.block_h, side), across = ceil_div(plan.block_w, side);
  // An odd number of vectors apart, neighbours fall into different cache sets.
  const auto odd_vectors = [L](int64_t n) { return (ceil_div(n, L) | 1) * L; };
  int64_t tile_step = 1, acc_step, acc_of_oc;
  if (plan.channels_inner) {
    task.winograd_channel_step = 1;
    tile_step = odd_vectors(ic);
    task.winograd_input_step = odd_vectors(rows * across * tile_step);
    acc_step = odd_vectors(rows * across * plan.tile_oc);
    acc_of_oc = ceil_div(positions * acc_step, plan.tile_oc);
  } else {
    // The vectors of a block, with room for the surplus vectors of its last register tile and the surplus lanes of its last
    // row.
    const int64_t rows_end = (rows - 1) * across + ceil_div(across, L) * L;
    const int64_t vectors = std::max(ceil_div(ceil_div(rows * across, L), V) * V, ceil_div(rows_end, L));
    // A register tile may read one channel after the other without a gap.
    task.winograd_channel_step = (vectors % 2 == 0 && vectors > V ? vectors + 1 : vectors) * L;
    task.winograd_input_step = odd_vectors(ic * task.winograd_channel_step);
    acc_step = acc_of_oc = positions * task.winograd_channel_step;
  }
  task.winograd_position_step = of_weights * panel_oc + L;

  KTables& tables = pass.k[0];
  for (int64_t c = 0; c <= ic; ++c) tables.at.push_back(c * task.winograd_channel_step);
  tables.blocks.push_back({.offsets = {.at = tables.at.data(),
                                       .count = ic,
                                       .column_step = tile_step,
                                       .weight_step = panel_oc,
                                       .acc_step = acc_step,
                                       .add = false},
                           .weight = 0,
                           .input = 0});
  task.k_blocks[0] = {.taps = {.offset = task.weight.tap_offset,
                               .count = plan.shape.taps(),
                               .columns = plan.shape.kernel_w,
                               .all = true},
                      .blocks = tables.blocks.data(),
                      .count = 1};

  ConvScratch& s = task.scratch;
  s.input_tile = task.in_place ? 0 : plan.block_n * plan.input_tile.image_step + 2 * side * L;
  s.packing = packing_elements(task.source, plan.input_tile, t.lanes);
  s.weights = passes ? plan.panel_elements : plan.weights_resident ? plan.panels * plan.panel_elements : 0;
  s.acc = plan.pass_panels * panel_oc * acc_of_oc;
  s.oc = plan.panels * panel_oc + L;
  s.winograd_input = positions * task.winograd_input_step;
  s.winograd_packed = std::min(of_weights, 2 * L) * 9 * L;
  s.winograd_planar =
      side * side * (plan.channels_inner ? kWinogradStoredTiles * plan.tile_oc : panel_oc * L);
}

void set_winograd_row(const Target& t, ConvPass& pass) {
  static_assert(kMaxKBlockLists >= RowScheme{0, 4}.parts() * kRowPositions);
  ConvTask& task = pass.task;
  const ConvPlan& plan = task.plan;
  const ConvShape& shape = plan.shape;
  const RowScheme scheme{shape.kernel_w, plan.row_outputs};
  const int64_t panel_oc = int64_t{plan.panel_tiles} * plan.tile_oc, L = t.lanes, d = shape.dilation_w;
  const WinogradRowBlock b = winograd_row_block(shape, plan.block_h, plan.block_w, plan, t);
  const int64_t row_step = scheme.streams() * b.stream_step;
  task.winograd_channel_step = plan.input_tile.rows * row_step;

  int64_t weight = 0;
  for (int position = 0; position < scheme.positions(); ++position) {
    KTables& tables = pass.k[position];
    const int64_t of_row = scheme.products(position), products = shape.kernel_h * of_row;  // of a channel
    for (int64_t c = 0; c < b.channels; ++c)
      for (int64_t a = 0; a < shape.kernel_h; ++a)
        for (int64_t q = 0; q < of_row; ++q)
          tables.at.push_back(c * task.winograd_channel_step + a * shape.dilation_h * row_step +
                              scheme.factor_offset(position, q, d, b.stream_step));
    for (int64_t c = 0; c < shape.ic; c += b.channels)
      tables.blocks.push_back({.offsets = {.at = tables.at.data(),
                                           .count = std::min(b.channels, shape.ic - c) * products,
                                           .column_step = 1,
                                           .weight_step = panel_oc,
                                           .acc_step = scheme.positions() * b.acc_step,
                                           .add = c > 0},
                               .weight = weight + c * products * panel_oc,
                               .input = c * plan.input_tile.channel_step});
    weight += shape.ic * products * panel_oc;
    task.k_blocks[position] = {.taps = {.offset = task.weight.tap_offset,
                                        .count = shape.taps(),
                                        .columns = shape.kernel_w,
                                        .all = true},
                               .blocks = tables.blocks.data(),
                               .count = static_cast<int64_t>(tables.blocks.size())};
  }

  // The transform reads 2 d elements more. Runs of d pixels are copied by whole vectors, and the last one reaches further.
  task.winograd_pixel_step = scheme.stream_elements(b.vectors, t.lanes, d) + round_up(3 * d, L) + L;
  task.winograd_planar_step = round_up(scheme.outputs * (b.vectors * L + d) + L, L);
  ConvScratch& s = task.scratch;
  s.input_tile =
      plan.block_n * plan.input_tile.image_step + scheme.outputs * task.winograd_pixel_step + 2 * L;
  s.packing = packing_elements(task.source, plan.input_tile, t.lanes);
  s.weights = plan.weights_resident ? plan.panels * plan.panel_elements : 0;
  s.acc = b.acc;
  s.oc = plan.panels * panel_oc + L;
  s.winograd_input = b.streams;
  s.winograd_packed = shape.ic * shape.taps() * panel_oc + L;
  // rows of a panel of output channels, and of the tiles of one; before, rows of pixels
  s.winograd_planar = std::max((panel_oc + scheme.outputs) * task.winograd_planar_step,
                               scheme.outputs * task.winograd_pixel_step);
}

}  // namespace

void set_k_blocks(const Target& t, const WeightRows& rows, ConvPass& pass) {
  switch (pass.task.plan.kernel) {
    case ConvKernel::kWinograd:
    case ConvKernel::kWinograd4: set_winograd(t, pass); break;
    case ConvKernel::kWinogradRow: set_winograd_row(t, pass); break;
    case ConvKernel::kMatrix: set_matrix(pass); break;
    case ConvKernel::kStreamed: set_streamed(t, rows, pass); break;
    default: set_direct(t, pass);
  }
  ConvScratch& s = pass.task.scratch;
  s.bytes = Arena::bytes(s.pixel_tiles, sizeof(PixelTile));
  for (int64_t elements :
       {s.input_tile, s.packing, s.weights, s.weight_planes, s.acc, s.oc, s.oc, s.winograd_input,
        s.winograd_packed, s.winograd_planar, s.streamed_pixels, s.streamed_products, s.streamed_planar})
    s.bytes += Arena::bytes(elements, t.element_bytes);
}

}  // namespace fused_subpixel::cpu
