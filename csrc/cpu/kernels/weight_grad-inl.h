// SPDX-License-Identifier: BSD-3-Clause
// The weight gradient of one worker: pixels in the vector lanes, summed over the worker's blocks into its own slot.
// Included by kernels.cpp only.
#pragma once

#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/microkernels-inl.h"
#include "cpu/kernels/pack_input-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct WeightGradWorker {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  static constexpr int kMaxOc = 12, kMaxColumns = 8;
  const WeightGradTask& task;
  const ConvPlan& plan;
  const ConvShape& conv;
  const InputTile &in, &out;  // packed tiles of the input and of the gradient
  int64_t taps, columns, oc_step;
  S *in_packed, *out_packed, *output_row;
  int32_t *at_in, *at_out;  // offsets of the vectors of pixels of a block
  int64_t vectors = 0;
  S* slot_acc;

  WeightGradWorker(const WeightGradTask& t, int64_t slot)
      : task(t), plan(t.plan), conv(plan.shape), in(plan.input_tile), out(t.gradient_tile) {
    taps = conv.taps();
    columns = conv.ic * taps;
    oc_step = columns + 1;
    const WeightGradTask::Scratch& s = task.scratch;
    Arena arena{static_cast<char*>(thread_scratch(static_cast<size_t>(s.bytes)))};
    in_packed = arena.take<S>(s.input_tile);
    out_packed = arena.take<S>(s.gradient_tile);
    output_row = arena.take<S>(s.output_row);
    at_in = arena.take<int32_t>(s.vectors);
    at_out = arena.take<int32_t>(s.vectors);
    for (int64_t l = 0; l < 2 * L; ++l) in_packed[s.input_tile - 1 - l] = S(0);  // whole vectors are read
    slot_acc = static_cast<S*>(task.partial) + slot * conv.groups * conv.oc * oc_step;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = blocks_of_group(plan);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t g = item / blocks;
      const Block b = block_of(plan, item % blocks);
      pack(g, b, item > begin && b.h > 0);
      S* group_acc = slot_acc + g * conv.oc * oc_step;
      for (int64_t oc = 0; oc < conv.oc; oc += plan.tile_oc) add_weights(oc, group_acc);
      for (int64_t oc = 0; oc < conv.oc; ++oc) add_bias(oc, group_acc);
    }
  }

  void pack(int64_t g, const Block& b, bool follows) {
    pack_input<T>(task.input, conv, in, g, b, kept_rows(in, conv, follows ? plan.block_h : 0), in_packed,
                  nullptr);
    pack_input<T>(task.gradient, task.gradient_shape, out, g, b, 0, out_packed, output_row);
    // Vectors at the right edge of a block reach pixels of its neighbour, which must not count twice.
    for (int64_t r = 0; r < b.images * conv.oc; ++r) {
      S* plane = out_packed + r / conv.oc * out.image_step + r % conv.oc * out.channel_step;
      for (int64_t y = 0; y < b.height; ++y)
        for (int64_t x = b.width; x < out.phase_columns; ++x) plane[y * out.row_step + x] = S(0);
    }
    PixelCursor cursor{b, L};
    const int64_t count = b.images * b.height * ceil_div(b.width, L);
    for (vectors = 0; vectors < count; ++vectors) {
      const PixelVector p = cursor.next();
      at_in[vectors] = static_cast<int32_t>(p.n * in.image_step + p.h * conv.stride_h * in.row_step + p.w);
      at_out[vectors] = static_cast<int32_t>(p.n * out.image_step + p.h * out.row_step + p.w);
    }
  }

  // The tile of output channels from oc on, for all columns.
  void add_weights(int64_t oc, S* group_acc) const {
    const int M = plan.tile_oc, V = plan.tile_pixels;
    const WeightGradTile<S> microkernel = weight_grad_tile_of<S>(M);
    // a short last tile computes some output channels again and keeps only its own
    const int64_t first = conv.oc >= M ? smaller(oc, conv.oc - M) : 0;
    const int64_t keep = oc - first;
    const S* gradient = out_packed + first * out.channel_step;
    for (int64_t c = 0; c < columns; c += V) {
      const S* at[kMaxColumns];
      const int valid = static_cast<int>(smaller<int64_t>(V, columns - c));
      for (int v = 0; v < V; ++v) {
        const int64_t column = c + smaller(v, valid - 1);
        at[v] = in_packed + column / taps * in.channel_step + task.tap_offset[column % taps];
      }
      S tile[kMaxOc * kMaxColumns];
      microkernel(gradient, out.channel_step, at, at_out, at_in, vectors, tile);
      for (int64_t m = keep; m < M && first + m < conv.oc; ++m) {
        for (int v = 0; v < valid; ++v) group_acc[(first + m) * oc_step + c + v] += tile[m * V + v];
      }
    }
  }

  void add_bias(int64_t oc, S* group_acc) const {
    Vec<S> total{};
    for (int64_t n = 0; n < vectors; ++n) total += load<S>(out_packed + oc * out.channel_step + at_out[n]);
    Vec<S> one[L] = {total};
    fold<S>(one);
    group_acc[oc * oc_step + columns] += one[0][0];
  }
};

template <class T>
void weight_grad(const WeightGradTask& task, int64_t slot, int64_t begin, int64_t end) {
  WeightGradWorker<T> worker(task, slot);
  worker.run(begin, end);
}

// Adds the slots in order.
template <class T>
void finish_weight_grad(const WeightGradTask& task) {
  using S = Compute<T>;
  const ConvShape& conv = task.plan.shape;
  const int64_t all = conv.groups * conv.oc, columns = conv.ic * conv.taps();
  const int64_t slot_step = all * (columns + 1);
  for (int64_t oc = 0; oc < all; ++oc) {
    const S* from = static_cast<const S*>(task.partial) + oc * (columns + 1);
    T* weight = static_cast<T*>(task.grad_weight) + task.lr_channel[oc] * columns;
    for (int64_t column = 0; column <= columns; ++column) {
      S total = from[column];
      for (int64_t slot = 1; slot < task.slots; ++slot) total += from[slot * slot_step + column];
      if (column < columns)
        weight[column] = narrow<T>(total);
      else
        static_cast<T*>(task.grad_bias)[task.lr_channel[oc]] = narrow<T>(total);
    }
  }
}

}  // namespace fused_subpixel::cpu::FS_ISA
