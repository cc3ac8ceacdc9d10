// SPDX-License-Identifier: BSD-3-Clause
// Three ways to divide by a number that stays the same. A GPU has no instruction for it: 64 bits take a function call,
// 32 bits some twenty instructions, so that kernels multiply by a reciprocal made on the host.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fused_subpixel {

template <class T>
struct PlainDivisor {
  using Int = T;
  Int divisor = 1;
  FS_HOST_DEVICE Int divide(Int n) const { return n / divisor; }
};

// n / divisor for 0 <= n < 2^16 and 1 <= divisor < 2^16 by one multiplication.
struct SmallDivisor {
  using Int = int;
  int divisor = 1;
  uint32_t factor = 0;  // floor(2^32 / divisor) + 1, wraps to 1 for divisor 1
  SmallDivisor() = default;
  explicit SmallDivisor(int64_t d) : divisor(static_cast<int>(d)) {
    factor = static_cast<uint32_t>((uint64_t{1} << 32) / static_cast<uint64_t>(d) + 1);
  }
  FS_HOST_DEVICE int divide(int n) const {
    return divisor == 1 ? n
                        : static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * factor >> 32);
  }
};

// n / divisor for any 32 bits (Lemire et al., "Faster remainder by direct computation", 2019).
struct Divisor {
  using Int = uint32_t;
  uint32_t divisor = 1;
  uint64_t factor = 0;  // floor((2^64 - 1) / divisor) + 1, wraps to 0 for divisor 1
  Divisor() = default;
  explicit Divisor(int64_t d)
      : divisor(static_cast<uint32_t>(d)), factor(~uint64_t{0} / static_cast<uint64_t>(d) + 1) {}
  FS_HOST_DEVICE uint32_t divide(uint32_t n) const {
    if (divisor == 1) return n;
#if defined(__CUDA_ARCH__)
    return static_cast<uint32_t>(__umul64hi(factor, n));
#else
    return static_cast<uint32_t>(static_cast<unsigned __int128>(factor) * n >> 64);
#endif
  }
};

}  // namespace fused_subpixel
