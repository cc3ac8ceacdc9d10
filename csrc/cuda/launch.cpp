// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/launch.h"

#include <sstream>
#include <stdexcept>

#include "common/plan_cache.h"
#include "cuda/fill_params.h"
#include "cuda/problem.h"

namespace fused_subpixel::cuda {
namespace {

int64_t aligned(int64_t bytes) { return round_up(bytes, 256); }

// ---- plans -----------------------------------------------------------------------------------------------------------

// A plan as the cache keeps it.
template <class AnyPlan>
struct Cached {
  AnyPlan plan;
  int64_t bytes() const { return sizeof(Cached); }
};

PlanKey key_of(const Problem& p, const Target& t) {
  PlanKey key;
  key.add_all(p.dtype, p.batch, p.ic, p.oc, p.groups, p.lr_h, p.lr_w, p.kernel_h, p.kernel_w, p.stride_h,
              p.stride_w, p.dilation_h, p.dilation_w, p.interleave, p.tf32, p.vector, p.wgmma, p.activated,
              p.whole_vectors, p.weight_vectors, p.image_step, p.row_step, p.col_step, p.phase_oc, p.phase_h,
              p.phase_w, p.least_taps);
  // mean_taps_share follows from the kernel padding, which one bit for each phase tells
  key.add_all(static_cast<int64_t>(p.mean_taps_share * (int64_t{1} << 52)), t.sm, t.multiprocessors,
              t.shared_bytes);
  return key;
}

// The plan of a problem, made once for equal ones.
template <class AnyPlan, class Make>
AnyPlan cached_plan(const Problem& problem, const Target& target, Make make) {
  thread_local PlanCache<Cached<AnyPlan>> cache;
  return cache
      .get(key_of(problem, target),
           [&] { return std::make_shared<const Cached<AnyPlan>>(Cached<AnyPlan>{make(problem, target)}); })
      ->plan;
}

Plan planned_conv(const Problem& p, const Target& t) { return cached_plan<Plan>(p, t, plan_conv); }

Plan planned_forward(const Geometry& g, DType dtype, const KernelInput& input, const WeightSource& weight,
                     const TensorRef& output, const Epilogue& epilogue, const Target& target) {
  const bool channels_last = channels_are_neighbours(output.stride, g.channels);
  const PixelSource source = plain_source(input.view, dtype, g.in_channels, g.in_h, g.in_w, input.stored);
  const bool whole_vectors =
      takes_whole_vectors(output, dtype, channels_of(g, output.stride), g.lr_channels(),
                          interleave_of(g.channels, g.r_w, channels_last), g.crop_left, g.out_w, epilogue);
  return planned_conv(
      forward_problem(g, dtype, channels_last, source, whole_vectors, has_whole_vectors(g, dtype, weight)),
      target);
}

Plan planned_input_grad(const Geometry& g, DType dtype, const PixelSource& gradient,
                        const TensorRef& grad_input, const Target& target) {
  if (g.stride_h != 1 || g.stride_w != 1) {
    Plan plan{};
    plan.refusal = Refusal::kStridedInputGrad;
    return plan;
  }
  const bool channels_last = channels_are_neighbours(grad_input.stride, g.in_channels);
  const bool whole_vectors =
      takes_whole_vectors(grad_input, dtype, plain_channels(g.in_channels), g.in_channels,
                          interleave_of(g.in_channels, 1, channels_last), 0, g.in_w, Epilogue{});
  return planned_conv(input_grad_problem(g, dtype, channels_last, gradient, whole_vectors), target);
}

// It does not depend on how channels are copied.
WeightGradPlan planned_weight_grad(const Geometry& g, DType dtype, const Target& target) {
  return cached_plan<WeightGradPlan>(
      forward_problem(g, dtype, false, PixelSource{}, false, false), target,
      [](const Problem& p, const Target& t) { return plan_weight_grad(p, t); });
}

// ---- launches --------------------------------------------------------------------------------------------------------

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

WeightSource weight_of(const ForwardArguments& a) {
  return weight_source(a.geometry, a.weight, a.weight_rows, a.weight_flipped);
}

}  // namespace

ForwardPlan plan_forward(const ForwardArguments& a, const Target& target) {
  ForwardPlan made{};
  made.input = kernel_input(a.geometry, a.dtype, a.input, target);
  made.plan = planned_forward(a.geometry, a.dtype, made.input, weight_of(a), a.output, a.epilogue, target);
  if (made.plan.kernel != Kernel::kGeneric)
    made.scratch_bytes = aligned(made.plan.packed_bytes) + made.input.copy_bytes;
  return made;
}

Plan plan_input_grad(const InputGradArguments& a, const Target& target) {
  const PixelSource gradient = gradient_source(a.geometry, a.grad_output, a.saved, a.dtype);
  return planned_input_grad(a.geometry, a.dtype, gradient, a.grad_input, target);
}

WeightGradPlan plan_weight_grad(const WeightGradArguments& a, const Target& target) {
  return planned_weight_grad(a.geometry, a.dtype, target);
}

UnshuffleReducePlan plan_unshuffle_reduce(const UnshuffleReduceArguments& a, const Target& target) {
  const Geometry& g = a.geometry;
  const bool by_pixel = !channels_are_neighbours(a.grad_output.stride, g.channels);
  return plan_unshuffle_reduce(a.dtype, g.lr_channels(), g.batch * g.lr_h * g.lr_w, by_pixel, target);
}

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
  const WeightSource weight = weight_of(a);
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
  m.load = pixel_load(gradient_source(g, a.grad_output, a.saved, a.dtype), g.batch, steps, plan.tile_n,
                      plan.halo_h, plan.halo_w);
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
  w.gradient = pixel_load(gradient_source(g, a.grad_output, a.saved, a.dtype), g.batch, {1, 1, 0, 0},
                          plan.tile_n, plan.tile_h, plan.tile_w);
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

void unshuffle_gradient(const UnshuffleReduceArguments& a, const UnshuffleReducePlan& plan, void* scratch,
                        const Device& device) {
  const Geometry& g = a.geometry;
  UnshuffleReduceParams p{};
  p.gradient = gradient_source(g, a.grad_output, a.saved, a.dtype);
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
  p.plan = plan;
  p.vector_blocks = Divisor(plan.vector_blocks);
  p.block_vectors = Divisor(plan.block_vectors);
  p.block_pixels = Divisor(plan.block_pixels);
  launch_unshuffle_reduce(a.dtype, vector, p, device.stream);
}

PassPlan plan_pass(Pass pass, const Geometry& g, DType dtype, bool channels_last, bool activated,
                   const Target& target) {
  PassPlan found{};
  if (pass == Pass::kWeightGrad) {
    const WeightGradPlan p = planned_weight_grad(g, dtype, target);
    found.kernel = p.kernel;
    found.refusal = p.refusal;
    found.pixels = int64_t{p.tile_n} * p.tile_h * p.tile_w;
    found.block_oc = int64_t{p.oc_warps} * kGradWarpOc;
    found.blocks = int64_t{p.oc_blocks} * p.ic_blocks * p.tap_blocks * p.splits;
    return found;
  }
  const ConstTensorRef input{nullptr, dense_strides(g.in_channels, g.in_h, g.in_w, channels_last)};
  const TensorRef output{nullptr, dense_strides(g.channels, g.out_h, g.out_w, channels_last)},
      grad_input{nullptr, input.stride};
  const ConstTensorRef gradient{nullptr, output.stride};
  const SavedOutput saved{gradient, activated ? Activation::kReLU : Activation::kNone};
  const ConstTensorRef dense_weight{
      nullptr, dense_strides(g.in_channels / g.groups, g.kernel_h, g.kernel_w, channels_last)};
  const WeightSource weight = weight_source(g, dense_weight, phase_strides(g, dense_weight.stride.n),
                                            g.kernel_pad_h + g.kernel_pad_w > 0);
  const Plan p =
      pass == Pass::kForward
          ? planned_forward(g, dtype, kernel_input(g, dtype, input, target), weight, output, Epilogue{},
                            target)
          : planned_input_grad(g, dtype, gradient_source(g, gradient, saved, dtype), grad_input, target);
  found.kernel = p.kernel;
  found.refusal = p.refusal;
  found.pixels = int64_t{p.tile_n} * p.tile_h * p.tile_w;
  found.block_oc = p.block_oc;
  found.block_k_bytes = p.block_k_bytes;
  found.blocks = int64_t{p.grid_x} * p.grid_y;
  found.tiles = int64_t{p.tiles_n} * p.tiles_h * p.tiles_w * p.grid_y;
  found.staging = p.staging;
  found.packs_weight = p.packs_weight;
  return found;
}

std::string describe(const PassPlan& plan) {
  std::ostringstream text;
  text << "cuda library, ";
  if (plan.kernel == Kernel::kGeneric) {
    text << "one thread per result: " << words_of(plan.refusal);
  } else {
    text << (plan.kernel == Kernel::kWgmma ? "Hopper's tensor cores (wgmma)" : "tensor cores (mma.sync)")
         << ", " << plan.blocks << " blocks, tiles of " << plan.pixels << " pixels x " << plan.block_oc
         << " output channels" << (plan.staging == Staging::kFloats ? "" : " in whole vectors");
  }
  return text.str();
}

}  // namespace fused_subpixel::cuda
