// SPDX-License-Identifier: BSD-3-Clause
// Images whose channels are no neighbours to channels_last, for kernels that read a pixel's channels 16 bytes at a time.
// A block takes 64 pixels by 64 channels through shared memory: neighbouring threads read neighbouring pixels, and write
// neighbouring 16 bytes of channels.
#pragma once

#include "cuda/device.cuh"
#include "cuda/params.h"

namespace fused_subpixel::cuda {

constexpr int kLayoutThreads = 256;
// Bytes between pixels in shared memory: pixels start in different banks.
FS_HOST_DEVICE constexpr int layout_pitch(int element_bytes) { return kLayoutTile * element_bytes + 16; }

template <class Word>
FS_KERNEL(kLayoutThreads, 1)
channels_last_kernel(FS_CONSTANT(LayoutParams) p) {
  constexpr int kBytes = static_cast<int>(sizeof(Word)), kPitch = layout_pitch(kBytes);
  // channels in a word, slots of a pixel
  constexpr int kTogether = 4 / kBytes, kSlots = kLayoutTile * kBytes / 16;
  unsigned char* shared = shared_memory();
  const int n = block_x() / p.tiles, first_pixel = (block_x() - n * p.tiles) * kLayoutTile;
  const int first_channel = block_y() * kLayoutTile;
  {
    const int pixel = thread_index() % kLayoutTile,
              row = static_cast<int>(p.width.divide(first_pixel + pixel));
    const int column = first_pixel + pixel - row * static_cast<int>(p.width.divisor);
    const Word* from = static_cast<const Word*>(p.input) + n * p.stride.n + row * p.stride.h +
                       column * p.stride.w + first_channel * p.stride.c;
    const int channels = first_pixel + pixel < p.pixels ? p.channels - first_channel : 0;
    FS_UNROLL
    for (int step = 0; step < kLayoutTile * kLayoutTile / kTogether / kLayoutThreads; ++step) {
      const int c = (step * (kLayoutThreads / kLayoutTile) + thread_index() / kLayoutTile) * kTogether;
      uint32_t word = 0;
      FS_UNROLL
      for (int k = 0; k < kTogether; ++k)
        if (c + k < channels) word |= uint32_t{from[(c + k) * p.stride.c]} << 8 * kBytes * k;
      store_4(shared + pixel * kPitch + c * kBytes, word);
    }
  }
  sync_threads();
  for (int i = thread_index(); i < kLayoutTile * kSlots; i += kLayoutThreads) {
    const int pixel = i / kSlots, slot = i % kSlots, c = first_channel + slot * (16 / kBytes);
    if (first_pixel + pixel >= p.pixels || c >= p.padded) continue;
    Word* to = static_cast<Word*>(p.output) + (int64_t{n} * p.pixels + first_pixel + pixel) * p.padded + c;
    store_16(to, load_16(shared + pixel * kPitch + slot * 16));
  }
}

}  // namespace fused_subpixel::cuda
