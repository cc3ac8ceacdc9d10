// SPDX-License-Identifier: BSD-3-Clause
// Layouts of matrices in shared memory. A matrix row is one pixel's, or one output channel's, block of k; a layout tells
// where each of its 16-byte vectors is: kVectors of them, and at(row, vector). The same vector of a row further on, by a
// multiple of eight rows, is rows_on(rows) bytes away.
#pragma once

#include "cuda/device.cuh"
#include "cuda/params.h"

namespace fused_subpixel::cuda {

// Offset in bytes of vector `vec` of matrix row `row`, XOR-swizzled.
template <int kBlockKBytes>
FS_DEVICE unsigned swizzled(unsigned row, unsigned vec) {
  constexpr unsigned kVectors = kBlockKBytes / 16, kRowsPerLine = 128 / kBlockKBytes;
  static_assert(kVectors * kRowsPerLine == 8,
                "eight rows on, all is the same again: multiply() counts on it");
  return row * kBlockKBytes + (vec ^ (row / kRowsPerLine % kVectors)) * 16;
}
// The same as a layout. Layouts are constructed with the number of matrix rows, which this one does not need.
template <int kBlockKBytes>
struct XorSwizzled {
  static constexpr int kVectors = kBlockKBytes / 16;
  FS_DEVICE explicit XorSwizzled(int) {}
  FS_DEVICE int at(int row, int vec) const { return swizzled<kBlockKBytes>(row, vec); }
  FS_DEVICE int rows_on(int rows) const { return rows * kBlockKBytes; }
};

FS_DEVICE uint32_t to_operand(uint32_t word, TF32) { return round_to_tf32(word); }
template <class T>
FS_DEVICE uint32_t to_operand(uint32_t word, T) {
  return word;
}

// K-planes: the first 16 bytes of all rows, then the next 16 bytes of all rows. Not swizzled.
template <int kRowVectors>
struct KPlanes {
  static constexpr int kVectors = kRowVectors;
  int rows;  // of a plane
  FS_DEVICE explicit KPlanes(int plane_rows) : rows(plane_rows) {}
  FS_DEVICE int at(int row, int vec) const { return (vec * rows + row) * 16; }
  FS_DEVICE int rows_on(int by) const { return by * 16; }
};

// For tf32, in place of XorSwizzled: four pixels of eight neighbours each, which a warp reads at once, are in 32 banks.
template <int kBytes>
struct Padded {
  static constexpr int kVectors = kBytes / 16, kPitch = kBytes + grad_padding(4);
  static_assert(kPitch % 64 == 32, "8 or 24 banks from one pixel to the next");
  FS_DEVICE explicit Padded(int) {}
  FS_DEVICE int at(int row, int vec) const { return row * kPitch + vec * 16; }
  FS_DEVICE int rows_on(int rows) const { return rows * kPitch; }
};

}  // namespace fused_subpixel::cuda
