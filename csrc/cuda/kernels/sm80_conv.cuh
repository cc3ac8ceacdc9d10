// SPDX-License-Identifier: BSD-3-Clause
// Convolution on the tensor cores, sm_80 and up: an implicit GEMM of pixels (M) by output channels (N), summed over k =
// (input channel, tap); for the forward pass and the input gradient. A block computes a tile of up to 128 pixels by kBlockOc
// output channels.
//
//   load     The input tile with its halo is in shared memory once for all taps, one block of k (kBlockKBytes of its
//            channels) at a time. A tap only moves the address from which a pixel's row is read.
//   weight   pack_filter_kernel packs it in the layout of shared memory. A small one stays there while the block goes from
//            tile to tile. Others come in steps of a few taps.
//   gemm     Four warps share the pixels, 32 each. kOcWarps share the output channels.
//   store    The accumulators, with bias and activation, are staged in shared memory. From there they go 16 bytes at a
//            time to their shuffled places, with residual and clamp.
//
// In shared memory, pixels are in planes of 16 bytes of channels: [vector][pixel of the halo][16 bytes]. The eight pixels that
// ldmatrix reads at once are neighbours, in different banks, and a tap moves them all by the same bytes. A row of the filter
// is the block of k of one output channel; its 16-byte vectors are permuted by the index of the row, for the same reason. One
// mma sums over 32 bytes of channels: 16 elements of half types, 8 of tf32.
#pragma once

#include "cuda/kernels/load_weight.cuh"
#include "cuda/kernels/store_elements.cuh"
#include "cuda/kernels/store_vectors.cuh"

namespace fused_subpixel::cuda {

constexpr int kPixelWarps = 4, kPixelsPerWarp = kMmaPixels / kPixelWarps;

// What the next step to be fetched is, tiles ahead of the one that is computed.
struct Cursor {
  int tile, k_block, step;  // step: of the k_block
  int pixel_stage, filter_stage;
};

template <class T, int kBlockOc, bool kVectorised>
using Store = std::conditional_t<kVectorised, VectorStore<T, kBlockOc>, ElementStore<T, kBlockOc>>;

// kVectorised: see Staging.
template <class T, int kBlockKBytes, int kOcTiles, int kOcWarps, bool kVectorised>
struct MmaBlock {
  using PixelLayout = KPlanes<kBlockKBytes / 16>;
  static constexpr int kBlockOc = 8 * kOcTiles * kOcWarps;
  static constexpr int kTapBytes = kBlockOc * kBlockKBytes;  // of the filter
  // In shared memory, and not for every tap. Of whole vectors each thread knows which ones it has copied.
  static constexpr bool kRoundsPixels = kVectorised && std::is_same_v<T, TF32>;
  static constexpr bool kReadsWeight = kVectorised && kBlockOc <= kUnpackedBlockOc;
  const MmaParams& p;
  Store<T, kBlockOc, kVectorised> store;
  LeftOut out;
  int base[2];             // bytes from the stage, at tap 0, to the rows that this lane reads
  PixelTable pixel_table;  // of the tile that is fetched
  bool copies_filter;      // packed; still, if it is resident
  typename Store<T, kBlockOc, kVectorised>::Pixels staged[2];  // where this lane's accumulators are staged
  float acc[2][kOcTiles][4];                                   // 16 pixels x 8 output channels each

  // Found opaque where they are needed: registers are short.
  static FS_DEVICE unsigned char* shared() { return shared_memory(); }
  static FS_DEVICE int lane() { return thread_index() % 32; }
  static FS_DEVICE int pixel_warp() { return thread_index() / 32 % kPixelWarps; }
  static FS_DEVICE int oc_warp() { return thread_index() / 32 / kPixelWarps; }
  FS_DEVICE const unsigned char* packed() const {  // of this row block
    return static_cast<const unsigned char*>(p.packed) +
           int64_t{block_y()} * p.plan.k_blocks * p.taps * kTapBytes;
  }

  FS_DEVICE const TapRange& taps() const { return p.ranges[out.taps]; }

  FS_DEVICE explicit MmaBlock(const MmaParams& params)
      : p(params), store{params}, out(left_out(params, kBlockOc)), copies_filter(params.plan.packs_weight) {
    FS_UNROLL
    for (int m = 0; m < 2; ++m) {
      int pixel = pixel_warp() * kPixelsPerWarp + m * 16 + lane() % 16;
      if (pixel >= p.plan.tile_n * p.plan.tile_h * p.plan.tile_w) pixel = 0;  // padding work
      const int line = p.tile_w.divide(pixel), image = p.tile_h.divide(line);
      const int row = (line - image * p.plan.tile_h) * p.load.stride_h;
      base[m] = PixelLayout(p.plan.pixel_plane)
                    .at((image * p.plan.halo_h + row) * p.plan.halo_w +
                            (pixel - line * p.plan.tile_w) * p.load.stride_w,
                        lane() / 16);
      staged[m] = store.pixels_at(pixel_warp() * kPixelsPerWarp + m * 16 + lane() / 4);
    }
  }

