// SPDX-License-Identifier: BSD-3-Clause
// Winograd's algorithm along the rows of kernels of any size: how the taps of a kernel row are grouped, what is multiplied
// with what, and where it lies. Plan and kernel (kernels/winograd_row-inl.h) share it.
//
// A pair of outputs, `dilation` columns apart, takes four products where a sum tap by tap takes six: F(2, 3). Two taps take
// three instead of four: F(2, 2). Both leave their products at the same four positions m, from which the outputs follow as
// m0 + m1 + m2 and m1 - m2 - m3. So longer rows are cut into threes and twos, whose products are summed before.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/scalar.h"

namespace fused_subpixel::cpu {

constexpr int kRowPositions = 4;

// The taps of a kernel row, in groups: threes first, then twos.
struct RowTaps {
  int64_t threes, twos;
  FS_HOST_DEVICE int64_t groups() const { return threes + twos; }
  FS_HOST_DEVICE int64_t first(int64_t group) const {
    return group < threes ? 3 * group : 3 * threes + 2 * (group - threes);
  }
  // Products of a pair of outputs at one position. Twos have none at position 2.
  FS_HOST_DEVICE int64_t products(int position) const { return position == 2 ? threes : groups(); }
  FS_HOST_DEVICE int64_t products() const { return 4 * threes + 3 * twos; }
};
FS_HOST_DEVICE RowTaps row_taps(int64_t kernel_w) {  // at least 2
  const int64_t twos = (3 - kernel_w % 3) % 3;
  return {(kernel_w - 2 * twos) / 3, twos};
}

// What is multiplied: combinations of the pixels x[i], counted in steps of the dilation. Each is kept as two streams, of
// even and of odd i, in which the lanes of a vector are neighbouring pairs.
enum class RowSignal : int {
  kPixel,           // x[i]
  kSum,             // x[i] + x[i + 1]
  kDifference,      // x[i + 1] - x[i]
  kWideDifference,  // x[i] - x[i + 2]
};
constexpr int kRowStreams = 8;
struct RowFactor {
  RowSignal signal;
  int64_t i;  // relative to the pair's first output
};
FS_HOST_DEVICE RowFactor row_factor(const RowTaps& taps, int position, int64_t group) {
  const int64_t i = taps.first(group) + (position == 0 ? 0 : 1);
  if (group < taps.threes)
    return {position == 1   ? RowSignal::kSum
            : position == 2 ? RowSignal::kDifference
                            : RowSignal::kWideDifference,
            i};
  return {position == 1 ? RowSignal::kPixel : RowSignal::kDifference, i};
}
FS_HOST_DEVICE int64_t row_stream(const RowFactor& f) { return 2 * static_cast<int64_t>(f.signal) + f.i % 2; }
// From the start of a transformed row to the factor of the first pair.
FS_HOST_DEVICE int64_t row_factor_offset(const RowFactor& f, int64_t dilation, int64_t stream_step) {
  return row_stream(f) * stream_step + f.i / 2 * dilation;
}

// Pairs in a row of so many outputs. Pair p is of the column p / dilation * 2 * dilation + p % dilation and of the one
// `dilation` further.
FS_HOST_DEVICE int64_t row_pairs(int64_t width, int64_t dilation) {
  const int64_t rest = width % (2 * dilation);
  return width / (2 * dilation) * dilation + (rest < dilation ? rest : dilation);
}
// Elements of a stream that the products of so many vectors of pairs read.
FS_HOST_DEVICE int64_t row_stream_elements(int64_t vectors, int lanes, int64_t kernel_w, int64_t dilation) {
  return round_up(vectors * lanes + (kernel_w - 1) / 2 * dilation, lanes);
}

}  // namespace fused_subpixel::cpu
