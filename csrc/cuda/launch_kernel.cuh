// SPDX-License-Identifier: BSD-3-Clause
// How a kernel is launched, on a GPU or in the emulator.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/dispatch.h"
#include "cuda/launch.h"
#include "cuda/per_device.h"

#if defined(FS_SIMT)
#include "simt.h"
#else
#include <cuda_runtime.h>
#endif

namespace fused_subpixel::cuda {

// When a kernel may begin: after the one before it on the stream, or while that one runs and has called
// let_next_kernel_start(); then it calls wait_for_kernel_before() before it reads what that one writes.
enum class Start { kAfter, kDuring };

// Calls f(IntConstant<value>{}). A planned shape that is not compiled is an error.
template <class List, class F>
void launch_listed(List list, int value, const char* shape, F f) {
  if (!try_dispatch(list, value, f))
    throw std::logic_error(std::string("fused_subpixel: no kernel is compiled for ") + shape + " " +
                           std::to_string(value));
}

#if defined(FS_SIMT)

template <class Params>
void run_kernel(void (*kernel)(Params), int grid_x, int grid_y, int threads, int64_t shared_bytes, void*,
                const Params& params, Start = Start::kAfter) {
  if (grid_x < 1 || grid_y < 1) throw std::runtime_error("an empty grid, which CUDA refuses");
  simt::launch<Params>(kernel, grid_x, grid_y, threads, static_cast<int>(shared_bytes), params);
}

#else

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // it would otherwise be found by the next call, of whomever
  throw std::runtime_error(std::string("fused_subpixel: ") + what + ": " + cudaGetErrorString(error));
}

inline int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "the current GPU");
  return device;
}

// Programmatic dependent launch: by code for compute capability 9.0 and later - older code, compiled for such a GPU by
// the driver, would not wait - and in graphs by drivers for CUDA 12.3.
inline bool can_start_early() {
#if CUDART_VERSION >= 12030 && FS_HAVE_SM80
  static PerDevice<bool> known;
  return known.get(current_device(), [] {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12030 && mma_image_version() >= 90;
  });
#else
  return false;
#endif
}

// Blocks may have 48 KB of shared memory without asking. What is asked for is always the most the GPU has, so that
// threads that launch the same kernel with different sizes do not take it from one another; each thread asks once for a
// kernel and GPU.
inline void allow_shared_memory(const void* kernel) {
  thread_local std::vector<std::pair<const void*, int>> asked;
  const std::pair<const void*, int> request(kernel, current_device());
  if (std::find(asked.begin(), asked.end(), request) != asked.end()) return;
  int most = 0;
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, request.second),
             "shared memory");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
             "shared memory");
  asked.push_back(request);
}

template <class Params>
void run_kernel(void (*kernel)(Params), int grid_x, int grid_y, int threads, int64_t shared_bytes,
                void* stream, const Params& params, Start start = Start::kAfter) {
  const auto* address = reinterpret_cast<const void*>(kernel);
  const auto bytes = static_cast<int>(shared_bytes);
  if (bytes > 48 << 10) allow_shared_memory(address);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &early;
  config.numAttrs = start == Start::kDuring && can_start_early() ? 1 : 0;
  void* arguments[] = {const_cast<Params*>(&params)};
  check_cuda(cudaLaunchKernelExC(&config, address, arguments), "a kernel could not be launched");
}

#endif

}  // namespace fused_subpixel::cuda
