// SPDX-License-Identifier: BSD-3-Clause
#include <cstdio>

#include "cpu/plan_pass.h"

namespace fused_subpixel::cpu {
namespace {

constexpr const char* kNames[kConvKernels] = {
    "OW-vectorised",        "OC-vectorised", "Winograd F(2x2, 3x3)", "Winograd F(2, 3) along rows",
    "Winograd F(4x4, 3x3)", "matrix tiles",  "streamed weights"};

std::string tile_of(const ConvPlan& plan) {
  if (plan.weight_row == WeightRow::kOfInput)
    return std::to_string(plan.tile_oc) + " columns x " + std::to_string(plan.tile_pixels) + " pixels";
  const std::string oc = std::to_string(plan.tile_oc) + " output channels x ";
  const std::string pixels = std::to_string(plan.tile_pixels);
  if (plan.kernel == ConvKernel::kOcVectorised || plan.kernel == ConvKernel::kMatrix ||
      plan.kernel == ConvKernel::kStreamed)
    return oc + pixels + " pixels";
  if (plan.channels_inner)
    return oc + pixels + (winograd_side(plan.kernel) == 2 ? " tiles of 2x2 pixels" : " tiles of 4x4 pixels");
  const char* lanes = plan.kernel == ConvKernel::kWinograd    ? "2x2 tiles"
                      : plan.kernel == ConvKernel::kWinograd4 ? "4x4 tiles"
                      : plan.row_outputs == 2                 ? "pairs of pixels"
                      : plan.row_outputs == 4                 ? "quads of pixels"
                                                              : "pixels";
  return oc + pixels + " vectors of " + lanes;
}

std::string rounded(double cycles) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2g", cycles);
  return text;
}

// "; estimated at 1.2e+06 cycles, OC-vectorised at 2.1e+06": the chosen kernel, then the others that can compute this.
std::string reason(const ConvPlan& plan) {
  const int chosen = static_cast<int>(plan.kernel);
  if (plan.cycles[chosen] < 0) return "";
  std::string text = "; estimated at " + rounded(plan.cycles[chosen]) + " cycles";
  for (int kernel = 0; kernel < kConvKernels; ++kernel)
    if (kernel != chosen && plan.cycles[kernel] >= 0)
      text += std::string(", ") + kNames[kernel] + " at " + rounded(plan.cycles[kernel]);
  return text;
}

}  // namespace

std::string describe(const ConvPlan& plan) {
  const bool passes = plan.scheme == WinogradScheme::kPasses ||
                      (plan.kernel == ConvKernel::kWinogradRow && plan.pass_panels < plan.panels);
  const bool streamed = plan.kernel == ConvKernel::kStreamed;
  const std::string items =
      std::to_string(plan.items) +
      (passes     ? " passes over blocks of "
       : streamed ? " parts of " + std::to_string(plan.part_channels) + " channels over "
                  : " blocks of ");
  std::string text = std::string(kNames[static_cast<int>(plan.kernel)]) + ", tile of " + tile_of(plan) +
                     (plan.single_phase ? " of one phase" : "") + ", " + items +
                     std::to_string(plan.block_n) + " x " + std::to_string(plan.block_h) + " x " +
                     std::to_string(plan.block_w) + " pixels";
  if (plan.scheme == WinogradScheme::kPasses)
    text += ", weights packed as they are used";
  else if (!plan.weights_resident)
    text += ", weights packed once for all threads";
  if (!plan.parallel) text += ", on one thread";
  return text + reason(plan);
}

std::string describe(const WeightGradPlan& plan) {
  const std::string of_input = plan.merged_taps ? " pairs of a tap and an input channel" : " input channels";
  const std::string of_gradient = " output channels";
  const std::string taps = std::to_string(plan.shape.kernel_h);
  const std::string winograd = "Winograd F(" + taps + "x" + taps + ", 2x2)", direct = "products of channels";
  const std::string matrix = "matrix tiles";
  std::string text = (plan.winograd ? winograd
                      : plan.matrix ? matrix
                                    : direct) +
                     ", tile of up to " + std::to_string(plan.tile_vectors) + " vectors of" +
                     (plan.input_in_lanes ? of_input : of_gradient) + " x " +
                     std::to_string(plan.tile_columns) + (plan.input_in_lanes ? of_gradient : of_input) +
                     ", " + std::to_string(plan.pairs()) + " x " + std::to_string(plan.slots) + " items of " +
                     std::to_string(plan.block_oc) + " output x " + std::to_string(plan.block_ic) +
                     " input channels over blocks of " + std::to_string(plan.block_n) + " x " +
                     std::to_string(plan.block_h) + " x " + std::to_string(plan.block_w) + " pixels";
  if (!plan.parallel) text += ", on one thread";
  text += "; estimated at " + rounded(estimate(plan)) + " cycles";
  const auto other = [&](bool chosen, double cycles, const std::string& name) {
    if (!chosen && cycles >= 0) text += ", " + name + " at " + rounded(cycles);
  };
  other(!plan.winograd && !plan.matrix, plan.direct_cycles, direct);
  other(plan.winograd, plan.winograd_cycles, winograd);
  other(plan.matrix, plan.matrix_cycles, matrix);
  return text;
}

}  // namespace fused_subpixel::cpu
