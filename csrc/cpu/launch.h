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

// Memory that lives until the call is done.
using Allocate = std::function<void*(int64_t bytes)>;
void conv_weight_grad(const WeightGradArguments& a, const Allocate& allocate, const Pool& pool);

// The plans for tensors in the default strides of their layout, with the current instruction set. The first: of the forward
// pass or of the input gradient.
ConvPlan plan_pass(Pass pass, const Geometry& geometry, DType dtype, bool channels_last,
                   bool transposed_weight, int threads);
WeightGradPlan plan_weight_grad_pass(const Geometry& geometry, DType dtype, bool channels_last, int threads);

}  // namespace fused_subpixel::cpu
