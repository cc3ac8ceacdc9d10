// SPDX-License-Identifier: BSD-3-Clause
// The shape of one wgmma instruction, for kernels and planner.
#pragma once

namespace fused_subpixel::cuda {

// Rows and columns of its accumulators, and how many of them a thread has.
constexpr int kWgmmaM = 64, kWgmmaN = 128, kWgmmaAcc = kWgmmaN / 2;

}  // namespace fused_subpixel::cuda
