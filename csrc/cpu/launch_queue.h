// SPDX-License-Identifier: BSD-3-Clause
// Gives work items to threads. For launch_*.cpp only.
#pragma once

#include <algorithm>

#include "cpu/launch.h"
#include "cpu/work_queue.h"

namespace fused_subpixel::cpu {

// Calls run(queue) on every thread that takes part, until `items` items are done.
template <class Run>
void run_queue(bool parallel, int64_t items, const Pool& pool, const Run& run) {
  const int64_t workers = parallel ? std::min<int64_t>(items, pool.threads) : 1;
  WorkQueue queue(items, static_cast<int>(workers));
  if (workers > 1)
    pool.for_each_share(workers, [&](int64_t, int64_t) { run(queue); });
  else if (items > 0)
    run(queue);
}

}  // namespace fused_subpixel::cpu
