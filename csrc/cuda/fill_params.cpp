// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/fill_params.h"

#include <algorithm>

#include "cuda/problem.h"

namespace fused_subpixel::cuda {

EpilogueParams epilogue_params(const ForwardArguments& a) {
  const Epilogue& epilogue = a.epilogue;
  const bool prelu_by_channel = a.prelu_size == a.geometry.channels && a.prelu_size > 1;
  EpilogueParams e{};
  e.bias = a.bias;
  e.prelu = a.prelu;
  e.residual = a.residual.data;
  e.residual_stride = a.residual.stride;
  e.bias_c = a.weight_flipped ? 1 : 0;
  e.bias_o = a.weight_flipped ? 0 : 1;
  e.prelu_c = prelu_by_channel ? 1 : 0;
  e.prelu_o = !prelu_by_channel && a.prelu_size > 1 ? 1 : 0;
  e.activation = epilogue.activation;
  e.residual_kind = epilogue.residual_kind;
  e.clamped = epilogue.clamp_min != -__builtin_inf() || epilogue.clamp_max != __builtin_inf();
  e.negative_slope = epilogue.negative_slope;
  e.clamp_min = epilogue.clamp_min;
  e.clamp_max = epilogue.clamp_max;
  e.negative_slope_f = static_cast<float>(epilogue.negative_slope);
  e.clamp_min_f = static_cast<float>(epilogue.clamp_min);
  e.clamp_max_f = static_cast<float>(epilogue.clamp_max);
  const bool relu6 = epilogue.activation == Activation::kReLU6;
  const bool from_0 = relu6 || epilogue.activation == Activation::kReLU;
  const auto clamped = [&](float v) { return std::min(std::max(v, e.clamp_min_f), e.clamp_max_f); };
  e.floor_f = clamped(from_0 ? 0.f : -__builtin_inff());
  e.ceiling_f = clamped(relu6 ? 6.f : __builtin_inff());
  return e;
}

EpilogueParams no_epilogue() {
  EpilogueParams e{};
  e.clamp_min = -__builtin_inf();
  e.clamp_max = __builtin_inf();
  e.clamp_min_f = -__builtin_inff();
  e.clamp_max_f = __builtin_inff();
  e.floor_f = -__builtin_inff();
  e.ceiling_f = __builtin_inff();
  return e;
}

PixelLoad pixel_load(const PixelSource& source, int64_t batch, const TileSteps& s, int64_t images,
                     int64_t halo_h, int64_t halo_w) {
  PixelLoad load{};
  load.source = source;
  load.batch = static_cast<int>(batch);
  load.stride_h = static_cast<int>(s.stride_h);
  load.stride_w = static_cast<int>(s.stride_w);
  load.pad_top = static_cast<int>(s.pad_top);
  load.pad_left = static_cast<int>(s.pad_left);
  load.halo_w = SmallDivisor(halo_w);
  load.halo_h = SmallDivisor(halo_h);
  load.halo_pixels = SmallDivisor(images * halo_h * halo_w);
  return load;
}

void set_output(MmaParams& m, const TensorRef& output, const ShuffledChannels& map, int64_t oc,
                int64_t interleave) {
  m.output = output.data;
  m.out_batch_stride = output.stride.n;
  m.out_row_stride = output.stride.h;
  m.out_group_stride = output.stride.c;
  m.map = map;
  m.oc = static_cast<int>(oc);
  m.interleave = static_cast<int>(interleave);
  m.per_column = static_cast<int>(interleave / map.sizes.r_w.divisor);
}

namespace {

void set_tap_ranges(MmaParams& m, const Geometry& g, const Plan& plan) {
  const KernelPadding skipped = plan.single_phase ? skipped_padding(g) : KernelPadding{};
  m.kernel_pad_h = skipped.h;
  m.kernel_pad_w = skipped.w;
  for (int missing = 0; missing < 4; ++missing) {
    const int a = missing & kLacksFirstRow ? 1 : 0, b = missing & kLacksFirstColumn ? 1 : 0;
    const int across = m.kernel_w - b, taps = (static_cast<int>(g.kernel_h) - a) * across;
    if (taps > 0)
      m.ranges[missing] = {a, b, SmallDivisor(across), taps,
                           static_cast<int>(ceil_div(taps, plan.step_taps))};
  }
}

// The store's loop: by (tile row, interleave group, segment, slot of 16 bytes).
void set_store(MmaParams& m, const Plan& plan, DType dtype) {
  const int64_t vector = 16 / element_bytes(dtype);
  const auto slots = [&](int64_t length) { return ceil_div(length, vector) + 1; };
  m.whole_groups = m.oc <= plan.block_oc || plan.block_oc % m.interleave == 0;
  const int64_t most = std::min(m.oc, plan.block_oc);
  if (m.whole_groups) {
    m.store_slots = SmallDivisor(slots(int64_t{plan.tile_w} * m.interleave));
    m.store_segments = SmallDivisor(1);
    m.store_groups = SmallDivisor(most / m.interleave);
  } else {
    m.store_slots = SmallDivisor(slots(std::min<int64_t>(most, m.interleave)));
    m.store_segments = SmallDivisor(plan.tile_w);
    // a block's channels begin within a group if their number does not divide the group's
    const bool divides = m.interleave % plan.block_oc == 0;
    m.store_groups = SmallDivisor(divides ? 1 : (most + m.interleave - 2) / m.interleave + 1);
  }
}

void set_vector_store(MmaParams& m, const Plan& plan, DType dtype) {
  const int vector = 16 / static_cast<int>(element_bytes(dtype));
  const bool by_pixel = plan.staging == Staging::kPixels;
  const int groups = std::min(m.oc, plan.block_oc) / m.interleave, stretch = plan.tile_w * m.interleave;
  const int a = by_pixel ? plan.block_oc / vector : stretch / vector, b = by_pixel ? plan.tile_w : groups;
  VectorStoreParams& v = m.vectors;
  v.a = SmallDivisor(a);
  v.b = SmallDivisor(b);
  v.step_a = plan.threads % a;
  v.step_b = plan.threads / a % b;
  v.step_line = plan.threads / a / b;
  v.vectors = plan.tile_n * plan.tile_h * a * b;
  v.line_elements = a * b * vector;
  v.pixel_elements = by_pixel ? plan.block_oc : m.interleave;
  v.stretch = SmallDivisor(by_pixel ? vector : m.interleave);
  v.stretch_step = by_pixel ? vector : stretch;
  v.place_a = by_pixel ? 1 : 0;
  v.place_b = by_pixel ? 0 : 1;
  v.element_a = by_pixel ? 0 : vector;
  v.element_b = by_pixel ? m.interleave : 0;
  v.places = by_pixel ? a : b;
  v.place_columns = by_pixel ? vector : m.interleave;
  v.pairs = by_pixel || m.interleave % 2 == 0;
  v.eights = (by_pixel ? vector : m.interleave) % 8 == 0;
}

}  // namespace

void set_plan(MmaParams& m, const Geometry& g, const Plan& plan, const void* packed, DType dtype) {
  m.plan = plan;
  m.packed = packed;
  m.kernel_w = static_cast<int>(g.kernel_w);
  m.dilation_h = static_cast<int>(g.dilation_h);
  m.dilation_w = static_cast<int>(g.dilation_w);
  m.taps = static_cast<int>(g.kernel_h) * m.kernel_w;
  m.tiles = plan.tiles_n * plan.tiles_h * plan.tiles_w;
  m.tile_w = SmallDivisor(plan.tile_w);
  m.tile_h = SmallDivisor(plan.tile_h);
  m.tiles_w = Divisor(plan.tiles_w);
  m.tiles_h = Divisor(plan.tiles_h);
  m.store_interleave = SmallDivisor(m.interleave);
  set_tap_ranges(m, g, plan);
  if (plan.vectorised())
    set_vector_store(m, plan, dtype);
  else
    set_store(m, plan, dtype);
}

PackParams pack_params(const Geometry& g, const WeightSource& weight, void* packed, const Plan& plan,
                       const ShuffledChannels& map, Pass pass, bool whole_vectors) {
  const bool forward = pass == Pass::kForward;
  PackParams p{};
  p.weight = weight;
  p.packed = packed;
  p.oc = static_cast<int>(forward ? g.lr_channels() : g.in_channels);
  p.ic = static_cast<int>(forward ? g.in_channels : g.lr_channels());
  p.kernel_h = static_cast<int>(g.kernel_h);
  p.kernel_w = static_cast<int>(g.kernel_w);
  p.block_oc = plan.block_oc;
  p.k_blocks = Divisor(plan.k_blocks);
  p.oc_parts = Divisor(plan.block_oc / kPackOc);
  p.tap_parts = Divisor(ceil_div(g.kernel_h * g.kernel_w, kPackTaps));
  p.taps = Divisor(g.kernel_h * g.kernel_w);
  p.whole_vectors = whole_vectors;
  const uint32_t parts = whole_vectors ? p.taps.divisor : p.oc_parts.divisor * p.tap_parts.divisor;
  p.blocks = plan.grid_y * static_cast<int>(p.k_blocks.divisor * parts);
  const int64_t lr = map.order == ChannelOrder::kDCR ? weight.lr_channel.c : weight.lr_channel.j;
  p.k_nearer = forward ? weight.in_channel <= lr : lr <= weight.in_channel;
  p.across[0] = SmallDivisor(p.kernel_w);
  p.across[1] = SmallDivisor(std::max(1, p.kernel_w - 1));
  p.map = map;
  p.map_oc = forward;
  p.kernel_pad_h = forward ? static_cast<int>(g.kernel_pad_h) : 0;
  p.kernel_pad_w = forward ? static_cast<int>(g.kernel_pad_w) : 0;
  p.skips_missing_taps = plan.single_phase && skipped_padding(g).any();
  return p;
}

}  // namespace fused_subpixel::cuda
