// SPDX-License-Identifier: BSD-3-Clause
// How a kernel is launched, on a GPU or in the emulator.
#pragma once

#include <stdexcept>
#include <string>

#include "device.cuh"

namespace fused_subpixel::cuda {

#if defined(FS_SIMT)

template <class Params>
void run_kernel(void (*kernel)(Params), int grid_x, int grid_y, int threads, int64_t shared_bytes, void*,
                const Params& params) {
  if (grid_x < 1 || grid_y < 1) throw std::runtime_error("an empty grid, which CUDA refuses");
  simt::launch<Params>(kernel, grid_x, grid_y, threads, static_cast<int>(shared_bytes), params);
}

#else

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // it would otherwise be found by the next call, of whomever
  throw std::runtime_error(std::string("fused_subpixel: ") + what + ": " + cudaGetErrorString(error));
}

// Blocks may have 48 KB of shared memory without asking. What is asked for is always the most the GPU has, so that
// threads that launch the same kernel with different sizes do not take it from one another.
template <class Params>
void run_kernel(void (*kernel)(Params), int grid_x, int grid_y, int threads, int64_t shared_bytes,
                void* stream, const Params& params) {
  const auto bytes = static_cast<int>(shared_bytes);
  if (bytes > 48 << 10) {
    int device = 0, most = 0;
    check_cuda(cudaGetDevice(&device), "the current GPU");
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "shared memory");
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, most),
               "shared memory");
  }
  kernel<<<dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)), static_cast<unsigned>(threads),
           static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)>>>(params);
  check_cuda(cudaGetLastError(), "a kernel could not be launched");
}

#endif

}  // namespace fused_subpixel::cuda
