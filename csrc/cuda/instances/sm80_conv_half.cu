// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/instances/sm80_launch.cuh"

namespace fused_subpixel::cuda {
#if !defined(FS_SIMT)
int mma_image_version() {
  cudaFuncAttributes attributes;
  const auto* kernel = reinterpret_cast<const void*>(&conv_mma_kernel<Float16, 64, 2, 1, true>);
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion;
  (void)cudaGetLastError();
  return 0;
}
#endif

template void launch_mma<Float16>(const PackParams&, const MmaParams&, void*);
}  // namespace fused_subpixel::cuda
