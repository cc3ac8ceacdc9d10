// SPDX-License-Identifier: BSD-3-Clause
// Packs a weight for the tensor cores: [block of oc][block of k][tap], and in it the shared memory's own layout, so that
// copies need no rearrangement.
#pragma once

#include "cuda/kernels/smem_layout.cuh"
#include "cuda/kernels/store.cuh"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

constexpr int kPackThreads = 256;

FS_DEVICE void store_element(void* to, Float16 value) { store_2(to, value.bits); }
FS_DEVICE void store_element(void* to, BFloat16 value) { store_2(to, value.bits); }
FS_DEVICE void store_element(void* to, TF32 value) { store_4(to, bits_of(value.value)); }

FS_DEVICE int64_t channel_offset(const WeightSource& from, const PhaseOf<int>& at) {
  return at.c * from.lr_channel.c + at.i * from.lr_channel.i + at.j * from.lr_channel.j;
}

// The elements cross shared memory. Neighbouring threads read neighbouring channels, each thread all taps of its channel at
// once; 16-byte vectors are stored in the order of the packed filter.
template <class T, class Layout>
struct PackBlock {
  static constexpr int kVectors = Layout::kVectors, kK = kVectors * 16 / static_cast<int>(sizeof(T));
  // Of shared memory: of an output channel, and of a tap.
  static constexpr int kOcBytes = kVectors * 16, kTapBytes = kPackOc * kOcBytes;
  const PackParams& p;
  int block, k_block, first_column, first_oc, first_tap, taps;  // first_column: first_oc in the block of oc

  FS_DEVICE explicit PackBlock(const PackParams& params) : p(params) {
    const auto index = static_cast<uint32_t>(block_x());
    const uint32_t part = p.tap_parts.divide(index), by_oc = p.oc_parts.divide(part);
    const uint32_t oc_block = p.k_blocks.divide(by_oc);
    first_tap = static_cast<int>(index - part * p.tap_parts.divisor) * kPackTaps;
    const int left = p.kernel_h * p.kernel_w - first_tap;
    taps = left < kPackTaps ? left : kPackTaps;
    first_column = static_cast<int>(part - by_oc * p.oc_parts.divisor) * kPackOc;
    first_oc = static_cast<int>(oc_block) * p.block_oc + first_column;
    block = static_cast<int>(by_oc);  // (block of oc, block of k)
    k_block = static_cast<int>(by_oc - oc_block * p.k_blocks.divisor);
  }

  // All taps of output channel `at_oc` and channel `at_k` of the block. Zero where the weight has none.
  FS_DEVICE void read(int at_oc, int at_k, T (&value)[kPackTaps]) const {
    const int oc = first_oc + at_oc, k = k_block * kK + at_k;
    const PhaseOf<int> phase = phase_of(p.map, p.map_oc ? oc : k);
    const int lacks = p.map_oc ? missing_taps_of(p, phase) : 0, lacks_row = lacks / 2,
              lacks_column = lacks % 2;
    const int first_a = p.skips_missing_taps ? lacks_row : 0;
    const int first_b = p.skips_missing_taps ? lacks_column : 0;
    const T* from = static_cast<const T*>(p.weight.data) + channel_offset(p.weight, phase) +
                    (p.map_oc ? k : oc) * p.weight.in_channel + p.weight.first_tap;
    const SmallDivisor& across = p.across[first_b];
    const int line = across.divide(first_tap);
    int a = first_a + line, b = first_b + first_tap - line * across.divisor;
    FS_UNROLL
    for (int tap = 0; tap < kPackTaps; ++tap) {
      const bool exists =
          (oc < p.oc) & (k < p.ic) & (tap < taps) & (a < p.kernel_h) & (a >= lacks_row) & (b >= lacks_column);
      value[tap] = exists ? from[a * p.weight.tap_h + b * p.weight.tap_w] : T{};
      if (++b == p.kernel_w) b = first_b, ++a;
    }
  }

