// SPDX-License-Identifier: BSD-3-Clause
// The plan of a whole pass: everything but the pointers to tensors. It is made once per combination of geometry, dtype,
// strides and target (plan_cache.h), and launched with any number of tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/plan_tables.h"

namespace fused_subpixel::cpu {

// Of one K block list, see KBlocks.
struct KTables {
  std::vector<int64_t> tap_offset, at;
  std::vector<KBlock> blocks;
};

// A convolution: the forward pass or the input gradient. The task's pointers to tables point into this object, its pointers
// to tensors are null, and so are those of source.output, which `output` describes.
struct ConvPass {
  ConvTask task{};
  bool padded = false;  // windows may reach outside of the source
  Source output{};      // of the forward pass, if the gradient of an activation is applied

  SourceTables source_tables, output_tables;
  OcTables oc;
  std::vector<int64_t> oc_offset, ic_offset, tap_offset;  // of the weight
  std::vector<uint8_t> missing_taps;
  KTables k[kMaxKBlockLists];
  std::vector<TapRead> streamed_reads;

  ConvPass() = default;
  ConvPass(const ConvPass&) = delete;
  int64_t bytes() const;
};

struct WeightGradPass {
  WeightGradTask task{};
  int64_t scratch_bytes = 0;  // for the sums of all items, if there are several slots
  Source output{};            // as in ConvPass

  SourceTables input_tables, gradient_tables, output_tables;
  std::vector<int64_t> lr_channel, segment_input, segment_weight, tap_weight, input_weight, gradient_weight;

  WeightGradPass() = default;
  WeightGradPass(const WeightGradPass&) = delete;
  int64_t bytes() const;
};

// What was found not to be finite when a pass ran, so that it is planned again: nothing may be added before it is multiplied,
// and a weight must not meet zeros that no pixel has.
enum class NotFinite : int32_t { kNothing, kPixel, kWeight };
std::unique_ptr<ConvPass> plan_forward_pass(const ForwardArguments& a, const Target& target, NotFinite found);
std::unique_ptr<ConvPass> plan_input_grad_pass(const InputGradArguments& a, const Target& target,
                                               NotFinite found);
std::unique_ptr<WeightGradPass> plan_weight_grad_pass(const WeightGradArguments& a, const Target& target,
                                                      bool no_winograd);

// The plans for tensors in the default strides of their layout, without tables. The first: of the forward pass or of the input
// gradient.
ConvPlan plan_dense(Pass pass, const Geometry& geometry, DType dtype, bool channels_last,
                    bool transposed_weight, const Target& target);

WeightGradPlan plan_dense_weight_grad(const Geometry& geometry, bool channels_last, const Target& target);

// Kernel, tile, blocks and the reason for the choice, in words.
std::string describe(const ConvPlan& plan);
std::string describe(const WeightGradPlan& plan);

}  // namespace fused_subpixel::cpu
