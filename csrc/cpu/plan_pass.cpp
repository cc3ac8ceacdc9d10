// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_pass.h"

#include <algorithm>
#include <numeric>

#include "cpu/matrix_tiles.h"
#include "cpu/plan_flatten.h"
#include "cpu/plan_in_place.h"
#include "cpu/plan_k_blocks.h"
#include "cpu/plan_streamed.h"

namespace fused_subpixel::cpu {
namespace {

ConvShape forward_shape(const Geometry& g) {
  return {.batch = g.batch,
          .groups = g.groups,
          .ic = g.in_channels / g.groups,
          .oc = g.lr_channels() / g.groups,
          .lr_h = g.lr_h,
          .lr_w = g.lr_w,
          .kernel_h = g.kernel_h,
          .kernel_w = g.kernel_w,
          .stride_h = g.stride_h,
          .stride_w = g.stride_w,
          .dilation_h = g.dilation_h,
          .dilation_w = g.dilation_w,
          .pad_top = g.pad_top,
          .pad_left = g.pad_left};
}

// The input gradient is a convolution of the low-resolution gradient with the kernel rotated by 180 degrees.
ConvShape input_grad_shape(const Geometry& g) {
  return {.batch = g.batch,
          .groups = g.groups,
          .ic = g.lr_channels() / g.groups,
          .oc = g.in_channels / g.groups,
          .lr_h = g.in_h,
          .lr_w = g.in_w,
          .kernel_h = g.kernel_h,
          .kernel_w = g.kernel_w,
          .stride_h = 1,
          .stride_w = 1,
          .dilation_h = g.dilation_h,
          .dilation_w = g.dilation_w,
          .pad_top = (g.kernel_h - 1) * g.dilation_h - g.pad_top,
          .pad_left = (g.kernel_w - 1) * g.dilation_w - g.pad_left};
}

bool contiguous_oc(const Strides& s, int64_t interleave, const Target& t) {
  return s.c == 1 && interleave >= t.lanes;
}

ConvProblem conv_problem(const ConvShape& shape, const Strides& dest, int64_t interleave, const Target& t) {
  return {.shape = shape,
          .interleave = interleave,
          .oc_contiguous = contiguous_oc(dest, interleave, t),
          .spared_h = 0,
          .spared_w = 0,
          .mean_taps = static_cast<double>(shape.taps()),
          .phase_oc = 0,
          .phase_interleave = 1,
          .unused_h = 0,
          .unused_w = 0,
          .ic_interleave = 1,
          .ic_contiguous = false,
          .planar_input = false,
          .no_winograd = false,
          .no_zero_taps = false,
          .inexact = false,
          .weight_row = WeightRow::kNone,
          .row_length = 0,
          .row_by_tap = false,
          .read_pixels = 0,
          .phases = 1};
}

void set_rows(const WeightRows& rows, DType dtype, int64_t phases, ConvProblem& p) {
  const bool widened = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  // the OC-vectorised microkernel loads weights of the arithmetic type
  p.weight_row = widened && rows.kind == WeightRow::kOfInput ? WeightRow::kNone : rows.kind;
  p.row_length = rows.length;
  p.row_by_tap = rows.channel_step == 1;
  p.read_pixels = static_cast<int64_t>(rows.read_h.size() * rows.read_w.size());
  p.phases = phases;
}

// Outer positions that phases leave unused of kWinogradTaps taps, on average.
double unused_positions(const PhaseAxis& axis, bool spared) {
  double unused = 0;
  for (int64_t p = 0; p < axis.r; ++p) {
    const int64_t first = spared ? axis.first_pixel(p) : 0, lacks = p >= axis.r - axis.padded ? 1 : 0;
    unused += (first + lacks > 0 ? 1 : 0) + (first + axis.taps < kWinogradTaps ? 1 : 0);
  }
  return unused / static_cast<double>(axis.r);
}

ConvProblem forward_problem(const Geometry& g, const Source& source, const Strides& dest,
                            const ShuffledOc& oc, ResidualKind residual, const Target& t) {
  ConvProblem p = conv_problem(forward_shape(g), dest, oc.interleave, t);
  p.ic_interleave = source.interleave;
  p.ic_contiguous = source.interleave >= t.lanes;
  p.planar_input = source.interleave == 1;
  // Low-resolution residuals are read at the pixel that is computed, and phases of channel order dcr cross groups.
  if (residual == ResidualKind::kNearest || residual == ResidualKind::kLowRes) return p;
  if (g.groups != 1 && g.order != ChannelOrder::kCRD) return p;
  const SparedPixels spared = spared_pixels(g);
  const PhaseGeometry phases(g);
  p.spared_h = spared.h;
  p.spared_w = spared.w;
  p.mean_taps = phases.h.mean_taps() * phases.w.mean_taps();
  p.unused_h = unused_positions(phases.h, spared.h > 0);
  p.unused_w = unused_positions(phases.w, spared.w > 0);
  p.phase_oc = g.channels / g.groups;
  p.phase_interleave = oc.channels_last ? 1 : g.r_w;
  return p;
}

ConvProblem input_grad_problem(const Geometry& g, const Source& source, const Strides& dest,
                               const Target& t) {
  const ConvShape shape = input_grad_shape(g);
  ConvProblem p = conv_problem(shape, dest, plain_interleave(dest, shape.oc), t);
  p.ic_interleave =
      std::min(source.interleave, source.output ? source.output->interleave : source.interleave);
  p.ic_contiguous = p.ic_interleave >= t.lanes;
  return p;
}

bool is_inexact(const Geometry& g, DType dtype) { return g.tf32 && dtype == DType::kFloat32; }

Destination destination(const ConvProblem& p, const Strides& s) {
  Destination d{};
  d.stride = s;
  d.interleave = p.interleave;
  d.oc_contiguous = p.oc_contiguous;
  return d;
}

void set_weight(Weight::Dense dense, ConvPass& pass) {
  pass.task.weight = {.data = nullptr,
                      .oc_offset = pass.oc_offset.data(),
                      .ic_offset = pass.ic_offset.data(),
                      .tap_offset = pass.tap_offset.data(),
                      .missing_taps = pass.missing_taps.empty() ? nullptr : pass.missing_taps.data(),
                      .dense = dense};
}

// A gradient of the output as a source, and the forward pass's output if an activation's gradient is applied.
Source gradient_source(const Geometry& g, const Strides& s, const SavedOutput& saved, const ShuffledOc& oc,
                       SourceTables& tables, Source& output, SourceTables& output_tables) {
  Source source = shuffled_source(g, s, oc.order.phase, oc.interleave, tables);
  if (saved.activation == Activation::kNone) return source;
  // channels are in the gradient's order, which has no interleave groups in an output of the other layout
  output = shuffled_source(g, saved.output.stride, oc.order.phase,
                           shuffled_interleave(g, saved.output.stride, oc.order.phase), output_tables);
  source.output = &output;
  return source;
}

template <class... E>
int64_t bytes_of(const std::vector<E>&... v) {
  return (static_cast<int64_t>(v.capacity() * sizeof(E)) + ...);
}
int64_t bytes_of(const SourceTables& t) { return bytes_of(t.offset, t.row, t.col); }

}  // namespace

int64_t ConvPass::bytes() const {
  int64_t total = sizeof(*this) + bytes_of(source_tables) + bytes_of(output_tables) +
                  bytes_of(oc_offset, ic_offset, tap_offset, missing_taps, streamed_reads);
  total += bytes_of(oc.dest, oc.residual, oc.interleave_left, oc.hr_channel, oc.lr_channel, oc.hr_row,
                    oc.hr_col, oc.first_row, oc.first_col);
  for (const KTables& t : k) total += bytes_of(t.tap_offset, t.at, t.blocks);
  return total;
}

int64_t WeightGradPass::bytes() const {
  return static_cast<int64_t>(sizeof(*this)) + bytes_of(input_tables) + bytes_of(gradient_tables) +
         bytes_of(output_tables) +
         bytes_of(lr_channel, segment_input, segment_weight, tap_weight, input_weight, gradient_weight);
}

std::unique_ptr<ConvPass> plan_forward_pass(const ForwardArguments& arguments, const Target& t,
                                            NotFinite found) {
  ForwardArguments a = arguments;
  const bool residual = a.epilogue.residual_kind != ResidualKind::kNone;
  flatten_pixels(t, a.geometry,
                 {&a.input.stride, &a.output.stride, residual ? &a.residual.stride : &a.output.stride});
  const Geometry& g = a.geometry;
  auto made = std::make_unique<ConvPass>();
  ConvPass& pass = *made;
  ConvTask& task = pass.task;
  ShuffledOc oc = shuffled_oc(g, a.output.stride);
  task.dtype = a.dtype;
  task.source = input_source(g, a.input.stride, pass.source_tables);
  ConvProblem problem = forward_problem(g, task.source, a.output.stride, oc, a.epilogue.residual_kind, t);
  problem.inexact = is_inexact(g, a.dtype);
  problem.no_winograd = found != NotFinite::kNothing;
  problem.no_zero_taps = found != NotFinite::kNothing && g.kernel_pad_h + g.kernel_pad_w > 0;
  if (found == NotFinite::kWeight) problem.phase_oc = 0;

  // every group reads the same input channels of its own weights
  for (int64_t c = 0; c < g.in_channels; ++c)
    pass.ic_offset.push_back(c % problem.shape.ic * a.weight.stride.c);
  pass.tap_offset = tap_offsets(g, a.weight.stride, a.weight_flipped);
  const auto set_rows_of_phases = [&] {
    pass.oc_offset.clear();
    pass.missing_taps.clear();
    for (const Phase& p : oc.order.phase) {
      pass.oc_offset.push_back(p.c * a.weight_rows.c + p.i * a.weight_rows.i + p.j * a.weight_rows.j);
      if (g.kernel_pad_h + g.kernel_pad_w > 0)
        pass.missing_taps.push_back(static_cast<uint8_t>(missing_taps(p, g)));
    }
  };
  set_rows_of_phases();
  std::vector<int64_t> channel;
  for (const Phase& p : oc.order.phase) channel.push_back(p.c);
  const WeightRows rows = weight_rows(problem.shape, pass, channel);
  set_rows(rows, a.dtype, g.phases(), problem);
  task.plan = plan_conv(problem, t);
  if (task.plan.single_phase) {
    oc.order = oc_order(g, oc.channels_last, true);
    set_rows_of_phases();
  }
  read_in_place(a.dtype, t, task);
  set_weight(a.weight_flipped ? Weight::Dense::kNone : weight_density(a.weight.stride, g), pass);

  Destination& d = task.dest;
  d = destination(problem, a.output.stride);
  d.r_h = g.r_h;
  d.r_w = g.r_w;
  d.out_h = g.out_h;
  d.out_w = g.out_w;
  d.crop_left = task.plan.spared_w > 0 ? 0 : g.crop_left;
  task.epilogue.residual_kind = a.epilogue.residual_kind;
  task.epilogue.residual_stride = a.residual.stride;
  task.epilogue.residual_like_output =
      a.epilogue.residual_kind == ResidualKind::kHighRes && a.residual.stride == d.stride;
  pass.oc = oc_tables(g, oc.order, task);
  task.oc = pass.oc.view();
  pass.padded = g.pad_top > 0 || g.pad_left > 0 || g.pad_bottom > 0 || g.pad_right > 0;
  set_k_blocks(t, rows, pass);
  return made;
}

std::unique_ptr<ConvPass> plan_input_grad_pass(const InputGradArguments& arguments, const Target& t,
                                               NotFinite found) {
  InputGradArguments a = arguments;
  const bool saved = a.saved.activation != Activation::kNone;
  flatten_pixels(
      t, a.geometry,
      {&a.grad_output.stride, &a.grad_input.stride, saved ? &a.saved.output.stride : &a.grad_input.stride});
  const Geometry& g = a.geometry;
  auto made = std::make_unique<ConvPass>();
  ConvPass& pass = *made;
  ConvTask& task = pass.task;
  const ShuffledOc gradient = shuffled_oc(g, a.grad_output.stride);
  task.dtype = a.dtype;
  task.source = gradient_source(g, a.grad_output.stride, a.saved, gradient, pass.source_tables, pass.output,
                                pass.output_tables);
  ConvProblem problem = input_grad_problem(g, task.source, a.grad_input.stride, t);
  problem.no_winograd = found != NotFinite::kNothing;
  problem.inexact = is_inexact(g, a.dtype);

  const Strides& s = a.weight.stride;
  for (int64_t c = 0; c < g.in_channels; ++c) pass.oc_offset.push_back(c % problem.shape.oc * s.c);
  for (const Phase& p : gradient.order.phase)
    pass.ic_offset.push_back(p.c * a.weight_rows.c + p.i * a.weight_rows.i + p.j * a.weight_rows.j);
  pass.tap_offset = tap_offsets(g, s, !a.weight_flipped);
  std::vector<int64_t> channel(static_cast<size_t>(g.in_channels));
  std::iota(channel.begin(), channel.end(), 0);
  const WeightRows rows = weight_rows(problem.shape, pass, channel);
  set_rows(rows, a.dtype, 1, problem);
  task.plan = plan_conv(problem, t);
  read_in_place(a.dtype, t, task);
  set_weight(Weight::Dense::kNone, pass);

  Destination& d = task.dest;
  d = destination(problem, a.grad_input.stride);
  d.r_h = 1;
  d.r_w = 1;
  d.out_h = g.in_h;
  d.out_w = g.in_w;
  task.epilogue.clamp_min = -__builtin_inf();
  task.epilogue.clamp_max = __builtin_inf();
  pass.oc = plain_oc_tables(g.in_channels, task);
  task.oc = pass.oc.view();
  pass.padded = true;
  set_k_blocks(t, rows, pass);
  return made;
}

namespace {

// The strides of a weight in the default order of its layout.
struct DenseWeight {
  Strides stride;
  PhaseStrides rows;
};
DenseWeight dense_weight(const Geometry& g, bool channels_last, bool transposed) {
  if (!transposed) {
    const Strides s = dense_strides(g.in_channels / g.groups, g.kernel_h, g.kernel_w, channels_last);
    return {s, phase_strides(g, s.n)};
  }
  const int64_t kernel_h = g.kernel_h * g.r_h - g.kernel_pad_h,
                kernel_w = g.kernel_w * g.r_w - g.kernel_pad_w;
  const Strides s = dense_strides(g.channels, kernel_h, kernel_w, channels_last);
  return {{0, s.n, s.h * g.r_h, s.w * g.r_w}, {s.c, s.h, s.w}};
}

// Tiles of sums, and steps that spread over the cache's sets.
void set_matrix_sums(const InputTile& planes, WeightGradTask& task) {
  const WeightGradPlan& plan = task.plan;
  const auto spread = [](int64_t n, int64_t line) {
    const int64_t lines = ceil_div(n, line);
    return (lines <= 2 ? lines : lines | 1) * line;
  };
  const int64_t columns = ceil_div(plan.block_oc, kColumnOc);
  task.plane_step = spread(plan.block_n * planes.rows * planes.row_step + 3 * kTileChannels, kTileChannels);
  task.pair_step = spread(plan.block_oc, kColumnOc);
  task.sums = ceil_div(plan.block_ic, kStripPixels) * plan.shape.taps() * columns * kTileElements +
              columns * kColumnOc;
}

// Pairs of bfloat16 in the place of values.
void set_matrix_scratch(WeightGradTask& task) {
  const WeightGradPlan& plan = task.plan;
  const auto packed = [&](const InputTile& tile) {
    return ceil_div(plan.block_n * tile.image_step + 2 * kTileChannels * tile.column_step, 2);
  };
  WeightGradTask::Scratch& scratch = task.scratch;
  scratch.pixels = plan.tiles / kTileChannels;
  scratch.input_tile = packed(plan.input_tile);
  scratch.gradient_tile = packed(plan.gradient_tile);
  scratch.packing = std::max({packing_elements(task.input, plan.input_tile, kTileChannels),
                              packing_elements(task.gradient, plan.gradient_tile, kTileChannels),
                              ceil_div(plan.gradient_tile.row_step, 2)});
  scratch.arranged_input = ceil_div(round_up(plan.block_ic, kStripPixels) * task.plane_step, 2);
  scratch.arranged_gradient = plan.tiles / 2 * task.pair_step + kColumnOc;
}

}  // namespace

std::unique_ptr<WeightGradPass> plan_weight_grad_pass(const WeightGradArguments& a, const Target& t,
                                                      bool no_winograd) {
  const Geometry& g = a.geometry;
  auto made = std::make_unique<WeightGradPass>();
  WeightGradPass& pass = *made;
  WeightGradTask& task = pass.task;
  ShuffledOc gradient = shuffled_oc(g, a.grad_output.stride);
  task.dtype = a.dtype;
  task.input = input_source(g, a.input.stride, pass.input_tables);
  task.gradient = gradient_source(g, a.grad_output.stride, a.saved, gradient, pass.gradient_tables,
                                  pass.output, pass.output_tables);
  task.plan = plan_weight_grad({.shape = forward_shape(g),
                                .planar_input = task.input.interleave < t.lanes,
                                .planar_gradient = task.gradient.interleave < t.lanes,
                                .no_winograd = no_winograd},
                               t);
  const WeightGradPlan& plan = task.plan;
  const ConvShape& s = plan.shape;
  task.gradient_shape = gradient_shape(s);

  // the planes that matrix tiles read have the rows and columns of the packed tile
  InputTile planes = plan.input_tile;
  planes.column_step = 1;
  planes.row_step = planes.stride_phases * planes.phase_columns;
  const int64_t taps = s.taps(), of_input = plan.of_input(s.ic);
  // the gradient's own strides, of a weight as Conv2d or as ConvTranspose2d has it
  Strides of_weight{0, taps, s.kernel_w, 1};
  PhaseStrides rows = phase_strides(g, s.ic * taps);
  if (a.transposed) {
    const int64_t row = s.kernel_w * g.r_w, plane = s.kernel_h * g.r_h * row;
    of_weight = {0, g.channels * plane, row * g.r_h, g.r_w};
    rows = {plane, row, 1};
  }
  pass.tap_weight = tap_offsets(g, of_weight, a.transposed);
  for (int64_t h = 0; h < s.kernel_h; ++h) {
    for (int64_t w = 0; w < (plan.merged_taps ? 1 : s.kernel_w); ++w) {
      pass.segment_input.push_back(input_tile_offset(s, plan.matrix ? planes : plan.input_tile, 0, h, w));
      pass.segment_weight.push_back(pass.tap_weight[static_cast<size_t>(h * s.kernel_w + w)]);
    }
  }
  for (int64_t c = 0; c < of_input; ++c)
    pass.input_weight.push_back(c % s.ic * of_weight.c + pass.tap_weight[static_cast<size_t>(c / s.ic)] -
                                pass.tap_weight[0]);
  for (const Phase& p : gradient.order.phase)
    pass.gradient_weight.push_back(p.c * rows.c + p.i * rows.i + p.j * rows.j);
  task.dense_weight = !a.transposed;
  task.input_weight_step = of_weight.c;
  task.arithmetic_bias = a.transposed;
  pass.lr_channel = std::move(gradient.order.channel);
  task.segment_input = pass.segment_input.data();
  task.segment_weight = pass.segment_weight.data();
  task.tap_weight = pass.tap_weight.data();
  task.input_weight = pass.input_weight.data();
  task.gradient_weight = pass.gradient_weight.data();
  task.lr_channel = pass.lr_channel.data();

  const int64_t L = t.lanes, input_columns = plan.of_input(plan.block_ic);
  const int64_t lanes = plan.input_in_lanes ? input_columns : plan.block_oc;
  const int64_t columns = plan.input_in_lanes ? plan.block_oc : input_columns;
  // The positions of a tile are written and read at the same time, and an odd number of vectors apart they fall into different
  // cache sets.
  const auto odd_vectors = [L](int64_t n) { return (ceil_div(n, L) | 1) * L; };
  task.segment_step = odd_vectors(round_up(lanes, L) * columns);
  task.sums = plan.segments() * task.segment_step + round_up(plan.block_oc, L);
  task.winograd_input_step = winograd_pixel_step(plan.block_ic, L);
  task.winograd_gradient_step = winograd_pixel_step(plan.block_oc, L);
  task.winograd_input_position = odd_vectors(plan.tiles * task.winograd_input_step);
  task.winograd_gradient_position = odd_vectors(plan.tiles * task.winograd_gradient_step);
  if (plan.matrix) set_matrix_sums(planes, task);
  pass.scratch_bytes = plan.slots > 1 ? plan.items * task.sums * t.element_bytes : 0;

  const int64_t positions = plan.winograd ? plan.positions() : 0;
  // the vectors of the last register tile reach further than the last pixel
  const int64_t slack = (kMaxTileLanes + 1) * L;
  WeightGradTask::Scratch& scratch = task.scratch;
  scratch.pixels = plan.tiles;
  scratch.input_tile = plan.block_n * plan.input_tile.image_step + slack;
  scratch.gradient_tile = plan.block_n * plan.gradient_tile.image_step + slack;
  scratch.packing = std::max(packing_elements(task.input, plan.input_tile, L),
                             packing_elements(task.gradient, plan.gradient_tile, L));
  scratch.arranged_input = positions * task.winograd_input_position;
  scratch.arranged_gradient = positions * task.winograd_gradient_position;
  if (plan.matrix) set_matrix_scratch(task);
  scratch.sums = plan.slots > 1 ? 0 : task.sums;
  scratch.bytes = Arena::bytes(scratch.pixels, sizeof(ProductOffset));
  for (int64_t elements : {scratch.input_tile, scratch.gradient_tile, scratch.packing, scratch.arranged_input,
                           scratch.arranged_gradient, scratch.sums})
    scratch.bytes += Arena::bytes(elements, t.element_bytes);
  return made;
}

ConvPlan plan_dense(Pass pass, const Geometry& g, DType dtype, bool channels_last, bool transposed_weight,
                    const Target& t) {
  const Strides input = dense_strides(g.in_channels, g.in_h, g.in_w, channels_last);
  const Strides output = dense_strides(g.channels, g.out_h, g.out_w, channels_last);
  const DenseWeight weight = dense_weight(g, channels_last, transposed_weight);
  const auto describe_call = [&](auto& a) {
    a.geometry = g;
    a.dtype = dtype;
    a.weight.stride = weight.stride;
    a.weight_rows = weight.rows;
    a.weight_flipped = transposed_weight;
  };
  if (pass == Pass::kForward) {
    ForwardArguments a{};
    describe_call(a);
    a.input.stride = input;
    a.output.stride = output;
    return plan_forward_pass(a, t, NotFinite::kNothing)->task.plan;
  }
  InputGradArguments a{};
  describe_call(a);
  a.grad_output.stride = output;
  a.grad_input.stride = input;
  return plan_input_grad_pass(a, t, NotFinite::kNothing)->task.plan;
}

WeightGradPlan plan_dense_weight_grad(const Geometry& g, bool channels_last, const Target& t) {
  const Strides input = dense_strides(g.in_channels, g.in_h, g.in_w, channels_last);
  const ShuffledOc oc = shuffled_oc(g, dense_strides(g.channels, g.out_h, g.out_w, channels_last));
  SourceTables tables;
  return plan_weight_grad({.shape = forward_shape(g),
                           .planar_input = input_source(g, input, tables).interleave < t.lanes,
                           .planar_gradient = oc.interleave < t.lanes,
                           .no_winograd = false},
                          t);
}

}  // namespace fused_subpixel::cpu
