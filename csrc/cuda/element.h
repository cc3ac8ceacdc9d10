// SPDX-License-Identifier: BSD-3-Clause
// Element types of the kernels, as names that host code may use too.
#pragma once

#include <cstdint>

#include "common/problem.h"

namespace fused_subpixel::cuda {

// Storage; arithmetic is in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct TF32 {  // a float whose low 13 bits the tensor cores ignore
  float value;
};

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Of one wgmma (device.cuh): rows and columns of its sums, of which a thread has that many.
constexpr int kWgmmaRows = 64, kWgmmaColumns = 128, kWgmmaSums = kWgmmaColumns / 2;

}  // namespace fused_subpixel::cuda
