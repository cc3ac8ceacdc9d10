// SPDX-License-Identifier: BSD-3-Clause
// The instances of Hopper's kernels for one element type, by what the plan chose.
#pragma once

#include "cuda/kernels/sm90_conv.cuh"
#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

template <class T>
void launch_wgmma(const PackParams& pack, const MmaParams& params, void* stream) {
  const Plan& plan = params.plan;
  launch_listed(WgmmaBlockKBytes{}, plan.block_k_bytes, "block_k_bytes", [&](auto block_k_bytes) {
    constexpr int kVectors = decltype(block_k_bytes)::value / 16;
    launch_pack<T, KPlanes<kVectors>>(pack, stream);
    const auto kernel =
        plan.vectorised() ? &conv_wgmma_kernel<T, kVectors, true> : &conv_wgmma_kernel<T, kVectors, false>;
    run_kernel<MmaParams>(kernel, plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes, stream, params,
                          Start::kDuring);
  });
}

}  // namespace fused_subpixel::cuda
