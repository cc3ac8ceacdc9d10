// SPDX-License-Identifier: BSD-3-Clause
// The instances of the tensor-core kernels for one element type, by what the plan chose.
#pragma once

#include "cuda/kernels/sm80_conv.cuh"
#include "cuda/kernels/sm80_weight_grad.cuh"
#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

template <class T, int kBlockKBytes>
void launch_mma_chunk(const PackParams& pack, const MmaParams& params, void* stream) {
  const Plan& plan = params.plan;
  launch_pack<T, XorSwizzled<kBlockKBytes>>(pack, plan, stream);
  const auto run = [&](void (*kernel)(MmaParams)) {
    run_kernel<MmaParams>(kernel, plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes, stream, params,
                          Start::kDuring);
  };
  switch (plan.block_oc) {  // tiles of 8 columns to a warp, warps side by side
    case 16: return run(&conv_mma_kernel<T, kBlockKBytes, 2, 1>);
    case 32: return run(&conv_mma_kernel<T, kBlockKBytes, 4, 1>);
    case 48: return run(&conv_mma_kernel<T, kBlockKBytes, 6, 1>);
    case 64: return run(&conv_mma_kernel<T, kBlockKBytes, 8, 1>);
    case 128: return run(&conv_mma_kernel<T, kBlockKBytes, 8, 2>);
  }
}

template <class T>
void launch_mma(const PackParams& pack, const MmaParams& params, void* stream) {
  if (params.plan.block_k_bytes == 32) return launch_mma_chunk<T, 32>(pack, params, stream);
  launch_mma_chunk<T, 64>(pack, params, stream);
}

template <class T>
void launch_weight_grad_mma(const WeightGradParams& params, void* stream) {
  const WeightGradPlan& plan = params.plan;
  const auto run = [&](void (*kernel)(WeightGradParams)) {
    run_kernel<WeightGradParams>(kernel, plan.splits, plan.oc_blocks * plan.ic_blocks * plan.tap_blocks,
                                 32 * kGradWarps, plan.shared_bytes, stream, params);
  };
  if (plan.taps == 1) run(&weight_grad_mma_kernel<T, 1>);
  if (plan.taps == 4) run(&weight_grad_mma_kernel<T, 4>);
  if (plan.taps == 9) run(&weight_grad_mma_kernel<T, 9>);
  const int64_t results =
      int64_t{params.oc} * (int64_t{params.ic} * params.kernel_h * params.kernel_w + 1);
  run_kernel<WeightGradParams>(&weight_grad_finish_kernel<T>,
                               static_cast<int>((results + kPackThreads - 1) / kPackThreads), 1, kPackThreads,
                               0, stream, params, Start::kDuring);
}

}  // namespace fused_subpixel::cuda