  // Of the step that begins with this tap.
  FS_DEVICE int step_taps(int tap) const {
    const int most = p.plan.step_taps;
    return tap + most > taps().taps ? taps().taps - tap : most;
  }

  // Fetches what `at` points to and moves it on. One group of copies, empty after the last step.
  FS_DEVICE void fetch(Cursor& at) {
    const Plan& plan = p.plan;
    if (at.tile < p.tiles) {
      if (at.step == 0) {
        unsigned char* to = shared() + at.pixel_stage * plan.pixel_stage_bytes;
        const PixelLayout layout(plan.pixel_plane);
        if (kVectorised || plan.lists_pixels) {
          unsigned char* table = shared() + plan.pixel_table_offset;
          // a block of several tiles has a barrier between two fetches
          if (at.k_block == 0) pixel_table.template fill<T>(p.load, tile_origin(p, at.tile, out), table);
          load_listed<T, !kVectorised>(p.load, pixel_table, table, at.k_block, to, layout);
        } else {
          gather_pixels<T>(p.load, tile_origin(p, at.tile, out), at.k_block, to, layout);
        }
      }
      if (copies_filter) {  // a step of it, or all at once
        const int tap = at.step * plan.step_taps;
        copy_bytes(packed() + (int64_t{at.k_block} * p.taps + tap) * kTapBytes,
                   shared() + plan.filter_offset + at.filter_stage * plan.filter_step_bytes,
                   (plan.resident ? plan.k_blocks * p.taps : step_taps(tap)) * kTapBytes);
        copies_filter = !plan.resident;
      }
      if (++at.step == taps().steps) {
        at.step = 0;
        if (++at.pixel_stage == plan.pixel_stages) at.pixel_stage = 0;
        if (++at.k_block == plan.k_blocks) at.k_block = 0, at.tile += grid_x();
      }
    }
    if (++at.filter_stage == plan.stages) at.filter_stage = 0;
    cp_async_commit();
  }

