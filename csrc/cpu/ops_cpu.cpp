// SPDX-License-Identifier: BSD-3-Clause
// The CPU implementations of the operators: check, allocate, fill the arguments, launch.
#include <atomic>

#include "../torch_ops.h"
#include "launch.h"

namespace fused_subpixel::cpu {
namespace {

Pool torch_pool() {
  const auto share = [](int64_t n, const std::function<void(int64_t, int64_t)>& run) {
    std::atomic<bool> failed{false};  // nothing may be thrown inside the pool
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      try {
        run(begin, end);
      } catch (...) {
        failed = true;
      }
    });
    check(!failed, "out of memory for scratch");
  };
  return {static_cast<int>(torch::stable::get_num_threads()), share};
}

TensorView view_of(const Tensor& t) { return {t.const_data_ptr(), strides_of(t)}; }
TensorView writable_view_of(Tensor& t) { return {t.mutable_data_ptr(), strides_of(t)}; }

Tensor dense_vector(const char* name, const Tensor& t, const Tensor& input) {
  check_like(name, t, input);
  check(t.dim() <= 1, name, " must have one dimension, got ", shape_of(t));
  return torch::stable::contiguous(t);
}

Tensor subpixel_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& activation_weight, const OptionalTensor& residual,
                       std::vector<int64_t> geometry, int64_t activation, double negative_slope,
                       double clamp_min, double clamp_max) {
  const Geometry g = forward_geometry(input, weight, geometry_values(geometry));
  check(activation >= 0 && activation <= static_cast<int64_t>(Activation::kSigmoid), "unknown activation ",
        activation);
  ForwardArguments a{};
  a.geometry = g;
  a.dtype = dtype_of(input);
  a.epilogue = {static_cast<Activation>(activation), negative_slope, clamp_min, clamp_max,
                ResidualKind::kNone};
  OptionalTensor bias_dense, prelu_dense;
  if (bias) {
    bias_dense = dense_vector("bias", *bias, input);
    check(bias_dense->numel() == g.conv_channels(), "bias must have ", g.conv_channels(), " elements");
    a.bias = bias_dense->const_data_ptr();
  }
  check((a.epilogue.activation == Activation::kPReLU) == activation_weight.has_value(),
        "activation_weight goes with prelu");
  if (activation_weight) {
    prelu_dense = dense_vector("activation_weight", *activation_weight, input);
    a.prelu_size = prelu_dense->numel();
    check(a.prelu_size == 1 || a.prelu_size == g.channels || a.prelu_size == g.conv_channels(),
          "activation_weight must have 1, ", g.channels, " or ", g.conv_channels(), " elements");
    a.prelu = prelu_dense->const_data_ptr();
  }
  if (residual) {
    check_like("residual", *residual, input);
    a.epilogue.residual_kind = residual_kind(*residual, g);
    a.residual = view_of(*residual);
  }
  Tensor output = new_tensor({g.batch, g.channels, g.out_h, g.out_w}, input, suggests_channels_last(input));
  if (output.numel() == 0) return output;
  a.input = view_of(input), a.weight = view_of(weight), a.output = writable_view_of(output);
  conv_forward(a, torch_pool());
  return output;
}

// The geometry of a backward call; grad_output is checked against it.
Geometry backward_geometry(const Tensor& grad_output, const Sizes& sizes,
                           const std::array<int64_t, 16>& values) {
  const Geometry g = make_geometry(sizes, values);
  check(grad_output.size(0) == g.batch && grad_output.size(1) == g.channels &&
            grad_output.size(2) == g.out_h && grad_output.size(3) == g.out_w,
        "grad_output ", shape_of(grad_output), " does not fit the output");
  return g;
}

