// SPDX-License-Identifier: BSD-3-Clause
#include <sstream>

#include "common/plan_cache.h"
#include "cuda/launch.h"
#include "cuda/lowered_gradient.h"
#include "cuda/problem.h"

namespace fused_subpixel::cuda {
namespace {

// A plan as the cache keeps it.
template <class AnyPlan>
struct Cached {
  AnyPlan plan;
  int64_t bytes() const { return sizeof(Cached); }
};

PlanKey key_of(const Problem& p, const Target& t) {
  PlanKey key;
  key.add_all(p.dtype, p.batch, p.ic, p.oc, p.groups, p.lr_h, p.lr_w, p.kernel_h, p.kernel_w, p.stride_h,
              p.stride_w, p.dilation_h, p.dilation_w, p.interleave, p.tf32, p.vector, p.wgmma,
              p.whole_vectors, p.weight_vectors, p.image_step, p.row_step, p.col_step, p.whole_blocks,
              p.phase_oc, p.phase_h, p.phase_w, p.least_taps);
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

Plan planned_input_grad(const InputGradArguments& a, const Target& target) {
  const Geometry& g = a.geometry;
  if (g.stride_h != 1 || g.stride_w != 1) {
    Plan plan{};
    plan.refusal = Refusal::kStridedInputGrad;
    return plan;
  }
  const bool channels_last = channels_are_neighbours(a.grad_input.stride, g.in_channels);
  const bool whole_vectors =
      takes_whole_vectors(a.grad_input, a.dtype, plain_channels(g.in_channels), g.in_channels,
                          interleave_of(g.in_channels, 1, channels_last), 0, g.in_w, Epilogue{});
  return planned_conv(input_grad_problem(g, a.dtype, channels_last, gradient_source(a), whole_vectors),
                      target);
}

// It does not depend on how channels are copied.
WeightGradPlan planned_weight_grad(const Geometry& g, DType dtype, const Target& target) {
  return cached_plan<WeightGradPlan>(
      forward_problem(g, dtype, false, PixelSource{}, false, false), target,
      [](const Problem& p, const Target& t) { return plan_weight_grad(p, t); });
}

}  // namespace

ForwardPlan plan_forward(const ForwardArguments& a, const Target& target) {
  ForwardPlan made{};
  made.input = kernel_input(a.geometry, a.dtype, a.input, target);
  made.plan =
      planned_forward(a.geometry, a.dtype, made.input, weight_source(a), a.output, a.epilogue, target);
  if (made.plan.kernel != Kernel::kGeneric)
    made.scratch_bytes = aligned(made.plan.packed_bytes) + made.input.copy_bytes;
  return made;
}

namespace {

GradientPlan planned_gradients(const InputGradArguments* input, const WeightGradArguments* weight,
                               const Target& target) {
  GradientPlan made{};
  if (input) made.input = planned_input_grad(*input, target);
  if (weight) made.weight = planned_weight_grad(weight->geometry, weight->dtype, target);
  return made;
}

bool counts(const GradientArguments& a) {
  const Geometry& g = a.geometry;
  return g.batch * g.lr_h * g.lr_w > 0 && counts_gradient(g, a.dtype) &&
         counts_steps(g, a.grad_output.stride) && counts_steps(g, a.saved.output.stride);
}

}  // namespace

GradientPlan plan_gradients(const InputGradArguments* input, const WeightGradArguments* weight,
                            const Target& target) {
  const GradientArguments& gradient = input ? static_cast<const GradientArguments&>(*input) : *weight;
  GradientPlan made{};
  const bool activated = gradient.saved.activation != Activation::kNone;
  if (!activated && (!cuts_blocks(gradient.geometry) || !counts(gradient))) {
    made = planned_gradients(input, weight, target);
  } else if (!counts(gradient)) {
    made.input.refusal = made.weight.refusal = Refusal::kLargeGradient;
  } else {
    made = with_lowered(input, weight, nullptr,
                        [&](const auto* i, const auto* w) { return planned_gradients(i, w, target); });
    made.lowered = made.input.kernel != Kernel::kGeneric || made.weight.kernel != Kernel::kGeneric;
  }
  if (made.lowered) {
    const UnshuffleReduceArguments first = lowering(gradient, nullptr);
    const Geometry& g = first.geometry;
    made.unshuffle = plan_unshuffle_reduce(first, target);
    made.lr_grad_bytes = aligned(g.batch * g.lr_h * g.lr_w * made.unshuffle.vectors * 16);
    made.partial_bytes = aligned(made.unshuffle.partial_bytes);
  }
  made.scratch_bytes =
      made.lr_grad_bytes + made.partial_bytes + aligned(made.input.packed_bytes) + made.weight.partial_bytes;
  return made;
}

UnshuffleReducePlan plan_unshuffle_reduce(const UnshuffleReduceArguments& a, const Target& target) {
  const Geometry& g = a.geometry;
  const bool by_pixel = !channels_are_neighbours(a.grad_output.stride, g.channels);
  return plan_unshuffle_reduce(a.dtype, g.lr_channels(), g.batch * g.lr_h * g.lr_w, by_pixel, target);
}

namespace {

void set_conv(PassPlan& found, const Plan& p) {
  found.kernel = p.kernel;
  found.refusal = p.refusal;
  found.pixels = int64_t{p.tile_n} * p.tile_h * p.tile_w;
  found.block_oc = p.block_oc;
  found.block_k_bytes = p.block_k_bytes;
  found.blocks = int64_t{p.grid_x} * p.grid_y;
  found.tiles = int64_t{p.tiles_n} * p.tiles_h * p.tiles_w * p.grid_y;
  found.staging = p.staging;
  found.packs_weight = p.packs_weight;
}

}  // namespace

PassPlan plan_pass(Pass pass, const Geometry& g, DType dtype, bool channels_last, bool activated,
                   const Target& target) {
  const ConstTensorRef input{nullptr, dense_strides(g.in_channels, g.in_h, g.in_w, channels_last)};
  const TensorRef output{nullptr, dense_strides(g.channels, g.out_h, g.out_w, channels_last)};
  PassPlan found{};
  if (pass == Pass::kForward) {
    const ConstTensorRef dense_weight{
        nullptr, dense_strides(g.in_channels / g.groups, g.kernel_h, g.kernel_w, channels_last)};
    const WeightSource weight = weight_source(g, dense_weight, phase_strides(g, dense_weight.stride.n),
                                              g.kernel_pad_h + g.kernel_pad_w > 0);
    set_conv(found, planned_forward(g, dtype, kernel_input(g, dtype, input, target), weight, output,
                                    Epilogue{}, target));
    return found;
  }
  GradientArguments gradient{};
  gradient.geometry = g;
  gradient.dtype = dtype;
  gradient.grad_output.stride = gradient.saved.output.stride = output.stride;
  if (activated) gradient.saved.activation = Activation::kReLU;
  if (pass == Pass::kInputGrad) {
    const InputGradArguments a{gradient, {}, {}, false, {nullptr, input.stride}};
    const GradientPlan plan = plan_gradients(&a, nullptr, target);
    set_conv(found, plan.input);
    found.lowered = plan.lowered;
    return found;
  }
  const WeightGradArguments a{gradient, input, nullptr, nullptr, false};
  const GradientPlan plan = plan_gradients(nullptr, &a, target);
  const WeightGradPlan& p = plan.weight;
  found.kernel = p.kernel;
  found.refusal = p.refusal;
  found.pixels = int64_t{p.tile_n} * p.tile_h * p.tile_w;
  found.block_oc = int64_t{p.oc_warps} * kGradWarpOc;
  found.blocks = int64_t{p.oc_blocks} * p.ic_blocks * p.tap_blocks * p.splits;
  found.lowered = plan.lowered;
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
         << " output channels" << (plan.staging == Staging::kFloats ? "" : " in whole vectors")
         << (plan.lowered ? ", after unshuffle_reduce" : "");
  }
  return text.str();
}

}  // namespace fused_subpixel::cuda
