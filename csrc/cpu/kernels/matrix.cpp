// SPDX-License-Identifier: BSD-3-Clause
// The CPU kernels that multiply in tile registers. The build compiles this file once for AMX, with the matching flags and
// FS_TILE_REGISTERS, and once for any processor, with a stand-in for the registers.
#include "cpu/conv_task.h"
#include "cpu/kernels/conv_matrix-inl.h"

namespace fused_subpixel::cpu::FS_ISA {
namespace {

void run_conv(const ConvTask& task, WorkQueue& items) {
  run_worker<MatrixWorker<BFloat16>>(task, items);
}
void run_pack_panels(const ConvTask& task, WorkQueue& panels) {
  pack_all_panels<MatrixWorker<BFloat16>>(task, panels);
}

}  // namespace

extern const MatrixKernels matrix_kernels;
const MatrixKernels matrix_kernels = {.conv = &run_conv, .pack_panels = &run_pack_panels};

}  // namespace fused_subpixel::cpu::FS_ISA
