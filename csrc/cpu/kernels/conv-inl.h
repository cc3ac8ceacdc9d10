// SPDX-License-Identifier: BSD-3-Clause
// The convolution driver of one worker: for each (block, group) pack the strip, run the tiles, store shuffled.
// Included by kernels.cpp only.
#pragma once

#include "cpu/kernels/microkernels-inl.h"
#include "cpu/kernels/store-inl.h"

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
  b.width = smaller(plan.block_w, window.lr_w - b.w);
  b.height = smaller(plan.block_h, window.lr_h - b.h);
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
// up hardly does. So many channels at a time. Where several tiles of a panel take turns slice by slice, that part of the
// filter should also stay in the first cache: row_bytes is what one product of it takes there, or 0.
FS_INLINE int64_t slice_channels(int64_t channels, int64_t taps, int64_t row_bytes) {
  constexpr int64_t kChain = 256, kFilterBytes = 16 << 10;
  const int64_t products = row_bytes > 0 ? smaller(kChain, kFilterBytes / row_bytes) : kChain;
  return smaller(channels, larger<int64_t>(products / larger<int64_t>(taps, 1), 1));
}

// The first tap that some rows of the filter have, in either direction.
struct FirstTap {
  int64_t a, b;
};

// From the first pixel of a window to that of a channel and tap.
FS_INLINE int64_t strip_offset(const Window& w, const StripShape& shape, int64_t c, int64_t a, int64_t b) {
  const int64_t col = b * w.dilation_w;
  return c * shape.channel_step + a * w.dilation_h * shape.row_step +
         (col % w.stride_w * shape.phase_columns + col / w.stride_w) * shape.column_step;
}
// Of the products of one slice.
FS_INLINE void strip_offsets(const Window& w, const StripShape& shape, FirstTap first, int64_t channels,
                             int64_t* at) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t a = first.a; a < w.kernel_h; ++a)
      for (int64_t b = first.b; b < w.kernel_w; ++b) *at++ = strip_offset(w, shape, c, a, b);
}

// What one call of a tile sums, and where it begins in a packed filter and in the strip.
struct Slice {
  StripMap map;
  int64_t filter, strip;
};

// What is summed for a row of the filter, by the taps that it has.
struct Products {
  Taps taps;
  const Slice* slices;
  int64_t count;  // of slices
};

