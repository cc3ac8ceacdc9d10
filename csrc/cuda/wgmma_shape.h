// SPDX-License-Identifier: BSD-3-Clause
// The shape of one wgmma instruction, for kernels and planner.
#pragma once

namespace fused_subpixel::cuda {

// Rows and columns of its accumulators, and how many of them a thread has.
constexpr int kWgmmaRows = 64, kWgmmaColumns = 128, kWgmmaSums = kWgmmaColumns / 2;

}  // namespace fused_subpixel::cuda
