// SPDX-License-Identifier: BSD-3-Clause
// Loads a resident filter into shared memory: packed before, or from the weight itself where input channels are neighbours
// in whole vectors. Then no kernel has to pack it.
#pragma once

#include "cuda/kernels/load_tile.cuh"
#include "cuda/kernels/pack_weight.cuh"

namespace fused_subpixel::cuda {

// Calls visit(place in `to`, vector of the weight, whether it exists) for the 16-byte vectors of a block's filter that are
// this thread's.
template <class T, int kBlockKBytes, int kBlockOc, class Visit>
FS_DEVICE void visit_weight(const MmaParams& p, unsigned char* to, const Visit& visit) {
  constexpr int kVectors = kBlockKBytes / 16, kElements = 16 / static_cast<int>(sizeof(T));
  const WeightSource& weight = p.weight;
  const int64_t next_row = weight.tap_h - p.kernel_w * weight.tap_w;
  FS_NO_UNROLL
  for (int i = thread_index(); i < kBlockOc * kVectors; i += block_threads()) {
    const int row = i / kVectors, vec = i % kVectors, oc = block_y() * kBlockOc + row;
    const T* from =
        static_cast<const T*>(weight.data) + channel_offset(weight, phase_of(p.map, oc)) + weight.first_tap;
    unsigned char* at = to + swizzled<kBlockKBytes>(row, vec);
    FS_NO_UNROLL
    for (int k_block = 0; k_block < p.plan.k_blocks; ++k_block) {
      const int k = (k_block * kVectors + vec) * kElements;
      const bool exists = (oc < p.oc) & (k < p.load.source.total);
      const T* vector = from + k;
      FS_NO_UNROLL
      for (int tap = 0, column = 0; tap < p.taps; ++tap, at += kBlockOc * kBlockKBytes) {
        visit(at, vector, exists);
        vector += weight.tap_w;
        if (++column == p.kernel_w) column = 0, vector += next_row;
      }
    }
  }
}

template <class T, int kBlockKBytes, int kBlockOc>
FS_DEVICE void load_weight(const MmaParams& p, unsigned char* to) {
  visit_weight<T, kBlockKBytes, kBlockOc>(p, to, [](void* at, const T* vector, bool exists) {
    FS_MARK(Mark::kWeights);
    cp_async<16>(at, vector, exists);
  });
}

// As pack_filter_kernel does it. Each thread rounds what it has copied.
template <class T, int kBlockKBytes, int kBlockOc>
FS_DEVICE void round_weight(const MmaParams& p, unsigned char* to) {
  visit_weight<T, kBlockKBytes, kBlockOc>(p, to, [](unsigned char* at, const T*, bool) {
    FS_MARK(Mark::kRound);
    round_vector(at);
  });
}

}  // namespace fused_subpixel::cuda
