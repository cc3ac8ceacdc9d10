// SPDX-License-Identifier: BSD-3-Clause
// Tiles in the eight tile registers of AMX. Nothing else in the library knows these instructions. Included by tiles-inl.h only.
#pragma once

#include "cpu/kernels/tiles-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

constexpr int kTileRegisters = 8;

#if defined(__AMX_BF16__)

// The registers belong to the thread that constructed this, until it is destroyed.
class TileRegisters {
 public:
  TileRegisters() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int r = 0; r < kTileRegisters; ++r) {
      config.row_bytes[r] = kTileRowBytes;
      config.rows[r] = kTileRows;
    }
    static_assert(sizeof(config) == 64);
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  TileRegisters(const TileRegisters&) = delete;
  ~TileRegisters() { asm volatile("tilerelease"); }

  template <int R>
  FS_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(R));
  }
  template <int R>
  FS_INLINE void load(const void* from, int64_t row_step_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_step_bytes), "i"(R) : "memory");
  }
  template <int R>
  FS_INLINE void store(void* to, int64_t row_step_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_step_bytes), "i"(R) : "memory");
  }
  // sums[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1], summed over k
  template <int Sums, int A, int B>
  FS_INLINE void add_products() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
  }
};

#else

class TileRegisters {
 public:
  template <int R>
  void zero() {
    std::memset(tile_[R], 0, sizeof(tile_[R]));
  }
  template <int R>
  void load(const void* from, int64_t row_step_bytes) {
    for (int m = 0; m < kTileRows; ++m)
      std::memcpy(tile_[R][m], static_cast<const char*>(from) + m * row_step_bytes, kTileRowBytes);
  }
  template <int R>
  void store(void* to, int64_t row_step_bytes) {
    for (int m = 0; m < kTileRows; ++m)
      std::memcpy(static_cast<char*>(to) + m * row_step_bytes, tile_[R][m], kTileRowBytes);
  }
  // In the processor's order: even and odd products in a chain of additions each. (A product of two bfloat16 has no rounding
  // error.) Subnormal numbers count as zero.
  template <int Sums, int A, int B>
  void add_products() {
    constexpr int L = kLanes<float>;
    for (int m = 0; m < kTileRows; ++m) {
      for (int n = 0; n < kColumnOc; n += L) {
        Vec<float> even{}, odd{};
        for (int k = 0; k < kTileRows; ++k) {
          const Bits32 a = tile_[A][m][k] - Bits32{};
          Bits32 b;
          std::memcpy(&b, &tile_[B][k][n], sizeof(b));
          even = flushed(even + lower(a) * lower(b));
          odd = flushed(odd + upper(a) * upper(b));
        }
        Vec<float> sums;
        std::memcpy(&sums, &tile_[Sums][m][n], sizeof(sums));
        sums = flushed(flushed(sums) + flushed(even + odd));
        std::memcpy(&tile_[Sums][m][n], &sums, sizeof(sums));
      }
    }
  }

 private:
  uint32_t tile_[kTileRegisters][kTileRows][kTileRowBytes / 4];
};

#endif

// Registers of P x Q sums come first: f(register, p, q). P of one factor and Q of the other follow.
template <int P, int Q, class F>
FS_INLINE void for_each_sum(F&& f) {
  static_assert(P <= 2 && Q <= 2 && P * Q + P + Q <= kTileRegisters);
  f(IntConstant<0>{}, 0, 0);
  if constexpr (Q > 1) f(IntConstant<1>{}, 0, 1);
  if constexpr (P > 1) f(IntConstant<Q>{}, 1, 0);
  if constexpr (P > 1 && Q > 1) f(IntConstant<Q + 1>{}, 1, 1);
}

class Tiles {
 public:
  static constexpr MatrixTiles kKind = MatrixTiles::kRegisters;

  template <int P, int Q, class Left, class Right>
  FS_INLINE void multiply(const TileSums& sums, const TileCount& count, const Left& left, int64_t left_bytes,
                          const Right& right, int64_t right_bytes) {
    const int64_t sum_bytes = sums.row_step * static_cast<int64_t>(sizeof(float));
    for_each_sum<P, Q>([&](auto r, int p, int q) {
      if (sums.add)
        registers_.load<decltype(r)::value>(sums.at[p] + q * sums.column_step, sum_bytes);
      else
        registers_.zero<decltype(r)::value>();
    });
    constexpr int A = P * Q, B = A + P;
    for (int64_t i = 0; i < count.all; ++i) {
      registers_.load<B>(right(0, i), right_bytes);
      registers_.load<A>(left(0, i), left_bytes);
      registers_.add_products<0, A, B>();
      if constexpr (Q > 1) {
        registers_.load<B + Q - 1>(right(1, i), right_bytes);
        registers_.add_products<Q - 1, A, B + Q - 1>();
      }
      if constexpr (P > 1) {
        registers_.load<A + P - 1>(left(1, i), left_bytes);
        registers_.add_products<Q, A + P - 1, B>();
        if constexpr (Q > 1) registers_.add_products<P * Q - 1, A + P - 1, B + Q - 1>();
      }
    }
    for_each_sum<P, Q>([&](auto r, int p, int q) {
      registers_.store<decltype(r)::value>(sums.at[p] + q * sums.column_step, sum_bytes);
    });
  }

 private:
  TileRegisters registers_;
};

}  // namespace fused_subpixel::cpu::FS_ISA