  FS_DEVICE void run() const {
    let_next_kernel_start();
    unsigned char* stage = shared_memory();
    FS_NO_UNROLL
    for (int i = thread_index(); i < kPackOc * kK; i += kPackThreads) {
      const int oc = p.k_nearer ? i / kK : i % kPackOc, k = p.k_nearer ? i % kK : i / kPackOc;
      T value[kPackTaps];
      read(oc, k, value);
      unsigned char* to = stage + oc * kOcBytes + k * static_cast<int>(sizeof(T));
      FS_UNROLL
      for (int tap = 0; tap < kPackTaps; ++tap) {
        if (tap < taps) store_element(to + tap * kTapBytes, value[tap]);
      }
    }
    sync_threads();  // all elements are there
    const Layout layout(p.block_oc);
    unsigned char* packed = static_cast<unsigned char*>(p.packed) +
                            (int64_t{block} * p.kernel_h * p.kernel_w + first_tap) * p.block_oc * kOcBytes;
    FS_NO_UNROLL
    for (int i = thread_index(); i < taps * kPackOc * kVectors; i += kPackThreads) {
      const int oc = i % kPackOc, vec = i / kPackOc % kVectors, tap = i / (kPackOc * kVectors);
      Packed16 value = load_16(stage + tap * kTapBytes + oc * kOcBytes + vec * 16);
      FS_UNROLL
      for (int word = 0; word < 4; ++word) value.word[word] = to_operand(value.word[word], T{});
      store_16(packed + tap * p.block_oc * kOcBytes + layout.at(first_column + oc, vec), value);
    }
  }
};

template <class T, class Layout>
FS_KERNEL(kPackThreads, 2)
pack_filter_kernel(FS_CONSTANT(PackParams) p) {
  PackBlock<T, Layout>(p).run();
}

// Where the weight holds whole 16-byte vectors of input channels. A block packs one tap of one block of oc and of k.
template <class T, class Layout>
FS_KERNEL(kPackThreads, 4)
pack_vectors_kernel(FS_CONSTANT(PackParams) p) {
  constexpr int kVectors = Layout::kVectors, kElements = 16 / static_cast<int>(sizeof(T));
  let_next_kernel_start();
  const auto index = static_cast<uint32_t>(block_x());
  const uint32_t block = p.taps.divide(index), oc_block = p.k_blocks.divide(block);
  const int tap = static_cast<int>(index - block * p.taps.divisor), a = p.across[0].divide(tap),
            b = tap - a * p.across[0].divisor;
  const int first_oc = static_cast<int>(oc_block) * p.block_oc,
            first_k = static_cast<int>(block - oc_block * p.k_blocks.divisor) * kVectors * kElements;
  const T* from = static_cast<const T*>(p.weight.data) + p.weight.first_tap + a * p.weight.tap_h +
                  b * p.weight.tap_w + first_k;
  unsigned char* to = static_cast<unsigned char*>(p.packed) + int64_t{block_x()} * p.block_oc * kVectors * 16;
  const Layout layout(p.block_oc);
  FS_NO_UNROLL
  for (int i = thread_index(); i < p.block_oc * kVectors; i += kPackThreads) {
    const int column = i / kVectors, vec = i % kVectors, oc = first_oc + column, k = vec * kElements;
    Packed16 value = {};
    if (oc < p.oc && first_k + k < p.ic)
      value = load_16(from + channel_offset(p.weight, phase_of(p.map, oc)) + k);
    FS_UNROLL
    for (int word = 0; word < 4; ++word) value.word[word] = to_operand(value.word[word], T{});
    store_16(to + layout.at(column, vec), value);
  }
}

// Host: fills the packed filter of a plan.
template <class T, class Layout>
void launch_pack(const PackParams& params, void* stream) {
  const auto kernel = params.whole_vectors ? &pack_vectors_kernel<T, Layout> : &pack_filter_kernel<T, Layout>;
  const int64_t shared_bytes = params.whole_vectors ? 0 : kPackTaps * PackBlock<T, Layout>::kTapBytes;
  run_kernel<PackParams>(kernel, params.blocks, 1, kPackThreads, shared_bytes, stream, params);
}

}  // namespace fused_subpixel::cuda
