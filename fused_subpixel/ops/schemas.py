# SPDX-License-Identifier: BSD-3-Clause
"""The operators' schemas, the one place where they are written.

library.py defines them. The build writes them into fused_subpixel_schemas.so too, for processes without
Python (csrc/torch/schemas.cpp): this file is run by setup.py and imports nothing.
"""

# Of the operators in torch.ops, and the first part of the libraries' names. A build with another
# FUSED_SUBPIXEL_NAMESPACE writes it here. No other Python file spells it out; C++ has FS_NAMESPACE.
NAMESPACE = "fused_subpixel"

# The fields of Geometry. One list, for its ints one by one would cost a small call a good part of its time.
GEOMETRY_SCHEMA = "int[] geometry"
EPILOGUE_SCHEMA = "int activation, float negative_slope, float? clamp_min, float? clamp_max"
# Of the gradients: with the forward pass's output, in any strides, they apply the gradient of its activation,
# which must be one with a gradient from the output, to grad_output as they read it.
SAVED_SCHEMA = "Tensor? output=None, int activation=0, float negative_slope=0.0"

SCHEMAS = (
    # transposed_weight: weight and bias of a transposed convolution, one group, [Ci, C, K_h, K_w] and [C].
    # Its stride is the upscale factor, the order crd. Kernels read the weight where it is, without a copy.
    "subpixel_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? activation_weight, Tensor? residual, "
    f"{GEOMETRY_SCHEMA}, {EPILOGUE_SCHEMA}, bool transposed_weight=False) -> Tensor",
    "subpixel_conv2d_input_grad(Tensor grad_output, Tensor weight, SymInt height, SymInt width, "
    f"{GEOMETRY_SCHEMA}, bool channels_last, {SAVED_SCHEMA}) -> Tensor",
    "subpixel_conv2d_weight_grad(Tensor grad_output, Tensor input, int kernel_h, int kernel_w, "
    f"{GEOMETRY_SCHEMA}, {SAVED_SCHEMA}) -> (Tensor, Tensor)",
    # What PyTorch's convolution backward reads: the low-resolution gradient in channels_last, with zeros
    # after its C*r_h*r_w channels up to a multiple of 16 bytes; and the bias's gradient, [C*r_h*r_w].
    f"unshuffle_reduce(Tensor grad_output, {GEOMETRY_SCHEMA}, {SAVED_SCHEMA}) -> (Tensor, Tensor)",
    # pixel_shuffle alone, or its inverse; a kernel on CUDA, plain PyTorch elsewhere.
    "shuffle(Tensor input, int factor_h, int factor_w, int channel_order, bool inverse) -> Tensor",
    # The same for eager calls, below autograd: one tensor holds all options, see csrc/torch/call_options.h.
    # The second returns the gradients of input, weight and bias; for wanted see csrc/torch/operators.h.
    "_subpixel_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? activation_weight, "
    "Tensor? residual, Tensor options) -> Tensor",
    "_subpixel_conv2d_backward(Tensor grad_output, Tensor? input, Tensor? weight, Tensor? output, "
    "Tensor options, int wanted) -> (Tensor, Tensor, Tensor)",
    # The CPU library's plan for a problem, and the same in words; see csrc/cpu/plan.h.
    "_cpu_plan(int[] problem) -> (int[], str)",
    # Current instruction set (enum Isa in csrc/cpu/isa.h), bit mask of the usable ones, bytes of L2 cache,
    # AMX tile registers: 0 absent, 1 refused by the operating system, 2 usable.
    "_cpu_capability() -> int[]",
    "_cpu_select_isa(int isa) -> ()",
    # Driver's and library's CUDA version, then, if there is such a GPU, what _cuda_plan must know of it -
    # compute capability, multiprocessors, shared memory - and the error of looking for its kernels.
    "_cuda_capability(int device) -> int[]",
    # The CUDA library's plan for a problem on a GPU: kernel, refusal, pixels and output
    # channels of a tile, blocks; and the same in words.
    # activated: a gradient's operator gets the output.
    "_cuda_plan(int[] problem, int[] target, bool activated) -> (int[], str)",
)