Tensor input_grad(const Tensor& grad_output, const Tensor& weight, int64_t height, int64_t width,
                  std::vector<int64_t> geometry, bool channels_last) {
  check(grad_output.dim() == 4 && weight.dim() == 4, "expected grad_output and weight of 4 dimensions");
  check_like("weight", weight, grad_output);
  const std::array<int64_t, 16> values = geometry_values(geometry);
  const Geometry g = backward_geometry(grad_output,
                                       {grad_output.size(0), weight.size(1) * values[10], height, width,
                                        weight.size(0), weight.size(2), weight.size(3)},
                                       values);
  check(g.stride_h == 1 && g.stride_w == 1, "the input gradient kernel needs stride 1");
  Tensor grad_input = new_tensor({g.batch, g.in_channels, g.in_h, g.in_w}, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  conv_input_grad(
      {g, dtype_of(grad_output), view_of(grad_output), view_of(weight), writable_view_of(grad_input)},
      torch_pool());
  return grad_input;
}

std::tuple<Tensor, Tensor> weight_grad(const Tensor& grad_output, const Tensor& input, int64_t kernel_h,
                                       int64_t kernel_w, std::vector<int64_t> geometry) {
  check(grad_output.dim() == 4 && input.dim() == 4, "expected grad_output and input of 4 dimensions");
  check_like("input", input, grad_output);
  const std::array<int64_t, 16> values = geometry_values(geometry);
  const Geometry g = backward_geometry(grad_output,
                                       {input.size(0), input.size(1), input.size(2), input.size(3),
                                        grad_output.size(1) * values[0] * values[1], kernel_h, kernel_w},
                                       values);
  Tensor grad_weight =
      new_tensor({g.conv_channels(), g.in_channels / g.groups, g.kernel_h, g.kernel_w}, grad_output, false);
  const std::array<int64_t, 1> rows{g.conv_channels()};
  Tensor grad_bias =
      torch::stable::empty(rows, grad_output.scalar_type(), std::nullopt, grad_output.device());
  const Pool pool = torch_pool();
  const WeightGradArguments a{g,
                              dtype_of(grad_output),
                              view_of(grad_output),
                              view_of(input),
                              grad_weight.mutable_data_ptr(),
                              grad_bias.mutable_data_ptr()};
  const std::array<int64_t, 1> bytes{weight_grad_scratch(a, pool)};
  Tensor scratch = torch::stable::empty(bytes, ScalarType::Byte, std::nullopt, grad_output.device());
  torch::stable::zero_(scratch);
  conv_weight_grad(a, scratch.mutable_data_ptr(), pool);
  return {grad_weight, grad_bias};
}

// problem: pass, dtype, channels_last, batch, in_channels, in_h, in_w, conv_channels, kernel_h, kernel_w, then the
// 16 geometry values. Returns the fields of CpuPlan, in order.
std::vector<int64_t> cpu_plan(std::vector<int64_t> problem) {
  check(problem.size() == 26, "cpu_plan takes 26 numbers, got ", problem.size());
  check(problem[0] >= 0 && problem[0] <= 2 && problem[1] >= 0 && problem[1] <= 3, "unknown pass or dtype");
  std::array<int64_t, 16> values;
  std::copy(problem.begin() + 10, problem.end(), values.begin());
  const Geometry g = make_geometry(
      {problem[3], problem[4], problem[5], problem[6], problem[7], problem[8], problem[9]}, values);
  const CpuPlan p = plan_pass(static_cast<Pass>(problem[0]), g, static_cast<DType>(problem[1]),
                              problem[2] != 0, static_cast<int>(torch::stable::get_num_threads()));
  return {static_cast<int64_t>(p.kernel),
          p.tile_rows,
          p.tile_pixels,
          p.panel_tiles,
          p.block_n,
          p.block_h,
          p.block_w,
          p.blocks_n,
          p.blocks_h,
          p.blocks_w,
          p.items,
          p.filter_resident,
          p.parallel};
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
  m.impl("cpu_plan", TORCH_BOX(&fused_subpixel::cpu::cpu_plan));
  m.impl("cpu_capability", TORCH_BOX(&fused_subpixel::cpu::cpu_capability));
  m.impl("cpu_select_isa", TORCH_BOX(&fused_subpixel::cpu::cpu_select_isa));
}
