// SPDX-License-Identifier: BSD-3-Clause
// Products of matrix tiles, see matrix_tiles.h: of 16 rows of 64 bytes each. FS_TILE_VECTORS says which instructions compute
// them. Without these, a stand-in computes the same bits. Included by matrix.cpp only.
#pragma once

#include "cpu/kernels/simd-inl.h"
#include "cpu/matrix_tiles.h"

namespace fused_subpixel::cpu::FS_ISA {

constexpr int kTileRows = 16, kTileRowBytes = 64;

// P x Q tiles of sums: row p of tiles begins at at[p], its tiles are column_step floats apart, and their rows row_step.
struct TileSums {
  float* at[2];
  int64_t column_step, row_step;
  bool add;      // to those in memory
  int64_t rows;  // that the last row of tiles needs; those below may be anything
};

// What is summed: tiles on the left by tiles on the right. The first `whole` have 32 columns and rows, the others' last are
// zero: they have so many pairs.
struct TileCount {
  int64_t all, whole, pairs;
};

// ---- what both stand-ins need: bfloat16 that takes subnormal numbers for zero ------------------------------------------

FS_INLINE Vec<float> flushed(Vec<float> x) {
  const Bits32 bits = bit_cast<Bits32>(x);
  const Bits32 subnormal = (bits & 0x7f800000u) == 0 ? ~Bits32{} : Bits32{};
  return bit_cast<Vec<float>>(bits & ~(subnormal & 0x7fffffffu));
}
// The two halves of pairs.
FS_INLINE Vec<float> lower(Bits32 pair) { return flushed(bit_cast<Vec<float>>(pair << 16)); }
FS_INLINE Vec<float> upper(Bits32 pair) { return flushed(bit_cast<Vec<float>>(pair & 0xffff0000u)); }

}  // namespace fused_subpixel::cpu::FS_ISA

// class Tiles, whose
//   template <int P, int Q> void multiply(sums, count, left, left_bytes, right, right_bytes)
// computes sums[p][q] = left(p, 0) x right(q, 0) + left(p, 1) x right(q, 1) + ... left and right say where tiles begin; their
// rows are so many bytes apart.
#if FS_TILE_VECTORS
#include "cpu/kernels/tile_vectors-inl.h"
#else
#include "cpu/kernels/tile_registers-inl.h"
#endif
