// SPDX-License-Identifier: BSD-3-Clause
// K blocks and scratch of a convolution whose plan, source and weight tables are known. For plan*.cpp only.
#pragma once

#include "cpu/plan_pass.h"

namespace fused_subpixel::cpu {

// Products that are summed in one chain of additions.
constexpr int64_t kMaxChain = 256;
// Input channels of a K block, of `taps` products each. weight_bytes: see the definition.
int64_t block_channels(int64_t ic, int64_t taps, int64_t weight_bytes);

// Sets the task's K blocks, what else follows from them, and the scratch of a worker.
void set_k_blocks(const Target& target, ConvPass& pass);

}  // namespace fused_subpixel::cpu
