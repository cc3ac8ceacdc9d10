// SPDX-License-Identifier: BSD-3-Clause
// The CPU implementations of the operators: check, allocate, fill the arguments, launch.
#include <atomic>
#include <exception>
#include <new>

#include "cpu/launch.h"
#include "torch/op_calls.h"

namespace fused_subpixel {

// By the dispatcher: what skips it ignores torch.utils.deterministic.fill_uninitialized_memory.
Tensor new_tensor(const std::array<int64_t, 4>& size, const Tensor& like, bool channels_last) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}
Tensor new_vector(int64_t size, const Tensor& like) {
  const std::array<int64_t, 1> sizes{size};
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device());
}
Tensor new_bytes(int64_t size, const Tensor& like) {
  const std::array<int64_t, 1> sizes{size};
  return torch::stable::empty(sizes, ScalarType::Byte, std::nullopt, like.device());
}

}  // namespace fused_subpixel

namespace fused_subpixel::cpu {
namespace {

Pool torch_pool() {
  const auto share = [](int64_t n, const std::function<void(int64_t, int64_t)>& run) {
    // Nothing may be thrown inside the pool: the first error is thrown after it.
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr error;
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      try {
        run(begin, end);
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  };
  return {static_cast<int>(torch::stable::get_num_threads()), share};
}

// The kernels' scratch comes from the system; the message says what std::bad_alloc does not.
template <class Launch>
void launched(Launch launch) {
  try {
    launch(torch_pool());
  } catch (const std::bad_alloc&) {
    check(false, "out of memory for scratch");
  }
}

Tensor subpixel_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& activation_weight, const OptionalTensor& residual,
                       std::vector<int64_t> geometry, int64_t activation, double negative_slope,
                       std::optional<double> clamp_min, std::optional<double> clamp_max,
                       bool transposed_weight) {
  const ForwardCall call = forward_call(input, weight, bias, activation_weight, residual, geometry,
                                        activation, negative_slope, clamp_min, clamp_max, transposed_weight);
  if (call.output.numel() > 0) launched([&](const Pool& pool) { conv_forward(call.arguments, pool); });
  return call.output;
}

Tensor input_grad(const Tensor& grad_output, const Tensor& weight, int64_t height, int64_t width,
                  std::vector<int64_t> geometry, bool channels_last, const OptionalTensor& output,
                  int64_t activation, double negative_slope) {
  const InputGradCall call = input_grad_call(grad_output, weight, height, width, geometry, channels_last,
                                             output, activation, negative_slope);
  const Geometry& g = call.arguments.geometry;
  check(g.stride_h == 1 && g.stride_w == 1, "the input gradient kernel needs stride 1");
  if (call.grad_input.numel() > 0) launched([&](const Pool& pool) { conv_input_grad(call.arguments, pool); });
  return call.grad_input;
}

std::tuple<Tensor, Tensor> weight_grad(const Tensor& grad_output, const Tensor& input, int64_t kernel_h,
                                       int64_t kernel_w, std::vector<int64_t> geometry,
                                       const OptionalTensor& output, int64_t activation,
                                       double negative_slope) {
  const WeightGradCall call =
      weight_grad_call(grad_output, input, kernel_h, kernel_w, geometry, output, activation, negative_slope);
  launched([&](const Pool& pool) {
    Tensor scratch = new_bytes(weight_grad_scratch(call.arguments, pool), grad_output);
    torch::stable::zero_(scratch);
    conv_weight_grad(call.arguments, scratch.mutable_data_ptr(), pool);
  });
  return {call.grad_weight, call.grad_bias};
}

// Takes a problem (op_calls.h); returns fields of ConvPlan, and the plan in words.
std::tuple<std::vector<int64_t>, std::string> cpu_plan(std::vector<int64_t> problem) {
  const Geometry g = problem_geometry(problem);
  const ConvPlan p = plan_pass(static_cast<Pass>(problem[0]), g, static_cast<DType>(problem[1]),
                               problem[2] != 0, static_cast<int>(torch::stable::get_num_threads()));
  const std::vector<int64_t> numbers{static_cast<int64_t>(p.kernel),
                                     p.tile_oc,
                                     p.tile_pixels,
                                     p.panel_tiles,
                                     p.block_n,
                                     p.block_h,
                                     p.block_w,
                                     p.blocks_n,
                                     p.blocks_h,
                                     p.blocks_w,
                                     p.items,
                                     p.weights_resident,
                                     p.parallel};
  return {numbers, describe(p)};
}

// Current instruction set, bit mask of the usable ones, bytes of the L2 cache.
std::vector<int64_t> cpu_capability() {
  return {static_cast<int64_t>(current_isa()), usable_isas(), l2_bytes()};
}

void cpu_select_isa(int64_t isa) {
  check(isa >= 0 && isa <= 2 && select_isa(static_cast<Isa>(isa)),
        "this processor or build lacks instruction set ", isa);
}

}  // namespace
}  // namespace fused_subpixel::cpu

STABLE_TORCH_LIBRARY_IMPL(fused_subpixel, CPU, m) {
  m.impl("subpixel_conv2d", TORCH_BOX(&fused_subpixel::cpu::subpixel_conv2d));
  m.impl("subpixel_conv2d_input_grad", TORCH_BOX(&fused_subpixel::cpu::input_grad));
  m.impl("subpixel_conv2d_weight_grad", TORCH_BOX(&fused_subpixel::cpu::weight_grad));
}

STABLE_TORCH_LIBRARY_IMPL(fused_subpixel, CompositeExplicitAutograd, m) {
  m.impl("_cpu_plan", TORCH_BOX(&fused_subpixel::cpu::cpu_plan));
  m.impl("_cpu_capability", TORCH_BOX(&fused_subpixel::cpu::cpu_capability));
  m.impl("_cpu_select_isa", TORCH_BOX(&fused_subpixel::cpu::cpu_select_isa));
}
