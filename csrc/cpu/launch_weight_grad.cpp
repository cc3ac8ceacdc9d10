// SPDX-License-Identifier: BSD-3-Clause
// The weight gradient.
#include <memory>

#include "cpu/launch.h"
#include "cpu/launch_keys.h"
#include "cpu/launch_queue.h"

namespace fused_subpixel::cpu {
namespace {

std::shared_ptr<const WeightGradPass> weight_grad_pass(const WeightGradArguments& a, const Kernels& kernels,
                                                       int threads, bool no_winograd) {
  thread_local PlanCache<WeightGradPass> cache;
  const Target target = target_of(kernels, a.dtype, threads);
  PlanKey key = key_of(a.geometry, a.dtype, target);
  add_strides(key, a.grad_output.stride);
  add_strides(key, a.input.stride);
  key.add_all(a.transposed, no_winograd);
  add_saved(key, a.saved);
  return cache.get(key, [&] { return plan_weight_grad_pass(a, target, no_winograd); });
}

void compute(const WeightGradArguments& a, const WeightGradPass& pass, const Kernels& kernels,
             const Pool& pool, void* sums, bool* nonfinite) {
  WeightGradTask task = pass.task;
  Source output = pass.output;
  output.data = a.saved.output.data;
  task.input.data = a.input.data;
  task.gradient.data = a.grad_output.data;
  task.gradient.activation = a.saved.activation;
  task.gradient.negative_slope = a.saved.negative_slope;
  if (task.gradient.output) task.gradient.output = &output;
  task.partial = sums;
  task.grad_weight = a.grad_weight;
  task.grad_bias = a.grad_bias;
  task.nonfinite = nonfinite;
  const WeightGradPlan& plan = task.plan;
  const auto weight_grad = plan.matrix ? kernels.matrix->weight_grad : kernels.weight_grad;
  const auto finish = plan.matrix ? kernels.matrix->finish_weight_grad : kernels.finish_weight_grad;
  // A slot has a fixed share, so that sums do not depend on which thread comes first.
  run_queue(plan.parallel, plan.items, pool, [&](WorkQueue& queue) { weight_grad(task, queue); });
  if (plan.slots > 1)
    run_queue(plan.parallel, plan.pairs(), pool, [&](WorkQueue& queue) { finish(task, queue); });
}

}  // namespace

void conv_weight_grad(const WeightGradArguments& a, const Allocate& allocate, const Pool& pool) {
  const Kernels& kernels = current_kernels();
  bool nonfinite = false;
  const auto run = [&](bool no_winograd) {
    const auto pass = weight_grad_pass(a, kernels, pool.threads, no_winograd);
    void* sums = pass->scratch_bytes > 0 ? allocate(pass->scratch_bytes) : nullptr;
    compute(a, *pass, kernels, pool, sums, &nonfinite);
  };
  run(false);
  // Winograd's kernel subtracts, and that of matrix tiles multiplies by zeros between rows: what is not finite then reaches
  // weights whose own products are.
  if (nonfinite) run(true);
}

WeightGradPlan plan_weight_grad_pass(const Geometry& g, DType dtype, bool channels_last, int threads) {
  return plan_dense_weight_grad(g, channels_last, target_of(current_kernels(), dtype, threads));
}

}  // namespace fused_subpixel::cpu
