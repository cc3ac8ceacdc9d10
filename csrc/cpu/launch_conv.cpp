// SPDX-License-Identifier: BSD-3-Clause
// The forward pass and the input gradient.
#include <algorithm>
#include <memory>
#include <new>

#include "cpu/launch.h"
#include "cpu/launch_keys.h"
#include "cpu/launch_queue.h"

namespace fused_subpixel::cpu {
namespace {

using PassPtr = std::shared_ptr<const ConvPass>;

PassPtr forward_pass(const ForwardArguments& a, const Target& t, NotFinite found) {
  thread_local PlanCache<ConvPass> cache;
  const bool residual = a.epilogue.residual_kind != ResidualKind::kNone;
  PlanKey key = key_of(a.geometry, a.dtype, t);
  add_strides(key, a.input.stride);
  add_strides(key, a.weight.stride);
  add_strides(key, a.output.stride);
  key.add_all(a.weight_rows.c, a.weight_rows.i, a.weight_rows.j, a.weight_flipped, found);
  key.add_all(a.epilogue.residual_kind);
  if (residual) add_strides(key, a.residual.stride);
  return cache.get(key, [&] { return plan_forward_pass(a, t, found); });
}

PassPtr input_grad_pass(const InputGradArguments& a, const Target& t, NotFinite found) {
  thread_local PlanCache<ConvPass> cache;
  PlanKey key = key_of(a.geometry, a.dtype, t);
  add_strides(key, a.grad_output.stride);
  add_strides(key, a.weight.stride);
  add_strides(key, a.grad_input.stride);
  key.add_all(a.weight_rows.c, a.weight_rows.i, a.weight_rows.j, a.weight_flipped, found);
  add_saved(key, a.saved);
  return cache.get(key, [&] { return plan_input_grad_pass(a, t, found); });
}

constexpr std::align_val_t kCacheLine{64};

struct Free {
  void operator()(void* p) const { ::operator delete(p, kCacheLine); }
};
using Memory = std::unique_ptr<void, Free>;

Memory aligned(size_t bytes) { return Memory(::operator new(bytes, kCacheLine)); }

void compute(ConvTask& task, const Kernels& kernels, const Pool& pool) {
  const ConvPlan& plan = task.plan;
  const bool matrix = plan.kernel == ConvKernel::kMatrix;
  const auto conv = matrix ? kernels.matrix->conv : kernels.conv;
  const auto pack_panels = matrix ? kernels.matrix->pack_panels : kernels.pack_panels;
  Memory panels;
  if (!plan.weights_resident && plan.scheme != WinogradScheme::kPasses) {
    const int64_t count = plan.shape.groups * plan.panels;
    const int64_t element = task.dtype == DType::kFloat64 ? 8 : 4;
    panels = aligned(static_cast<size_t>(count * plan.panel_elements * element));
    task.panels = panels.get();
    run_queue(plan.parallel, count, pool, [&](WorkQueue& queue) { pack_panels(task, queue); });
  }
  run_queue(plan.parallel, plan.items, pool, [&](WorkQueue& queue) { conv(task, queue); });
}

// pass_of(not_finite) returns the plan, set_pointers(task) adds the tensors.
template <class PassOf, class SetPointers>
void launch(const PassOf& pass_of, const SetPointers& set_pointers, const Kernels& kernels,
            const Pool& pool) {
  PassPtr pass = pass_of(NotFinite::kNothing);
  if (pass->task.plan.items == 0) return;
  bool weight = false, pixel = false;
  ConvTask task = pass->task;
  Source output = pass->output;
  const auto run = [&] {
    task.nonfinite_weight = &weight;
    task.nonfinite_pixel = &pixel;
    if (task.source.output) task.source.output = &output;
    set_pointers(task, output);
    compute(task, kernels, pool);
  };
  const auto run_again = [&](NotFinite found) {
    pass = pass_of(found);
    task = pass->task;
    run();
  };
  run();
  // A pixel would reach outputs that do not depend on it.
  if (pixel && !weight) run_again(NotFinite::kPixel);
  if (!weight) return;
  // Packing found a weight that is not finite. Kernels that subtract weights, or multiply zeros of padding or of missing taps,
  // are replaced by another one, and the border is computed again without the zeros of the packed input tile.
  if (needs_finite_weights(task.plan.kernel) || task.has_zero_taps()) run_again(NotFinite::kWeight);
  if (pass->padded)
    run_queue(task.plan.parallel, task.plan.items, pool,
              [&](WorkQueue& queue) { kernels.redo_borders(task, queue); });
}

PerChannel prelu_index(const ForwardArguments& a) {
  if (a.prelu_size <= 1) return PerChannel::kScalar;
  return a.prelu_size == a.geometry.channels ? PerChannel::kHighRes : PerChannel::kLowRes;
}

}  // namespace

// Memory is kept per thread while it is no larger than a packed input tile and a panel of weights in a large L2 cache. Only
// extreme layers ask for more, and that goes back to the system when something smaller comes.
void* thread_scratch(size_t bytes) {
  constexpr size_t kKept = size_t{4} << 20;
  thread_local Memory memory;
  thread_local size_t size = 0;
  if (bytes > size || (size > kKept && bytes <= kKept)) {
    memory.reset();
    size = 0;
    memory = aligned(bytes);
    size = bytes;
  }
  return memory.get();
}

void conv_forward(const ForwardArguments& a, const Pool& pool) {
  const Kernels& kernels = current_kernels();
  const Target target = target_of(kernels, a.dtype, pool.threads);
  const auto set_pointers = [&](ConvTask& task, Source&) {
    task.source.data = a.input.data;
    task.weight.data = a.weight.data;
    task.dest.data = a.output.data;
    TaskEpilogue& e = task.epilogue;
    e.bias = a.bias;
    e.bias_index = a.weight_flipped ? PerChannel::kHighRes : PerChannel::kLowRes;
    e.activation = a.epilogue.activation;
    e.negative_slope = a.epilogue.negative_slope;
    e.clamp_min = a.epilogue.clamp_min;
    e.clamp_max = a.epilogue.clamp_max;
    e.prelu = a.prelu;
    e.prelu_index = prelu_index(a);
    e.residual = a.residual.data;
  };
  launch([&](NotFinite found) { return forward_pass(a, target, found); }, set_pointers, kernels, pool);
}

void conv_input_grad(const InputGradArguments& a, const Pool& pool) {
  const Kernels& kernels = current_kernels();
  const Target target = target_of(kernels, a.dtype, pool.threads);
  const auto set_pointers = [&](ConvTask& task, Source& output) {
    task.source.data = a.grad_output.data;
    task.source.activation = a.saved.activation;
    task.source.negative_slope = a.saved.negative_slope;
    output.data = a.saved.output.data;
    task.weight.data = a.weight.data;
    task.dest.data = a.grad_input.data;
  };
  launch([&](NotFinite found) { return input_grad_pass(a, target, found); }, set_pointers, kernels, pool);
}

ConvPlan plan_pass(Pass pass, const Geometry& g, DType dtype, bool channels_last, bool transposed_weight,
                   int threads) {
  return plan_dense(pass, g, dtype, channels_last, transposed_weight,
                    target_of(current_kernels(), dtype, threads));
}

}  // namespace fused_subpixel::cpu