// Of channel lanes: the pixels of one tile, and where the first lies in the strip and in the output, all counted from
// the block's first pixel.
struct TilePlace {
  PixelVector pixels;
  int64_t strip, dest;
};
// Tiles that are computed before they are stored, and the bytes that their sums take at most.
constexpr int64_t kMostHeldTiles = 8, kHeldBytes = 8 << 10;

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
  int32_t *hr_row, *hr_col;
  S *bias, *slope;

  static size_t bytes(int64_t padded) {
    return 3 * Arena::bytes<int64_t>(padded) + 2 * Arena::bytes<int32_t>(padded) +
           2 * Arena::bytes<S>(padded);
  }
  void place(Arena& arena, int64_t padded) {
    dest = arena.take<int64_t>(padded), residual = arena.take<int64_t>(padded);
    run_left = arena.take<int64_t>(padded);
    hr_row = arena.take<int32_t>(padded), hr_col = arena.take<int32_t>(padded);
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
      hr_row[row] = static_cast<int32_t>(i), hr_col[row] = static_cast<int32_t>(j);
      dest[row] = p.c * d.stride.c + i * d.stride.h + j * d.stride.w;
      residual[row] = e.residual_kind == ResidualKind::kHighRes  ? p.c * r.c + i * r.h + j * r.w
                      : e.residual_kind == ResidualKind::kLowRes ? o * r.c
                                                                 : p.c * r.c;
      bias[row] = e.bias ? S(widen(static_cast<const T*>(e.bias)[e.bias_c * p.c + e.bias_o * o])) : S(0);
      slope[row] = e.prelu ? S(widen(static_cast<const T*>(e.prelu)[e.prelu_c * p.c + e.prelu_o * o]))
                           : static_cast<S>(e.negative_slope);
    }
    return {d.rows, dest, residual, hr_row, hr_col, run_left, bias, slope};
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
  static constexpr int64_t kLine = 64 / sizeof(S);
  const ConvTask& task;
  const CpuPlan& plan;
  StripShape shape;
  Store<T> out;
  GroupRows<T> rows;
  S *strip, *output_row, *filter, *sums;
  // Of rows that have all taps. And, where tiles hold one phase each, of those that lack some: see Filter::lacks.
  Products products[4];
  int64_t kinds;
  TilePlace *places, *places_end;
  Block placed{};  // the block whose tiles they are, or one of its size
  int64_t tiles, k, row_bytes, held_tiles, group = -1;
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
             w.stride_w == 1 && w.lr_h + w.late_h == source.hr_h && w.lr_w + w.late_w == source.hr_w;
    if (direct)
      shape.image_step = source.batch_stride, shape.row_step = source.row_stride,
      shape.column_step = source.col_stride;
    tiles = ceil_div(task.dest.rows, plan.tile_rows);
    k = w.channels * w.taps();
    const bool channel_lanes = plan.kernel == CpuKernel::kChannelLanes;
    const int64_t element = sizeof(S), pixels = plan.tile_pixels * (channel_lanes ? 1 : L);
    row_bytes = channel_lanes ? plan.tile_rows * element : 0;
    kinds = plan.phased && task.filter.lacks ? 4 : 1;
    size_t products_bytes = 0;
    for (int64_t kind = 0; kind < kinds; ++kind) products_bytes += lists_of({kind / 2, kind % 2}).bytes();
    const int64_t tile_sums = plan.panel_tiles * plan.tile_rows * pixels;
    // A tile on its own is stored at once. Others share a slice of the filter, or a vector of pixels.
    held_tiles = !channel_lanes || (lists_of({}).slices == 1 && task.dest.rows_dense)
                     ? 1
                     : larger<int64_t>(smaller(kMostHeldTiles, kHeldBytes / (tile_sums * element)), 1);
    const int64_t place_count =
        channel_lanes ? plan.block_n * plan.block_h * ceil_div(plan.block_w, plan.tile_pixels) : 0;
    const int64_t padded = tiles * plan.tile_rows + L;
    resident = plan.filter_resident;
    const int64_t strip_size = direct ? 0 : plan.block_n * shape.image_step + 2 * L;
    const int64_t output_size = output_row_size(source, shape);
    const int64_t filter_size = resident ? plan.panels * plan.panel_elements : 0;
    const int64_t sums_size = held_tiles * tile_sums + L;
    Arena arena{static_cast<char*>(thread_scratch(products_bytes + Arena::bytes<TilePlace>(place_count) +
                                                  Arena::bytes<S>(strip_size) + Arena::bytes<S>(output_size) +
                                                  Arena::bytes<S>(filter_size) + Arena::bytes<S>(sums_size) +
                                                  GroupRows<T>::bytes(padded)))};
    strip = arena.take<S>(strip_size), output_row = arena.take<S>(output_size);
    filter = arena.take<S>(filter_size), sums = arena.take<S>(sums_size);
    rows.place(arena, padded);
    places = places_end = arena.take<TilePlace>(place_count);
    for (int64_t kind = 0; kind < kinds; ++kind)
      products[kind] = products_from({kind / 2, kind % 2}, pixels * plan.turns, arena);
    if (!direct)
      for (int64_t l = 0; l < 2 * L; ++l)
        strip[plan.block_n * shape.image_step + l] = S(0);  // vector over-read
  }

  // What makes Products.
  struct Lists {
    int64_t taps, slices, slice;  // slice: channels of one
    size_t bytes() const {
      return Arena::bytes<int64_t>(taps) + Arena::bytes<int64_t>(slice * taps + 1) +
             Arena::bytes<Slice>(slices);
    }
  };
  Lists lists_of(FirstTap first) const {
    const Window& w = task.window;
    const int64_t taps = (w.kernel_h - first.a) * (w.kernel_w - first.b);
    const int64_t slice = slice_channels(w.channels, taps, row_bytes);
    return {taps, ceil_div(w.channels, slice), slice};
  }
  Products products_from(FirstTap first, int64_t sums_step, Arena& arena) const {
    const Window& w = task.window;
    const Lists lists = lists_of(first);
    auto* offset = arena.take<int64_t>(lists.taps);
    for (int64_t a = first.a, t = 0; a < w.kernel_h; ++a)
      for (int64_t b = first.b; b < w.kernel_w; ++b) offset[t++] = task.filter.tap_offset[a * w.kernel_w + b];
    const int64_t most = lists.slice * lists.taps;
    auto* at = arena.take<int64_t>(most + 1);
    strip_offsets(w, shape, first, lists.slice, at);
    at[most] = 0;
    auto* slices = arena.take<Slice>(lists.slices);
    for (int64_t s = 0, c = 0; s < lists.slices; ++s, c += lists.slice)
      slices[s] = {{at, smaller(most, (w.channels - c) * lists.taps), shape.column_step, plan.tile_rows,
                    sums_step, c > 0},
                   c * lists.taps * plan.tile_rows,
                   c * shape.channel_step};
    return {{offset, lists.taps, w.kernel_w, lists.taps == w.taps()}, slices, lists.slices};
  }

  // Of a row, and so of all rows of its tile.
  const Products& products_of(int64_t g, int64_t row) const {
    return products[kinds > 1 ? task.filter.lacks[g * task.dest.rows + row] : 0];
  }
  // From where the strip's first pixel is for all to where it is for this row.
  int64_t strip_shift(int64_t row) const {
    const Phase& p = task.dest.row_phase[group * task.dest.rows + row];
    return (rows.late_h(p) ? shape.row_step : 0) + (rows.late_w(p) ? shape.column_step : 0);
  }

  const S* source_at(int64_t g, const Block& b) const {
    const Source& s = task.source;
    return static_cast<const S*>(s.data) + s.channel_offset[g * task.window.channels] + b.n * s.batch_stride +
           b.h * s.row_stride + b.w * s.col_stride;
  }

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
      pack_panels(g, 0, plan.panels, filter);
    else
      filter = static_cast<S*>(task.panels) + g * plan.panels * plan.panel_elements;
  }

  // Panels begin .. end - 1, as many tiles at a time as follow one another and have the same taps.
  void pack_panels(int64_t g, int64_t begin, int64_t end, S* to) const {
    const int64_t all = task.dest.rows, panel_rows = plan.panel_tiles * plan.tile_rows,
                  tile_step = k * plan.tile_rows, last = smaller(end * panel_rows, all);
    const Filter& f = task.filter;
    FiniteCheck<S> check;
    const auto pack = [&](int64_t row, int64_t step, int64_t count) {
      const FilterRows rows_of{f.row_offset + g * all + row,
                               f.lacks && kinds == 1 ? f.lacks + g * all + row : nullptr, step, count};
      pack_filter<T>(f, products_of(g, row).taps, g, task.window.channels, rows_of, plan.tile_rows, tile_step,
                     to, check);
      to += ceil_div(count, plan.tile_rows) * tile_step;
    };
    if (plan.turns > 1) {
      for (int64_t panel = begin * panel_rows; panel < last; panel += panel_rows)
        for (int64_t q = 0; q < plan.turns; ++q) pack(panel + q, plan.turns, plan.tile_rows);
      return check.tell(task.infinite_filter);
    }
    const int64_t alike = kinds > 1 ? all / (task.dest.r_h * task.dest.r_w) : all;
    for (int64_t row = begin * panel_rows, next; row < last; row = next) {
      next = smaller((row / alike + 1) * alike, last);
      pack(row, 1, next - row);
    }
    check.tell(task.infinite_filter);
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

  // The packed input has zeros outside of the source, and an infinite weight times zero is NaN. This function computes
  // the border pixels of the output channels with such weights again, from the products whose pixels exist. It is scalar
  // code, because such weights are rare.
  void redo_borders(int64_t begin, int64_t end) {
    const Window& w = task.window;
    const Destination& d = task.dest;
    const int64_t blocks = plan.blocks_n * plan.blocks_h * plan.blocks_w;
    for (int64_t item = begin; item < end; ++item) {
      if (item / blocks != group) enter_group(item / blocks);
      const Block b = block_of(plan, w, item % blocks);
      const S* pixels = strip_of(group, b, false);
      for (int64_t row = 0; row < d.rows; ++row) {
        if (finite_row(row)) continue;
        const Phase& p = d.row_phase[group * d.rows + row];
        const int64_t top = rows.late_h(p) - w.pad_top, left = rows.late_w(p) - w.pad_left;
        for (PixelCursor cursor{b, 1}; cursor.n < b.images;) {
          const PixelVector at = cursor.next(), place = absolute(at, b);
          const int64_t y = place.h * w.stride_h + top, x = place.w * w.stride_w + left;
          if (window_exists(y, x)) continue;
          S sum[L] = {};
          each_weight(row, [&](int64_t c, int64_t a, int64_t tap_w, S weight) {
            if (exists(group * w.channels + c, y + a * w.dilation_h, x + tap_w * w.dilation_w))
              sum[0] +=
                  weight * pixels[strip_at(at) + strip_shift(row) + strip_offset(w, shape, c, a, tap_w)];
          });
          out.store_planar(sum, L, row, 1, &place, 1);
        }
      }
    }
  }

  // The weights that a row has, as f(channel, tap row, tap column, weight).
  template <class F>
  void each_weight(int64_t row, F&& f) const {
    const Window& w = task.window;
    const Filter& filter = task.filter;
    const int64_t at = group * task.dest.rows + row, lacking = filter.lacks ? filter.lacks[at] : 0;
    for (int64_t c = 0; c < w.channels; ++c) {
      const T* from = static_cast<const T*>(filter.data) + filter.row_offset[at] +
                      filter.channel_offset[group * w.channels + c];
      for (int64_t a = lacking / 2; a < w.kernel_h; ++a)
        for (int64_t b = lacking % 2; b < w.kernel_w; ++b)
          f(c, a, b, S(widen(from[filter.tap_offset[a * w.kernel_w + b]])));
    }
  }
  bool finite_row(int64_t row) const {
    FiniteCheck<S> check;
    each_weight(row, [&](int64_t, int64_t, int64_t, S weight) { check(weight); });
    return check.finite();
  }
  bool exists(int64_t channel, int64_t y, int64_t x) const {
    const Source& s = task.source;
    const int64_t fine_y = y * s.row_scale + s.channel_row[channel],
                  fine_x = x * s.col_scale + s.channel_col[channel];
    return fine_y >= 0 && fine_y < s.hr_h && fine_x >= 0 && fine_x < s.hr_w;
  }
  // Of all channels, whether the pixels from (y, x) on.
  bool window_exists(int64_t y, int64_t x) const {
    const Window& w = task.window;
    const int64_t y_end = y + (w.kernel_h - 1) * w.dilation_h, x_end = x + (w.kernel_w - 1) * w.dilation_w;
    for (int64_t k = group * w.channels; k < (group + 1) * w.channels; ++k)
      if (!exists(k, y, x) || !exists(k, y_end, x_end)) return false;
    return true;
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
      for (int v = 0; v < valid; ++v) out.fetch(first_row, stored, out.at(pixels[v]), pixels[v].count);
      for (int64_t s = 0; s < products[0].count; ++s) {
        for (int64_t t = 0; t < count; ++t) {
          const int64_t row = first_row + (plan.turns > 1 ? t : t * plan.tile_rows);
          const Products& of_row = products_of(group, row);
          if (s >= of_row.count) continue;
          const Slice& slice = of_row.slices[s];
          const int64_t shift = strip_shift(row) + slice.strip;
          const S* from[kMost];
          for (int v = 0; v < V; ++v) from[v] = at[v] + shift;
          run_tile(packed + t * k * plan.tile_rows + slice.filter, from, slice.map,
                   sums + (row - first_row) * V * L);
        }
      }
      out.store_planar(sums, V * L, first_row, stored, pixels, valid);
    }
  }

  // The tiles of a block, as even as can be: the first of a row take one pixel more, where the rest does not divide.
  void place_tiles(const Block& b) {
    if (b.images == placed.images && b.height == placed.height && b.width == placed.width) return;
    placed = b, places_end = places;
    const int64_t splits = ceil_div(b.width, plan.tile_pixels);
    for (int64_t n = 0; n < b.images; ++n) {
      for (int64_t h = 0; h < b.height; ++h) {
        for (int64_t s = 0, w = 0; s < splits; ++s) {
          const int count = static_cast<int>(b.width / splits + (s < b.width % splits));
          const PixelVector p{n, h, w, count};
          *places_end++ = {p, strip_at(p), out.dest_pixel(p)};
          w += count;
        }
      }
    }
  }

  // What the tiles of a panel have in common.
  struct Panel {
    int64_t first_row, stored;
    int most;  // pixels of a tile; others have one less
    ChannelTile<S> run_most, run_less;
    bool plain;
    T* dest;                       // of the block's first pixel
    S* direct;                     // of its value in the first row, where tiles store what comes out; or null
    int64_t ahead_from, ahead_to;  // the channels that they fetch of the next block: whole cache lines
  };

  Panel panel_of(const Block& b, int64_t tile) const {
    Panel p{};
    p.first_row = tile * plan.tile_rows;
    p.stored = smaller<int64_t>(plan.panel_tiles * plan.tile_rows, task.dest.rows - p.first_row);
    p.most = places->pixels.count;
    p.run_most = channel_tile_of<S>(p.most, plan.tile_rows / L);
    p.run_less = channel_tile_of<S>(larger(p.most - 1, 1), plan.tile_rows / L);
    const PixelVector whole{b.n, b.h, b.w, static_cast<int>(b.width)};
    p.plain = task.dest.rows_dense && out.plain(whole, b.height, p.first_row, p.stored);
    p.dest = out.at(whole);
    p.direct = p.plain ? out.direct(p.dest, p.first_row, plan.tile_rows) : nullptr;
    const auto share = [&](int64_t t) {
      const int64_t channels = task.window.channels;
      return t < tiles ? channels * t / tiles / kLine * kLine : channels;
    };
    p.ahead_from = share(tile), p.ahead_to = share(tile + plan.panel_tiles);
    return p;
  }

  void channel_panel(const Block& b, const S* source, const S* packed, int64_t tile) {
    place_tiles(b);
    const Panel panel = panel_of(b, tile);
    const int64_t turn_sums = plan.tile_rows * plan.tile_pixels * held_tiles;
    const S* origin[kMostTurnVectors];
    const Products* of_turn[kMostTurnVectors];
    for (int q = 0; q < plan.turns; ++q) {
      origin[q] = source + strip_shift(panel.first_row + q);
      of_turn[q] = &products_of(group, panel.first_row + q);
    }
    const bool holds_none = panel.direct && of_turn[0]->count == 1;
    for (const TilePlace *t = places, *next; t < places_end; t = next) {
      next = holds_none ? places_end : smaller(t + held_tiles, static_cast<const TilePlace*>(places_end));
      for (int64_t s = 0; s < products[0].count; ++s) {
        for (int q = 0; q < plan.turns; ++q) {
          const int64_t count = of_turn[q]->count;
          if (s >= count) continue;
          const Slice& slice = of_turn[q]->slices[s];
          const bool last = s + 1 == count;
          sum_tiles(t, next, panel, slice, packed + q * k * plan.tile_rows + slice.filter,
                    origin[q] + slice.strip, sums + q * turn_sums, last && panel.direct, last && q == 0);
        }
      }
      if (!panel.direct) store_tiles(t, next, b, panel, turn_sums);
    }
  }

  // One slice of some tiles, one after another. What passes between two is a good part of a short sum's time: all that
  // can be is asked before, and what is asked of single tiles elsewhere stays out of this function's registers.
  FS_NOINLINE void sum_tiles(const TilePlace* tile, const TilePlace* end, const Panel& panel,
                             const Slice& slice, const S* weights, const S* pixels, S* held, bool direct,
                             bool fetches) const {
    const int64_t held_step = plan.tile_rows;
    ChannelSums<S> result{};
    result.bias = direct ? rows.bias + panel.first_row : nullptr;
    result.pixel_step = direct ? out.dest_step() : held_step;
    for (; tile < end; ++tile) {
      const int count = tile->pixels.count;
      if (fetches) {
        out.fetch(panel.first_row, panel.stored, panel.dest + tile->dest, count);
        if (ahead) fetch_ahead(ahead + tile->strip, count, panel.ahead_from, panel.ahead_to);
      }
      result.earlier = slice.map.add ? held : nullptr;
      result.to = direct ? panel.direct + tile->dest : held;
      (count == panel.most ? panel.run_most : panel.run_less)(weights, pixels + tile->strip, slice.map,
                                                              result);
      held += count * held_step;
    }
  }

  FS_NOINLINE void store_tiles(const TilePlace* tile, const TilePlace* tiles_end, const Block& b,
                               const Panel& panel, int64_t turn_sums) const {
    const S* from = sums;
    for (const TilePlace* end; tile < tiles_end; tile = end) {
      end = tile + 1;
      if (panel.plain) {
        out.store_plain(from, plan.tile_rows, panel.first_row, panel.stored, panel.dest + tile->dest,
                        tile->pixels.count);
        from += tile->pixels.count * plan.tile_rows;
        continue;
      }
      PixelVector p = absolute(tile->pixels, b);
      for (; end < tiles_end && end->pixels.w > 0; ++end)
        p.count += end->pixels.count;  // of one row of pixels
      if (task.dest.rows_dense)
        out.store_pixels(from, plan.tile_rows, panel.first_row, panel.stored, p);
      else
        store_transposed(from, p, panel.first_row, panel.stored, turn_sums);
      from += p.count * plan.tile_rows;
    }
  }

  // A block that is read where it lies comes from memory as the tiles ask for it, one broadcast at a time, which no
  // hardware prefetcher understands. So every tile fetches its share of the same pixels of the next block. (Inlined, for
  // g++ takes a function that only prefetches for one without effect, and drops its calls.)
  FS_INLINE void fetch_ahead(const S* pixel, int count, int64_t from, int64_t to) const {
    for (int64_t c = from; c < to; c += kLine)
      for (int x = 0; x < count; ++x) __builtin_prefetch(pixel + c + x * shape.column_step);
  }

  // [tile][pixel][row] sums to [row][tile][pixel], a square of lanes at a time.
  void store_transposed(const S* sums, const PixelVector& p, int64_t first_row, int64_t stored,
                        int64_t tile_sums) const {
    alignas(64) S part[kMostTurnVectors * L * L];
    const int turns = plan.turns;
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
