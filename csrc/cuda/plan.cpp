// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/plan.h"

#include <algorithm>

#include "cuda/wgmma_shape.h"

namespace fused_subpixel::cuda {
namespace {

constexpr double kMostWithinTile = 1 << 30;  // bytes, and as many again that are counted past the end
constexpr int64_t kSmallNumber = 1 << 16;    // what the kernels divide by a multiplication; see SmallDivisor
constexpr int64_t kStepBytes = 16 << 10;     // of filter that is fetched at a time
constexpr int64_t kResidentBytes = 72 << 10;
// Loading the pixels costs about as much as computing a dozen output channels of the tile.
constexpr int64_t kPixelCostInOc = 12;

// A tile of at most `most` pixels. Of all widths, and the greatest heights that go with them, the one with the least padding
// work and the smallest halo.
template <class AnyPlan>
void choose_tile(const Problem& p, int64_t most, AnyPlan& plan) {
  double best = -1;
  const auto offer = [&](int64_t w) {
    w = std::min<int64_t>(w, p.lr_w);
    const int64_t down = ceil_div(p.lr_h, std::max<int64_t>(most / w, 1)), h = ceil_div(p.lr_h, down);
    const bool whole = w == p.lr_w && h == p.lr_h;
    const int64_t n = whole ? std::clamp<int64_t>(most / (w * h), 1, std::max<int64_t>(p.batch, 1)) : 1;
    const int64_t halo_h = (h - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
    const int64_t halo_w = (w - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1;
    const int64_t tiles_n = ceil_div(p.batch, n), tiles_w = ceil_div(p.lr_w, w);
    const double tiles = static_cast<double>(tiles_n) * static_cast<double>(down * tiles_w);
    const double cost =
        tiles * (1 + 0.3 * static_cast<double>(n * halo_h * halo_w) / static_cast<double>(most));
    if (best >= 0 && cost >= best) return;
    best = cost;
    plan.tile_n = static_cast<int>(n);
    plan.tile_h = static_cast<int>(h);
    plan.tile_w = static_cast<int>(w);
    plan.tiles_n = static_cast<int>(tiles_n);
    plan.tiles_h = static_cast<int>(down);
    plan.tiles_w = static_cast<int>(tiles_w);
    plan.halo_h = static_cast<int>(std::min(halo_h, kSmallNumber));
    plan.halo_w = static_cast<int>(std::min(halo_w, kSmallNumber));
  };
  for (int64_t w : {16, 8, 32, 64, 128, 4, 2, 1})
    if (w <= most) offer(w);
  for (int64_t across = 1; across <= 16; ++across) {
    const int64_t w = ceil_div(p.lr_w, across);
    if (w <= most) offer(w);
  }
}

// Whether the pixels of a tile can be found by a table: all channels of a pixel are inside the image or outside, several are
// copied at once, and what the kernels count in 32 bits is small enough.
bool lists_pixels(const Problem& p, const Plan& plan) {
  const int64_t bytes = element_bytes(p.dtype);
  const double elements = static_cast<double>(p.image_step) * (plan.tile_n > 1 ? plan.tile_n : 0) +
                          static_cast<double>(p.row_step) * plan.halo_h +
                          static_cast<double>(p.col_step) * plan.halo_w;
  return p.whole_blocks && p.vector >= 2 && elements * static_cast<double>(bytes) < kMostWithinTile;
}

// The kernels for whole vectors load at least half of one at a time. Rows of the tile can be staged if blocks have whole
// interleave groups and rows of these are whole vectors; pixels, if groups are.
Staging staging_of(const Problem& p, const Plan& plan) {
  const int64_t vector = 16 / element_bytes(p.dtype);
  if (!p.whole_vectors || 2 * p.vector < vector || !plan.lists_pixels) return Staging::kFloats;
  const bool whole_groups = p.oc <= plan.block_oc || plan.block_oc % p.interleave == 0;
  const bool pairs = p.interleave % 2 == 0 || plan.block_oc <= kUnpairedBlockOc;
  if (whole_groups && pairs && !plan.single_phase && plan.tile_w * p.interleave % vector == 0)
    return Staging::kTileRows;
  return p.interleave % vector == 0 ? Staging::kPixels : Staging::kFloats;
}

// Shared memory beside pixels and filter: the staging area of the store, and tables.
struct TileBytes {
  int64_t staging, pixel_table, store_tables;
};
TileBytes tile_bytes(const Problem& p, const Plan& plan) {
  const int64_t pixels = int64_t{plan.tile_n} * plan.halo_h * plan.halo_w;
  const int64_t pixel_table = plan.lists_pixels ? round_up(pixels * kPixelTableEntry, 16) : 0;
  if (!plan.vectorised())
    return {int64_t{kMmaPixels} * (plan.block_oc + kStagingPad) * 4, pixel_table,
            round_up(int64_t{plan.block_oc} * kOcInfoBytes, 16)};
  return {int64_t{kMmaPixels} * plan.block_oc * element_bytes(p.dtype), pixel_table,
          int64_t{plan.block_oc} * kOcPlaceBytes + int64_t{plan.tile_n} * plan.tile_h * kLineBytes};
}

// Planes of 16 bytes of channels. Padding keeps the vectors of a pixel, which neighbouring threads load, in different banks.
void set_pixel_stage(Plan& plan, int64_t pixels) {
  const int vectors = plan.block_k_bytes / 16;
  plan.pixel_plane = static_cast<int>(round_up(pixels, 8)) + 8 / vectors;
  plan.pixel_stage_bytes = round_up(int64_t{plan.pixel_plane} * plan.block_k_bytes, 128);
}

// Fills in all that follows from tile, block_oc and k_block; false if that does not fit.
bool lay_out(const Problem& p, const Target& t, Plan& plan) {
  const int64_t taps = p.kernel_h * p.kernel_w, pixels = int64_t{plan.tile_n} * plan.halo_h * plan.halo_w;
  const int64_t tiles = int64_t{plan.tiles_n} * plan.tiles_h * plan.tiles_w;
  const int64_t oc_blocks = ceil_div(p.oc, plan.block_oc);
  plan.k_blocks = static_cast<int>(ceil_div(p.ic * element_bytes(p.dtype), plan.block_k_bytes));
  if (pixels * (plan.block_k_bytes / 16) >= kSmallNumber ||
      int64_t{plan.tile_w} * p.interleave >= kSmallNumber)
    return false;
  constexpr int64_t kMost = int64_t{1} << 31;  // the kernels count pixels in 32 bits
  if (tiles >= kMost || oc_blocks >= 1 << 16 || p.batch >= kMost) return false;
  if (p.lr_h * p.stride_h >= kMost || p.lr_w * p.stride_w >= kMost) return false;
  plan.lists_pixels = lists_pixels(p, plan);
  plan.staging = staging_of(p, plan);
  plan.threads = plan.block_oc == 128 ? 256 : 128;
  plan.grid_y = static_cast<int>(oc_blocks);
  const int64_t tap_bytes = int64_t{plan.block_oc} * plan.block_k_bytes,
                filter = plan.k_blocks * taps * tap_bytes;
  plan.packs_weight = true;
  plan.packed_bytes = oc_blocks * filter;
  set_pixel_stage(plan, pixels);
  const auto [staging, pixel_table, store_tables] = tile_bytes(p, plan);
  const auto place_tables = [&](int64_t offset) {
    plan.pixel_table_offset = offset;
    plan.table_offset = offset + pixel_table;
    plan.shared_bytes = plan.table_offset + store_tables;
  };

  // A filter that stays pays where blocks have several tiles each.
  plan.resident = filter <= kResidentBytes && tiles * oc_blocks > 2 * t.multiprocessors;
  if (plan.resident) {
    plan.steps = 1;
    plan.step_taps = static_cast<int>(taps);
    plan.filter_step_bytes = 0;
    plan.stages = plan.pixel_stages = 2;
    plan.filter_offset = plan.pixel_stages * plan.pixel_stage_bytes;
    plan.staging_offset = plan.filter_offset + filter;
    place_tables(plan.staging_offset + staging);
    if (plan.shared_bytes <= t.shared_bytes) {
      const int64_t together = std::clamp<int64_t>(t.shared_bytes / (plan.shared_bytes + 1024), 1, 3);
      plan.grid_x = static_cast<int>(std::min(tiles, ceil_div(t.multiprocessors * together, oc_blocks)));
      plan.packs_weight = !(p.weight_vectors && plan.vectorised() && plan.block_oc <= kUnpackedBlockOc);
      if (!plan.packs_weight) plan.packed_bytes = 0;
      return true;
    }
    plan.resident = false;
  }
  plan.grid_x = static_cast<int>(tiles);
  const int64_t most_taps = std::clamp<int64_t>(kStepBytes / tap_bytes, 1, taps);
  plan.steps = static_cast<int>(ceil_div(taps, most_taps));
  plan.step_taps = static_cast<int>(ceil_div(taps, plan.steps));
  plan.steps = static_cast<int>(ceil_div(taps, plan.step_taps));
  plan.filter_step_bytes = plan.step_taps * tap_bytes;
  const int64_t least_steps = plan.single_phase ? ceil_div(p.least_taps, plan.step_taps) : plan.steps;
  for (plan.stages = plan.steps == 1 ? 4 : 3; plan.stages >= 2; --plan.stages) {
    // pixels are fetched with the first step of their k_block, stages - 1 steps ahead
    plan.pixel_stages = static_cast<int>(1 + ceil_div(plan.stages - 1, least_steps));
    plan.filter_offset = plan.pixel_stages * plan.pixel_stage_bytes;
    plan.staging_offset = 0;
    place_tables(std::max(plan.filter_offset + plan.stages * plan.filter_step_bytes, staging));
    if (plan.shared_bytes <= t.shared_bytes) return true;
  }
  return false;
}

// How much faster wgmma is taken to be than mma.sync, on the work of the busiest multiprocessor. Of the benchmark's
// layers, packing included, an H100 gains 1.07 to 1.7, also where few tiles leave multiprocessors idle.
constexpr double kWgmmaSpeed = 2.5;

// Hopper's plan, if it is for this problem.
bool lay_out_wgmma(const Problem& p, const Target& t, Plan& plan) {
  const int64_t bytes = p.ic * element_bytes(p.dtype);
  if (!p.wgmma || t.sm != 90 || p.vector * element_bytes(p.dtype) != 16) return false;
  if (p.stride_h != 1 || p.stride_w != 1 || p.oc < kWgmmaBlockOc || bytes < 128) return false;
  plan.kernel = Kernel::kWgmma;
  plan.block_oc = kWgmmaBlockOc;
  plan.tile_w = kWgmmaTileWidth;
  plan.threads = 256;
  const auto tiles = [&](int64_t n, int64_t h) {
    return ceil_div(p.batch, n) * ceil_div(p.lr_h, h) * ceil_div(p.lr_w, kWgmmaTileWidth);
  };
  plan.tile_n = tiles(2, 8) < tiles(1, 16) ? 2 : 1;
  plan.tile_h = plan.tile_n == 2 ? 8 : 16;
  const int64_t all_tiles = tiles(plan.tile_n, plan.tile_h), oc_blocks = ceil_div(p.oc, plan.block_oc);
  const int64_t halo_h = plan.tile_h + (p.kernel_h - 1) * p.dilation_h;
  const int64_t halo_w = plan.tile_w + (p.kernel_w - 1) * p.dilation_w;
  if (halo_h * halo_w >= kSmallNumber / 8 / plan.tile_n || plan.tile_w * p.interleave >= kSmallNumber)
    return false;
  if (all_tiles >= int64_t{1} << 31 || oc_blocks >= 1 << 16) return false;
  plan.tiles_n = static_cast<int>(ceil_div(p.batch, plan.tile_n));
  plan.tiles_h = static_cast<int>(ceil_div(p.lr_h, plan.tile_h));
  plan.tiles_w = static_cast<int>(ceil_div(p.lr_w, plan.tile_w));
  plan.halo_h = static_cast<int>(halo_h);
  plan.halo_w = static_cast<int>(halo_w);
  plan.grid_x = static_cast<int>(all_tiles);
  plan.grid_y = static_cast<int>(oc_blocks);

  const int64_t small_waste = round_up(bytes, 64);
  plan.block_k_bytes = round_up(bytes, 128) > small_waste + small_waste / 8 ? 64 : 128;
  plan.k_blocks = static_cast<int>(ceil_div(bytes, plan.block_k_bytes));
  set_pixel_stage(plan, plan.tile_n * halo_h * halo_w);
  const int64_t taps = p.kernel_h * p.kernel_w, tap_bytes = int64_t{plan.block_oc} * plan.block_k_bytes;
  plan.packs_weight = true;
  plan.packed_bytes = oc_blocks * plan.k_blocks * taps * tap_bytes;
  plan.step_taps = 1;
  plan.steps = static_cast<int>(taps);
  plan.filter_step_bytes = tap_bytes;
  plan.lists_pixels = lists_pixels(p, plan);
  if (!plan.lists_pixels) return false;  // the kernel has no other way to load them
  plan.staging = staging_of(p, plan);
  const auto [staging, pixel_table, store_tables] = tile_bytes(p, plan);
  const int64_t least_steps = plan.single_phase ? p.least_taps : plan.steps;
  const auto fits = [&](int stages, int64_t limit) {
    // a step is fetched while the one before the last is still read: stages steps in a row are in use
    plan.stages = stages;
    plan.pixel_stages = static_cast<int>(1 + ceil_div(stages - 1, least_steps));
    plan.filter_offset = plan.pixel_stages * plan.pixel_stage_bytes;
    plan.pixel_table_offset = std::max(plan.filter_offset + plan.stages * plan.filter_step_bytes, staging);
    plan.table_offset = plan.pixel_table_offset + pixel_table;
    plan.barrier_offset = plan.table_offset + store_tables;
    plan.shared_bytes = plan.barrier_offset + kWgmmaStages * 8;
    return plan.shared_bytes <= limit;
  };
  // Two blocks to a multiprocessor, so that one computes while the other stores; of a block's memory the driver takes
  // 1 KB.
  const int64_t half = (t.shared_bytes - 1024) / 2;
  for (const int64_t limit : {half, t.shared_bytes})
    for (int stages = kWgmmaStages; stages >= 3; --stages)
      if (fits(stages, limit)) return true;
  return false;
}

}  // namespace

const char* words_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone: return "";
    case Refusal::kOldGpu: return "the tensor-core kernels need compute capability 8.0";
    case Refusal::kFloat64: return "float64 is summed in float64, which the tensor-core kernels cannot";
    case Refusal::kExactFloat32:
      return "float32 is exact: torch.backends.cudnn.conv.fp32_precision does not allow tf32";
    case Refusal::kGroups: return "the tensor-core kernels know one group only";
    case Refusal::kManyChannels:
      return "more channels, or a larger filter, than the tensor-core kernels count";
    case Refusal::kLargeTile: return "what one tile reads does not fit into shared memory";
    case Refusal::kStridedInputGrad:
      return "the input gradient of a strided convolution is no convolution of the gradient";
    case Refusal::kLargeGradient:
      return "the gradient, to which an activation's is to be applied, is larger than unshuffle_reduce "
             "counts";
  }
  return "";
}

Refusal refusal_of(const Problem& p, const Target& t) {
  if (t.sm < 80) return Refusal::kOldGpu;
  if (p.dtype == DType::kFloat64) return Refusal::kFloat64;
  if (p.dtype == DType::kFloat32 && !p.tf32) return Refusal::kExactFloat32;
  if (p.groups != 1) return Refusal::kGroups;
  if (p.ic >= kSmallNumber || p.oc >= kSmallNumber) return Refusal::kManyChannels;
  // vectors of the packed filter are counted in 32 bits
  const int64_t filter = (p.oc + 128) * (p.ic + 64) * p.kernel_h * p.kernel_w;
  if (filter * element_bytes(p.dtype) >= int64_t{16} << 30) return Refusal::kManyChannels;
  return Refusal::kNone;
}

Plan plan_conv(const Problem& p, const Target& t) {
  Plan plan{};
  plan.kernel = Kernel::kGeneric;
  plan.refusal = refusal_of(p, t);
  if (plan.refusal != Refusal::kNone) return plan;
  const int64_t bytes = p.ic * element_bytes(p.dtype);
  const int64_t small_waste = round_up(bytes, 32), waste = round_up(bytes, 64);
  plan.block_k_bytes = waste > small_waste + small_waste / 8 ? 32 : 64;
  choose_tile(p, kMmaPixels, plan);
  Problem one_phase = p;
  Plan one_phase_plan = plan;
  if (p.phase_oc > 0) {
    one_phase.lr_h = p.phase_h;
    one_phase.lr_w = p.phase_w;
    one_phase_plan.single_phase = true;
    choose_tile(one_phase, kMmaPixels, one_phase_plan);
  }
  const auto of_one_phase = [&](int block_oc) { return p.phase_oc > 0 && p.phase_oc % block_oc == 0; };

  const auto taps_share = [&](const Plan& made) { return made.single_phase ? p.mean_taps_share : 1.0; };

  // By the work of the busiest multiprocessor. Groups that blocks cut cost their stores something.
  Plan best{};
  double least = -1;
  for (int block_oc : MmaBlockOc::values) {
    const Problem& problem = of_one_phase(block_oc) ? one_phase : p;
    Plan candidate = of_one_phase(block_oc) ? one_phase_plan : plan;
    candidate.block_oc = block_oc;
    const bool cut = p.oc > block_oc && block_oc % p.interleave != 0;
    const int64_t tiles = int64_t{candidate.tiles_n} * candidate.tiles_h * candidate.tiles_w;
    const int64_t blocks = tiles * ceil_div(p.oc, block_oc);
    const double cost = static_cast<double>(ceil_div(blocks, t.multiprocessors)) *
                        static_cast<double>(block_oc + kPixelCostInOc) * (cut ? 1.1 : 1.0) *
                        taps_share(candidate);
    if (least >= 0 && cost >= least) continue;
    bool fits = lay_out(problem, t, candidate);
    if (!fits && candidate.block_k_bytes == 64)
      candidate.block_k_bytes = 32, fits = lay_out(problem, t, candidate);
    if (fits) best = candidate, best.kernel = Kernel::kMma, least = cost;
  }
  Plan hopper{};
  hopper.single_phase = of_one_phase(kWgmmaBlockOc);
  if (lay_out_wgmma(hopper.single_phase ? one_phase : p, t, hopper)) {
    const double cost =
        static_cast<double>(ceil_div(int64_t{hopper.grid_x} * hopper.grid_y, t.multiprocessors)) *
        static_cast<double>(hopper.block_oc + kPixelCostInOc) / kWgmmaSpeed * taps_share(hopper);
    if (least < 0 || cost < least) best = hopper, least = cost;
  }
  if (least < 0) {
    plan.refusal = Refusal::kLargeTile;
    return plan;
  }
  return best;
}

WeightGradPlan plan_weight_grad(const Problem& p, const Target& t) {
  WeightGradPlan plan{};
  plan.kernel = Kernel::kGeneric;
  plan.refusal = refusal_of(p, t);
  if (plan.refusal != Refusal::kNone) return plan;
  const int64_t bytes = element_bytes(p.dtype);
  choose_tile(p, grad_pixels(bytes), plan);
  const int64_t taps = p.kernel_h * p.kernel_w, pixels = int64_t{plan.tile_n} * plan.halo_h * plan.halo_w;
  plan.taps = taps == 1 ? 1 : taps <= 4 ? 4 : 9;  // see WeightGradTaps
  plan.tap_blocks = static_cast<int>(ceil_div(taps, plan.taps));
  plan.gradient_block_bytes = grad_pixels(bytes) * (kGradWarpOc * bytes + grad_padding(bytes));
  plan.input_block_bytes = round_up(pixels * (kGradWarpIc * bytes + grad_padding(bytes)), 128);
  const int64_t tiles = int64_t{plan.tiles_n} * plan.tiles_h * plan.tiles_w;
  constexpr int64_t kMost = int64_t{1} << 31;
  const bool countable = tiles < kMost && p.batch < kMost && p.lr_h * p.stride_h < kMost &&
                         p.lr_w * p.stride_w < kMost && pixels * (kGradWarpIc * bytes / 16) < kSmallNumber;
  // The division of the warps that needs the fewest blocks.
  int64_t least = -1;
  for (int oc_warps : {4, 2, 1}) {
    const int64_t rows = oc_warps * kGradWarpOc, ic_warps = kGradWarps / oc_warps;
    const int64_t oc_blocks = ceil_div(p.oc, rows), ic_blocks = ceil_div(p.ic, ic_warps * kGradWarpIc);
    const int64_t stage = oc_warps * plan.gradient_block_bytes + ic_warps * plan.input_block_bytes;
    const int64_t table = 2 * stage, shared = table + grad_pixels(bytes) * 4;
    const int64_t blocks = oc_blocks * ic_blocks * plan.tap_blocks;
    if (!countable || shared > t.shared_bytes || blocks >= 1 << 16 || (least >= 0 && blocks >= least))
      continue;
    least = blocks;
    plan.oc_warps = oc_warps;
    plan.oc_blocks = static_cast<int>(oc_blocks);
    plan.ic_blocks = static_cast<int>(ic_blocks);
    plan.stage_bytes = stage;
    plan.table_offset = table;
    plan.shared_bytes = shared;
  }
  if (least < 0) {
    plan.refusal = Refusal::kLargeTile;
    return plan;
  }
  // Two blocks for each multiprocessor; every split has sums of its own in memory.
  plan.splits =
      static_cast<int>(std::clamp<int64_t>(2 * t.multiprocessors / least, 1, std::max<int64_t>(tiles, 1)));
  plan.partial_bytes = plan.splits * p.oc * (p.ic * taps + 1) * 4;
  plan.kernel = Kernel::kMma;
  return plan;
}

UnshuffleReducePlan plan_unshuffle_reduce(DType dtype, int64_t lr_channels, int64_t pixels, bool by_pixel,
                                          const Target& t) {
  const int64_t vector = 16 / element_bytes(dtype), vectors = ceil_div(lr_channels, vector);
  UnshuffleReducePlan plan{};
  plan.by_pixel = by_pixel;
  plan.vectors = static_cast<int>(vectors);
  // 32 or more pixels make long reads of contiguous rows, and 8 vectors are whole lines of the result. With the channels
  // of a pixel next to one another, more vectors make longer reads.
  const int64_t most = by_pixel ? 8 : kUnshuffleThreads;
  plan.vector_blocks = static_cast<int>(ceil_div(vectors, most));
  plan.block_vectors = static_cast<int>(ceil_div(vectors, plan.vector_blocks));
  plan.block_pixels = 1;
  while (2 * plan.block_pixels * plan.block_vectors <= kUnshuffleThreads) plan.block_pixels *= 2;
  plan.threads = plan.block_pixels * plan.block_vectors;
  plan.tiles = static_cast<int>(ceil_div(pixels, plan.block_pixels));
  // Enough blocks to fill every multiprocessor.
  plan.splits = static_cast<int>(std::clamp<int64_t>(int64_t{8} * t.multiprocessors / plan.vector_blocks, 1,
                                                     std::max<int64_t>(plan.tiles, 1)));
  plan.pitch = plan.block_vectors | 1;  // odd: neighbouring pixels start in different banks
  const int64_t sum_bytes = dtype == DType::kFloat64 ? 8 : 4;
  plan.stage_bytes = by_pixel ? int64_t{16} * plan.block_pixels * plan.pitch : 0;
  plan.sums_offset = 2 * plan.stage_bytes;
  plan.shared_bytes = plan.sums_offset + plan.threads * vector * sum_bytes;
  plan.partial_bytes = plan.splits * lr_channels * sum_bytes;
  return plan;
}

}  // namespace fused_subpixel::cuda
