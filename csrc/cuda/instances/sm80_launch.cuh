// SPDX-License-Identifier: BSD-3-Clause
// The instances of the tensor-core kernels for one element type, by what the plan chose. A shape that is not listed in
// plan.h is an error.
#pragma once

#include "cuda/kernels/sm80_conv.cuh"
#include "cuda/kernels/sm80_weight_grad.cuh"
#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

template <class T>
void launch_mma(const PackParams& pack, const MmaParams& params, void* stream) {
  const Plan& plan = params.plan;
  launch_listed(MmaBlockKBytes{}, plan.block_k_bytes, "block_k_bytes", [&](auto block_k_bytes) {
    constexpr int kBlockKBytes = decltype(block_k_bytes)::value;
    if (plan.packs_weight) launch_pack<T, XorSwizzled<kBlockKBytes>>(pack, stream);
    launch_listed(MmaBlockOc{}, plan.block_oc, "block_oc", [&](auto block_oc) {
      // tiles of 8 output channels to a warp, and two warps side by side for the widest
      constexpr int kOcWarps = decltype(block_oc)::value > 64 ? 2 : 1;
      constexpr int kOcTiles = decltype(block_oc)::value / 8 / kOcWarps;
      const auto kernel = plan.vectorised() ? &conv_mma_kernel<T, kBlockKBytes, kOcTiles, kOcWarps, true>
                                            : &conv_mma_kernel<T, kBlockKBytes, kOcTiles, kOcWarps, false>;
      run_kernel<MmaParams>(kernel, plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes, stream, params,
                            plan.packs_weight ? Start::kDuring : Start::kAfter);
    });
  });
}

template <class T>
void launch_weight_grad_mma(const WeightGradParams& params, void* stream) {
  const WeightGradPlan& plan = params.plan;
  launch_listed(WeightGradTaps{}, plan.taps, "taps", [&](auto taps) {
    run_kernel<WeightGradParams>(&weight_grad_mma_kernel<T, decltype(taps)::value>, plan.splits,
                                 plan.oc_blocks * plan.ic_blocks * plan.tap_blocks, 32 * kGradWarps,
                                 plan.shared_bytes, stream, params);
  });
  const int64_t results = int64_t{params.oc} * (int64_t{params.ic} * params.kernel_h * params.kernel_w + 1);
  run_kernel<WeightGradParams>(&weight_grad_finish_kernel<T>,
                               static_cast<int>(ceil_div(results, kPackThreads)), 1, kPackThreads, 0, stream,
                               params, Start::kDuring);
}

}  // namespace fused_subpixel::cuda
