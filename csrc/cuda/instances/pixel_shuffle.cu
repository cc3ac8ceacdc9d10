// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/kernels/pixel_shuffle.cuh"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

void pixel_shuffle(const ShuffleArguments& a, const Device& device) {
  const auto bytes = a.element_bytes;
  const int64_t length = a.channels_last ? a.width * a.channels : a.width;
  const int64_t vector = 16 / bytes;
  ShuffleParams p{};
  p.input = a.input.data;
  p.output = a.output;
  p.input_stride = a.input.stride;
  p.lines = a.batch * a.height * (a.channels_last ? 1 : a.channels);
  p.line_length = length;
  p.line_slots = ceil_div(length, vector) + 1;
  p.slots = Divisor(p.line_slots);
  p.channels = Divisor(a.channels);
  p.rows = Divisor(a.height);
  const int64_t hr_channels = a.inverse ? a.channels / (a.factor_h * a.factor_w) : a.channels;
  p.shuffle = {Divisor(hr_channels), Divisor(a.factor_h), Divisor(a.factor_w)};
  p.order = a.order;
  p.channels_last = a.channels_last;
  p.inverse = a.inverse;
  const int64_t blocks = ceil_div(p.lines * p.line_slots, kShuffleThreads);
  const int grid = static_cast<int>(std::min(blocks, int64_t{device.target.multiprocessors} * 64));
  const auto run = [&](void (*kernel)(ShuffleParams)) {
    run_kernel<ShuffleParams>(kernel, grid, 1, kShuffleThreads, 0, device.stream, p);
  };
  if (bytes == 1) run(&shuffle_kernel<uint8_t>);
  if (bytes == 2) run(&shuffle_kernel<uint16_t>);
  if (bytes == 4) run(&shuffle_kernel<uint32_t>);
  if (bytes == 8) run(&shuffle_kernel<uint64_t>);
}

}  // namespace fused_subpixel::cuda
