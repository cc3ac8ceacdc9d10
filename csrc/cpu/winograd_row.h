// SPDX-License-Identifier: BSD-3-Clause
// Winograd's algorithm along the rows of kernels of any size: how the taps of a kernel row are grouped, what is multiplied
// with what, and where it lies. Plan and kernel (kernels/winograd_row-inl.h) share it.
//
// A pair of outputs, `dilation` columns apart, takes four products where a sum tap by tap takes six: F(2, 3). Two taps take
// three instead of four: F(2, 2). Both leave their products at the same four positions m, from which the outputs follow as
// m0 + m1 + m2 and m1 - m2 - m3. So longer rows are cut into threes and twos, whose products are summed before.
//
// For quads of outputs, one algorithm is nested in another: F(2, 2) over pairs of taps turns the row into three rows of half as
// many taps and half as many outputs, its parts, and each of these is computed in pairs. The parts are
//   0: the even taps g[2a]          of x[2j] - x[2j + 1]
//   1: their sums g[2a] + g[2a + 1] of x[2j + 1]
//   2: the odd taps g[2a + 1]       of x[2j + 2] - x[2j + 1]
// and output 2j is the sum of parts 0 and 1, output 2j + 1 that of parts 1 and 2. Seven taps take 16 products for four
// outputs instead of 28, and 20 in pairs. A row of odd length ends with a tap of zero. Its pixel is added to others before it
// is multiplied by zero, so it must be finite.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/scalar.h"

namespace fused_subpixel::cpu {

constexpr int kRowPositions = 4;  // of a part

// The taps of a part's kernel row, in groups: threes first, then twos.
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
FS_HOST_DEVICE RowTaps row_taps(int64_t taps) {  // at least 2
  const int64_t twos = (3 - taps % 3) % 3;
  return {(taps - 2 * twos) / 3, twos};
}

// What is multiplied: combinations of a part's signal s[i], counted in steps of the dilation. Each is kept as two streams, of
// even and of odd i, in which the lanes of a vector are neighbouring tiles.
enum class RowSignal : int {
  kPixel,           // s[i]
  kSum,             // s[i] + s[i + 1]
  kDifference,      // s[i + 1] - s[i]
  kWideDifference,  // s[i] - s[i + 2]
};
constexpr int kPartStreams = 8;
struct RowFactor {
  RowSignal signal;
  int64_t i;  // relative to the pair's first output
  FS_HOST_DEVICE int stream() const { return 2 * static_cast<int>(signal) + static_cast<int>(i % 2); }
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

// How rows of `kernel_w` taps are computed, in tiles of 2 or 4 outputs (of 4: four taps at least).
struct RowScheme {
  int64_t kernel_w;
  int outputs;
  FS_HOST_DEVICE constexpr int parts() const { return outputs == 2 ? 1 : 3; }
  FS_HOST_DEVICE int positions() const { return parts() * kRowPositions; }
  FS_HOST_DEVICE RowTaps taps(int part) const {
    return row_taps(outputs == 2 ? kernel_w : part == 2 ? kernel_w / 2 : (kernel_w + 1) / 2);
  }
  FS_HOST_DEVICE bool ends_with_zero() const { return outputs == 4 && kernel_w % 2 == 1; }
  // Products of a tile at one position of all parts, and at all of them.
  FS_HOST_DEVICE int64_t products(int position) const {
    return taps(position / kRowPositions).products(position % kRowPositions);
  }
  FS_HOST_DEVICE int64_t products() const {
    int64_t sum = 0;
    for (int part = 0; part < parts(); ++part) sum += taps(part).products();
    return sum;
  }
  // The streams that any product of a part reads, a bit each.
  FS_HOST_DEVICE unsigned used(int part) const {
    const RowTaps of_part = taps(part);
    unsigned streams = 0;
    for (int position = 0; position < kRowPositions; ++position)
      for (int64_t q = 0; q < of_part.products(position); ++q)
        streams |= 1u << row_factor(of_part, position, q).stream();
    return streams;
  }
  // Streams of all parts before this one.
  FS_HOST_DEVICE int streams_before(int part) const {
    int count = 0;
    for (int before = 0; before < part; ++before) count += __builtin_popcount(used(before));
    return count;
  }
  FS_HOST_DEVICE int streams() const { return streams_before(parts()); }
  // From the start of a transformed row to the factor of the first tile.
  FS_HOST_DEVICE int64_t factor_offset(int position, int64_t group, int64_t dilation, int64_t step) const {
    const int part = position / kRowPositions;
    const RowFactor f = row_factor(taps(part), position % kRowPositions, group);
    const int stream = streams_before(part) + __builtin_popcount(used(part) & ((1u << f.stream()) - 1));
    return stream * step + f.i / 2 * dilation;
  }

  // Tiles in a row of so many outputs. Tile p is of the column p / dilation * outputs * dilation + p % dilation and of those
  // `dilation` further each.
  FS_HOST_DEVICE int64_t tiles(int64_t width, int64_t dilation) const {
    const int64_t rest = width % (outputs * dilation);
    return width / (outputs * dilation) * dilation + (rest < dilation ? rest : dilation);
  }
  // Elements of a stream that the products of so many vectors of tiles read.
  FS_HOST_DEVICE int64_t stream_elements(int64_t vectors, int lanes, int64_t dilation) const {
    const int64_t most_taps = outputs == 2 ? kernel_w : (kernel_w + 1) / 2;
    return round_up(vectors * lanes + (most_taps - 1) / 2 * dilation, lanes);
  }
};

}  // namespace fused_subpixel::cpu
