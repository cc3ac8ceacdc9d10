// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/launch.h"

#include <stdexcept>

#include "cuda/fill_params.h"
#include "cuda/lowered_gradient.h"
#include "cuda/problem.h"

namespace fused_subpixel::cuda {
namespace {

// A build without these kernels never plans them: its target says so (target_of in ops_cuda.cpp).
[[noreturn]] void not_built(const char* kernels) {
  throw std::logic_error(std::string("fused_subpixel: planned for ") + kernels + ", which this build lacks");
}

template <template <class> class Launch, class... Arguments>
void launch_of_type(DType dtype, const Arguments&... arguments) {
  switch (dtype) {
    case DType::kFloat32: return Launch<TF32>::run(arguments...);
    case DType::kBFloat16: return Launch<BFloat16>::run(arguments...);
    case DType::kFloat16: return Launch<Float16>::run(arguments...);
    case DType::kFloat64: break;
  }
  not_built("the tensor cores in float64");
}

#if FS_HAVE_SM80
template <class T>
struct MmaLaunch {
  static void run(const PackParams& pack, const MmaParams& m, void* stream) {
    launch_mma<T>(pack, m, stream);
  }
};
template <class T>
struct WeightGradLaunch {
  static void run(const WeightGradParams& w, void* stream) { launch_weight_grad_mma<T>(w, stream); }
};
#endif
#if FS_HAVE_SM90
template <class T>
struct WgmmaLaunch {
  static void run(const PackParams& pack, const MmaParams& m, void* stream) {
    launch_wgmma<T>(pack, m, stream);
  }
};
#endif

void launch_conv(DType dtype, const PackParams& pack, const MmaParams& m, void* stream) {
  if (m.plan.kernel == Kernel::kWgmma) {
#if FS_HAVE_SM90
    return launch_of_type<WgmmaLaunch>(dtype, pack, m, stream);
#endif
    not_built("wgmma");
  }
#if FS_HAVE_SM80
  return launch_of_type<MmaLaunch>(dtype, pack, m, stream);
#endif
  (void)dtype;
  (void)pack;
  (void)stream;
  not_built("mma.sync");
}

void copy_to_channels_last(const ForwardArguments& a, const KernelInput& copy, void* to,
                           const Device& device) {
  const Geometry& g = a.geometry;
  const int64_t pixels = g.in_h * g.in_w;
  LayoutParams p{};
  p.input = a.input.data;
  p.output = to;
  p.stride = a.input.stride;
  p.channels = static_cast<int>(g.in_channels);
  p.padded = static_cast<int>(copy.stored);
  p.pixels = static_cast<int>(pixels);
  p.tiles = static_cast<int>(ceil_div(pixels, kLayoutTile));
  p.width = Divisor(g.in_w);
  launch_channels_last(a.dtype, g.batch, p, device.stream);
}

}  // namespace

void conv_forward(const ForwardArguments& a, const ForwardPlan& made, void* scratch, const Device& device) {
  const Geometry& g = a.geometry;
  const Plan& plan = made.plan;
  const bool channels_last = channels_are_neighbours(a.output.stride, g.channels);
  if (plan.kernel == Kernel::kGeneric) {
    GenericParams p{};
    p.g = g;
    p.input = a.input.data;
    p.weight = a.weight.data;
    p.output = a.output.data;
    p.input_stride = a.input.stride;
    p.weight_stride = a.weight.stride;
    p.output_stride = a.output.stride;
    p.weight_rows = a.weight_rows;
    p.weight_flipped = a.weight_flipped;
    p.channels_last = channels_last;
    p.epilogue = epilogue_params(a);
    return launch_generic(Pass::kForward, a.dtype, p, device.target, device.stream);
  }
  const ShuffledChannels map = channels_of(g, a.output.stride);
  const WeightSource weight = weight_source(a);
  const PackParams pack =
      pack_params(g, weight, scratch, plan, map, Pass::kForward, has_whole_vectors(g, a.dtype, weight));
  ConstTensorRef input = made.input.view;
  if (made.input.copy_bytes > 0) {
    void* copy = static_cast<unsigned char*>(scratch) + aligned(plan.packed_bytes);
    copy_to_channels_last(a, made.input, copy, device);
    input.data = copy;
  }
  MmaParams m{};
  m.load = pixel_load(plain_source(input, a.dtype, g.in_channels, g.in_h, g.in_w, made.input.stored), g.batch,
                      {g.stride_h, g.stride_w, g.pad_top, g.pad_left}, plan.tile_n, plan.halo_h, plan.halo_w);
  set_output(m, a.output, map, g.lr_channels(), interleave_of(g.channels, g.r_w, channels_last));
  m.lr_h = static_cast<int>(g.lr_h);
  m.lr_w = static_cast<int>(g.lr_w);
  m.crop_top = static_cast<int>(g.crop_top);
  m.crop_left = static_cast<int>(g.crop_left);
  m.out_h = static_cast<int>(g.out_h);
  m.out_w = static_cast<int>(g.out_w);
  m.epilogue = epilogue_params(a);
  if (!plan.packs_weight) m.weight = pack.weight;
  set_plan(m, g, plan, scratch, a.dtype);
  launch_conv(a.dtype, pack, m, device.stream);
}

namespace {

void conv_input_grad(const InputGradArguments& a, const Plan& plan, void* scratch, const Device& device) {
  const Geometry& g = a.geometry;
  const bool channels_last = channels_are_neighbours(a.grad_input.stride, g.in_channels);
  if (plan.kernel == Kernel::kGeneric) {
    GenericParams p{};
    p.g = g;
    p.grad_output = a.grad_output.data;
    p.weight = a.weight.data;
    p.output = a.grad_input.data;
    p.grad_stride = a.grad_output.stride;
    p.weight_stride = a.weight.stride;
    p.output_stride = a.grad_input.stride;
    p.channels_last = channels_last;
    p.saved = a.saved;
    return launch_generic(Pass::kInputGrad, a.dtype, p, device.target, device.stream);
  }
  MmaParams m{};
  const TileSteps steps{1, 1, (g.kernel_h - 1) * g.dilation_h - g.pad_top,
                        (g.kernel_w - 1) * g.dilation_w - g.pad_left};
  m.load = pixel_load(gradient_source(a), g.batch, steps, plan.tile_n, plan.halo_h, plan.halo_w);
  const WeightSource weight = weight_source(g, a.weight, phase_strides(g, a.weight.stride.n), true);
  const PackParams pack = pack_params(g, weight, scratch, plan, m.load.source.map, Pass::kInputGrad, false);
  set_output(m, a.grad_input, plain_channels(g.in_channels), g.in_channels,
             interleave_of(g.in_channels, 1, channels_last));
  m.lr_h = static_cast<int>(g.in_h);
  m.lr_w = static_cast<int>(g.in_w);
  m.out_h = m.lr_h;
  m.out_w = m.lr_w;
  m.epilogue = no_epilogue();
  set_plan(m, g, plan, scratch, a.dtype);
  launch_conv(a.dtype, pack, m, device.stream);
}

void conv_weight_grad(const WeightGradArguments& a, const WeightGradPlan& plan, void* scratch,
                      const Device& device) {
  const Geometry& g = a.geometry;
  if (plan.kernel == Kernel::kGeneric) {
    GenericParams p{};
    p.g = g;
    p.grad_output = a.grad_output.data;
    p.input = a.input.data;
    p.output = a.grad_weight;
    p.grad_bias = a.grad_bias;
    p.grad_stride = a.grad_output.stride;
    p.input_stride = a.input.stride;
    p.saved = a.saved;
    return launch_generic(Pass::kWeightGrad, a.dtype, p, device.target, device.stream);
  }
  WeightGradParams w{};
  const PixelSource input = plain_source(a.input, a.dtype, g.in_channels, g.in_h, g.in_w, g.in_channels);
  w.input = pixel_load(input, g.batch, {g.stride_h, g.stride_w, g.pad_top, g.pad_left}, plan.tile_n,
                       plan.halo_h, plan.halo_w);
  w.gradient = pixel_load(gradient_source(a), g.batch, {1, 1, 0, 0}, plan.tile_n, plan.tile_h, plan.tile_w);
  w.partial = static_cast<float*>(scratch);
  w.grad_weight = a.grad_weight;
  w.grad_bias = a.grad_bias;
  w.map = w.gradient.source.map;
  w.oc = static_cast<int>(g.lr_channels());
  w.ic = static_cast<int>(g.in_channels);
  w.kernel_h = static_cast<int>(g.kernel_h);
  w.kernel_w = static_cast<int>(g.kernel_w);
  w.dilation_h = static_cast<int>(g.dilation_h);
  w.dilation_w = static_cast<int>(g.dilation_w);
  w.plan = plan;
  w.tile_w = SmallDivisor(plan.tile_w);
  w.tile_h = SmallDivisor(plan.tile_h);
  w.tiles_w = Divisor(plan.tiles_w);
  w.tiles_h = Divisor(plan.tiles_h);
#if FS_HAVE_SM80
  return launch_of_type<WeightGradLaunch>(a.dtype, w, device.stream);
#endif
  not_built("mma.sync");
}

}  // namespace

void conv_gradients(const InputGradArguments* input, const WeightGradArguments* weight,
                    const GradientPlan& plan, void* scratch, const Device& device) {
  auto* const memory = static_cast<unsigned char*>(scratch);
  unsigned char* const kernels_memory = memory + plan.lr_grad_bytes + plan.partial_bytes;
  const auto run = [&](const InputGradArguments* i, const WeightGradArguments* w) {
    if (i) conv_input_grad(*i, plan.input, kernels_memory, device);
    if (w) conv_weight_grad(*w, plan.weight, kernels_memory + aligned(plan.input.packed_bytes), device);
  };
  if (!plan.lowered) return run(input, weight);
  const GradientArguments& gradient = input ? static_cast<const GradientArguments&>(*input) : *weight;
  unshuffle_gradient(lowering(gradient, memory), plan.unshuffle, memory + plan.lr_grad_bytes, device);
  with_lowered(input, weight, memory, run);
}

void unshuffle_gradient(const UnshuffleReduceArguments& a, const UnshuffleReducePlan& plan, void* scratch,
                        const Device& device) {
  const Geometry& g = a.geometry;
  UnshuffleReduceParams p{};
  p.gradient = gradient_source(a);
  if (a.saved.activation != Activation::kNone) {
    p.output = a.saved.output.data;
    p.output_stride = shuffled_strides(g, a.saved.output.stride);
    p.activation = a.saved.activation;
    p.gradient.vector = std::min(p.gradient.vector, shuffled_vector(g, a.saved.output, a.dtype));
  }
  ShuffledChannels& map = p.gradient.map;
  // Where the two orders differ, neighbours in memory are none in the result.
  const bool neighbours = map.order == map.call_order || g.phases() == 1;
  const int whole = static_cast<int>(16 / element_bytes(a.dtype));
  const int vector = neighbours && p.gradient.vector == whole ? whole : 1;
  map.order = map.call_order;
  p.shuffle = {Divisor(g.channels), Divisor(g.r_h), Divisor(g.r_w)};
  p.lr_grad = a.lr_grad;
  p.partial = scratch;
  p.grad_bias = a.grad_bias;
  p.pixels = static_cast<int>(g.batch * g.lr_h * g.lr_w);
  p.lr_h = Divisor(g.lr_h);
  p.lr_w = Divisor(g.lr_w);
  p.negative_slope = a.saved.negative_slope;
  p.negative_slope_f = static_cast<float>(a.saved.negative_slope);
  p.plan = plan;
  p.vector_blocks = Divisor(plan.vector_blocks);
  p.block_vectors = Divisor(plan.block_vectors);
  p.block_pixels = Divisor(plan.block_pixels);
  launch_unshuffle_reduce(a.dtype, vector, p, device.stream);
}

}  // namespace fused_subpixel::cuda
