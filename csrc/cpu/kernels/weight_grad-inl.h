// SPDX-License-Identifier: BSD-3-Clause
// Weight gradient of one worker: pixels in the vector lanes, summed over the blocks the worker is given into its own
// slot. Included by kernels.cpp only.
#pragma once

#include "cpu/kernels/conv-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
void weight_grad(const WeightGradTask& task, int64_t slot, int64_t begin, int64_t end) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  const CpuPlan& plan = task.plan;
  const Window& window = task.window;
  const StripShape in = strip_shape(strip_problem(window), plan.block_h, plan.block_w, L, false);
  // the gradient is read at the low-resolution pixels themselves: one tap, stride 1
  Window pixels = window;
  pixels.channels = task.rows;
  pixels.kernel_h = pixels.kernel_w = pixels.stride_h = pixels.stride_w = pixels.dilation_h =
      pixels.dilation_w = 1;
  pixels.pad_top = pixels.pad_left = 0;
  const StripShape out = strip_shape(strip_problem(pixels), plan.block_h, plan.block_w, L, false);

  const int64_t taps = window.taps(), columns = window.channels * taps, row_step = columns + 1;
  const int64_t most = plan.block_n * plan.block_h * ceil_div(plan.block_w, L);
  const int T_rows = plan.tile_rows, V = plan.tile_pixels;
  const int64_t in_size = plan.block_n * in.image_step + 2 * L;
  const int64_t out_size = plan.block_n * out.image_step + T_rows * out.channel_step + 2 * L;
  const int64_t output_size = output_row_size(task.gradient, out);
  Arena arena{static_cast<char*>(thread_scratch(Arena::bytes<int64_t>(taps) + Arena::bytes<S>(in_size) +
                                                Arena::bytes<S>(out_size) + Arena::bytes<S>(output_size) +
                                                2 * Arena::bytes<int32_t>(most)))};
  int64_t* tap = arena.take<int64_t>(taps);
  S* in_strip = arena.take<S>(in_size);
  S* out_strip = arena.take<S>(out_size);
  S* output_row = arena.take<S>(output_size);
  int32_t* at_in = arena.take<int32_t>(most);
  int32_t* at_out = arena.take<int32_t>(most);
  strip_offsets(window, in, {}, 1, tap);
  for (int64_t l = 0; l < 2 * L; ++l) in_strip[in_size - 1 - l] = S(0);

  S* const sums = static_cast<S*>(task.partial) + slot * window.groups * task.rows * row_step;
  const GradientTile<S> run_tile = gradient_tile_of<S>(T_rows);
  const int64_t blocks = plan.blocks_n * plan.blocks_h * plan.blocks_w;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t g = item / blocks;
    const Block b = block_of(plan, window, item % blocks);
    pack_strip<T>(task.input, window, in, g, b.n, b.images, b.h, b.w, in_strip,
                  item > begin && b.h > 0 ? plan.block_h : 0, nullptr);
    pack_strip<T>(task.gradient, pixels, out, g, b.n, b.images, b.h, b.w, out_strip, 0, output_row);
    // Vectors at the right edge of a block reach pixels of its neighbour: they must not count twice.
    for (int64_t r = 0; r < b.images * task.rows; ++r) {
      S* plane = out_strip + r / task.rows * out.image_step + r % task.rows * out.channel_step;
      for (int64_t y = 0; y < b.height; ++y)
        for (int64_t x = b.width; x < out.phase_columns; ++x) plane[y * out.row_step + x] = S(0);
    }
    int64_t vectors = 0;
    PixelCursor cursor{b, L};
    for (const int64_t n = b.images * b.height * ceil_div(b.width, L); vectors < n; ++vectors) {
      const PixelVector p = cursor.next();
      at_in[vectors] = static_cast<int32_t>(p.n * in.image_step + p.h * window.stride_h * in.row_step + p.w);
      at_out[vectors] = static_cast<int32_t>(p.n * out.image_step + p.h * out.row_step + p.w);
    }
    S* group_sums = sums + g * task.rows * row_step;
    for (int64_t row = 0; row < task.rows; row += T_rows) {
      // a short last tile computes rows twice over and keeps only its own
      const int64_t first = task.rows >= T_rows ? smaller(row, task.rows - T_rows) : 0;
      const int64_t keep = row - first;
      const S* gradient = out_strip + first * out.channel_step;
      for (int64_t c = 0; c < columns; c += V) {
        const S* at[8];
        const int valid = static_cast<int>(smaller<int64_t>(V, columns - c));
        for (int v = 0; v < V; ++v) {
          const int64_t column = c + smaller(v, valid - 1);
          at[v] = in_strip + column / taps * in.channel_step + tap[column % taps];
        }
        S tile[12 * 8];
        run_tile(gradient, out.channel_step, at, at_out, at_in, vectors, tile);
        for (int64_t t = keep; t < T_rows && first + t < task.rows; ++t) {
          for (int v = 0; v < valid; ++v) group_sums[(first + t) * row_step + c + v] += tile[t * V + v];
        }
      }
    }
    for (int64_t row = 0; row < task.rows; ++row) {
      Vec<S> total{};
      for (int64_t n = 0; n < vectors; ++n) total += load<S>(out_strip + row * out.channel_step + at_out[n]);
      Vec<S> one[L] = {total};
      fold<S>(one);
      group_sums[row * row_step + columns] += one[0][0];
    }
  }
}

template <class T>
void finish_weight_grad(const WeightGradTask& task) {
  using S = Compute<T>;
  const int64_t rows = task.window.groups * task.rows, columns = task.window.channels * task.window.taps();
  const int64_t slot_step = rows * (columns + 1);
  for (int64_t row = 0; row < rows; ++row) {
    const S* from = static_cast<const S*>(task.partial) + row * (columns + 1);
    T* weight = static_cast<T*>(task.grad_weight) + task.row_channel[row] * columns;
    for (int64_t column = 0; column <= columns; ++column) {
      S total = from[column];
      for (int64_t slot = 1; slot < task.slots; ++slot) total += from[slot * slot_step + column];
      if (column < columns)
        weight[column] = narrow<T>(total);
      else
        static_cast<T*>(task.grad_bias)[task.row_channel[row]] = narrow<T>(total);
    }
  }
}

}  // namespace fused_subpixel::cpu::FS_ISA
