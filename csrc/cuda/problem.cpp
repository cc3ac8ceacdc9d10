// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/problem.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>

namespace fused_subpixel::cuda {
namespace {

#if FS_HAVE_SM90
constexpr bool kHaveWgmma = true;
#else
constexpr bool kHaveWgmma = false;
#endif

// The most elements, a power of two up to 16 bytes, that divide all steps from one stretch of channels to another.
int copied_at_once(const void* data, DType dtype, std::initializer_list<int64_t> steps) {
  const int64_t bytes = element_bytes(dtype);
  int64_t most = 16 / bytes;
  for (int64_t step : steps) most = std::gcd(most, step);
  while (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(most * bytes) != 0) most /= 2;
  return static_cast<int>(most);
}

void set_source(Problem& p, const PixelSource& source) {
  p.vector = source.vector;
  p.image_step = source.stride.batch;
  p.row_step = source.stride.row;
  p.col_step = source.stride.col;
  p.whole_blocks = source.whole_blocks;
}

// The part of a kernel's taps that a phase has on average.
double mean_share(int64_t taps, int64_t phases, int64_t padded) {
  return 1 - static_cast<double>(padded) / static_cast<double>(taps * phases);
}

}  // namespace

ShuffledChannels channels_of(const Geometry& g, const Strides& s) {
  ShuffledChannels map{};
  map.sizes = {SmallDivisor(g.channels), SmallDivisor(g.r_h), SmallDivisor(g.r_w)};
  map.order = channels_are_neighbours(s, g.channels) ? ChannelOrder::kDCR : ChannelOrder::kCRD;
  map.call_order = g.order;
  return map;
}

ShuffledChannels plain_channels(int64_t channels) {
  return {{SmallDivisor(channels), SmallDivisor(1), SmallDivisor(1)}, ChannelOrder::kCRD, ChannelOrder::kCRD};
}

int64_t interleave_of(int64_t channels, int64_t r_w, bool channels_last) {
  return channels_last ? r_w * channels : r_w;
}

KernelPadding skipped_padding(const Geometry& g) {
  if ((g.kernel_h == 1 && g.kernel_pad_h > 0) || (g.kernel_w == 1 && g.kernel_pad_w > 0)) return {0, 0};
  return {static_cast<int>(g.kernel_pad_h), static_cast<int>(g.kernel_pad_w)};
}

PixelSource plain_source(const ConstTensorRef& t, DType dtype, int64_t channels, int64_t h, int64_t w,
                         int64_t stored) {
  const Strides& s = t.stride;
  const bool neighbours = channels_are_neighbours(s, channels);
  PixelSource source{};
  source.data = t.data;
  source.stride = {s.n, s.h, s.w, s.c, 0, 0};
  source.map = plain_channels(channels);
  source.total = static_cast<int>(channels);
  source.hr_h = static_cast<int>(h);
  source.hr_w = static_cast<int>(w);
  source.whole_blocks = true;
  source.vector = neighbours ? copied_at_once(t.data, dtype, {s.n, s.h, s.w, stored}) : 1;
  source.by_pixel = !neighbours;
  return source;
}

bool cuts_blocks(const Geometry& g) {
  return g.crop_top > 0 || g.crop_left > 0 || g.out_h % g.r_h != 0 || g.out_w % g.r_w != 0;
}

int shuffled_vector(const Geometry& g, const ConstTensorRef& t, DType dtype, int64_t padding) {
  const Strides& s = t.stride;
  if (!channels_are_neighbours(s, g.channels)) return 1;
  // the columns of a sub-pixel block are neighbours too if pixels are, and if no crop can cut between them
  const bool cropped = g.crop_left > 0 || g.out_w != g.lr_w * g.r_w;
  const bool merged = s.w == g.channels && !cropped;
  const int64_t stretch = merged ? g.r_w * g.channels : g.channels + padding;
  const int64_t step = merged ? g.r_w * s.w : s.w;
  return copied_at_once(t.data, dtype, {s.n, s.h, step, stretch});
}

PixelStrides shuffled_strides(const Geometry& g, const Strides& s) {
  return {s.n, g.r_h * s.h, g.r_w * s.w, s.c, s.h, s.w};
}

PixelSource gradient_source(const GradientArguments& a) {
  const Geometry& g = a.geometry;
  const Strides& strides = a.grad_output.stride;
  PixelSource source{};
  source.data = a.grad_output.data;
  source.stride = shuffled_strides(g, strides);
  source.map = channels_of(g, strides);
  source.total = static_cast<int>(g.lr_channels());
  source.crop_top = static_cast<int>(g.crop_top);
  source.crop_left = static_cast<int>(g.crop_left);
  source.hr_h = static_cast<int>(g.out_h);
  source.hr_w = static_cast<int>(g.out_w);
  source.whole_blocks = !cuts_blocks(g);
  source.vector = shuffled_vector(g, a.grad_output, a.dtype, a.grad_padding);
  source.by_pixel = !channels_are_neighbours(strides, g.channels);
  return source;
}

WeightSource weight_source(const Geometry& g, const ConstTensorRef& weight, const PhaseStrides& lr_channel,
                           bool flipped) {
  const int64_t tap_h = weight.stride.h, tap_w = weight.stride.w;
  const int sign = flipped ? -1 : 1;
  const int64_t last = (g.kernel_h - 1) * tap_h + (g.kernel_w - 1) * tap_w;
  return {weight.data, lr_channel, weight.stride.c, sign * tap_h, sign * tap_w, flipped ? last : 0};
}

WeightSource weight_source(const ForwardArguments& a) {
  return weight_source(a.geometry, a.weight, a.weight_rows, a.weight_flipped);
}

bool has_whole_vectors(const Geometry& g, DType dtype, const WeightSource& weight) {
  if (weight.in_channel != 1 || g.kernel_pad_h > 0 || g.kernel_pad_w > 0) return false;
  const PhaseStrides& lr = weight.lr_channel;
  // of a single channel, row or column the step does not count
  const int64_t tap_h = g.kernel_h > 1 ? weight.tap_h : 0, tap_w = g.kernel_w > 1 ? weight.tap_w : 0;
  return copied_at_once(weight.data, dtype, {lr.c, lr.i, lr.j, tap_h, tap_w, g.in_channels}) ==
         16 / element_bytes(dtype);
}

bool takes_whole_vectors(const TensorRef& output, DType dtype, const ShuffledChannels& map, int64_t oc,
                         int64_t interleave, int64_t crop_left, int64_t out_w, const Epilogue& epilogue) {
  const bool in_registers = is_rectifier(epilogue.activation) || epilogue.activation == Activation::kReLU6;
  if (epilogue.residual_kind != ResidualKind::kNone || !in_registers) return false;
  const int vector = static_cast<int>(16 / element_bytes(dtype));
  const Strides& s = output.stride;
  const int64_t per_column = interleave / map.sizes.r_w.divisor;
  const int64_t group_step = oc / interleave > map.sizes.r_h.divisor
                                 ? s.c
                                 : 0;  // from one channel to the next, if there are several
  return copied_at_once(output.data, dtype,
                        {s.n, s.h, group_step, crop_left * per_column, out_w * per_column}) == vector;
}

Problem forward_problem(const Geometry& g, DType dtype, bool channels_last, const PixelSource& input,
                        bool whole_vectors, bool weight_vectors) {
  Problem p{};
  p.dtype = dtype;
  p.batch = g.batch;
  p.groups = g.groups;
  p.ic = g.in_channels / g.groups;
  p.oc = g.lr_channels() / g.groups;
  p.lr_h = g.lr_h;
  p.lr_w = g.lr_w;
  p.kernel_h = g.kernel_h;
  p.kernel_w = g.kernel_w;
  p.stride_h = g.stride_h;
  p.stride_w = g.stride_w;
  p.dilation_h = g.dilation_h;
  p.dilation_w = g.dilation_w;
  p.interleave = interleave_of(g.channels, g.r_w, channels_last);
  p.tf32 = g.tf32;
  set_source(p, input);
  p.whole_vectors = whole_vectors;
  p.weight_vectors = weight_vectors;
  p.wgmma = kHaveWgmma;
  const PhaseGeometry phases(g);
  const bool spared = phases.h.starts_in_first_block() && phases.w.starts_in_first_block() &&
                      (phases.h.spared_pixels() > 0 || phases.w.spared_pixels() > 0);
  const KernelPadding padding = skipped_padding(g);
  if (!channels_last || !(spared || padding.any())) return p;
  p.phase_oc = g.channels;
  p.phase_h = spared ? phases.h.pixels : g.lr_h;
  p.phase_w = spared ? phases.w.pixels : g.lr_w;
  p.least_taps = (g.kernel_h - (padding.h > 0)) * (g.kernel_w - (padding.w > 0));
  p.mean_taps_share = mean_share(g.kernel_h, g.r_h, padding.h) * mean_share(g.kernel_w, g.r_w, padding.w);
  return p;
}

Problem input_grad_problem(const Geometry& g, DType dtype, bool channels_last, const PixelSource& gradient,
                           bool whole_vectors) {
  Problem p{};
  p.dtype = dtype;
  p.batch = g.batch;
  p.groups = g.groups;
  p.ic = g.lr_channels() / g.groups;
  p.oc = g.in_channels / g.groups;
  p.lr_h = g.in_h;
  p.lr_w = g.in_w;
  p.kernel_h = g.kernel_h;
  p.kernel_w = g.kernel_w;
  p.stride_h = 1;
  p.stride_w = 1;
  p.dilation_h = g.dilation_h;
  p.dilation_w = g.dilation_w;
  p.interleave = interleave_of(g.in_channels, 1, channels_last);
  p.tf32 = g.tf32;
  set_source(p, gradient);
  p.whole_vectors = whole_vectors;
  p.wgmma = kHaveWgmma;
  p.mean_taps_share = 1;
  return p;
}

// Images whose channels are no neighbours are copied to channels_last before the tensor cores read them: gathered by
// every tile, element by element, they take 1.8 to 5.6 times as long on an H100. Of a few channels most of the copy would
// be zeros, which make them multiples of 16 bytes.
KernelInput kernel_input(const Geometry& g, DType dtype, const ConstTensorRef& input, const Target& target) {
  const KernelInput native{input, g.in_channels, 0};
  const int64_t vector = 16 / element_bytes(dtype), pixels = g.in_h * g.in_w;
  if (channels_are_neighbours(input.stride, g.in_channels) || g.in_channels < vector || pixels == 0)
    return native;
  if (refusal_of(forward_problem(g, dtype, false, PixelSource{}, false, false), target) != Refusal::kNone)
    return native;
  constexpr int64_t kMost = (int64_t{1} << 31) - kLayoutTile;  // the kernel counts in 32 bits
  if (pixels >= kMost || g.batch * (pixels / kLayoutTile + 1) >= kMost) return native;
  const int64_t padded = round_up(g.in_channels, vector);
  const Strides stride{pixels * padded, 1, g.in_w * padded, padded};
  return {{nullptr, stride}, padded, g.batch * stride.n * element_bytes(dtype)};
}

}  // namespace fused_subpixel::cuda
