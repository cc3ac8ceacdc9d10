// SPDX-License-Identifier: BSD-3-Clause
// Weight gradient on the tensor cores, sm_80 and up: a GEMM of output channels (M) by (input channel, tap) (N), summed over
// pixels (k). The grid's x divides the pixels, its y the weight. A block has four warps. Each computes 16 output channels
// by 32 input channels for up to kTaps taps.
//
//   load     A tile's gradient, and its input with the halo, are in shared memory pixel by pixel, as for the convolution
//            (sm80_conv.cuh). ldmatrix transposes them on the way to the registers. For tf32 it cannot, and lanes read
//            their elements one by one. A tap moves the address from which the input's pixels are read. The next tile is
//            fetched meanwhile.
//   gemm     The bias is one more column, of ones.
//   store    Every block writes partial sums. weight_grad_finish_kernel adds them in the order of the blocks.
#pragma once

#include "cuda/kernels/sm80_conv.cuh"

namespace fused_subpixel::cuda {

FS_DEVICE uint32_t word_of_ones(Float16) { return 0x3c003c00u; }
FS_DEVICE uint32_t word_of_ones(BFloat16) { return 0x3f803f80u; }
FS_DEVICE uint32_t word_of_ones(TF32) { return 0x3f800000u; }

template <class T, int kBytes>
struct GradLayout {
  using type = XorSwizzled<kBytes>;
};
template <int kBytes>
struct GradLayout<TF32, kBytes> {
  using type = Padded<kBytes>;
};

template <class T, int kTaps>
struct WeightGradBlock {
  static constexpr int kBytes = static_cast<int>(sizeof(T)), kPixels = grad_pixels(kBytes);
  // of a pixel, per warp
  using GradientLayout = typename GradLayout<T, kGradWarpOc * kBytes>::type;
  using InputLayout = typename GradLayout<T, kGradWarpIc * kBytes>::type;
  static constexpr int kTiles = kGradWarpIc / 8;
  static constexpr int kSummed = 32 / kBytes;           // pixels that one mma sums over
  static constexpr int kIndices = kBytes == 4 ? 2 : 1;  // pixels of the input that a lane reads for it
  const WeightGradParams& p;
  unsigned char* shared;
  int lane, oc_warp, ic_warp, ic_warps;
  int oc_block, ic_block, tap_block;
  float acc[kTaps][kTiles][4], bias[4];

  FS_DEVICE explicit WeightGradBlock(const WeightGradParams& params) : p(params), shared(shared_memory()) {
    const WeightGradPlan& plan = p.plan;
    const int warp = thread_index() / 32;
    lane = thread_index() % 32;
    oc_warp = warp % plan.oc_warps;
    ic_warp = warp / plan.oc_warps;
    ic_warps = kGradWarps / plan.oc_warps;
    oc_block = block_y() % plan.oc_blocks;
    ic_block = block_y() / plan.oc_blocks % plan.ic_blocks;
    tap_block = block_y() / plan.oc_blocks / plan.ic_blocks;
  }

  FS_DEVICE int* halo_index() const { return reinterpret_cast<int*>(shared + p.plan.table_offset); }

  // Halo index, at tap 0, of each pixel; zeros for the gradient of pixels that a tile does not have.
  FS_DEVICE void prepare() const {
    const WeightGradPlan& plan = p.plan;
    const int pixels = plan.tile_n * plan.tile_h * plan.tile_w;
    for (int pixel = thread_index(); pixel < kPixels; pixel += block_threads()) {
      int index = 0;
      if (pixel < pixels) {
        const int line = p.tile_w.divide(pixel), image = p.tile_h.divide(line);
        const int row = (line - image * plan.tile_h) * p.input.stride_h;
        index = (image * plan.halo_h + row) * plan.halo_w + (pixel - line * plan.tile_w) * p.input.stride_w;
      } else {
        for (int stage = 0; stage < 2; ++stage) {
          for (int warp = 0; warp < plan.oc_warps; ++warp) {
            unsigned char* to = shared + stage * plan.stage_bytes + warp * plan.gradient_block_bytes;
            for (int vec = 0; vec < GradientLayout::kVectors; ++vec)
              store_16(to + GradientLayout(kPixels).at(pixel, vec), Packed16{});
          }
        }
      }
      halo_index()[pixel] = index;
    }
  }

