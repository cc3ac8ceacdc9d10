// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA library calls outside of its own host code, replaced by functions that return at once: the CUDA
// runtime, which answers as for an H100, PyTorch's device guard and stream, and the kernels. Linked with csrc/cuda and
// csrc/torch/ops_cuda.cpp, see setup.py; bench.launch_cost measures the result.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided_ops.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>

#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

// ---- the CUDA runtime ------------------------------------------------------------------------------------------------

extern "C" {
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "no error"; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

static int64_t launches = 0;
// The runtime copies a kernel's parameters; how many bytes is known from its image only.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  ++launches;
  return cudaSuccess;
}
// How often a kernel was launched: by this the benchmark knows that it measures the kernels' calls.
__attribute__((visibility("default"))) int64_t fused_subpixel_launches() { return launches; }

// ---- PyTorch ---------------------------------------------------------------------------------------------------------

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = reinterpret_cast<DeviceGuardHandle>(new int64_t[3]);  // one allocation, as PyTorch's
  return 0;
}
// PyTorch's own skips the dispatcher for CPU tensors only.
AOTITorchError aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t device_type, int32_t device_index,
                                        AtenTensorHandle* result) {
  const auto count = static_cast<size_t>(dims);
  const c10::Device device(static_cast<c10::DeviceType>(device_type),
                           static_cast<c10::DeviceIndex>(device_index));
  *result = reinterpret_cast<AtenTensorHandle>(new at::Tensor(at::_ops::empty_strided::call(
      c10::fromIntArrayRefSlow({sizes, count}), c10::fromIntArrayRefSlow({strides, count}),
      static_cast<c10::ScalarType>(dtype), std::nullopt, device, std::nullopt)));
  return 0;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle guard) {
  delete[] reinterpret_cast<int64_t*>(guard);
  return 0;
}
}

// ---- the kernels -----------------------------------------------------------------------------------------------------

namespace fused_subpixel::cuda {
namespace {

// Each stands for all instances of a kernel.
template <class Params>
void no_kernel(Params) {}

void launch_pack(const PackParams& pack, const Plan& plan, void* stream) {
  run_kernel<PackParams>(&no_kernel<PackParams>, static_cast<int>(plan.packed_bytes / 16), 1, 256, 0, stream,
                         pack);
}

}  // namespace

// As in instances/sm80_launch.cuh and sm90_launch.cuh, without the choice of the instance.
template <class T>
void launch_mma(const PackParams& pack, const MmaParams& params, void* stream) {
  const Plan& plan = params.plan;
  launch_pack(pack, plan, stream);
  run_kernel<MmaParams>(&no_kernel<MmaParams>, plan.grid_x, plan.grid_y, plan.threads, plan.shared_bytes,
                        stream, params, Start::kDuring);
}
template <class T>
void launch_wgmma(const PackParams& pack, const MmaParams& params, void* stream) {
  launch_mma<T>(pack, params, stream);
}
template <class T>
void launch_weight_grad_mma(const WeightGradParams& params, void* stream) {
  const WeightGradPlan& plan = params.plan;
  run_kernel<WeightGradParams>(&no_kernel<WeightGradParams>, plan.splits,
                               plan.oc_blocks * plan.ic_blocks * plan.tap_blocks, 256, plan.shared_bytes,
                               stream, params);
  run_kernel<WeightGradParams>(&no_kernel<WeightGradParams>, 1, 1, 256, 0, stream, params, Start::kDuring);
}

#define FS_STUB_LAUNCHES(T)                                                  \
  template void launch_mma<T>(const PackParams&, const MmaParams&, void*);   \
  template void launch_wgmma<T>(const PackParams&, const MmaParams&, void*); \
  template void launch_weight_grad_mma<T>(const WeightGradParams&, void*);
FS_STUB_LAUNCHES(TF32)
FS_STUB_LAUNCHES(BFloat16)
FS_STUB_LAUNCHES(Float16)
#undef FS_STUB_LAUNCHES

int image_error() { return 0; }
int mma_image_version() { return 90; }

void launch_channels_last(DType, int64_t images, const LayoutParams& p, void* stream) {
  run_kernel<LayoutParams>(&no_kernel<LayoutParams>, static_cast<int>(images * p.tiles), 1, 256, 0, stream,
                           p);
}
void launch_unshuffle_reduce(DType, int, const UnshuffleReduceParams& p, void* stream) {
  run_kernel<UnshuffleReduceParams>(&no_kernel<UnshuffleReduceParams>, 1, 1, 256, 0, stream, p);
  if (!p.grad_bias) return;
  run_kernel<UnshuffleReduceParams>(&no_kernel<UnshuffleReduceParams>, 1, 1, 256, 0, stream, p,
                                    Start::kDuring);
}
void launch_generic(Pass, DType, const GenericParams& p, const Target&, void* stream) {
  run_kernel<GenericParams>(&no_kernel<GenericParams>, 1, 1, 256, 0, stream, p);
}
void pixel_shuffle(const ShuffleArguments& a, const Device& device) {
  ShuffleParams p{};
  p.input = a.input.data;
  run_kernel<ShuffleParams>(&no_kernel<ShuffleParams>, 1, 1, 256, 0, device.stream, p);
}

}  // namespace fused_subpixel::cuda
