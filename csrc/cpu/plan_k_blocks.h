// SPDX-License-Identifier: BSD-3-Clause
// K blocks and scratch of a convolution whose plan, source and weight tables are known. For plan*.cpp only.
#pragma once

#include "cpu/plan_streamed.h"

namespace fused_subpixel::cpu {

// Sets the task's K blocks, what else follows from them, and the scratch of a worker.
void set_k_blocks(const Target& target, const WeightRows& rows, ConvPass& pass);

}  // namespace fused_subpixel::cpu
