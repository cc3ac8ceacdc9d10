// SPDX-License-Identifier: BSD-3-Clause
// Answers about GPUs that do not change while a process runs, asked once for each.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace fused_subpixel::cuda {

template <class Answer>
class PerDevice {
 public:
  // The answer for a device; ask() gives it at first, and always for devices beyond the table.
  template <class Ask>
  Answer get(int device, Ask ask) {
    if (device < 0 || device >= kDevices) return ask();
    std::atomic<int32_t>& known = known_[static_cast<size_t>(device)];
    int32_t found = known.load(std::memory_order_relaxed);
    if (found == kUnknown) {
      found = 1 + static_cast<int32_t>(ask());
      known.store(found, std::memory_order_relaxed);
    }
    return static_cast<Answer>(found - 1);
  }

 private:
  static constexpr int kDevices = 64, kUnknown = 0;
  std::array<std::atomic<int32_t>, kDevices> known_{};
};

}  // namespace fused_subpixel::cuda
