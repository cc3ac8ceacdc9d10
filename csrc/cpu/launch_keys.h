// SPDX-License-Identifier: BSD-3-Clause
// The keys of the plan caches: every number that plan_pass.cpp reads. For launch_*.cpp only.
#pragma once

#include "common/plan_cache.h"
#include "cpu/plan_pass.h"

namespace fused_subpixel::cpu {

inline PlanKey key_of(const Geometry& g, DType dtype, const Target& t) {
  PlanKey key;
  key.add_all(g.batch, g.in_channels, g.in_h, g.in_w, g.channels, g.kernel_h, g.kernel_w, g.r_h, g.r_w,
              g.stride_h, g.stride_w, g.pad_top, g.pad_left, g.pad_bottom, g.pad_right, g.dilation_h,
              g.dilation_w, g.groups, g.lr_h, g.lr_w, g.crop_top, g.crop_left, g.out_h, g.out_w,
              g.kernel_pad_h, g.kernel_pad_w, g.order, g.tf32, dtype);
  key.add_all(t.lanes, t.registers, t.l2_bytes, t.threads, t.element_bytes, t.matrix_tiles);
  return key;
}

inline void add_strides(PlanKey& key, const Strides& s) { key.add_all(s.n, s.c, s.h, s.w); }

inline void add_saved(PlanKey& key, const SavedOutput& saved) {
  const bool applied = saved.activation != Activation::kNone;
  key.add(applied);
  if (applied) add_strides(key, saved.output.stride);
}

}  // namespace fused_subpixel::cpu
