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
  p.kernel_h += w.late_h, p.kernel_w += w.late_w;
  return p;
}

// One chain of sums over a wide layer would lose digits: its rounding error grows with its length, that of slices added
// up hardly does. So many channels at a time.
FS_INLINE int64_t slice_channels(int64_t channels, int64_t taps) {
  constexpr int64_t kChain = 256;
  return smaller(channels, larger<int64_t>(kChain / taps, 1));
}

// Of the products of one slice.
FS_INLINE void strip_offsets(const Window& w, const StripShape& shape, int64_t channels, int64_t* at) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t a = 0; a < w.kernel_h; ++a) {
      for (int64_t b = 0; b < w.kernel_w; ++b) {
        const int64_t col = b * w.dilation_w;
        *at++ = c * shape.channel_step + a * w.dilation_h * shape.row_step +
                (col % w.stride_w * shape.phase_columns + col / w.stride_w) * shape.column_step;
      }
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
  int64_t *dest, *residual, *run_left;
  int32_t *fine_row, *fine_col;
  S *bias, *slope;

  static size_t bytes(int64_t padded) {
    return 3 * Arena::bytes<int64_t>(padded) + 2 * Arena::bytes<int32_t>(padded) +
           2 * Arena::bytes<S>(padded);
  }
  void place(Arena& arena, int64_t padded) {
    dest = arena.take<int64_t>(padded), residual = arena.take<int64_t>(padded);
    run_left = arena.take<int64_t>(padded);
    fine_row = arena.take<int32_t>(padded), fine_col = arena.take<int32_t>(padded);
    bias = arena.take<S>(padded), slope = arena.take<S>(padded);
  }
  bool late_h(const Phase& p) const { return task.window.late_h && p.i < task.dest.crop_top; }
  bool late_w(const Phase& p) const { return task.window.late_w && p.j < task.dest.crop_left; }

  RowTable<S> enter(int64_t g) {
    const Destination& d = task.dest;
    const TaskEpilogue& e = task.epilogue;
    const Strides& r = e.residual_stride;
    for (int64_t row = 0; row < d.rows; ++row) {
      const Phase p = d.row_phase[g * d.rows + row];
      const int64_t o = d.row_channel[g * d.rows + row];
      const int64_t i = p.i - d.crop_top + (late_h(p) ? d.r_h : 0);
      const int64_t j = p.j - d.crop_left + (late_w(p) ? d.r_w : 0);
      run_left[row] = d.run > 0 ? d.run - row % d.run : 0;
      fine_row[row] = static_cast<int32_t>(i), fine_col[row] = static_cast<int32_t>(j);
      dest[row] = p.c * d.stride.c + i * d.stride.h + j * d.stride.w;
      residual[row] = e.residual_kind == ResidualKind::kHighRes  ? p.c * r.c + i * r.h + j * r.w
                      : e.residual_kind == ResidualKind::kLowRes ? o * r.c
                                                                 : p.c * r.c;
      bias[row] = e.bias ? S(widen(static_cast<const T*>(e.bias)[o])) : S(0);
      slope[row] = e.prelu ? S(widen(static_cast<const T*>(e.prelu)[e.prelu_c * p.c + e.prelu_o * o]))
                           : static_cast<S>(e.negative_slope);
    }
    return {d.rows, dest, residual, fine_row, fine_col, run_left, bias, slope};
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
  int64_t tiles, k, slice, group = -1;
  bool resident;
  bool direct;     // the source itself serves as strip
  const S* ahead;  // then: where the next block's begins, or null

  explicit ConvWorker(const ConvTask& t)
      : task(t),
        plan(t.plan),
        shape(strip_shape(strip_problem(t.window), plan.block_h, plan.block_w, L, plan.channels_inner)),
        out(t.dest, t.epilogue, t.window),
        rows{t, {}, {}, {}, {}, {}, {}, {}} {
    const Window& w = task.window;
    const Source& source = task.source;
    direct = plan.channels_inner && !source.output && __is_same(T, S) && source.run == w.channels &&
             source.row_scale == 1 && source.col_scale == 1 && w.taps() == 1 && w.stride_h == 1 &&
             w.stride_w == 1 && w.conv_h == source.fine_h && w.conv_w == source.fine_w;
    if (direct)
      shape.image_step = source.batch_stride, shape.row_step = source.row_stride,
      shape.column_step = source.col_stride;
    tiles = ceil_div(task.dest.rows, plan.tile_rows);
    k = w.channels * w.taps(), slice = slice_channels(w.channels, w.taps());
    const int64_t padded = tiles * plan.tile_rows + L;
    resident = plan.filter_resident;
    const int64_t strip_size = direct ? 0 : plan.block_n * shape.image_step + 2 * L;
    const int64_t output_size = output_row_size(source, shape);
    const int64_t filter_size = resident ? plan.panels * plan.panel_elements : 0;
    const int64_t sums_size =
        int64_t{plan.panel_tiles} * plan.tile_rows *
            (plan.kernel == CpuKernel::kPixelLanes ? plan.tile_pixels * L : held_pixels()) +
        L;
    Arena arena{static_cast<char*>(thread_scratch(
        Arena::bytes<int64_t>(slice * w.taps()) + Arena::bytes<S>(strip_size) + Arena::bytes<S>(output_size) +
        Arena::bytes<S>(filter_size) + Arena::bytes<S>(sums_size) + GroupRows<T>::bytes(padded)))};
    int64_t* at = arena.take<int64_t>(slice * w.taps());
    strip = arena.take<S>(strip_size), output_row = arena.take<S>(output_size);
    filter = arena.take<S>(filter_size), sums = arena.take<S>(sums_size);
    rows.place(arena, padded);
    strip_offsets(w, shape, slice, at);
    map = {at, 0, shape.column_step, plan.tile_rows, plan.tile_pixels * L, false};
    if (!direct)
      for (int64_t l = 0; l < 2 * L; ++l)
        strip[plan.block_n * shape.image_step + l] = S(0);  // vector over-read
  }

  const S* source_at(int64_t g, const Block& b) const {
    const Source& s = task.source;
    return static_cast<const S*>(s.data) + s.channel_offset[g * task.window.channels] + b.n * s.batch_stride +
           b.h * s.row_stride + b.w * s.col_stride;
  }

  // Of channel lanes: the sums of so many pixels are kept until they are stored.
  int64_t held_pixels() const { return larger<int64_t>(plan.tile_pixels, L); }

  // Points at, or packs, the part of the source that a block reads.
  const S* strip_of(int64_t g, const Block& b, bool follows) const {
    if (direct) return source_at(g, b);
    pack_strip<T>(task.source, task.window, shape, g, b.n, b.images, b.h, b.w, strip,
                  follows ? plan.block_h : 0, output_row);
    return strip;
  }

  void enter_group(int64_t g) {
    group = g;
    out.table = rows.enter(g);
    if (resident)
      for (int64_t p = 0; p < plan.panels; ++p) pack_panel(g, p, filter + p * plan.panel_elements);
    else
      filter = static_cast<S*>(task.panels) + g * plan.panels * plan.panel_elements;
  }

  // Pixel lanes: the tiles of a panel follow one another. Channel lanes: they take its rows in turns, see plan.h.
  void pack_panel(int64_t g, int64_t panel, S* to) const {
    const bool turns = plan.kernel == CpuKernel::kChannelLanes;
    const int64_t all = task.dest.rows, step = turns ? plan.panel_tiles : 1;
    const int64_t first = panel * plan.panel_tiles * plan.tile_rows;
    const int64_t count = smaller<int64_t>(plan.panel_tiles, tiles - panel * plan.panel_tiles);
    for (int64_t t = 0; t < count; ++t, to += k * plan.tile_rows) {
      const int64_t row = first + t * (turns ? 1 : plan.tile_rows);
      const FilterRows rows{task.filter.row_offset + g * all + row, step,
                            smaller<int64_t>(plan.tile_rows, ceil_div(all - row, step))};
      pack_filter<T>(task.filter, task.window, g, rows, plan.tile_rows, to);
    }
  }

  int64_t strip_at(const PixelVector& p) const {
    return p.n * shape.image_step + p.h * task.window.stride_h * shape.row_step + p.w * shape.column_step;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = plan.blocks_n * plan.blocks_h * plan.blocks_w;
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) enter_group(item / blocks);
      const Block b = block_of(plan, task.window, item % blocks);
      const S* pixels = strip_of(group, b, item > begin && b.h > 0);
      ahead = nullptr;
      if (direct && item + 1 < end)
        ahead = source_at((item + 1) / blocks, block_of(plan, task.window, (item + 1) % blocks));
      const S* packed = filter;
      for (int64_t tile = 0; tile < tiles; tile += plan.panel_tiles, packed += plan.panel_elements) {
        const int64_t count = smaller<int64_t>(plan.panel_tiles, tiles - tile);
        if (plan.kernel == CpuKernel::kPixelLanes)
          pixel_panel(b, pixels, packed, tile, count);
        else
          channel_panel(b, pixels, packed, tile);
      }
    }
  }

  // Calls tile(filter offset, strip offset, map) for slices of the channels.
  template <class F>
  FS_INLINE void in_slices(F&& tile) const {
    const int64_t channels = task.window.channels, taps = task.window.taps();
    StripMap part = map;
    for (int64_t c = 0; c < channels; c += slice) {
      part.products = smaller(slice, channels - c) * taps;
      part.add = c > 0;
      tile(c * taps * map.filter_step, c * shape.channel_step, part);
    }
  }

  void pixel_panel(const Block& b, const S* source, const S* packed, int64_t tile, int64_t count) {
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
          at[v] = source + strip_at(p), pixels[v] = absolute(p, b);
        } else {
          at[v] = at[valid - 1];  // the last tile of a block repeats a vector and drops it
        }
      }
      in_slices([&](int64_t filter_at, int64_t strip_offset, const StripMap& part) {
        const S* from[kMost];
        for (int v = 0; v < V; ++v) from[v] = at[v] + strip_offset;
        for (int64_t t = 0; t < count; ++t)
          run_tile(packed + t * k * plan.tile_rows + filter_at, from, part,
                   sums + t * plan.tile_rows * V * L);
      });
      out.store_planar(sums, V * L, first_row, stored, pixels, valid);
    }
  }

  void channel_panel(const Block& b, const S* source, const S* packed, int64_t tile) {
    const int turns = plan.panel_tiles;
    const int64_t first_row = tile * plan.tile_rows, tile_sums = plan.tile_rows * held_pixels();
    const int64_t stored = smaller<int64_t>(turns * plan.tile_rows, task.dest.rows - first_row);
    const int64_t splits = ceil_div(b.width, plan.tile_pixels);
    const bool planar = !task.dest.rows_dense;
    const S* origin[kMostTurnVectors];
    for (int q = 0; q < turns; ++q) {
      const Phase& phase = task.dest.row_phase[group * task.dest.rows + first_row + q];
      origin[q] =
          source + (rows.late_h(phase) ? shape.row_step : 0) + (rows.late_w(phase) ? shape.column_step : 0);
    }
    for (int64_t n = 0; n < b.images; ++n) {
      for (int64_t h = 0; h < b.height; ++h) {
        PixelVector held{n, h, 0, 0};
        for (int64_t s = 0; s < splits; ++s) {  // as even as can be
          const int64_t w = held.w + held.count, end = b.width * (s + 1) / splits;
          const PixelVector p{n, h, w, static_cast<int>(end - w)};
          S* to = sums + held.count * plan.tile_rows;
          const ChannelTile<S> run_tile = channel_tile_of<S>(p.count, plan.tile_rows / L);
          in_slices([&](int64_t filter_at, int64_t strip_offset, const StripMap& part) {
            for (int q = 0; q < turns; ++q)
              run_tile(packed + q * k * plan.tile_rows + filter_at, origin[q] + strip_at(p) + strip_offset,
                       part, to + q * tile_sums);
          });
          if (ahead) fetch_ahead(p, tile);
          held.count += p.count;
          if (planar) {  // what fits a vector of pixels is stored together
            if (end < b.width && b.width * (s + 2) / splits - held.w <= L) continue;
            store_transposed(absolute(held, b), first_row, stored, tile_sums);
          } else {
            out.store_pixels(sums, plan.tile_rows, first_row, stored, absolute(held, b));
          }
          held.w = end, held.count = 0;
        }
      }
    }
  }

  // A block that is read where it lies comes from memory as the tiles ask for it, one broadcast at a time, which no
  // hardware prefetcher understands. So every tile fetches its share of the same pixels of the next block. (Inlined, for
  // g++ takes a function that only prefetches for one without effect, and drops its calls.)
  FS_INLINE void fetch_ahead(const PixelVector& p, int64_t tile) const {
    const int64_t channels = task.window.channels;
    const int64_t from = channels * tile / tiles, to = channels * (tile + plan.panel_tiles) / tiles;
    const S* pixel = ahead + strip_at(p);
    for (int x = 0; x < p.count; ++x, pixel += shape.column_step)
      for (int64_t c = from; c < to; c += L) __builtin_prefetch(pixel + c);
  }

  // [tile][pixel][row] sums to [row][tile][pixel], a square of lanes at a time.
  void store_transposed(const PixelVector& p, int64_t first_row, int64_t stored, int64_t tile_sums) {
    alignas(64) S part[kMostTurnVectors * L * L];
    const int turns = plan.panel_tiles;
    for (int x = 0; x < p.count; x += L) {
      const PixelVector pixels{p.n, p.h, p.w + x, smaller(L, p.count - x)};
      const S* from = sums + x * plan.tile_rows;
      for (int q = 0; q < turns; ++q, from += tile_sums) {
        for (int v = 0; v < plan.tile_rows; v += L) {
          Vec<S> square[L];
          FS_UNROLL
          for (int l = 0; l < L; ++l)
            square[l] = l < pixels.count ? load<S>(from + l * plan.tile_rows + v) : Vec<S>{};
          transpose<S>(square);
          FS_UNROLL
          for (int l = 0; l < L; ++l) store<S>(part + ((v + l) * turns + q) * L, square[l]);
        }
      }
      out.store_planar(part, L, first_row, stored, &pixels, 1);
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
