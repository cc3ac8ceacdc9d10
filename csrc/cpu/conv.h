// SPDX-License-Identifier: BSD-3-Clause
// The convolution driver of one worker: for each (block, group) pack the strip, run the tiles, store shuffled.
// Included by kernels.cpp only.
#pragma once

#include "store.h"
#include "tile.h"

namespace fused_subpixel::cpu::FS_ISA {

// Cuts one 64-byte aligned allocation into arrays.
struct Arena {
  char* at;
  template <class E>
  E* take(int64_t n) {
    E* p = reinterpret_cast<E*>(at);
    at += (static_cast<size_t>(n) * sizeof(E) + 63) / 64 * 64;
    return p;
  }
  template <class E>
  static size_t bytes(int64_t n) {
    return (static_cast<size_t>(n) * sizeof(E) + 63) / 64 * 64;
  }
};

struct Block {
  int64_t n, images, h, height, w, width;
};

// Blocks follow one another downwards, so that a strip can keep the rows it shares with the one before.
FS_INLINE Block block_of(const CpuPlan& plan, const Window& window, int64_t index) {
  Block b;
  b.h = index % plan.blocks_h * plan.block_h, index /= plan.blocks_h;
  b.w = index % plan.blocks_w * plan.block_w, index /= plan.blocks_w;
  b.n = index * plan.block_n;
  b.width = smaller(plan.block_w, window.conv_w - b.w);
  b.height = smaller(plan.block_h, window.conv_h - b.h);
  b.images = smaller(plan.block_n, window.batch - b.n);
  return b;
}

FS_INLINE CpuProblem strip_problem(const Window& w) {
  CpuProblem p{};
  p.channels = w.channels, p.kernel_h = w.kernel_h, p.kernel_w = w.kernel_w;
  p.stride_h = w.stride_h, p.stride_w = w.stride_w, p.dilation_h = w.dilation_h, p.dilation_w = w.dilation_w;
  return p;
}

FS_INLINE void tap_offsets(const Window& w, const StripShape& shape, int64_t* tap) {
  for (int64_t a = 0; a < w.kernel_h; ++a) {
    for (int64_t b = 0; b < w.kernel_w; ++b) {
      const int64_t col = b * w.dilation_w;
      tap[a * w.kernel_w + b] =
          a * w.dilation_h * shape.row_step + col % w.stride_w * shape.phase_columns + col / w.stride_w;
    }
  }
}

// Walks the pixel vectors of a block: w fastest, then h, then image.
struct PixelCursor {
  const Block& block;
  int lanes;
  int64_t n = 0, h = 0, w = 0;
  PixelVector next() {
    PixelVector p{n, h, w, static_cast<int>(smaller<int64_t>(lanes, block.width - w))};
    w += lanes;
    if (w >= block.width) w = 0, ++h;
    if (h >= block.height) h = 0, ++n;
    return p;
  }
};

// The rows of one group: where each goes, and its constants.
template <class T>
struct GroupRows {
  using S = Compute<T>;
  const ConvTask& task;
  int64_t *dest, *residual;
  int32_t *fine_row, *fine_col;
  S *bias, *slope;

  static size_t bytes(int64_t padded) {
    return 2 * Arena::bytes<int64_t>(padded) + 2 * Arena::bytes<int32_t>(padded) +
           2 * Arena::bytes<S>(padded);
  }
  void place(Arena& arena, int64_t padded) {
    dest = arena.take<int64_t>(padded), residual = arena.take<int64_t>(padded);
    fine_row = arena.take<int32_t>(padded), fine_col = arena.take<int32_t>(padded);
    bias = arena.take<S>(padded), slope = arena.take<S>(padded);
  }
  RowTable<S> enter(int64_t g) {
    const Destination& d = task.dest;
    const TaskEpilogue& e = task.epilogue;
    const Strides& r = e.residual_stride;
    for (int64_t row = 0; row < d.rows; ++row) {
      const Phase p = d.row_phase[g * d.rows + row];
      const int64_t o = d.row_channel[g * d.rows + row];
      const int64_t i = p.i - d.crop_top, j = p.j - d.crop_left;
      fine_row[row] = static_cast<int32_t>(i), fine_col[row] = static_cast<int32_t>(j);
      dest[row] = p.c * d.stride.c + i * d.stride.h + j * d.stride.w;
      residual[row] = e.residual_kind == ResidualKind::kHighRes  ? p.c * r.c + i * r.h + j * r.w
                      : e.residual_kind == ResidualKind::kLowRes ? o * r.c
                                                                 : p.c * r.c;
      bias[row] = e.bias ? S(widen(static_cast<const T*>(e.bias)[o])) : S(0);
      slope[row] = e.prelu ? S(widen(static_cast<const T*>(e.prelu)[e.prelu_c * p.c + e.prelu_o * o]))
                           : static_cast<S>(e.negative_slope);
    }
    return {d.rows, dest, residual, fine_row, fine_col, bias, slope};
  }
};

FS_INLINE PixelVector absolute(PixelVector p, const Block& b) {
  p.n += b.n, p.h += b.h, p.w += b.w;
  return p;
}

template <class T>
struct ConvWorker {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  const ConvTask& task;
  const CpuPlan& plan;
  StripShape shape;
  StripMap map;
  Store<T> out;
  GroupRows<T> rows;
  S *strip, *output_row, *filter, *sums;
  int64_t tiles, k, group = -1;
  bool resident;  // all filter tiles of a group fit the scratch: packed once, not once per block

