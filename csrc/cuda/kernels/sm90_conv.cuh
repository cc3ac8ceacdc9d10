// SPDX-License-Identifier: BSD-3-Clause
// Convolution on Hopper's tensor cores (wgmma, sm_90a), for wide layers: the implicit GEMM of sm80_conv.cuh with Hopper's
// instructions. A block of two warpgroups computes a tile of 128 pixels by 128 output channels.
//
//   load     A block of k of the input tile with its halo is in shared memory once for all taps, in planes of 16 bytes
//            of channels: [vector][pixel of the halo][16 bytes]. Eight pixels of a row are 128 contiguous bytes, which
//            wgmma calls a core matrix. The tile is 8 pixels wide, so its next eight pixels start halo_w pixels later, and
//            the next channels start one plane later. A tap only moves the start by whole pixels: any multiple of 16
//            bytes is allowed, because nothing is swizzled (see wgmma_operand).
//   weight   Packed as [vector][output channel][16 bytes] for each tap. The copy engine fetches it, one bulk copy for a
//            tap, which completes on an mbarrier.
//   gemm     Warpgroup g has pixels 64g to 64g + 63, that is 8 x 8, and all 128 output channels: 64 registers a thread.
//   store    As in sm80_conv.cuh. A block computes one tile. Two blocks share a multiprocessor, and one computes while
//            the other stores.
//
// A step is one tap of one block of k. Step s is computed in the background while the threads prepare step s + 1. They
// reach its barrier after they have waited for step s - 1, whose stage is then free for step s + stages - 2.
#pragma once

#include "cuda/kernels/sm80_conv.cuh"

namespace fused_subpixel::cuda {

template <class T, int kVectors, bool kVectorised>
struct WgmmaBlock {
  static constexpr int kBlockOc = kWgmmaBlockOc, kTapBytes = kBlockOc * kVectors * 16;
  static_assert(kBlockOc == kWgmmaN && kMmaPixels == 2 * kWgmmaM);
  const MmaParams& p;
  unsigned char* shared;
  Store<T, kBlockOc, kVectorised> store;
  uint64_t* arrived;            // an mbarrier for each stage of the filter: its bytes have come
  const unsigned char* packed;  // of this row block, the tap that is fetched next
  TileOrigin origin;
  int lane, warp, group;  // warp of the warpgroup, warpgroup
  int range;              // of taps
  PixelTable pixel_table;
  int base;              // halo index, at tap 0, of the warpgroup's first pixel
  float acc[kWgmmaAcc];  // as wgmma has them

  FS_DEVICE explicit WgmmaBlock(const MmaParams& params) : p(params), shared(shared_memory()), store{params} {
    const int thread = thread_index();
    lane = thread % 32;
    warp = thread / 32 % 4;
    group = thread / 128;
    arrived = reinterpret_cast<uint64_t*>(shared + p.plan.barrier_offset);
    packed = static_cast<const unsigned char*>(p.packed) +
             int64_t{block_y()} * p.plan.k_blocks * p.taps * kTapBytes;
    const LeftOut out = left_out(p, kBlockOc);
    origin = tile_origin(p, block_x(), out);
    range = out.taps;
    base = group * (p.plan.tile_n == 2 ? p.plan.halo_h : 8) * p.plan.halo_w;
  }

  FS_DEVICE const TapRange& taps() const { return p.ranges[range]; }

  // Fetches what `at` points to and moves it on. One group of copies, empty but for a k_block's first step.
  FS_DEVICE void fetch(Cursor& at) {
    const Plan& plan = p.plan;
    if (at.k_block < plan.k_blocks) {
      if (at.step == 0) {
        unsigned char* to = shared + at.pixel_stage * plan.pixel_stage_bytes;
        const KPlanes<kVectors> layout(plan.pixel_plane);
        load_listed<T, false>(p.load, pixel_table, shared + plan.pixel_table_offset, at.k_block, to, layout);
      }
      if (thread_index() == 0) {
        mbarrier_arrive_expect(arrived + at.filter_stage, kTapBytes);
        bulk_copy(shared + plan.filter_offset + at.filter_stage * kTapBytes, packed, kTapBytes,
                  arrived + at.filter_stage);
      }
      packed += kTapBytes;
      if (++at.filter_stage == plan.stages) at.filter_stage = 0;
      if (++at.step == taps().steps) {
        at.step = 0;
        ++at.k_block;
        packed += (p.taps - taps().steps) * kTapBytes;  // those that this block leaves out
        if (++at.pixel_stage == plan.pixel_stages) at.pixel_stage = 0;
      }
    }
    cp_async_commit();
  }