  FS_DEVICE void fetch(int tile, int stage) const {
    const WeightGradPlan& plan = p.plan;
    if (tile < plan.tiles_n * plan.tiles_h * plan.tiles_w) {
      const TileOrigin origin = plain_tile_origin(p, tile);
      unsigned char* to = shared + stage * plan.stage_bytes;
      for (int warp = 0; warp < plan.oc_warps; ++warp, to += plan.gradient_block_bytes)
        load_pixels<T>(p.gradient, origin, oc_block * plan.oc_warps + warp, to, GradientLayout(kPixels));
      for (int warp = 0; warp < ic_warps; ++warp, to += plan.input_block_bytes)
        load_pixels<T>(p.input, origin, ic_block * ic_warps + warp, to,
                       InputLayout(p.input.halo_pixels.divisor));
    }
    cp_async_commit();
  }

  // Rows by pixels.
  FS_DEVICE void gradient_operand(const unsigned char* gradient, int pixel, uint32_t (&g)[4]) const {
    const GradientLayout layout(kPixels);
    if constexpr (kBytes == 2) {
      ldmatrix_x4_transposed(g, gradient + layout.at(pixel + lane / 16 * 8 + lane % 8, lane / 8 % 2));
    } else {
      FS_UNROLL
      for (int q = 0; q < 4; ++q)
        g[q] = round_to_tf32(
            load_4(gradient + layout.at(pixel + lane % 4 + q / 2 * 4, 0) + (lane / 4 + q % 2 * 8) * 4));
    }
  }

  // Pixels, of which `index` has those that this lane reads, by two tiles of eight channels from tile c on.
  FS_DEVICE void input_operand(const unsigned char* input, const int (&index)[kIndices], int moved, int c,
                               uint32_t (&x)[4]) const {
    const InputLayout layout(p.input.halo_pixels.divisor);
    if constexpr (kBytes == 2) {
      ldmatrix_x4_transposed(x, input + layout.at(index[0] + moved, c + lane / 16));
    } else {
      FS_UNROLL
      for (int q = 0; q < 4; ++q)
        x[q] = round_to_tf32(
            load_4(input + layout.at(index[q % 2] + moved, 0) + ((c + q / 2) * 8 + lane / 4) * 4));
    }
  }

  FS_DEVICE void multiply(const unsigned char* stage) {
    const int taps = p.kernel_h * p.kernel_w - tap_block * kTaps;  // that are left
    const unsigned char* gradient = stage + oc_warp * p.plan.gradient_block_bytes;
    const unsigned char* input =
        stage + p.plan.oc_warps * p.plan.gradient_block_bytes + ic_warp * p.plan.input_block_bytes;
    const uint32_t ones[2] = {word_of_ones(T{}), word_of_ones(T{})};
    for (int pixel = 0; pixel < kPixels; pixel += kSummed) {
      uint32_t g[4];
      gradient_operand(gradient, pixel, g);
      mma<T>(bias, g, ones);
      int index[kIndices];
      FS_UNROLL
      for (int q = 0; q < kIndices; ++q)
        index[q] = halo_index()[pixel + (kBytes == 2 ? lane / 8 % 2 * 8 + lane % 8 : q * 4 + lane % 4)];
      int a = tap_block * kTaps / p.kernel_w, b = tap_block * kTaps - a * p.kernel_w;
      FS_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) {
        if (tap < taps) {
          const int moved = a * p.dilation_h * p.plan.halo_w + b * p.dilation_w;
          if (++b == p.kernel_w) b = 0, ++a;
          FS_UNROLL
          for (int c = 0; c < kTiles; c += 2) {
            uint32_t x[4];
            input_operand(input, index, moved, c, x);
            const uint32_t left[2] = {x[0], x[1]}, right[2] = {x[2], x[3]};
            mma<T>(acc[tap][c], g, left);
            mma<T>(acc[tap][c + 1], g, right);
          }
        }
      }
    }
  }