  explicit ConvWorker(const ConvTask& t)
      : task(t),
        plan(t.plan),
        shape(strip_shape(strip_problem(t.window), plan.block_h, plan.block_w, L)),
        out(t.dest, t.epilogue),
        rows{t, {}, {}, {}, {}, {}, {}} {
    const Window& w = task.window;
    tiles = ceil_div(task.dest.rows, plan.tile_rows);
    k = w.channels * w.taps();
    const int64_t padded = tiles * plan.tile_rows + L;
    resident = plan.filter_resident;
    const int64_t kept_tiles = resident ? tiles : plan.panel_tiles;
    const int64_t strip_size = plan.block_n * shape.image_step + 2 * L;
    const int64_t output_size = output_row_size(task.source, shape);
    const int64_t filter_size = kept_tiles * k * plan.tile_rows + L;
    const int64_t sums_size = int64_t{plan.panel_tiles} * plan.tile_rows * plan.tile_pixels *
                                  (plan.kernel == CpuKernel::kPixelLanes ? L : 1) +
                              L;
    Arena arena{static_cast<char*>(thread_scratch(
        Arena::bytes<int64_t>(w.taps()) + Arena::bytes<S>(strip_size) + Arena::bytes<S>(output_size) +
        Arena::bytes<S>(filter_size) + Arena::bytes<S>(sums_size) + GroupRows<T>::bytes(padded)))};
    int64_t* tap = arena.take<int64_t>(w.taps());
    strip = arena.take<S>(strip_size), output_row = arena.take<S>(output_size);
    filter = arena.take<S>(filter_size), sums = arena.take<S>(sums_size);
    rows.place(arena, padded);
    tap_offsets(w, shape, tap);
    map = {tap, w.taps(), w.channels, shape.channel_step, plan.tile_rows, plan.tile_pixels * L, false};
    for (int64_t l = 0; l < 2 * L; ++l)
      strip[plan.block_n * shape.image_step + l] = S(0);  // vector over-read
  }

  void enter_group(int64_t g) {
    group = g;
    out.table = rows.enter(g);
    if (resident) pack_tiles(0, tiles);
  }

  void pack_tiles(int64_t first, int64_t count) {
    const int64_t all = task.dest.rows;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t row = (first + t) * plan.tile_rows;
      pack_filter<T>(task.filter, task.window, group, group * all + row,
                     smaller<int64_t>(plan.tile_rows, all - row), plan.tile_rows,
                     filter + t * k * plan.tile_rows);
    }
  }