  // One tap of one k_block: pixels of the warpgroup by filter. One group of wgmmas, and no branch between them: else the
  // compiler would make several groups of it, and the wait that follows would be for more than the step before.
  FS_DEVICE void multiply(uint64_t pixels, uint64_t filter, bool accumulate) {
    FS_MARK(Mark::kTap);
    const int plane = p.plan.pixel_plane * 16;
    wgmma_fence();
    FS_UNROLL
    for (int k = 0; k < kVectors; k += 2)
      wgmma<T>(acc, moved_operand(pixels, k * plane), moved_operand(filter, k * kBlockOc * 16),
               accumulate || k > 0);
    wgmma_commit();
  }

  FS_DEVICE void stage_acc() {
    FS_MARK(Mark::kStage);
    if (has_slopes(p.epilogue.activation)) {
      FS_UNROLL
      for (int c = 0; c < kBlockOc / 8; ++c)
        apply_slopes(store.columns_at(c * 8 + lane % 4 * 2), acc + c * 4);
    }
    if constexpr (kVectorised && sizeof(T) == 2) {
      if (store.takes_matrices()) {
        const int place = store.place_of(group * kWgmmaM + warp * 16 + lane % 16);
        FS_UNROLL
        for (int c = 0; c < kBlockOc / 8; c += 2) store.stage_matrices(place, c * 8, acc + c * 4);
        return;
      }
    }
    const auto pixels = store.pixels_at(group * kWgmmaM + warp * 16 + lane / 4);
    FS_UNROLL
    for (int c = 0; c < kBlockOc / 8; ++c)
      store.template stage<true>(pixels, store.columns_at(c * 8 + lane % 4 * 2), acc + c * 4);
  }

  FS_DEVICE void run() {
    const Plan& plan = p.plan;
    if (thread_index() == 0) {
      FS_NO_UNROLL
      for (int stage = 0; stage < plan.stages; ++stage) mbarrier_init(arrived + stage, 1);
      fence_async_proxy();  // of the barriers, for this thread's copies; others see them after the first step's barrier
    }
    pixel_table.template fill<T>(p.load, origin, shared + plan.pixel_table_offset);
    wait_for_kernel_before();  // that packs the filter
    Cursor ahead = {0, 0, 0, 0, 0};
    int pixel_stage = 0, filter_stage = 0, parity = 0, before = plan.stages - 2;  // as in sm80_conv.cuh
    bool filled = false;
    // Operands of the first tap in the first stages, and bytes from there to those that are multiplied next.
    const int next_tap = p.dilation_w * 16, next_row = p.dilation_h * plan.halo_w * 16;
    const uint64_t pixels =
        opaque(wgmma_operand(shared + base * 16 + taps().first_a * next_row + taps().first_b * next_tap,
                             plan.halo_w * 16, plan.pixel_plane * 16));
    const uint64_t filter = wgmma_operand(shared + plan.filter_offset, 128, kBlockOc * 16);
    const int across = taps().across.divisor, wrap = opaque(next_row - across * next_tap);
    for (int k_block = 0; k_block < plan.k_blocks; ++k_block) {
      int tap = pixel_stage * static_cast<int>(plan.pixel_stage_bytes), column = 0;
      for (int step = 0; step < taps().steps; ++step) {
        FS_NO_UNROLL
        for (;; --before) {
          FS_MARK(Mark::kStep);
          if (before == 0) {
            if (!filled) store.fill_tables(), store.begin(origin), filled = true;
            if (step == 0) {  // this k_block's pixels, the oldest of stages - 2 groups under way
              if (plan.stages == 3) cp_async_wait<0>();
              if (plan.stages == 4) cp_async_wait<1>();
              if constexpr (std::is_same_v<T, TF32>)
                round_pixels(p.load, shared + pixel_stage * plan.pixel_stage_bytes,
                             KPlanes<kVectors>(plan.pixel_plane));
              fence_async_proxy();
            }
            sync_threads();  // all pixels of this step have come; all are done with the last step but one
          }
          fetch(ahead);
          if (before == 0) break;
        }
        mbarrier_wait(arrived + filter_stage, parity);
        sync_warp();
        multiply(moved_operand(pixels, tap), moved_operand(filter, filter_stage * kTapBytes),
                 k_block + step > 0);
        wgmma_wait<1>();
        if (++filter_stage == plan.stages) filter_stage = 0, parity ^= 1;
        tap += next_tap;
        if (++column == across) column = 0, tap += wrap;
      }
      if (++pixel_stage == plan.pixel_stages) pixel_stage = 0;
    }
    wgmma_wait_for(acc);
    sync_threads();  // the staging area overlaps pixels and weight
    stage_acc();
    store.store(origin);
  }
};

template <class T, int kVectors, bool kVectorised>
FS_KERNEL(256, 2)
conv_wgmma_kernel(FS_CONSTANT(MmaParams) p) {
  WgmmaBlock<T, kVectors, kVectorised>(p).run();
}

}  // namespace fused_subpixel::cuda
