// SPDX-License-Identifier: BSD-3-Clause
// From a plan and an operator's arguments to the kernels' parameters.
#pragma once

#include "common/op_arguments.h"
#include "cuda/params.h"

namespace fused_subpixel::cuda {

EpilogueParams epilogue_params(const ForwardArguments& a);
EpilogueParams no_epilogue();

// Where tiles are read: stride and padding of the convolution, in low-resolution pixels.
struct TileSteps {
  int64_t stride_h, stride_w, pad_top, pad_left;
};
PixelLoad pixel_load(const PixelSource& source, int64_t batch, const TileSteps& s, int64_t images,
                     int64_t halo_h, int64_t halo_w);

void set_output(MmaParams& m, const TensorRef& output, const ShuffledChannels& map, int64_t oc,
                int64_t interleave);
void set_plan(MmaParams& m, const Geometry& g, const Plan& plan, const void* packed, DType dtype);

// How a pass packs the weight. Its output channels are those of the convolution, or, for the input gradient, those of the
// input.
PackParams pack_params(const Geometry& g, const WeightSource& weight, void* packed, const Plan& plan,
                       const ShuffledChannels& map, Pass pass, bool whole_vectors);

}  // namespace fused_subpixel::cuda