  const S* strip_at(const PixelVector& p) const {
    return strip + p.n * shape.image_step + p.h * task.window.stride_h * shape.row_step + p.w;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = plan.blocks_n * plan.blocks_h * plan.blocks_w;
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) enter_group(item / blocks);
      const Block b = block_of(plan, task.window, item % blocks);
      const bool follows = item > begin && b.h > 0;
      pack_strip<T>(task.source, task.window, shape, group, b.n, b.images, b.h, b.w, strip,
                    follows ? plan.block_h : 0, output_row);
      for (int64_t tile = 0; tile < tiles; tile += plan.panel_tiles) {
        const int64_t count = smaller<int64_t>(plan.panel_tiles, tiles - tile);
        if (!resident) pack_tiles(tile, count);
        const S* packed = filter + (resident ? tile * k * plan.tile_rows : 0);
        if (plan.kernel == CpuKernel::kPixelLanes)
          pixel_panel(b, packed, tile, count);
        else
          channel_panel(b, packed, tile);
      }
    }
  }

  // Calls tile(filter offset, strip offset, map) for slices of the channels. One chain of sums over a wide layer
  // would lose digits: its rounding error grows with its length, that of slices added up hardly does.
  template <class F>
  FS_INLINE void in_slices(F&& tile) const {
    constexpr int64_t kChain = 256;
    const int64_t step = larger<int64_t>(kChain / map.taps, 1);
    StripMap slice = map;
    for (int64_t c = 0; c < map.channels; c += step) {
      slice.channels = smaller(step, map.channels - c);
      slice.add = c > 0;
      tile(c * map.taps * map.filter_step, c * map.channel_step, slice);
    }
  }

  void pixel_panel(const Block& b, const S* packed, int64_t tile, int64_t count) {
    constexpr int kMost = 8;
    const int V = plan.tile_pixels;
    const PixelTile<S> run_tile = pixel_tile_of<S>(plan.tile_rows);
    const int64_t first_row = tile * plan.tile_rows;
    const int64_t stored = smaller(count * plan.tile_rows, task.dest.rows - first_row);
    const int64_t vectors = b.images * b.height * ceil_div(b.width, L);
    PixelCursor cursor{b, L};
    for (int64_t v0 = 0; v0 < vectors; v0 += V) {
      PixelVector pixels[kMost];
      const S* at[kMost];
      const int valid = static_cast<int>(smaller<int64_t>(V, vectors - v0));
      for (int v = 0; v < V; ++v) {
        if (v < valid) {
          const PixelVector p = cursor.next();
          at[v] = strip_at(p), pixels[v] = absolute(p, b);
        } else {
          at[v] = at[valid - 1];  // the last tile of a block repeats a vector and drops it
        }
      }
      in_slices([&](int64_t filter_at, int64_t strip_offset, const StripMap& slice) {
        const S* from[kMost];
        for (int v = 0; v < V; ++v) from[v] = at[v] + strip_offset;
        for (int64_t t = 0; t < count; ++t)
          run_tile(packed + t * k * plan.tile_rows + filter_at, from, slice,
                   sums + t * plan.tile_rows * V * L);
      });
      out.store_planar(sums, V * L, first_row, stored, pixels, valid);
    }
  }

  void channel_panel(const Block& b, const S* packed, int64_t tile) {
    const int NV = plan.tile_rows / L;
    const int64_t first_row = tile * plan.tile_rows;
    const int64_t stored = smaller<int64_t>(plan.tile_rows, task.dest.rows - first_row);
    const int64_t splits = ceil_div(b.width, plan.tile_pixels), step = ceil_div(b.width, splits);
    const bool planar = !task.dest.rows_dense;
    for (int64_t n = 0; n < b.images; ++n) {
      for (int64_t h = 0; h < b.height; ++h) {
        for (int64_t w = 0; w < b.width; w += step) {
          const PixelVector p{n, h, w, static_cast<int>(smaller(step, b.width - w))};
          const S* from = strip_at(p);
          const ChannelTile<S> run_tile = channel_tile_of<S>(p.count, NV);
          in_slices([&](int64_t filter_at, int64_t strip_offset, const StripMap& slice) {
            run_tile(packed + filter_at, from + strip_offset, slice, sums);
          });
          if (planar)
            store_transposed(absolute(p, b), NV, first_row, stored);
          else
            out.store_pixels(sums, plan.tile_rows, first_row, stored, absolute(p, b));
        }
      }
    }
  }

  // [pixel][row] sums to [row][pixel], a square of lanes at a time.
  void store_transposed(const PixelVector& p, int NV, int64_t first_row, int64_t stored) {
    alignas(64) S part[4 * L * L];
    for (int x = 0; x < p.count; x += L) {
      const PixelVector q{p.n, p.h, p.w + x, smaller(L, p.count - x)};
      for (int v = 0; v < NV; ++v) {
        Vec<S> square[L];
        FS_UNROLL
        for (int l = 0; l < L; ++l)
          square[l] = l < q.count ? load<S>(sums + (x + l) * plan.tile_rows + v * L) : Vec<S>{};
        transpose<S>(square);
        FS_UNROLL
        for (int l = 0; l < L; ++l) store<S>(part + (v * L + l) * L, square[l]);
      }
      out.store_planar(part, L, first_row, stored, &q, 1);
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
