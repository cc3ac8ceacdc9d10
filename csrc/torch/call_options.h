// SPDX-License-Identifier: BSD-3-Clause
// The options of an eager call as one tensor, which the Python package makes once for all equal calls. PyTorch converts
// every argument of an operator three times, which for two dozen numbers takes longer than a small convolution.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "torch/checks.h"

namespace fused_subpixel {

struct CallOptions {
  ConvOptions conv;
  int64_t activation;
  double negative_slope, clamp_min, clamp_max;  // no clamp: infinities
  bool transposed_weight;
};

// What a gradient needs and its tensors may not tell: sizes of the input and, as the kernels see it, of the weight.
struct GradientSizes {
  int64_t in_h, in_w, kernel_h, kernel_w;
};

struct EagerOptions {
  CallOptions call;
  GradientSizes sizes;
};

// From a dense float64 tensor on the CPU, wherever the others are: the fields of ConvOptions, then those of CallOptions,
// then those of GradientSizes. float64 holds all of these integers exactly.
inline EagerOptions eager_options(const Tensor& t) {
  constexpr size_t kIntegers = kConvOptions + 1, kCount = kConvOptions + 5 + 4;
  check(t.scalar_type() == ScalarType::Double && t.is_cpu() && t.dim() == 1 && t.size(0) == kCount &&
            t.stride(0) == 1,
        "options take ", kCount, " dense float64 numbers on the CPU");
  const auto* values = static_cast<const double*>(t.const_data_ptr());
  const auto integer = [&](size_t k) {
    check(std::abs(values[k]) < 9e15, "option ", values[k], " is no integer");  // nor is NaN
    return static_cast<int64_t>(values[k]);
  };
  std::array<int64_t, kIntegers> integers;
  for (size_t k = 0; k < kIntegers; ++k) integers[k] = integer(k);
  constexpr size_t kSizes = kIntegers + 4;
  return {{conv_options(integers.data(), kConvOptions), integers[kConvOptions], values[kIntegers],
           values[kIntegers + 1], values[kIntegers + 2], integer(kIntegers + 3) != 0},
          {integer(kSizes), integer(kSizes + 1), integer(kSizes + 2), integer(kSizes + 3)}};
}

}  // namespace fused_subpixel
