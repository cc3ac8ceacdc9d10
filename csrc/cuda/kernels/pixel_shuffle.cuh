// SPDX-License-Identifier: BSD-3-Clause
// The periodic shuffle and its inverse alone: a copy of elements of 1, 2, 4 or 8 bytes. Neighbouring threads write
// neighbouring 16 bytes of the output; they read from a few neighbouring stretches of the input.
#pragma once

#include "cuda/device.cuh"
#include "cuda/params.h"

namespace fused_subpixel::cuda {

constexpr int kShuffleThreads = 256;

// Offset in an image of the input of element (c, row, column) of the output.
FS_DEVICE int64_t source_of(const ShuffleParams& p, uint32_t c, uint32_t row, uint32_t column) {
  const Strides& s = p.input_stride;
  const uint32_t r_h = p.shuffle.r_h.divisor, r_w = p.shuffle.r_w.divisor;
  if (p.inverse) {  // from high resolution
    const PhaseOf<uint32_t> at = phase_of_channel(c, p.shuffle, p.order);
    return at.c * s.c + (int64_t{row} * r_h + at.i) * s.h + (int64_t{column} * r_w + at.j) * s.w;
  }
  const uint32_t h = p.shuffle.r_h.divide(row), w = p.shuffle.r_w.divide(column);
  const PhaseOf<uint32_t> at{c, row - h * r_h, column - w * r_w};
  return channel_of_phase(at, p.shuffle, p.order) * s.c + h * s.h + w * s.w;
}

template <class Word>
FS_KERNEL(kShuffleThreads, 1)
shuffle_kernel(FS_CONSTANT(ShuffleParams) p) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(Word));
  const int64_t slots = p.lines * p.line_slots;
  for (int64_t slot = int64_t{block_x()} * kShuffleThreads + thread_index(); slot < slots;
       slot += int64_t{grid_x()} * kShuffleThreads) {
    // A line is a row of the output: of one channel, or in channels_last of all of them.
    const int64_t line =
        slot < int64_t{1} << 32 ? int64_t{p.slots.divide(static_cast<uint32_t>(slot))} : slot / p.line_slots;
    const uint32_t image = p.rows.divide(static_cast<uint32_t>(line));
    const uint32_t row = static_cast<uint32_t>(line) - image * p.rows.divisor;
    uint32_t n = image, c = 0;
    if (!p.channels_last) n = p.channels.divide(image), c = image - n * p.channels.divisor;
    Word* to = static_cast<Word*>(p.output) + line * p.line_length;
    const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / sizeof(Word) % kVector);
    const int64_t first = (slot - line * p.line_slots) * kVector - misaligned;
    if (first >= p.line_length) continue;
    const bool whole = first >= 0 && first + kVector <= p.line_length;
    Packed16 packed = {};
    FS_UNROLL
    for (int v = 0; v < kVector; ++v) {
      const int64_t e = first + v;
      if (e < 0 || e >= p.line_length) continue;
      auto column = static_cast<uint32_t>(e);
      if (p.channels_last) c = column, column = p.channels.divide(column), c -= column * p.channels.divisor;
      const Word value =
          static_cast<const Word*>(p.input)[n * p.input_stride.n + source_of(p, c, row, column)];
      if (whole)
        put_word(packed, v, value);
      else
        to[e] = value;
    }
    if (whole) store_16(to + first, packed);
  }
}

}  // namespace fused_subpixel::cuda
