// SPDX-License-Identifier: BSD-3-Clause
// The weight gradient.
#include <memory>

#include "cpu/launch.h"
#include "cpu/launch_keys.h"

namespace fused_subpixel::cpu {
namespace {

std::shared_ptr<const WeightGradPass> weight_grad_pass(const WeightGradArguments& a, const Kernels& kernels,
                                                       int threads) {
  thread_local PlanCache<WeightGradPass> cache;
  const Target target = target_of(kernels, a.dtype, threads);
  PlanKey key = key_of(a.geometry, a.dtype, target);
  add_strides(key, a.grad_output.stride);
  add_strides(key, a.input.stride);
  add_saved(key, a.saved);
  return cache.get(key, [&] { return plan_weight_grad_pass(a, target); });
}

}  // namespace

int64_t weight_grad_scratch(const WeightGradArguments& a, const Pool& pool) {
  return weight_grad_pass(a, current_kernels(), pool.threads)->scratch_bytes;
}

void conv_weight_grad(const WeightGradArguments& a, void* scratch, const Pool& pool) {
  const Kernels& kernels = current_kernels();
  const auto pass = weight_grad_pass(a, kernels, pool.threads);  // from the cache, after weight_grad_scratch
  WeightGradTask task = pass->task;
  Source output = pass->output;
  output.data = a.saved.output.data;
  task.input.data = a.input.data;
  task.gradient.data = a.grad_output.data;
  task.gradient.activation = a.saved.activation;
  task.gradient.negative_slope = a.saved.negative_slope;
  if (task.gradient.output) task.gradient.output = &output;
  task.partial = scratch;
  task.grad_weight = a.grad_weight;
  task.grad_bias = a.grad_bias;
  // Fixed shares, one slot each: sums, and so the result, do not depend on which thread comes first.
  const auto run_slots = [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot)
      kernels.weight_grad(task, slot, task.plan.items * slot / task.slots,
                          task.plan.items * (slot + 1) / task.slots);
  };
  if (task.slots > 1)
    pool.for_each_share(task.slots, run_slots);
  else
    run_slots(0, task.slots);
  kernels.finish_weight_grad(task);
}

}  // namespace fused_subpixel::cpu