  FS_DEVICE void write() const {
    const int all_taps = p.kernel_h * p.kernel_w, columns = p.ic * all_taps;
    const int first_tap = tap_block * kTaps;
    FS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = (oc_block * p.plan.oc_warps + oc_warp) * kGradWarpOc + half * 8 + lane / 4;
      if (row >= p.oc) continue;
      float* to = p.partial + (int64_t{block_x()} * p.oc + row) * (columns + 1);
      FS_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) {
        if (first_tap + tap >= all_taps) break;
        FS_UNROLL
        for (int c = 0; c < kTiles; ++c) {
          const int channel = ((ic_block * ic_warps + ic_warp) * kTiles + c) * 8 + lane % 4 * 2;
          if (channel < p.ic) to[channel * all_taps + first_tap + tap] = acc[tap][c][2 * half];
          if (channel + 1 < p.ic) to[(channel + 1) * all_taps + first_tap + tap] = acc[tap][c][2 * half + 1];
        }
      }
      if (ic_block == 0 && ic_warp == 0 && tap_block == 0 && lane % 4 == 0) to[columns] = bias[2 * half];
    }
  }

  FS_DEVICE void run() {
    let_next_kernel_start();
    FS_UNROLL
    for (int q = 0; q < 4; ++q) {
      bias[q] = 0;
      FS_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) {
        FS_UNROLL
        for (int c = 0; c < kTiles; ++c) acc[tap][c][q] = 0;
      }
    }
    prepare();
    // The first iteration only fetches: a second copy of fetch() would double the kernel's length.
    int stage = 1;
    FS_NO_UNROLL
    for (int tile = block_x() - grid_x(); tile < p.plan.tiles_n * p.plan.tiles_h * p.plan.tiles_w;
         tile += grid_x()) {
      if (tile >= 0) {
        cp_async_wait<0>();
        sync_threads();  // the tile is here; all threads are done with the one before it
      }
      fetch(tile + grid_x(), 1 - stage);
      if (tile >= 0) multiply(shared + stage * p.plan.stage_bytes);
      stage = 1 - stage;
    }
    write();
  }
};

template <class T, int kTaps>
FS_KERNEL(32 * kGradWarps, 2)
weight_grad_mma_kernel(FS_CONSTANT(WeightGradParams) p) {
  WeightGradBlock<T, kTaps>(p).run();
}

// A thread makes one element of the weight's or the bias's gradient.
template <class T>
FS_KERNEL(kPackThreads, 1)
weight_grad_finish_kernel(FS_CONSTANT(WeightGradParams) p) {
  const int64_t columns = int64_t{p.ic} * p.kernel_h * p.kernel_w, slot = p.oc * (columns + 1);
  const int64_t i = int64_t{block_x()} * kPackThreads + thread_index();
  if (i >= slot) return;
  wait_for_kernel_before();  // that writes the sums
  float total = 0;
  for (int split = 0; split < p.plan.splits; ++split) total += p.partial[split * slot + i];
  const int64_t row = i / (columns + 1), column = i % (columns + 1);
  const int o = lr_channel_of(p.map, static_cast<int>(row));
  if (column == columns)
    narrow(total, static_cast<T*>(p.grad_bias)[o]);
  else
    narrow(total, static_cast<T*>(p.grad_weight)[int64_t{o} * columns + column]);
}

}  // namespace fused_subpixel::cuda
