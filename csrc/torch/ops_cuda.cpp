// SPDX-License-Identifier: BSD-3-Clause
// The CUDA implementations of the operators: allocations, and launches on the current stream.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/per_device.h"
#include "torch/operators.h"

// Only CUDA builds of torch have it, and only they load this library.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace fused_subpixel {
namespace {

// torch::stable::empty would look its operator up by name in every call.
Tensor new_strided(int64_t dims, const int64_t* size, const int64_t* stride, int32_t dtype,
                   const Tensor& like) {
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, size, stride, dtype, device_type, device_index, &handle));
  return Tensor(handle);
}
int32_t dtype_number(const Tensor& t) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}
Tensor new_line(int64_t size, int32_t dtype, const Tensor& like) {
  constexpr int64_t kStride = 1;
  return new_strided(1, &size, &kStride, dtype, like);
}

}  // namespace

Tensor new_tensor(const std::array<int64_t, 4>& size, const Tensor& like, bool channels_last) {
  const auto some = [&](int d) {
    return channels_last ? size[d] : std::max<int64_t>(size[d], 1);
  };  // as PyTorch
  const Strides s = dense_strides(some(1), some(2), some(3), channels_last);
  const std::array<int64_t, 4> stride{s.n, s.c, s.h, s.w};
  return new_strided(4, size.data(), stride.data(), dtype_number(like), like);
}
Tensor new_vector(int64_t size, const Tensor& like, bool arithmetic) {
  const bool widens = arithmetic && element_bytes(dtype_of(like)) == 2;
  return new_line(size, widens ? aoti_torch_dtype_float32() : dtype_number(like), like);
}
Tensor new_bytes(int64_t size, const Tensor& like) { return new_line(size, aoti_torch_dtype_uint8(), like); }

}  // namespace fused_subpixel

namespace fused_subpixel::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  if (error != cudaSuccess) (void)cudaGetLastError();
  check(error == cudaSuccess, "the GPU does not answer: ", cudaGetErrorString(error));
  return value;
}

// The tensor-core kernels may have been left out, or built for newer GPUs only.
bool has_mma_image() {
#if FS_HAVE_SM80
  return mma_image_version() >= 80;
#else
  return false;
#endif
}

