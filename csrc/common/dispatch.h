// SPDX-License-Identifier: BSD-3-Clause
// From a number at run time to a template argument. Each set of tile shapes is one IntList, which the planner, the
// kernels and the tests all read.
#pragma once

#include <cstdint>

// Host functions. Always inlined, as in common/host_device.h.
#define FS_DISPATCH inline __attribute__((always_inline))

namespace fused_subpixel {

template <int kValue>
struct IntConstant {
  static constexpr int value = kValue;
};

template <int... kListed>
struct IntList {
  static constexpr int values[] = {kListed...};
};

template <int... kListed>
FS_DISPATCH constexpr bool contains(IntList<kListed...>, int64_t value) {
  return ((value == kListed) || ...);
}

template <int kValue, class F>
FS_DISPATCH bool call_if_equal(int64_t value, F&& f) {
  if (value != kValue) return false;
  f(IntConstant<kValue>{});
  return true;
}

// Calls f(IntConstant<value>{}) and returns true if the list contains value. Returns false otherwise.
template <int... kListed, class F>
FS_DISPATCH bool try_dispatch(IntList<kListed...>, int64_t value, F&& f) {
  return (call_if_equal<kListed>(value, f) || ...);
}

// The same where the list must contain value: any other value is an error in a planner, and ends the process.
template <int... kListed, class F>
FS_DISPATCH void dispatch(IntList<kListed...> list, int64_t value, F&& f) {
  if (!try_dispatch(list, value, f)) __builtin_trap();
}

}  // namespace fused_subpixel
