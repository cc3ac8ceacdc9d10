// SPDX-License-Identifier: BSD-3-Clause
// The CPU kernels that multiply matrix tiles. The build compiles this file for AMX and for AVX512-BF16, with the matching flags,
// and for any processor, with a stand-in for either.
#include "cpu/conv_task.h"
#include "cpu/kernels/conv_matrix-inl.h"
#include "cpu/kernels/weight_grad_matrix-inl.h"

namespace fused_subpixel::cpu::FS_ISA {
namespace {

void run_conv(const ConvTask& task, WorkQueue& items) { run_worker<MatrixWorker<BFloat16>>(task, items); }
void run_pack_panels(const ConvTask& task, WorkQueue& panels) {
  pack_all_panels<MatrixWorker<BFloat16>>(task, panels);
}

void run_weight_grad(const WeightGradTask& task, WorkQueue& items) {
  MatrixWeightGradWorker<BFloat16> worker(task, true);
  for_each_range(items, [&](int64_t begin, int64_t end) { worker.run(begin, end); });
}
void run_finish_weight_grad(const WeightGradTask& task, WorkQueue& pairs) {
  const MatrixWeightGradWorker<BFloat16> worker(task, false);
  for_each_range(pairs, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair)
      worker.finish(pair, worker.sums_of(pair * task.plan.slots));
  });
}

}  // namespace

extern const MatrixKernels matrix_kernels;
const MatrixKernels matrix_kernels = {.tiles = Tiles::kKind,
                                      .conv = &run_conv,
                                      .pack_panels = &run_pack_panels,
                                      .weight_grad = &run_weight_grad,
                                      .finish_weight_grad = &run_finish_weight_grad};

}  // namespace fused_subpixel::cpu::FS_ISA
