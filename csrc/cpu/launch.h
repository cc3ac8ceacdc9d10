// SPDX-License-Identifier: BSD-3-Clause
// Between the tensor checks and the kernels: finds the plan of a call, adds the pointers and gives its items to threads.
// No torch in here; the thread pool comes in as a function.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/isa.h"
#include "cpu/plan_pass.h"

namespace fused_subpixel::cpu {

struct Pool {
  int threads;
  // Calls run(begin, end) on ranges that cover [0, n).
  std::function<void(int64_t n, const std::function<void(int64_t, int64_t)>& run)> for_each_share;
};

void conv_forward(const ForwardArguments& a, const Pool& pool);
void conv_input_grad(const InputGradArguments& a, const Pool& pool);

// Bytes of zero-filled scratch that conv_weight_grad needs: one partial sum per worker.
int64_t weight_grad_scratch(const WeightGradArguments& a, const Pool& pool);
void conv_weight_grad(const WeightGradArguments& a, void* scratch, const Pool& pool);

// The plan for tensors in the default strides of their layout, with the current instruction set.
ConvPlan plan_pass(Pass pass, const Geometry& geometry, DType dtype, bool channels_last, int threads);

}  // namespace fused_subpixel::cpu
