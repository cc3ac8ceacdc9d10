// SPDX-License-Identifier: BSD-3-Clause
// The package's CUDA kernels, launched as on a GPU but in the emulator: csrc/cuda's own sources, compiled for this
// processor. Every array lies in guarded memory while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <vector>

#define FS_HAVE_SM80 1
#define FS_HAVE_SM90 1
#include "cuda/fill_params.cpp"
#include "cuda/instances/generic.cu"
#include "cuda/instances/nchw_to_nhwc.cu"
#include "cuda/instances/pixel_shuffle.cu"
#include "cuda/instances/sm80_conv_bfloat16.cu"
#include "cuda/instances/sm80_conv_half.cu"
#include "cuda/instances/sm80_conv_tf32.cu"
#include "cuda/instances/sm80_weight_grad_bfloat16.cu"
#include "cuda/instances/sm80_weight_grad_half.cu"
#include "cuda/instances/sm80_weight_grad_tf32.cu"
#include "cuda/instances/sm90_conv_bfloat16.cu"
#include "cuda/instances/sm90_conv_half.cu"
#include "cuda/instances/sm90_conv_tf32.cu"
#include "cuda/instances/unshuffle_reduce.cu"
#include "cuda/launch.cpp"
#include "cuda/launch_plan.cpp"
#include "cuda/problem.cpp"

namespace py = pybind11;
using namespace fused_subpixel;
using namespace fused_subpixel::cuda;

namespace {

// forward returns the Staging of the plan.

// Address, bytes that the strides span, sizes, strides (of a vector only the address counts).
using Array = std::tuple<uintptr_t, size_t, std::vector<int64_t>, std::vector<int64_t>>;
using OptionalArray = std::optional<Array>;

// As in op_calls.h.
Strides strides_of(const Array& a) {
  const auto& [address, bytes, n, s] = a;
  if (s.size() != 4) return {};
  return canonical_strides(n[0], n[1], n[2], n[3], {s[0], s[1], s[2], s[3]});
}

// Copies of arrays in memory with guards at one end.
struct Memory {
  simt::GuardedBuffer::Place place;
  std::vector<std::unique_ptr<simt::GuardedBuffer>> buffers;

