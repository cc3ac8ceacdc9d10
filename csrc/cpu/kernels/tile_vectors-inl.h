// SPDX-License-Identifier: BSD-3-Clause
// Tiles in vector registers: vdpbf16ps (AVX512-BF16) or bfdot (NEON) multiplies pairs of a row on the left, broadcast one after
// the other, by rows of pairs on the right. Included by tiles-inl.h only.
#pragma once

#include "cpu/kernels/tiles-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool kHasPairProducts = true;
#else
constexpr bool kHasPairProducts = false;
#endif

// Adds the products of the upper halves, and then those of the lower ones. Subnormal numbers count as zero. (bfdot adds the two
// products first, and rounds to odd: an error below one unit in the last place, where rounding to nearest has a half.)
FS_INLINE Vec<float> add_pair_products(Vec<float> sums, Bits32 a, Bits32 b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sums, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b));
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  return vbfdotq_f32(sums, bit_cast<bfloat16x8_t>(a), bit_cast<bfloat16x8_t>(b));
#else
  const Vec<float> with_upper = flushed(flushed(sums) + upper(a) * upper(b));
  return flushed(with_upper + lower(a) * lower(b));
#endif
}

class Tiles {
 public:
  static constexpr MatrixTiles kKind = MatrixTiles::kVectors;

  template <int P, int Q, class Left, class Right>
  FS_NOINLINE void multiply(const TileSums& sums, const TileCount& count, const Left& left,
                            int64_t left_bytes, const Right& right, int64_t right_bytes) {
    constexpr int N = kColumnOc / kLanes<float>;  // vectors of a row of a tile
    constexpr int R = kTileRows / (Q * N);        // so that 16 vectors of sums hide one another's latency
    for (int p = 0; p < P; ++p)
      for (int m = 0; m < (p + 1 < P ? kTileRows : sums.rows); m += R)
        multiply_rows<R, Q>(
            sums.at[p] + m * sums.row_step, sums, count,
            [&](int64_t i) { return reinterpret_cast<const char*>(left(p, i)) + m * left_bytes; }, left_bytes,
            right, right_bytes);
  }

 private:
  template <int R, int Q, class Left, class Right>
  FS_INLINE static void multiply_rows(float* to, const TileSums& sums, const TileCount& count,
                                      const Left& left, int64_t left_bytes, const Right& right,
                                      int64_t right_bytes) {
    constexpr int L = kLanes<float>, N = kColumnOc / L;  // vectors of a row of a tile
    Vec<float> acc[R][Q * N] = {};
    const auto add_tile = [&](int64_t i, auto&& for_each_pair) {
      const char* const a = left(i);
      const char* columns[Q];
      FS_UNROLL
      for (int q = 0; q < Q; ++q) columns[q] = reinterpret_cast<const char*>(right(q, i));
      int64_t row_bytes = left_bytes;
      FS_HIDE(row_bytes);  // or a sum of it and of each k would be kept
      for_each_pair([&](int64_t k) {
        Bits32 b[Q * N];
        FS_UNROLL
        for (int v = 0; v < Q * N; ++v)
          std::memcpy(&b[v], columns[v / N] + k * right_bytes + v % N * sizeof(b[v]), sizeof(b[v]));
        FS_UNROLL
        for (int r = 0; r < R; ++r) {
          uint32_t pair;
          std::memcpy(&pair, a + r * row_bytes + k * sizeof(pair), sizeof(pair));
          FS_UNROLL
          for (int v = 0; v < Q * N; ++v) acc[r][v] = add_pair_products(acc[r][v], pair - Bits32{}, b[v]);
        }
      });
    };
    // Loops of their own: in one, sums would move between registers.
    const int64_t whole = kHasPairProducts ? smaller(count.whole, count.all) : 0;
    for (int64_t i = 0; i < whole; ++i)
      add_tile(i, [](const auto& add_pair) {
        FS_UNROLL
        for (int64_t k = 0; k < kTileRows; ++k) add_pair(k);
      });
    for (int64_t i = whole; i < count.all; ++i)
      add_tile(i, [&](const auto& add_pair) {
        for (int64_t k = 0, pairs = i < count.whole ? kTileRows : count.pairs; k < pairs; ++k) add_pair(k);
      });
    FS_UNROLL
    for (int rv = 0; rv < R * Q * N; ++rv) {
      const int r = rv / (Q * N), v = rv % (Q * N);
      float* const at = to + r * sums.row_step + v / N * sums.column_step + v % N * L;
      store<float>(at, sums.add ? load<float>(at) + acc[r][v] : acc[r][v]);
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
