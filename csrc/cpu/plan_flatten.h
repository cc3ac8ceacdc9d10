// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <initializer_list>

#include "common/conv_geometry.h"
#include "common/tensor_ref.h"
#include "cpu/plan.h"

namespace fused_subpixel::cpu {

// Of a pointwise convolution, an image whose rows follow one another in all tensors becomes a single row, and a batch whose
// images do, a single image. Then tiles of neighbouring pixels do not end where a row does.
// Changes the geometry; the strides of width remain those between pixels (docs/decisions/0036).
void flatten_pixels(const Target& target, Geometry& geometry, std::initializer_list<const Strides*> tensors);

}  // namespace fused_subpixel::cpu
