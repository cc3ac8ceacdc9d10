// SPDX-License-Identifier: BSD-3-Clause
// Between the tensor checks and the kernels: fills parameters from a plan and launches on a stream. Compiled for CUDA
// and, with tests/simt, for the emulator.
#pragma once

#include <string>

#include "cuda/params.h"
#include "cuda/problem.h"

namespace fused_subpixel::cuda {

// Parts of the scratch memory begin at multiples of it.
inline int64_t aligned(int64_t bytes) { return round_up(bytes, 256); }

struct Device {
  Target target;
  void* stream;  // cudaStream_t
};

// A plan, made once for a call: equal calls find it in a cache of the thread. The caller allocates the scratch memory
// on the device: `scratch_bytes`, or `partial_bytes` of unshuffle_reduce's.
struct ForwardPlan {
  KernelInput input;
  Plan plan;
  int64_t scratch_bytes;
};
// Of the input's gradient, the weight's with the bias's, or both. The tensor-core kernels apply no activation's gradient.
// Where there is one, unshuffle_reduce applies it first, once for both, and they read the low-resolution gradient that it
// writes: the plan is `lowered`. The generic kernels apply it themselves.
struct GradientPlan {
  Plan input;
  WeightGradPlan weight;
  bool lowered;
  UnshuffleReducePlan unshuffle;
  int64_t lr_grad_bytes, partial_bytes, scratch_bytes;  // scratch_bytes: all of it
};
ForwardPlan plan_forward(const ForwardArguments& a, const Target& target);
// Of both gradients, whichever is not null.
GradientPlan plan_gradients(const InputGradArguments* input, const WeightGradArguments* weight,
                            const Target& target);
UnshuffleReducePlan plan_unshuffle_reduce(const UnshuffleReduceArguments& a, const Target& target);

void conv_forward(const ForwardArguments& a, const ForwardPlan& plan, void* scratch, const Device& device);
void conv_gradients(const InputGradArguments* input, const WeightGradArguments* weight,
                    const GradientPlan& plan, void* scratch, const Device& device);
void unshuffle_gradient(const UnshuffleReduceArguments& a, const UnshuffleReducePlan& plan, void* scratch,
                        const Device& device);

// The shuffle alone: [batch, channels, height, width] is the output.
struct ShuffleArguments {
  ConstTensorRef input;
  void* output;
  int64_t batch, channels, height, width;
  int64_t factor_h, factor_w;
  ChannelOrder order;
  bool inverse, channels_last;
  int64_t element_bytes;  // 1, 2, 4 or 8
};
void pixel_shuffle(const ShuffleArguments& a, const Device& device);

// What runs for tensors in the default strides of their layout, and on how many pixels and output channels at a time.
// activated: the gradient of an activation is still to be applied.
struct PassPlan {
  Kernel kernel;
  Refusal refusal;
  int64_t pixels, block_oc, block_k_bytes, blocks;
  int64_t tiles;  // times blocks of output channels: at least as many as blocks; not of a weight gradient
  Staging staging;
  bool packs_weight;
  bool lowered;  // see GradientPlan
};
PassPlan plan_pass(Pass pass, const Geometry& geometry, DType dtype, bool channels_last, bool activated,
                   const Target& target);
// The same in words.
std::string describe(const PassPlan& plan);

// ---- one translation unit per element type, so that they compile side by side -------------------------------------
template <class T>
void launch_mma(const PackParams& pack, const MmaParams& params, void* stream);
template <class T>
void launch_wgmma(const PackParams& pack, const MmaParams& params, void* stream);
template <class T>
void launch_weight_grad_mma(const WeightGradParams& params, void* stream);
// Whether the driver finds an image of the kernels for the current GPU: 0, or the cudaError_t.
int image_error();
// The architecture of the tensor-core kernels' code for the current GPU, 80 for sm_80; 0: there is none.
int mma_image_version();
// float32 or a half type, to channels_last.
void launch_channels_last(DType dtype, int64_t images, const LayoutParams& params, void* stream);
// vector: elements of the gradient that are read at once, 1 or 16 bytes.
void launch_unshuffle_reduce(DType dtype, int vector, const UnshuffleReduceParams& params, void* stream);
void launch_generic(Pass pass, DType dtype, const GenericParams& params, const Target& target, void* stream);

}  // namespace fused_subpixel::cuda
