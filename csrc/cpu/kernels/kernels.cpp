// SPDX-License-Identifier: BSD-3-Clause
// The CPU kernels of one instruction set. The build compiles this file once for each, with -DFS_ISA=portable, avx2
// or avx512 and the matching flags; everything in it lives in that namespace.
#include "cpu/conv_task.h"
#include "cpu/kernels/borders-inl.h"
#include "cpu/kernels/conv_oc-inl.h"
#include "cpu/kernels/conv_ow-inl.h"
#include "cpu/kernels/conv_streamed-inl.h"
#include "cpu/kernels/weight_grad-inl.h"
#include "cpu/kernels/winograd_oc-inl.h"
#include "cpu/kernels/winograd_ow-inl.h"
#include "cpu/kernels/winograd_row-inl.h"

namespace fused_subpixel::cpu::FS_ISA {
namespace {

template <class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat64: return f(double{});
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kFloat16: return f(Float16{});
  }
}

template <class T, int M>
void run_winograd(const ConvTask& task, WorkQueue& items) {
  task.plan.channels_inner ? run_worker<WinogradOcWorker<T, M>>(task, items)
                           : run_worker<WinogradOwWorker<T, M>>(task, items);
}

void run_conv(const ConvTask& task, WorkQueue& items) {
  with_type(task.dtype, [&](auto t) {
    using T = decltype(t);
    switch (task.plan.kernel) {
      case ConvKernel::kOwVectorised: return run_worker<OwWorker<T>>(task, items);
      case ConvKernel::kOcVectorised: return run_worker<OcWorker<T>>(task, items);
      case ConvKernel::kWinograd:
        if constexpr (__is_same(Compute<T>, float)) return run_winograd<T, 2>(task, items);
        break;
      case ConvKernel::kWinograd4:
        if constexpr (__is_same(Compute<T>, float)) return run_winograd<T, 4>(task, items);
        break;
      case ConvKernel::kWinogradRow:
        if constexpr (__is_same(Compute<T>, float))
          return task.plan.row_outputs == 2 ? run_worker<WinogradRowWorker<T, 2>>(task, items)
                                            : run_worker<WinogradRowWorker<T, 4>>(task, items);
        break;
      case ConvKernel::kStreamed: return run_worker<StreamedWorker<T>>(task, items);
      case ConvKernel::kMatrix: break;  // of another file, matrix.cpp
    }
    __builtin_trap();  // no plan does this
  });
}
void run_redo_borders(const ConvTask& task, WorkQueue& items) {
  with_type(task.dtype, [&](auto t) { run_worker<BorderWorker<decltype(t)>>(task, items); });
}

void run_pack_panels(const ConvTask& task, WorkQueue& panels) {
  with_type(task.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (__is_same(Compute<T>, float)) {
      if (task.plan.kernel == ConvKernel::kWinograd)
        return pack_all_panels<WinogradOwWorker<T, 2>>(task, panels);
      if (task.plan.kernel == ConvKernel::kWinograd4)
        return pack_all_panels<WinogradOwWorker<T, 4>>(task, panels);
      if (task.plan.kernel == ConvKernel::kWinogradRow)
        return task.plan.row_outputs == 2 ? pack_all_panels<WinogradRowWorker<T, 2>>(task, panels)
                                          : pack_all_panels<WinogradRowWorker<T, 4>>(task, panels);
    }
    pack_all_panels<ConvWorker<T>>(task, panels);
  });
}

void run_weight_grad(const WeightGradTask& task, WorkQueue& items) {
  with_type(task.dtype, [&](auto t) {
    WeightGradWorker<decltype(t)> worker(task, true);
    for_each_range(items, [&](int64_t begin, int64_t end) { worker.run(begin, end); });
  });
}
void run_finish_weight_grad(const WeightGradTask& task, WorkQueue& pairs) {
  with_type(task.dtype, [&](auto t) {
    const WeightGradWorker<decltype(t)> worker(task, false);
    for_each_range(pairs, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair)
        worker.finish(pair, worker.sums_of(pair * task.plan.slots));
    });
  });
}

}  // namespace

#define FS_STRING_(x) #x
#define FS_STRING(x) FS_STRING_(x)
extern const Kernels kernels;
const Kernels kernels = {.name = FS_STRING(FS_ISA),
                         .vector_bytes = kVectorBytes,
                         .registers = kRegisters,
                         .conv = &run_conv,
                         .redo_borders = &run_redo_borders,
                         .pack_panels = &run_pack_panels,
                         .weight_grad = &run_weight_grad,
                         .finish_weight_grad = &run_finish_weight_grad,
                         .matrix = nullptr};

}  // namespace fused_subpixel::cpu::FS_ISA
