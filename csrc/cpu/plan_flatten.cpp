// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_flatten.h"

#include <algorithm>
#include <cstdint>

namespace fused_subpixel::cpu {
namespace {

// Is each pixel of the output computed from one of the input, at the same place?
bool is_pointwise(const Geometry& g) {
  return g.kernel_h == 1 && g.kernel_w == 1 && g.r_h == 1 && g.r_w == 1 && g.stride_h == 1 &&
         g.stride_w == 1 && g.pad_top == 0 && g.pad_left == 0 && g.out_h == g.in_h && g.out_w == g.in_w;
}

}  // namespace

void flatten_pixels(const Target& t, Geometry& g, std::initializer_list<const Strides*> tensors) {
  // matrix tiles read whole rows in place
  if (!is_pointwise(g) || t.matrix_tiles != MatrixTiles::kNone) return;
  constexpr int64_t kMost = INT32_MAX;
  const auto follow = [&](int64_t Strides::*outer, int64_t count, int64_t pixels) {
    return count > 0 && pixels <= kMost / count &&
           std::all_of(tensors.begin(), tensors.end(),
                       [&](const Strides* s) { return s->*outer == pixels * s->w; });
  };
  if (g.in_h > 1 && follow(&Strides::h, g.in_h, g.in_w)) {
    g.in_w = g.lr_w = g.out_w = g.in_h * g.in_w;
    g.in_h = g.lr_h = g.out_h = 1;
  }
  if (g.batch > 1 && g.in_h == 1 && follow(&Strides::n, g.batch, g.in_w)) {
    g.in_w = g.lr_w = g.out_w = g.batch * g.in_w;
    g.batch = 1;
  }
}

}  // namespace fused_subpixel::cpu
