// SPDX-License-Identifier: BSD-3-Clause
// The CPU kernels of one instruction set. The build compiles this file once for each, with -DFS_ISA=portable, avx2
// or avx512 and the matching flags; everything in it lives in that namespace.
#include "cpu/conv_task.h"
#include "cpu/kernels/weight_grad-inl.h"
#include "cpu/kernels/winograd-inl.h"

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

template <class F>
void with_worker(const ConvTask& task, F&& f) {
  with_type(task.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (__is_same(Compute<T>, float)) {
      if (task.plan.kernel == CpuKernel::kWinograd) return f(WinogradWorker<T>(task));
    }
    f(ConvWorker<T>(task));
  });
}

// One worker's part, which it computes as it comes.
template <class F>
void for_each_share(Shares& shares, F&& f) {
  for (Shares::Share s = shares.take(); s.begin < s.end; s = shares.take()) f(s.begin, s.end);
}
void run_conv(const ConvTask& task, Shares& items) {
  with_worker(task, [&](auto worker) {
    for_each_share(items, [&](int64_t begin, int64_t end) { worker.run(begin, end); });
  });
}
void run_redo_borders(const ConvTask& task, Shares& items) {
  with_type(task.dtype, [&](auto t) {
    ConvWorker<decltype(t)> worker(task);
    for_each_share(items, [&](int64_t begin, int64_t end) { worker.redo_borders(begin, end); });
  });
}
void run_pack_panels(const ConvTask& task, Shares& panels) {
  with_worker(task, [&](const auto& worker) {
    for_each_share(panels, [&](int64_t begin, int64_t end) {
      auto* to = static_cast<decltype(worker.filter)>(task.panels);
      const int64_t panels = task.plan.panels;
      for (int64_t p = begin, next; p < end; p = next) {
        const int64_t group = p / panels, first = group * panels;
        next = smaller(first + panels, end);
        worker.pack_panels(group, p - first, next - first, to + p * task.plan.panel_elements);
      }
    });
  });
}
void run_weight_grad(const WeightGradTask& task, int64_t slot, int64_t begin, int64_t end) {
  with_type(task.dtype, [&](auto t) { weight_grad<decltype(t)>(task, slot, begin, end); });
}
void run_finish_weight_grad(const WeightGradTask& task) {
  with_type(task.dtype, [&](auto t) { finish_weight_grad<decltype(t)>(task); });
}

}  // namespace

#define FS_STRING_(x) #x
#define FS_STRING(x) FS_STRING_(x)
extern const Kernels kernels;
const Kernels kernels = {FS_STRING(FS_ISA), kVectorBytes,     kRegisters,       &run_conv,
                         &run_redo_borders, &run_pack_panels, &run_weight_grad, &run_finish_weight_grad};

}  // namespace fused_subpixel::cpu::FS_ISA