  unsigned char* take(const char* name, size_t bytes) {
    return buffers.emplace_back(std::make_unique<simt::GuardedBuffer>(bytes, place, name))->data();
  }
  ConstTensorRef in(const char* name, const OptionalArray& a) {
    if (!a) return {};
    unsigned char* to = take(name, std::get<1>(*a));
    std::memcpy(to, reinterpret_cast<const void*>(std::get<0>(*a)), std::get<1>(*a));
    return {to, strides_of(*a)};
  }
  // What was not written stays NaN.
  TensorRef out(const char* name, const Array& a) { return {take(name, std::get<1>(a)), strides_of(a)}; }
  void back(const Array& a, const void* from) {
    std::memcpy(reinterpret_cast<void*>(std::get<0>(a)), from, std::get<1>(a));
  }
  void check() const {
    for (const auto& buffer : buffers) buffer->check();
  }
};

Geometry geometry_of(const std::vector<int64_t>& v) {
  if (v.size() != 28) throw std::invalid_argument("28 numbers");
  Geometry g{};
  int64_t* const fields[] = {&g.batch,      &g.in_channels, &g.in_h,     &g.in_w,       &g.channels,
                             &g.kernel_h,   &g.kernel_w,    &g.r_h,      &g.r_w,        &g.stride_h,
                             &g.stride_w,   &g.pad_top,     &g.pad_left, &g.pad_bottom, &g.pad_right,
                             &g.dilation_h, &g.dilation_w,  &g.groups,   &g.lr_h,       &g.lr_w,
                             &g.crop_top,   &g.crop_left,   &g.out_h,    &g.out_w};
  for (size_t i = 0; i < 24; ++i) *fields[i] = v[i];
  g.order = static_cast<ChannelOrder>(v[24]);
  g.tf32 = v[25] != 0;
  g.kernel_pad_h = v[26];
  g.kernel_pad_w = v[27];
  return g;
}
// As in op_calls.h: of five dimensions, a transposed convolution's.
void set_weight(ForwardArguments& a, const ConstTensorRef& weight, const std::vector<int64_t>& s) {
  a.weight = weight;
  a.weight_flipped = s.size() == 5;
  a.weight_rows = phase_strides(a.geometry, weight.stride.n);
  const Geometry& g = a.geometry;
  if (a.weight_flipped)
    a.weight.stride = {0, s[1], s[3] * g.r_h, s[4] * g.r_w}, a.weight_rows = {s[2], s[3], s[4]};
}
Device device_of(const std::vector<int64_t>& t) {
  return {{static_cast<int>(t.at(0)), static_cast<int>(t.at(1)), t.at(2)}, nullptr};
}
Memory memory(bool guard_start) {
  return {guard_start ? simt::GuardedBuffer::kStart : simt::GuardedBuffer::kEnd, {}};
}

int forward(const std::vector<int64_t>& geometry, int dtype, const Array& input, const Array& weight,
            const OptionalArray& bias, const OptionalArray& prelu, int64_t prelu_size,
            const OptionalArray& residual, int residual_kind, int activation, double slope, double low,
            double high, const Array& output, const std::vector<int64_t>& target, bool guard_start) {
  Memory m = memory(guard_start);
  ForwardArguments a{};
  a.geometry = geometry_of(geometry);
  a.dtype = static_cast<DType>(dtype);
  a.input = m.in("the input", input);
  a.residual = m.in("the residual", residual);
  set_weight(a, m.in("the weight", weight), std::get<3>(weight));
  a.bias = m.in("the bias", bias).data;
  a.prelu = m.in("activation_weight", prelu).data;
  a.prelu_size = prelu_size;
  a.output = m.out("the output", output);
  a.epilogue = {static_cast<Activation>(activation), slope, low, high,
                static_cast<ResidualKind>(residual_kind)};
  const Device device = device_of(target);
  const ForwardPlan plan = plan_forward(a, device.target);
  conv_forward(a, plan, m.take("scratch", static_cast<size_t>(plan.scratch_bytes)), device);
  m.check();
  m.back(output, a.output.data);
  return static_cast<int>(plan.plan.staging);
}

// dtype, and the output of the forward pass with its activation, if one is to be applied.
struct Gradient {
  std::vector<int64_t> geometry;
  int dtype;
  Array grad_output;
  OptionalArray output;
  int activation;
  double slope;

