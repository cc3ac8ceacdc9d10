// SPDX-License-Identifier: BSD-3-Clause
// Between the tensor checks and the kernels: picks the instruction set, builds the tables of a task, plans it and
// shares its items among threads. No torch in here; the thread pool comes in as a function.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/conv_task.h"

namespace fused_subpixel::cpu {

enum class Isa : int32_t { kPortable, kAvx2, kAvx512 };

// Instruction sets that were built and that this processor can run; bit 1 << isa.
int32_t usable_isas();
Isa current_isa();
// False, and nothing changes, if this processor (or this build) cannot.
bool select_isa(Isa isa);
int64_t l2_bytes();

struct Pool {
  int threads;
  // run(begin, end) over shares of [0, n)
  std::function<void(int64_t n, const std::function<void(int64_t, int64_t)>& run)> for_each_share;
};

void conv_forward(const ForwardArguments& a, const Pool& pool);
void conv_input_grad(const InputGradArguments& a, const Pool& pool);

// Bytes of zero-filled scratch that conv_weight_grad needs: one partial sum per worker.
int64_t weight_grad_scratch(const WeightGradArguments& a, const Pool& pool);
void conv_weight_grad(const WeightGradArguments& a, void* scratch, const Pool& pool);

// The plan for tensors in the default strides of their layout.
CpuPlan plan_pass(Pass pass, const Geometry& geometry, DType dtype, bool channels_last, int threads);

}  // namespace fused_subpixel::cpu
