// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/kernels/unshuffle_reduce.cuh"

#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {
namespace {

template <class T, int kRead>
auto kernel_of(bool activated) {
  return activated ? &unshuffle_reduce_kernel<T, kRead, true> : &unshuffle_reduce_kernel<T, kRead, false>;
}

template <class T>
void launch_typed(int vector, const UnshuffleReduceParams& p, void* stream) {
  const UnshuffleReducePlan& plan = p.plan;
  const bool activated = p.output != nullptr;
  run_kernel<UnshuffleReduceParams>(
      vector == 1 ? kernel_of<T, 1>(activated) : kernel_of<T, Vector16<T>::kElements>(activated),
      plan.splits * plan.vector_blocks, 1, plan.threads, plan.shared_bytes, stream, p);
  if (!p.grad_bias) return;
  constexpr int kThreads = kSummedChannels * kSumStrips;
  run_kernel<UnshuffleReduceParams>(
      &bias_sums_kernel<T>, static_cast<int>(ceil_div(p.gradient.total, kSummedChannels)), 1, kThreads,
      kThreads * static_cast<int64_t>(sizeof(Compute<T>)), stream, p, Start::kDuring);
}

}  // namespace

void launch_unshuffle_reduce(DType dtype, int vector, const UnshuffleReduceParams& p, void* stream) {
  switch (dtype) {
    case DType::kFloat32: return launch_typed<float>(vector, p, stream);
    case DType::kFloat64: return launch_typed<double>(vector, p, stream);
    case DType::kBFloat16: return launch_typed<BFloat16>(vector, p, stream);
    case DType::kFloat16: return launch_typed<Float16>(vector, p, stream);
  }
}

}  // namespace fused_subpixel::cuda