  void set(GradientArguments& a, Memory& m) const {
    a.geometry = geometry_of(geometry);
    a.dtype = static_cast<DType>(dtype);
    a.grad_output = m.in("the gradient", grad_output);
    a.saved = {m.in("the output", output), static_cast<Activation>(activation), slope};
  }
};

// The gradients of the input (weight, and where to) and of the weight (input, and where to with the bias's), or both.
// Returns the kernels, and whether unshuffle_reduce ran first.
std::vector<int> gradients(const Gradient& gradient, const OptionalArray& weight,
                           const OptionalArray& grad_input, const OptionalArray& input,
                           const OptionalArray& grad_weight, const OptionalArray& grad_bias,
                           const std::vector<int64_t>& target, bool guard_start) {
  Memory m = memory(guard_start);
  InputGradArguments of_input{};
  WeightGradArguments of_weight{};
  if (grad_input) {
    gradient.set(of_input, m);
    of_input.weight = m.in("the weight", weight);
    of_input.grad_input = m.out("the input's gradient", *grad_input);
  }
  if (grad_weight) {
    gradient.set(of_weight, m);
    of_weight.input = m.in("the input", input);
    of_weight.grad_weight = m.take("the weight's gradient", std::get<1>(*grad_weight));
    of_weight.grad_bias = m.take("the bias's gradient", std::get<1>(*grad_bias));
  }
  const InputGradArguments* const i = grad_input ? &of_input : nullptr;
  const WeightGradArguments* const w = grad_weight ? &of_weight : nullptr;
  const Device device = device_of(target);
  const GradientPlan plan = plan_gradients(i, w, device.target);
  conv_gradients(i, w, plan, m.take("scratch", static_cast<size_t>(plan.scratch_bytes)), device);
  m.check();
  if (i) m.back(*grad_input, of_input.grad_input.data);
  if (w) m.back(*grad_weight, of_weight.grad_weight), m.back(*grad_bias, of_weight.grad_bias);
  return {static_cast<int>(plan.input.kernel), static_cast<int>(plan.weight.kernel), plan.lowered};
}

// Kernel and refusal of a weight's gradient, and whether unshuffle_reduce runs first, without tensors: strides count.
std::vector<int> gradient_plan(const Gradient& gradient, const std::vector<int64_t>& target) {
  WeightGradArguments a{};
  a.geometry = geometry_of(gradient.geometry);
  a.dtype = static_cast<DType>(gradient.dtype);
  a.grad_output.stride = strides_of(gradient.grad_output);
  a.saved = {{nullptr, strides_of(*gradient.output)}, static_cast<Activation>(gradient.activation), 0};
  const GradientPlan plan = plan_gradients(nullptr, &a, device_of(target).target);
  return {static_cast<int>(plan.weight.kernel), static_cast<int>(plan.weight.refusal), plan.lowered};
}

void prepare_gradient(const Gradient& gradient, const Array& lr_grad, const Array& grad_bias,
                      const std::vector<int64_t>& target, bool guard_start) {
  Memory m = memory(guard_start);
  UnshuffleReduceArguments a{};
  gradient.set(a, m);
  a.lr_grad = m.take("the low-resolution gradient", std::get<1>(lr_grad));
  a.grad_bias = m.take("the bias's gradient", std::get<1>(grad_bias));
  const Device device = device_of(target);
  const UnshuffleReducePlan plan = plan_unshuffle_reduce(a, device.target);
  unshuffle_gradient(a, plan, m.take("scratch", static_cast<size_t>(plan.partial_bytes)), device);
  m.check();
  m.back(lr_grad, a.lr_grad), m.back(grad_bias, a.grad_bias);
}

// sizes: batch, channels, height, width of the output, factors.
void shuffle(const std::vector<int64_t>& sizes, int order, bool inverse, bool channels_last,
             int64_t element_bytes, const Array& input, const Array& output, bool guard_start) {
  Memory m = memory(guard_start);
  const ConstTensorRef from = m.in("the input", input);
  const TensorRef to = m.out("the output", output);
  pixel_shuffle({from, to.data, sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), sizes.at(5),
                 static_cast<ChannelOrder>(order), inverse, channels_last, element_bytes},
                device_of({90, 1, 0}));
  m.check();
  m.back(output, to.data);
}

// Kernel, refusal, pixels and columns of a tile, blocks, staging, block_k_bytes, tiles, whether the weight is packed,
// whether unshuffle_reduce runs first.
std::vector<int64_t> plan(int pass, const std::vector<int64_t>& geometry, int dtype, bool channels_last,
                          bool activated, const std::vector<int64_t>& target) {
  const PassPlan p = plan_pass(static_cast<Pass>(pass), geometry_of(geometry), static_cast<DType>(dtype),
                               channels_last, activated, device_of(target).target);
  return {static_cast<int64_t>(p.kernel),
          static_cast<int64_t>(p.refusal),
          p.pixels,
          p.block_oc,
          p.blocks,
          static_cast<int64_t>(p.staging),
          p.block_k_bytes,
          p.tiles,
          p.packs_weight,
          p.lowered};
}

}  // namespace

void bind_kernels(py::module_& m) {
  m.def("forward", &forward);
  py::class_<Gradient>(m, "Gradient")
      .def(py::init([](const std::vector<int64_t>& geometry, int dtype, const Array& grad_output,
                       const OptionalArray& output, int activation, double slope) {
        return Gradient{geometry, dtype, grad_output, output, activation, slope};
      }));
  m.def("gradients", &gradients);
  m.def("gradient_plan", &gradient_plan);
  m.def("unshuffle_reduce", &prepare_gradient);
  m.def("shuffle", &shuffle);
  m.def("plan", &plan);
}