// Of the current device.
Target target_of(int device) {
  static PerDevice<int> sm, multiprocessors, shared_bytes;
  const auto ask = [&](cudaDeviceAttr which) { return [=] { return attribute(which, device); }; };
  return {sm.get(device,
                 [&] {
                   const int found = attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
                                     attribute(cudaDevAttrComputeCapabilityMinor, device);
                   return found >= 80 && !has_mma_image() ? 75 : found;
                 }),
          multiprocessors.get(device, ask(cudaDevAttrMultiProcessorCount)),
          shared_bytes.get(device, ask(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

struct OnDevice {
  torch::stable::accelerator::DeviceGuard guard;
  Device device;
  static constexpr bool kTransposedGradients = false;
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()), device{} {
    device.target = target_of(t.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &device.stream));
  }

  void launch(const ForwardCall& call) const {
    if (call.output.numel() == 0) return;
    const ForwardPlan plan = plan_forward(call.arguments, device.target);
    Tensor scratch = new_bytes(plan.scratch_bytes, call.output);
    conv_forward(call.arguments, plan, scratch.mutable_data_ptr(), device);
  }
  void launch(const InputGradCall* of_input, const WeightGradCall* of_weight) const {
    const InputGradArguments* input =
        of_input && of_input->grad_input.numel() > 0 ? &of_input->arguments : nullptr;
    const WeightGradArguments* weight = of_weight ? &of_weight->arguments : nullptr;
    if (!input && !weight) return;
    const GradientPlan plan = plan_gradients(input, weight, device.target);
    Tensor scratch = new_bytes(plan.scratch_bytes, of_input ? of_input->grad_input : of_weight->grad_weight);
    conv_gradients(input, weight, plan, scratch.mutable_data_ptr(), device);
  }
};

std::tuple<Tensor, Tensor> unshuffle_reduce(const Tensor& grad_output, std::vector<int64_t> geometry,
                                            const OptionalTensor& output, int64_t activation,
                                            double negative_slope) {
  const OnDevice on(grad_output);
  const UnshuffleReduceCall call =
      unshuffle_reduce_call(grad_output, conv_options(geometry), output, activation, negative_slope);
  const UnshuffleReducePlan plan = plan_unshuffle_reduce(call.arguments, on.device.target);
  Tensor scratch = new_bytes(plan.partial_bytes, grad_output);
  unshuffle_gradient(call.arguments, plan, scratch.mutable_data_ptr(), on.device);
  return {call.lr_grad, call.grad_bias};
}

Tensor shuffle(const Tensor& input, int64_t factor_h, int64_t factor_w, int64_t order, bool inverse) {
  check(input.dim() == 4, "expected input [N, C, H, W], got ", shape_of(input));
  check(factor_h >= 1 && factor_w >= 1 && (order == 0 || order == 1),
        "factors or channel order out of range");
  check(input.element_size() <= 8, "elements of more than 8 bytes are not shuffled here");
  const int64_t c = input.size(1), h = input.size(2), w = input.size(3), cell = factor_h * factor_w;
  check(inverse ? h % factor_h == 0 && w % factor_w == 0 : c % cell == 0, "input ", shape_of(input),
        " does not divide by ", factor_h, " and ", factor_w);
  const std::array<int64_t, 4> size =
      inverse ? std::array<int64_t, 4>{input.size(0), c * cell, h / factor_h, w / factor_w}
              : std::array<int64_t, 4>{input.size(0), c / cell, h * factor_h, w * factor_w};
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const bool channels_last = suggests_channels_last(input);
  check(size[1] <= kMost && size[2] <= kMost && size[3] <= kMost && size[1] * size[3] <= kMost &&
            size[0] * size[1] * size[2] <= kMost,
        "input ", shape_of(input), " is too large");
  const OnDevice on(input);
  Tensor output = new_tensor(size, input, channels_last);
  if (output.numel() == 0) return output;
  pixel_shuffle(
      {view_of(input), output.mutable_data_ptr(), size[0], size[1], size[2], size[3], factor_h, factor_w,
       static_cast<ChannelOrder>(order), inverse, channels_last, static_cast<int64_t>(input.element_size())},
      on.device);
  return output;
}

// What a plan needs to know of a GPU: driver's and this library's CUDA version, compute capability, multiprocessors,
// shared memory, and the error (0: none) of asking for a kernel's image. Empty where there is no such GPU.
std::vector<int64_t> cuda_capability(int64_t device) {
  int count = 0, driver = 0, runtime = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime);
  if (cudaGetDeviceCount(&count) != cudaSuccess || device < 0 || device >= count) {
    (void)cudaGetLastError();
    return {driver, runtime};
  }
  const int index = static_cast<int>(device);
  torch::stable::accelerator::DeviceGuard guard(index);
  const Target t = target_of(index);
  return {driver, runtime, t.sm, t.multiprocessors, t.shared_bytes, image_error()};
}

// Takes a problem (op_calls.h), a target - compute capability, multiprocessors, bytes of shared memory - and whether a
// gradient applies an activation's. Returns kernel, refusal, pixels and output channels of a tile, blocks; and all of it in
// words.
std::tuple<std::vector<int64_t>, std::string> cuda_plan(std::vector<int64_t> problem,
                                                        std::vector<int64_t> target, bool activated) {
  check(target.size() == 3, "a target is 3 numbers, got ", target.size());
  const Geometry g = problem_geometry(problem);
  const Target t{static_cast<int>(target[0]), static_cast<int>(target[1]), target[2]};
  const PassPlan p = plan_pass(static_cast<Pass>(problem[0]), g, static_cast<DType>(problem[1]),
                               (problem[2] & kProblemChannelsLast) != 0, activated, t);
  const std::vector<int64_t> numbers{static_cast<int64_t>(p.kernel), static_cast<int64_t>(p.refusal),
                                     p.pixels, p.block_oc, p.blocks};
  return {numbers, describe(p)};
}

}  // namespace
}  // namespace fused_subpixel::cuda

// bench.launch_cost measures these operators on CPU tensors.
#if !defined(FS_CUDA_DISPATCH_KEY)
#define FS_CUDA_DISPATCH_KEY CUDA
#endif
STABLE_TORCH_LIBRARY_IMPL(FS_NAMESPACE, FS_CUDA_DISPATCH_KEY, m) {
  fused_subpixel::register_operators<fused_subpixel::cuda::OnDevice>(m);
  m.impl("unshuffle_reduce", TORCH_BOX(&fused_subpixel::cuda::unshuffle_reduce));
  m.impl("shuffle", TORCH_BOX(&fused_subpixel::cuda::shuffle));
}

STABLE_TORCH_LIBRARY_IMPL(FS_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("_cuda_capability", TORCH_BOX(&fused_subpixel::cuda::cuda_capability));
  m.impl("_cuda_plan", TORCH_BOX(&fused_subpixel::cuda::cuda_plan));
}