  // Taps first .. first + count - 1 of one k_block; filter holds these taps.
  FS_DEVICE void multiply(const unsigned char* pixels, const unsigned char* filter, int first, int count) {
    const int across = taps().across.divisor, a = taps().across.divide(first);
    int column = first - a * across;  // of the taps that the block has
    const int next_tap = p.dilation_w * 16, next_row = p.dilation_h * p.plan.halo_w * 16;
    const int wrap = next_row - across * next_tap, plane = p.plan.pixel_plane * 16;
    pixels += (taps().first_a + a) * next_row + (taps().first_b + column) * next_tap;
    const unsigned char* row[2] = {pixels + base[0], pixels + base[1]};
    FS_UNROLL_BY((kOcTiles == 2 || kBlockKBytes == 32 ? 2 : 1))  // else wide tiles spill registers
    for (int tap = 0; tap < count; ++tap, filter += kTapBytes) {
      FS_MARK(Mark::kTap);
      FS_UNROLL
      for (int k = 0; k < kBlockKBytes / 32; ++k) {
        uint32_t x[2][4];
        FS_UNROLL
        for (int m = 0; m < 2; ++m) {
          ldmatrix_x4(x[m], row[m] + 2 * k * plane);
          if constexpr (!kRoundsPixels) {
            FS_UNROLL
            for (int q = 0; q < 4; ++q) x[m][q] = to_operand(x[m][q], T{});
          }
        }
        FS_UNROLL
        for (int c = 0; c < kOcTiles; c += 2) {
          uint32_t w[4];  // two tiles of eight output channels
          ldmatrix_x4(w, filter + (oc_warp() * kOcTiles + c) * 8 * kBlockKBytes +
                             swizzled<kBlockKBytes>(lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
          const uint32_t left[2] = {w[0], w[1]}, right[2] = {w[2], w[3]};
          FS_UNROLL
          for (int m = 0; m < 2; ++m) {
            mma<T>(acc[m][c], x[m], left);
            mma<T>(acc[m][c + 1], x[m], right);
          }
        }
      }
      int moved = next_tap;
      if (++column == across) column = 0, moved += wrap;
      row[0] += moved, row[1] += moved;
    }
  }

  FS_DEVICE void clear() {
    FS_UNROLL
    for (int m = 0; m < 2; ++m) {
      FS_UNROLL
      for (int c = 0; c < kOcTiles; ++c) {
        FS_UNROLL
        for (int q = 0; q < 4; ++q) acc[m][c][q] = 0;
      }
    }
  }

  template <bool kPairs>
  FS_DEVICE void stage_all() const {
    FS_MARK(Mark::kStage);
    FS_UNROLL
    for (int c = 0; c < kOcTiles; ++c) {
      const auto at = store.columns_at(opaque((oc_warp() * kOcTiles + c) * 8 + lane() % 4 * 2));
      store.template stage<kPairs>(staged[0], at, acc[0][c]);
      store.template stage<kPairs>(staged[1], at, acc[1][c]);
    }
  }

  FS_DEVICE void apply_all_slopes() {
    FS_UNROLL
    for (int c = 0; c < kOcTiles; ++c) {
      const auto at = store.columns_at(opaque((oc_warp() * kOcTiles + c) * 8 + lane() % 4 * 2));
      apply_slopes(at, acc[0][c]);
      apply_slopes(at, acc[1][c]);
    }
  }

  FS_DEVICE void stage_acc() {
    if (has_slopes(p.epilogue.activation)) apply_all_slopes();
    if constexpr (kVectorised && kBlockOc <= kUnpairedBlockOc) {
      if (!p.vectors.pairs) return stage_all<false>();
    }
    stage_all<true>();
  }

  FS_DEVICE void wait_for_step() const {  // the oldest of stages - 1 groups under way
    if (p.plan.stages == 2) cp_async_wait<0>();
    if (p.plan.stages == 3) cp_async_wait<1>();
    if (p.plan.stages == 4) cp_async_wait<2>();
  }

  // The prologue, which only fetches, is part of the loop, because a second copy of fetch() would double the kernel's
  // length, and it would wait for instructions.
  FS_DEVICE void run() {
    const Plan& plan = p.plan;
    wait_for_kernel_before();  // that packs the filter
    Cursor ahead = {block_x(), 0, 0, 0, 0};
    bool filled = false;  // the store's tables
    if constexpr (kReadsWeight) {
      if (!plan.packs_weight) load_weight<T, kBlockKBytes, kBlockOc>(p, shared() + plan.filter_offset);
    }
    int pixel_stage = 0, before = plan.stages - 1;  // iterations of the prologue
    for (int tile = block_x(); tile < p.tiles; tile += grid_x()) {
      clear();
      for (int k_block = 0; k_block < plan.k_blocks; ++k_block) {
        for (int step = 0; step < taps().steps; ++step) {
          FS_NO_UNROLL
          for (;; --before) {
            FS_MARK(Mark::kStep);
            if (before == 0) {
              const bool first = !filled;
              if (first) store.fill_tables(), filled = true;  // while the first copies are under way
              wait_for_step();
              if constexpr (kRoundsPixels) {
                if constexpr (kReadsWeight) {
                  if (first && !plan.packs_weight)
                    round_weight<T, kBlockKBytes, kBlockOc>(p, shared() + plan.filter_offset);
                }
                if (step == 0)
                  round_pixels(p.load, shared() + pixel_stage * plan.pixel_stage_bytes,
                               PixelLayout(plan.pixel_plane));
              }
              sync_threads();  // all copies of this step have come; all threads are done with the step before it
            }
            fetch(ahead);
            if (before == 0) break;
          }
          const int tap = step * plan.step_taps;
          const unsigned char* filter =  // `ahead` is as many steps ahead as there are stages
              shared() + plan.filter_offset +
              (plan.resident ? (k_block * p.taps + tap) * kTapBytes
                             : ahead.filter_stage * static_cast<int>(plan.filter_step_bytes));
          multiply(shared() + pixel_stage * plan.pixel_stage_bytes, filter, tap, step_taps(tap));
        }
        if (++pixel_stage == plan.pixel_stages) pixel_stage = 0;
      }
      if (!plan.resident) sync_threads();  // the staging area overlaps pixels and weight
      const TileOrigin origin = tile_origin(p, tile, out);
      store.begin(origin);
      stage_acc();
      store.store(origin);  // the next tile's first barrier keeps its sums from overtaking
    }
  }
};

template <class T, int kBlockKBytes, int kOcTiles, int kOcWarps, bool kVectorised>
FS_KERNEL(32 * kPixelWarps * kOcWarps, kOcWarps == 1 ? 3 : 2)
conv_mma_kernel(FS_CONSTANT(MmaParams) p) {
  MmaBlock<T, kBlockKBytes, kOcTiles, kOcWarps, kVectorised>(p).run();
}

}  // namespace fused_subpixel::cuda
