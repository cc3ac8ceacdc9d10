// SPDX-License-Identifier: BSD-3-Clause
// Element types, and arithmetic on sizes.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fused_subpixel {

enum class DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

FS_HOST_DEVICE constexpr int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Storage of the half types. Their arithmetic is in float.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// A float whose low 13 bits the tensor cores ignore.
struct TF32 {
  float value;
};

// The arithmetic type of an element type: double for double, else float.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// ceil(a / b), for b > 0 and a > -b.
FS_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// The least multiple of b that is at least a.
FS_HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace fused_subpixel
