// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/kernels/generic.cuh"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {
namespace {

template <class T>
void launch_typed(Pass pass, const GenericParams& p, const Target& target, void* stream) {
  const Geometry& g = p.g;
  // enough blocks to fill the GPU several times over; each walks on until all is done
  const int64_t most = int64_t{target.multiprocessors} * 16;
  if (pass == Pass::kWeightGrad) {
    const int64_t results = g.lr_channels() * (g.in_channels / g.groups * g.kernel_h * g.kernel_w + 1);
    return run_kernel<GenericParams>(&weight_grad_generic_kernel<T>,
                                     static_cast<int>(std::min(results, 4 * most)), 1, kReduceThreads,
                                     kReduceThreads * static_cast<int64_t>(sizeof(Compute<T>)), stream, p);
  }
  const bool forward = pass == Pass::kForward;
  const int64_t total =
      forward ? g.batch * g.channels * g.out_h * g.out_w : g.batch * g.in_channels * g.in_h * g.in_w;
  const int blocks = static_cast<int>(std::min((total + kGenericThreads - 1) / kGenericThreads, most));
  run_kernel<GenericParams>(forward ? &conv_generic_kernel<T> : &input_grad_generic_kernel<T>, blocks, 1,
                            kGenericThreads, 0, stream, p);
}

}  // namespace

#if !defined(FS_SIMT)
int image_error() {
  cudaFuncAttributes attributes;
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&conv_generic_kernel<float>));
  if (error != cudaSuccess) (void)cudaGetLastError();
  return static_cast<int>(error);
}
#endif

void launch_generic(Pass pass, DType dtype, const GenericParams& p, const Target& target, void* stream) {
  switch (dtype) {
    case DType::kFloat32: return launch_typed<float>(pass, p, target, stream);
    case DType::kFloat64: return launch_typed<double>(pass, p, target, stream);
    case DType::kBFloat16: return launch_typed<BFloat16>(pass, p, target, stream);
    case DType::kFloat16: return launch_typed<Float16>(pass, p, target, stream);
  }
}

}  // namespace fused_subpixel::cuda
