// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/launch.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "cuda/wgmma_shape.h"

namespace fused_subpixel::cuda {
namespace {

constexpr double kInfinity = __builtin_inf();

EpilogueParams epilogue_params(const ForwardArguments& a) {
  const bool by_channel = a.prelu_size == a.geometry.channels && a.prelu_size > 1;
  return {a.bias,
          a.prelu,
          a.residual.data,
          a.residual.stride,
          a.weight_flipped ? 1 : 0,
          a.weight_flipped ? 0 : 1,
          by_channel ? 1 : 0,
          !by_channel && a.prelu_size > 1 ? 1 : 0,
          a.epilogue.activation,
          a.epilogue.residual_kind,
          a.epilogue.clamp_min != -kInfinity || a.epilogue.clamp_max != kInfinity,
          a.epilogue.negative_slope,
          a.epilogue.clamp_min,
          a.epilogue.clamp_max,
          static_cast<float>(a.epilogue.negative_slope),
          static_cast<float>(a.epilogue.clamp_min),
          static_cast<float>(a.epilogue.clamp_max)};
}

EpilogueParams no_epilogue() {
  EpilogueParams e{};
  e.clamp_min = -kInfinity, e.clamp_max = kInfinity;
  e.clamp_min_f = -__builtin_inff(), e.clamp_max_f = __builtin_inff();
  return e;
}

// Channels of a channels_last tensor are counted (i, j, c), else (c, i, j).
ShuffledChannels counted(const Geometry& g, const Strides& s) {
  return {static_cast<int>(g.channels), static_cast<int>(g.r_h), static_cast<int>(g.r_w),
          channels_are_neighbours(s, g.channels) ? ChannelOrder::kDCR : ChannelOrder::kCRD, g.order};
}
ShuffledChannels plain(int64_t channels) {
  return {static_cast<int>(channels), 1, 1, ChannelOrder::kCRD, ChannelOrder::kCRD};
}

// Rows side by side in a row of fine pixels of a dense output.
int64_t interleave_of(int64_t channels, int64_t r_w, bool channels_last) {
  return channels_last ? r_w * channels : r_w;
}

#if FS_HAVE_SM90
constexpr bool kHaveWgmma = true;
#else
constexpr bool kHaveWgmma = false;
#endif

// What blocks of one phase leave out: nothing if some would have no tap at all.
struct Extension {
  int h, w;
};
Extension skipped_extension(const Geometry& g) {
  if ((g.kernel_h == 1 && g.kernel_pad_h > 0) || (g.kernel_w == 1 && g.kernel_pad_w > 0)) return {0, 0};
  return {static_cast<int>(g.kernel_pad_h), static_cast<int>(g.kernel_pad_w)};
}

// vector: of the input.
Problem forward_problem(const Geometry& g, DType dtype, bool channels_last, int vector) {
  Problem p{};
  p.dtype = dtype, p.batch = g.batch, p.groups = g.groups;
  p.ic = g.in_channels / g.groups, p.oc = g.lr_channels() / g.groups;
  p.lr_h = g.lr_h, p.lr_w = g.lr_w, p.kernel_h = g.kernel_h, p.kernel_w = g.kernel_w;
  p.stride_h = g.stride_h, p.stride_w = g.stride_w, p.dilation_h = g.dilation_h, p.dilation_w = g.dilation_w;
  p.interleave = interleave_of(g.channels, g.r_w, channels_last);
  p.tf32 = g.tf32, p.vector = vector, p.wgmma = kHaveWgmma;
  const int64_t phase_h = (g.out_h + g.r_h - 1) / g.r_h, phase_w = (g.out_w + g.r_w - 1) / g.r_w;
  const bool fewer = (phase_h < g.lr_h || phase_w < g.lr_w) && phase_h > 0 && phase_w > 0 && g.crop_top < g.r_h &&
                     g.crop_left < g.r_w;
  const Extension extension = skipped_extension(g);
  if (!channels_last || !(fewer || extension.h + extension.w > 0)) return p;
  p.phase_oc = g.channels;
  p.phase_h = fewer ? phase_h : g.lr_h, p.phase_w = fewer ? phase_w : g.lr_w;
  p.least_taps = (g.kernel_h - (extension.h > 0)) * (g.kernel_w - (extension.w > 0));
  const auto share = [](int64_t taps, int64_t phases, int64_t missing_taps_of) {
    return 1 - static_cast<double>(missing_taps_of) / static_cast<double>(taps * phases);
  };
  p.mean_taps_share = share(g.kernel_h, g.r_h, extension.h) * share(g.kernel_w, g.r_w, extension.w);
  return p;
}

// The convolution of the low-resolution gradient with the kernel flipped by 180 degrees.
Problem input_grad_problem(const Geometry& g, DType dtype, bool channels_last, const PixelSource& gradient) {
  return {dtype,
          g.batch,
          g.lr_channels() / g.groups,
          g.in_channels / g.groups,
          g.groups,
          g.in_h,
          g.in_w,
          g.kernel_h,
          g.kernel_w,
          1,
          1,
          g.dilation_h,
          g.dilation_w,
          interleave_of(g.in_channels, 1, channels_last),
          g.tf32,
          gradient.vector,
          kHaveWgmma,
          gradient.activation != Activation::kNone,
          0,
          0,
          0,
          0,
          1};
}

// The most elements, a power of two up to 16 bytes, that divide all steps from one run of channels to another.
int copied_at_once(const void* data, DType dtype, std::initializer_list<int64_t> steps) {
  const int64_t bytes = element_bytes(dtype);
  int64_t most = 16 / bytes;
  for (int64_t step : steps) most = std::gcd(most, step);
  while (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(most * bytes) != 0) most /= 2;
  return static_cast<int>(most);
}

// stored: channels of a pixel that may be read.
PixelSource plain_source(const ConstTensorRef& t, DType dtype, int64_t channels, int64_t h, int64_t w,
                         int64_t stored) {
  const Strides& s = t.stride;
  const bool neighbours = channels_are_neighbours(s, channels);
  PixelSource source{};
  source.data = t.data;
  source.stride = {s.n, s.h, s.w, s.c, 0, 0};
  source.map = plain(channels);
  source.total = static_cast<int>(channels);
  source.hr_h = static_cast<int>(h), source.hr_w = static_cast<int>(w);
  source.vector = neighbours ? copied_at_once(t.data, dtype, {s.n, s.h, s.w, stored}) : 1;
  source.by_pixel = !neighbours;
  return source;
}

// Of a shuffled tensor, where the channels of a pixel are counted (i, j, c).
int shuffled_vector(const Geometry& g, const ConstTensorRef& t, DType dtype) {
  const Strides& s = t.stride;
  if (!channels_are_neighbours(s, g.channels)) return 1;
  // the columns of a cell are neighbours too where pixels lie side by side, and where no crop can cut between them
  const bool cropped = g.crop_left > 0 || g.out_w != g.lr_w * g.r_w;
  const bool merged = s.w == g.channels && !cropped;
  const int64_t run = merged ? g.r_w * g.channels : g.channels, step = merged ? g.r_w * s.w : s.w;
  return copied_at_once(t.data, dtype, {s.n, s.h, step, run});
}

PixelStrides shuffled_strides(const Geometry& g, const Strides& s) {
  return {s.n, g.r_h * s.h, g.r_w * s.w, s.c, s.h, s.w};
}

PixelSource gradient_source(const Geometry& g, const ConstTensorRef& t, const SavedOutput& saved,
                            DType dtype) {
  PixelSource source{};
  source.data = t.data;
  source.stride = shuffled_strides(g, t.stride);
  source.map = counted(g, t.stride);
  source.total = static_cast<int>(g.lr_channels());
  source.crop_top = static_cast<int>(g.crop_top), source.crop_left = static_cast<int>(g.crop_left);
  source.hr_h = static_cast<int>(g.out_h), source.hr_w = static_cast<int>(g.out_w);
  source.vector = shuffled_vector(g, t, dtype);
  source.by_pixel = !channels_are_neighbours(t.stride, g.channels);
  if (saved.activation != Activation::kNone) {
    source.output = saved.output.data;
    source.output_stride = shuffled_strides(g, saved.output.stride);
    source.activation = saved.activation;
    source.negative_slope = static_cast<float>(saved.negative_slope);
    source.vector = std::min(source.vector, shuffled_vector(g, saved.output, dtype));
  }
  return source;
}

// Where tiles lie: stride and padding of the convolution, in low-resolution pixels.
struct Steps {
  int64_t stride_h, stride_w, pad_top, pad_left;
};

PixelLoad pixel_load(const PixelSource& source, int64_t batch, const Steps& s, int64_t images, int64_t halo_h,
                     int64_t halo_w) {
  return {source,
          static_cast<int>(batch),
          static_cast<int>(s.stride_h),
          static_cast<int>(s.stride_w),
          static_cast<int>(s.pad_top),
          static_cast<int>(s.pad_left),
          SmallDivisor(halo_w),
          SmallDivisor(halo_h),
          SmallDivisor(images * halo_h * halo_w),
          SmallDivisor(source.map.channels),
          SmallDivisor(source.map.r_h),
          SmallDivisor(source.map.r_w)};
}

void set_output(MmaParams& m, void* data, const Strides& s, const ShuffledChannels& map, int64_t rows,
                int64_t run) {
  m.output = data;
  m.out_batch_stride = s.n, m.out_row_stride = s.h, m.out_group_stride = s.c;
  m.map = map, m.oc = static_cast<int>(rows), m.interleave = static_cast<int>(run);
  m.per_column = static_cast<int>(run / map.r_w);
}

void set_plan(MmaParams& m, const Geometry& g, const Plan& plan, const void* packed, DType dtype) {
  m.kernel_w = static_cast<int>(g.kernel_w);
  m.dilation_h = static_cast<int>(g.dilation_h), m.dilation_w = static_cast<int>(g.dilation_w);
  m.plan = plan, m.packed = packed;
  m.taps = static_cast<int>(g.kernel_h) * m.kernel_w;
  m.tiles = plan.tiles_n * plan.tiles_h * plan.tiles_w;
  const Extension skipped = plan.single_phase ? skipped_extension(g) : Extension{};
  m.kernel_pad_h = skipped.h, m.kernel_pad_w = skipped.w;
  for (int lacks = 0; lacks < 4; ++lacks) {
    const int a = lacks / 2, b = lacks % 2, across = m.kernel_w - b;
    const int taps = (static_cast<int>(g.kernel_h) - a) * across;
    if (taps > 0)
      m.ranges[lacks] = {a, b, SmallDivisor(across), taps, (taps + plan.step_taps - 1) / plan.step_taps};
  }
  m.tile_w = SmallDivisor(plan.tile_w), m.tile_h = SmallDivisor(plan.tile_h);

  const int64_t vector = 16 / element_bytes(dtype);
  const auto slots = [&](int64_t length) { return (length + vector - 1) / vector + 1; };
  m.whole_groups = m.oc <= plan.block_oc || plan.block_oc % m.interleave == 0;
  const int64_t most = m.oc < plan.block_oc ? m.oc : plan.block_oc;
  if (m.whole_groups) {
    m.store_slots = SmallDivisor(slots(int64_t{plan.tile_w} * m.interleave)), m.store_segments = SmallDivisor(1);
    m.store_groups = SmallDivisor(most / m.interleave);
  } else {
    m.store_slots = SmallDivisor(slots(most < m.interleave ? most : m.interleave)),
    m.store_segments = SmallDivisor(plan.tile_w);
    // a block's rows begin in the middle of a unit where its number of rows does not divide the unit's
    m.store_groups = SmallDivisor(m.interleave % plan.block_oc == 0 ? 1 : (most + m.interleave - 2) / m.interleave + 1);
  }
  m.store_interleave = SmallDivisor(m.interleave);
}

// Builds for older GPUs only leave the tensor-core kernels out; their target says so (target_of in ops_cuda.cpp).
void launch(DType dtype, const PackParams& pack, const MmaParams& m, void* stream) {
#if FS_HAVE_SM90
  if (m.plan.kernel == Kernel::kWgmma) {
    if (dtype == DType::kFloat16) return launch_wgmma<Float16>(pack, m, stream);
    if (dtype == DType::kFloat32) return launch_wgmma<TF32>(pack, m, stream);
    return launch_wgmma<BFloat16>(pack, m, stream);
  }
#endif
#if FS_HAVE_SM80
  switch (dtype) {
    case DType::kFloat32: return launch_mma<TF32>(pack, m, stream);
    case DType::kBFloat16: return launch_mma<BFloat16>(pack, m, stream);
    case DType::kFloat16: return launch_mma<Float16>(pack, m, stream);
    case DType::kFloat64: break;
  }
#else
  (void)dtype, (void)pack, (void)m, (void)stream;
#endif
}

// A dense tensor in the default strides of its layout, of which only these count.
ConstTensorRef dense(int64_t channels, int64_t h, int64_t w, bool channels_last) {
  return {nullptr, channels_last ? Strides{channels * h * w, 1, w * channels, channels}
                                 : Strides{channels * h * w, h * w, w, 1}};
}

// The filter of a pass: rows are the convolution's channels, or, for the input gradient, those of the input.
PackParams pack_params(const Geometry& g, const ConstTensorRef& weight, const PhaseStrides& lr_channel_stride,
                       bool flipped, void* packed, const Plan& plan, const ShuffledChannels& map, Pass pass) {
  const Strides& s = weight.stride;
  const auto low = static_cast<int>(g.lr_channels()), in = static_cast<int>(g.in_channels);
  const auto kernel_h = static_cast<int>(g.kernel_h), kernel_w = static_cast<int>(g.kernel_w);
  const bool forward = pass == Pass::kForward;
  return {weight.data,
          packed,
          lr_channel_stride,
          s.c,
          s.h,
          s.w,
          forward ? low : in,
          forward ? in : low,
          kernel_h,
          kernel_w,
          plan.block_oc,
          plan.k_blocks,
          plan.grid_y,
          map,
          forward,
          flipped,
          forward ? static_cast<int>(g.kernel_pad_h) : 0,
          forward ? static_cast<int>(g.kernel_pad_w) : 0,
          plan.single_phase && skipped_extension(g).h + skipped_extension(g).w > 0};
}

// What the forward kernels read: the input, or a copy of it.
struct KernelInput {
  ConstTensorRef view;
  int64_t stored;      // channels of a pixel that may be read: with the copy's zeros
  int64_t copy_bytes;  // 0: it is the input
};

Plan forward_plan(const Geometry& g, DType dtype, const KernelInput& input, bool channels_last,
                  const Target& target) {
  const int vector = plain_source(input.view, dtype, g.in_channels, g.in_h, g.in_w, input.stored).vector;
  return plan_conv(forward_problem(g, dtype, channels_last, vector), target);
}

// Images whose channels are no neighbours are copied to channels_last before the tensor cores read them: gathered by
// every tile, element by element, they take 1.8 to 5.6 times as long on an H100. Of a few channels most of the copy would
// be zeros, which make them multiples of 16 bytes.
KernelInput kernel_input(const Geometry& g, DType dtype, const ConstTensorRef& input, const Target& target) {
  const KernelInput as_it_is{input, g.in_channels, 0};
  const int64_t vector = 16 / element_bytes(dtype), pixels = g.in_h * g.in_w;
  if (channels_are_neighbours(input.stride, g.in_channels) || g.in_channels < vector || pixels == 0)
    return as_it_is;
  if (refusal_of(forward_problem(g, dtype, false, 1), target) != Refusal::kNone) return as_it_is;
  constexpr int64_t kMost = (int64_t{1} << 31) - kLayoutTile;  // the kernel counts in 32 bits
  if (pixels >= kMost || g.batch * (pixels / kLayoutTile + 1) >= kMost) return as_it_is;
  const int64_t padded = (g.in_channels + vector - 1) / vector * vector;
  const Strides stride{pixels * padded, 1, g.in_w * padded, padded};
  return {{nullptr, stride}, padded, g.batch * stride.n * element_bytes(dtype)};
}
KernelInput kernel_input(const ForwardArguments& a, const Target& target) {
  return kernel_input(a.geometry, a.dtype, a.input, target);
}
void copy_to_channels_last(const ForwardArguments& a, const KernelInput& to, const Device& device) {
  const Geometry& g = a.geometry;
  const int64_t pixels = g.in_h * g.in_w;
  const LayoutParams p{a.input.data,
                       const_cast<void*>(to.view.data),
                       a.input.stride,
                       static_cast<int>(g.in_channels),
                       static_cast<int>(to.stored),
                       static_cast<int>(pixels),
                       static_cast<int>((pixels + kLayoutTile - 1) / kLayoutTile),
                       Divisor(g.in_w)};
  launch_channels_last(a.dtype, g.batch, p, device.stream);
}

Plan forward_plan(const ForwardArguments& a, const KernelInput& input, const Target& target) {
  return forward_plan(a.geometry, a.dtype, input,
                      channels_are_neighbours(a.output.stride, a.geometry.channels), target);
}
int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

Plan input_grad_plan(const Geometry& g, DType dtype, const PixelSource& gradient, bool channels_last,
                     const Target& target) {
  if (g.stride_h != 1 || g.stride_w != 1) {
    Plan plan{};
    plan.refusal = Refusal::kStridedInputGrad;
    return plan;
  }
  return plan_conv(input_grad_problem(g, dtype, channels_last, gradient), target);
}
Plan input_grad_plan(const InputGradArguments& a, const Target& target) {
  return input_grad_plan(a.geometry, a.dtype, gradient_source(a.geometry, a.grad_output, a.saved, a.dtype),
                         channels_are_neighbours(a.grad_input.stride, a.geometry.in_channels), target);
}
// How channels are copied makes no difference to it.
WeightGradPlan weight_grad_plan(const Geometry& g, DType dtype, const Target& target) {
  return plan_weight_grad(forward_problem(g, dtype, false, 1), target);
}

}  // namespace

int64_t forward_scratch(const ForwardArguments& a, const Target& target) {
  const KernelInput input = kernel_input(a, target);
  const Plan plan = forward_plan(a, input, target);
  return plan.kernel == Kernel::kGeneric ? 0 : aligned(plan.packed_bytes) + input.copy_bytes;
}
int64_t input_grad_scratch(const InputGradArguments& a, const Target& target) {
  return input_grad_plan(a, target).packed_bytes;
}

void conv_forward(const ForwardArguments& a, void* scratch, const Device& device) {
  const Geometry& g = a.geometry;
  KernelInput input = kernel_input(a, device.target);
  const Plan plan = forward_plan(a, input, device.target);
  const bool channels_last = channels_are_neighbours(a.output.stride, g.channels);
  if (plan.kernel == Kernel::kGeneric) {
    GenericParams p{};
    p.g = g;
    p.input = a.input.data, p.weight = a.weight.data, p.output = a.output.data;
    p.input_stride = a.input.stride, p.weight_stride = a.weight.stride, p.output_stride = a.output.stride;
    p.weight_rows = a.weight_rows, p.weight_flipped = a.weight_flipped;
    p.channels_last = channels_last;
    p.epilogue = epilogue_params(a);
    return launch_generic(Pass::kForward, a.dtype, p, device.target, device.stream);
  }
  const ShuffledChannels map = counted(g, a.output.stride);
  const PackParams pack =
      pack_params(g, a.weight, a.weight_rows, a.weight_flipped, scratch, plan, map, Pass::kForward);
  if (input.copy_bytes > 0) {
    input.view.data = static_cast<unsigned char*>(scratch) + aligned(plan.packed_bytes);
    copy_to_channels_last(a, input, device);
  }
  MmaParams m{};
  m.load = pixel_load(plain_source(input.view, a.dtype, g.in_channels, g.in_h, g.in_w, input.stored), g.batch,
                      {g.stride_h, g.stride_w, g.pad_top, g.pad_left}, plan.tile_n, plan.halo_h, plan.halo_w);
  set_output(m, a.output.data, a.output.stride, map, g.lr_channels(),
             interleave_of(g.channels, g.r_w, channels_last));
  m.lr_h = static_cast<int>(g.lr_h), m.lr_w = static_cast<int>(g.lr_w);
  m.crop_top = static_cast<int>(g.crop_top), m.crop_left = static_cast<int>(g.crop_left);
  m.out_h = static_cast<int>(g.out_h), m.out_w = static_cast<int>(g.out_w);
  m.epilogue = epilogue_params(a);

  set_plan(m, g, plan, scratch, a.dtype);
  launch(a.dtype, pack, m, device.stream);
}

void conv_input_grad(const InputGradArguments& a, void* scratch, const Device& device) {
  const Geometry& g = a.geometry;
  const bool channels_last = channels_are_neighbours(a.grad_input.stride, g.in_channels);
  const Plan plan = input_grad_plan(a, device.target);
  if (plan.kernel == Kernel::kGeneric) {
    GenericParams p{};
    p.g = g;
    p.grad_output = a.grad_output.data, p.weight = a.weight.data, p.output = a.grad_input.data;
    p.grad_stride = a.grad_output.stride, p.weight_stride = a.weight.stride,
    p.output_stride = a.grad_input.stride;
    p.channels_last = channels_last;
    p.saved = a.saved;
    return launch_generic(Pass::kInputGrad, a.dtype, p, device.target, device.stream);
  }
  MmaParams m{};
  const Steps steps{1, 1, (g.kernel_h - 1) * g.dilation_h - g.pad_top,
                    (g.kernel_w - 1) * g.dilation_w - g.pad_left};
  m.load = pixel_load(gradient_source(g, a.grad_output, a.saved, a.dtype), g.batch, steps, plan.tile_n,
                      plan.halo_h, plan.halo_w);
  const PackParams pack = pack_params(g, a.weight, phase_strides(g, a.weight.stride.n), true, scratch, plan,
                                      m.load.source.map, Pass::kInputGrad);
  set_output(m, a.grad_input.data, a.grad_input.stride, plain(g.in_channels), g.in_channels,
             interleave_of(g.in_channels, 1, channels_last));
  m.lr_h = m.out_h = static_cast<int>(g.in_h), m.lr_w = m.out_w = static_cast<int>(g.in_w);
  m.epilogue = no_epilogue();
  set_plan(m, g, plan, scratch, a.dtype);
  launch(a.dtype, pack, m, device.stream);
}

int64_t weight_grad_scratch(const WeightGradArguments& a, const Target& target) {
  return weight_grad_plan(a.geometry, a.dtype, target).partial_bytes;
}

void conv_weight_grad(const WeightGradArguments& a, void* scratch, const Device& device) {
  const Geometry& g = a.geometry;
  const WeightGradPlan plan = weight_grad_plan(g, a.dtype, device.target);
  if (plan.kernel == Kernel::kGeneric) {
    GenericParams p{};
    p.g = g;
    p.grad_output = a.grad_output.data, p.input = a.input.data, p.output = a.grad_weight,
    p.grad_bias = a.grad_bias;
    p.grad_stride = a.grad_output.stride, p.input_stride = a.input.stride;
    p.saved = a.saved;
    return launch_generic(Pass::kWeightGrad, a.dtype, p, device.target, device.stream);
  }
  WeightGradParams w{};
  w.input =
      pixel_load(plain_source(a.input, a.dtype, g.in_channels, g.in_h, g.in_w, g.in_channels), g.batch,
                 {g.stride_h, g.stride_w, g.pad_top, g.pad_left}, plan.tile_n, plan.halo_h, plan.halo_w);
  w.gradient = pixel_load(gradient_source(g, a.grad_output, a.saved, a.dtype), g.batch, {1, 1, 0, 0},
                          plan.tile_n, plan.tile_h, plan.tile_w);
  w.partial = static_cast<float*>(scratch), w.grad_weight = a.grad_weight, w.grad_bias = a.grad_bias;
  w.map = w.gradient.source.map;
  w.oc = static_cast<int>(g.lr_channels()), w.ic = static_cast<int>(g.in_channels);
  w.kernel_h = static_cast<int>(g.kernel_h), w.kernel_w = static_cast<int>(g.kernel_w);
  w.dilation_h = static_cast<int>(g.dilation_h), w.dilation_w = static_cast<int>(g.dilation_w);
  w.plan = plan;
  w.tile_w = SmallDivisor(plan.tile_w), w.tile_h = SmallDivisor(plan.tile_h);
#if FS_HAVE_SM80
  switch (a.dtype) {
    case DType::kFloat32: return launch_weight_grad_mma<TF32>(w, device.stream);
    case DType::kBFloat16: return launch_weight_grad_mma<BFloat16>(w, device.stream);
    case DType::kFloat16: return launch_weight_grad_mma<Float16>(w, device.stream);
    case DType::kFloat64: break;
  }
#endif
}

PassPlan plan_pass(Pass pass, const Geometry& g, DType dtype, bool channels_last, bool activated,
                   const Target& target) {
  if (pass == Pass::kWeightGrad) {
    const WeightGradPlan p = weight_grad_plan(g, dtype, target);
    return {p.kernel, p.refusal, int64_t{p.tile_n} * p.tile_h * p.tile_w,
            int64_t{p.oc_warps} * kGradWarpOc,
            int64_t{p.oc_blocks} * p.ic_blocks * p.tap_blocks * p.splits};
  }
  const ConstTensorRef input = dense(g.in_channels, g.in_h, g.in_w, channels_last);
  const ConstTensorRef output = dense(g.channels, g.out_h, g.out_w, channels_last);
  const SavedOutput saved{output, activated ? Activation::kReLU : Activation::kNone};
  const Plan p =
      pass == Pass::kForward
          ? forward_plan(g, dtype, kernel_input(g, dtype, input, target), channels_last, target)
          : input_grad_plan(g, dtype, gradient_source(g, output, saved, dtype), channels_last, target);
  return {p.kernel, p.refusal, int64_t{p.tile_n} * p.tile_h * p.tile_w, p.block_oc,
          int64_t{p.grid_x} * p.grid_y};
}

}  // namespace fused_subpixel::cuda
