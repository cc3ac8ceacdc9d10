// SPDX-License-Identifier: BSD-3-Clause
// Packs a weight for the tensor cores: [block of oc][block of k][tap], and in it the shared memory's own layout, so that
// copies need no rearrangement.
#pragma once

#include "cuda/kernels/smem_layout.cuh"
#include "cuda/kernels/store.cuh"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

constexpr int kPackThreads = 256;

// A thread makes one 16-byte vec of the packed filter.
template <class T, class Layout>
FS_KERNEL(kPackThreads, 1)
pack_filter_kernel(FS_CONSTANT(PackParams) p) {
  constexpr int kVectors = Layout::kVectors, kElements = 16 / static_cast<int>(sizeof(T));
  let_next_kernel_start();
  const Layout layout(p.block_oc);
  const int taps = p.kernel_h * p.kernel_w;
  const int total = p.oc_blocks * p.k_blocks * taps * p.block_oc * kVectors;
  for (int i = block_x() * kPackThreads + thread_index(); i < total; i += grid_x() * kPackThreads) {
    const int vec = i % kVectors, by_column = i / kVectors, block = by_column / p.block_oc;
    const int column = by_column - block * p.block_oc;  // block: (row block, k_block, tap)
    const int by_chunk = block / taps, tap = block - by_chunk * taps;
    const int oc_block = by_chunk / p.k_blocks, k_block = by_chunk - oc_block * p.k_blocks;
    const int row = oc_block * p.block_oc + column;
    const int lacks = p.map_oc && row < p.oc ? missing_taps_of(p, row) : 0;
    const int first_a = p.skips_missing_taps ? lacks / 2 : 0, first_b = p.skips_missing_taps ? lacks % 2 : 0;
    const int across = p.kernel_w - first_b, a = first_a + tap / across, b = first_b + tap % across;
    const bool there = a < p.kernel_h && a >= lacks / 2 && b >= lacks % 2;
    const int64_t at_tap = (p.flipped ? p.kernel_h - 1 - a : a) * p.tap_h_stride +
                           (p.flipped ? p.kernel_w - 1 - b : b) * p.tap_w_stride;
    const int first = (k_block * kVectors + vec) * kElements;
    Packed16 packed = {};
    const auto lr_channel = [&](int counted) {
      const PhaseOf<int> at = phase_of(p.map, counted);
      return at.c * p.lr_channel_stride.c + at.i * p.lr_channel_stride.i + at.j * p.lr_channel_stride.j;
    };
    if (row < p.oc && there) {
      const int64_t at_row = p.map_oc ? lr_channel(row) : row * p.in_stride;
      FS_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int k = first + e;
        if (k >= p.ic) break;
        const int64_t at_channel = p.map_oc ? k * p.in_stride : lr_channel(k);
        put_element(packed, e, static_cast<const T*>(p.weight)[at_row + at_channel + at_tap]);
      }
    }
    FS_UNROLL
    for (int word = 0; word < 4; ++word) packed.word[word] = to_operand(packed.word[word], T{});
    store_16(static_cast<unsigned char*>(p.packed) + int64_t{block} * p.block_oc * kVectors * 16 +
                 layout.at(column, vec),
             packed);
  }
}

// Host: fills the packed filter of a plan.
template <class T, class Layout>
void launch_pack(const PackParams& params, const Plan& plan, void* stream) {
  const int64_t vectors = plan.packed_bytes / 16;
  const int blocks = static_cast<int>((vectors + kPackThreads - 1) / kPackThreads);
  run_kernel<PackParams>(&pack_filter_kernel<T, Layout>, blocks, 1, kPackThreads, 0, stream, params);
}

}  // namespace fused_subpixel::cuda
