// SPDX-License-Identifier: BSD-3-Clause
// How threads share work items. No std:: in here, see conv_task.h.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace fused_subpixel::cpu {

// Guided self-scheduling: each thread takes a range of items, large ranges first and single items at last. Threads are not
// equally fast, because a core may be a small one or busy, so equal shares would make all wait for the slowest. An item's
// result does not depend on the thread that computes it.
class WorkQueue {
 public:
  struct Range {
    int64_t begin, end;  // equal if nothing is left
  };
  WorkQueue(int64_t items, int threads) : items_(items), threads_(threads) {}
  FS_HOST_DEVICE Range take() {
    int64_t begin = __atomic_load_n(&next_, __ATOMIC_RELAXED), end;
    do {
      const int64_t part = (items_ - begin) / (2 * threads_);
      end = begin + (part > 0 ? part : begin < items_ ? 1 : 0);
    } while (!__atomic_compare_exchange_n(&next_, &begin, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return {begin, end};
  }

 private:
  const int64_t items_, threads_;
  int64_t next_ = 0;
};

}  // namespace fused_subpixel::cpu
