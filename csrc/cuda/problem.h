// SPDX-License-Identifier: BSD-3-Clause
// From an operator's tensors to what the planner and the kernels see: a problem, and tensors read at low-resolution
// pixels.
#pragma once

#include "common/op_arguments.h"
#include "cuda/params.h"

namespace fused_subpixel::cuda {

// The channels of a shuffled tensor, counted (i, j, c) if it is channels_last, else (c, i, j); and of a plain one.
ShuffledChannels channels_of(const Geometry& g, const Strides& s);
ShuffledChannels plain_channels(int64_t channels);

// Output channels that are contiguous after the shuffle, within one high-resolution row of a dense output.
int64_t interleave_of(int64_t channels, int64_t r_w, bool channels_last);

// The kernel padding that single-phase tiles leave out: none if some phase would have no tap at all.
struct KernelPadding {
  int h, w;
  bool any() const { return h + w > 0; }
};
KernelPadding skipped_padding(const Geometry& g);

// How the kernels read a tensor, plain or shuffled. stored: channels of a pixel that may be read.
PixelSource plain_source(const ConstTensorRef& t, DType dtype, int64_t channels, int64_t h, int64_t w,
                         int64_t stored);
PixelSource gradient_source(const GradientArguments& a);
// Does a crop leave a part of a sub-pixel block?
bool cuts_blocks(const Geometry& g);
PixelStrides shuffled_strides(const Geometry& g, const Strides& s);
// The most elements, up to 16 bytes, that can be copied from a shuffled tensor at once, its channels counted (i, j, c).
// padding: zeros after the channels of a pixel, that may be copied with them.
int shuffled_vector(const Geometry& g, const ConstTensorRef& t, DType dtype, int64_t padding = 0);

// lr_channel: steps by low-resolution channel.
WeightSource weight_source(const Geometry& g, const ConstTensorRef& weight, const PhaseStrides& lr_channel,
                           bool flipped);
WeightSource weight_source(const ForwardArguments& a);
// Can kernels copy it from where it is, in whole 16-byte vectors of input channels?
bool has_whole_vectors(const Geometry& g, DType dtype, const WeightSource& weight);

// Does an output begin and end with whole 16-byte vectors in each row, wherever a crop cuts it? And is everything done
// with a value when it is staged: no residual, which is added later, and no activation but a rectifier or relu6?
bool takes_whole_vectors(const TensorRef& output, DType dtype, const ShuffledChannels& map, int64_t oc,
                         int64_t interleave, int64_t crop_left, int64_t out_w, const Epilogue& epilogue);

Problem forward_problem(const Geometry& g, DType dtype, bool channels_last, const PixelSource& input,
                        bool whole_vectors, bool weight_vectors);
// The convolution of the low-resolution gradient with the flipped kernel.
Problem input_grad_problem(const Geometry& g, DType dtype, bool channels_last, const PixelSource& gradient,
                           bool whole_vectors);

// What the forward kernels read: the input, or a copy of it in channels_last.
struct KernelInput {
  ConstTensorRef view;
  int64_t stored;      // channels of a pixel that may be read: with the copy's zeros
  int64_t copy_bytes;  // 0: it is the input
};
KernelInput kernel_input(const Geometry& g, DType dtype, const ConstTensorRef& input, const Target& target);

}  // namespace fused_subpixel::cuda
