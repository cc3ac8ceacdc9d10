// SPDX-License-Identifier: BSD-3-Clause
// Packing: a zero-padded strip of the source, widened to the arithmetic type and laid out
// [image][channel][row][stride phase][column], and the filter laid out [channel][tap][row of the tile].
// Whatever layout the tensors have - NCHW, channels_last, a shuffled gradient, any view - ends here.
// Included by kernels.cpp only.
#pragma once

#include "cpu/conv_task.h"
#include "cpu/kernels/simd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

FS_INLINE int64_t floor_div(int64_t a, int64_t b) {
  if (b == 1) return a;  // nearly always, and a division takes as long as a short row
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}
template <class T>
FS_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
FS_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}

// One row of `run` channels: columns col0 .. col0 + n - 1 into to[q * channel_step + x]. `from` points at column 0.
template <class T>
void pack_row(const Source& source, const T* from, const int32_t* channel_col, int64_t run, int64_t col0,
              int64_t col_step, int64_t n, Compute<T>* to, int64_t channel_step) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  const auto scalar = [&](int64_t x_begin, int64_t x_end) {
    for (int64_t q = 0; q < run; ++q) {
      for (int64_t x = x_begin; x < x_end; ++x) {
        const int64_t col = col0 + x * col_step, fine = col * source.col_scale + channel_col[q];
        to[q * channel_step + x] =
            fine >= 0 && fine < source.hr_w ? S(widen(from[q + col * source.col_stride])) : S(0);
      }
    }
  };
  if (col_step != 1) return scalar(0, n);
  // columns in which every channel of the run exists
  int64_t lo = 0, hi = n;
  for (int64_t q = 0; q < run;
       q += larger<int64_t>(run - 1, 1)) {  // channel_col rises along a run: ends suffice
    lo = larger(lo, -floor_div(channel_col[q], source.col_scale) - col0);
    hi = smaller(hi, floor_div(source.hr_w - 1 - channel_col[q], source.col_scale) + 1 - col0);
  }
  lo = smaller(lo, n), hi = larger(hi, lo);
  const T* const first = from + col0 * source.col_stride;  // column 0 of the strip
  scalar(0, lo);
  if (hi - lo < L) {
    if (run < L || lo + L > n) {
      scalar(hi, n);
      for (int64_t q = 0; q < run; ++q, to += channel_step)
        if (__is_same(T, S) && source.col_stride == 1)
          std::memcpy(to + lo, first + q + lo, sizeof(T) * static_cast<size_t>(hi - lo));
        else
          for (int64_t x = lo; x < hi; ++x) to[x] = S(widen(first[q + x * source.col_stride]));
      return;
    }
    // channels side by side, fewer pixels than lanes: transposed squares with zeros for the pixels that are not there
    for (int64_t q = 0; q<run; q = q + 2 * L> run && q + L < run ? run - L : q + L) {
      Vec<S> v[L];
      FS_UNROLL
      for (int l = 0; l < L; ++l)
        v[l] = l < hi - lo ? load_widened<T>(first + q + (lo + l) * source.col_stride) : Vec<S>{};
      transpose<S>(v);
      FS_UNROLL
      for (int l = 0; l < L; ++l) store<S>(to + (q + l) * channel_step + lo, v[l]);
    }
    return scalar(hi, n);  // of a cropped gradient, some channels go on
  }
  scalar(hi, n);
  const bool in_registers = source.col_stride == run && with_register_run(run, [&](auto m) {
                              constexpr int M = decltype(m)::value;
                              for (int64_t x = lo; x<hi; x = x + 2 * L> hi && x + L < hi ? hi - L : x + L) {
                                Vec<S> v[M];
                                FS_UNROLL
                                for (int q = 0; q < M; ++q) v[q] = load_widened<T>(first + x * M + q * L);
                                deinterleave<S, M>(v);
                                FS_UNROLL
                                for (int q = 0; q < M; ++q) store<S>(to + q * channel_step + x, v[q]);
                              }
                            });
  if (in_registers) return;
  if (run < L) return scalar(lo, hi);
  // Square transpositions; the last block of either direction overlaps the one before.
  for (int64_t x = lo; x<hi; x = x + 2 * L> hi && x + L < hi ? hi - L : x + L) {
    for (int64_t q = 0; q<run; q = q + 2 * L> run && q + L < run ? run - L : q + L) {
      Vec<S> v[L];
      FS_UNROLL
      for (int l = 0; l < L; ++l) v[l] = load_widened<T>(first + q + (x + l) * source.col_stride);
      transpose<S>(v);
      FS_UNROLL
      for (int l = 0; l < L; ++l) store<S>(to + (q + l) * channel_step + x, v[l]);
    }
  }
}

// One row of `run` channels with channels inner: columns col0 .. into to[x * column_step + q].
template <class T>
void copy_row(const Source& source, const T* from, const int32_t* channel_col, int64_t run, int64_t col0,
              int64_t col_step, int64_t n, Compute<T>* to, int64_t column_step) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  const auto inside = [&](int64_t col, int64_t q) {
    const int64_t fine = col * source.col_scale + channel_col[q];
    return fine >= 0 && fine < source.hr_w;
  };
  for (int64_t x = 0; x < n; ++x, to += column_step) {
    const int64_t col = col0 + x * col_step;
    const T* pixel = from + col * source.col_stride;
    if (run >= L && inside(col, 0) && inside(col, run - 1)) {  // channel_col rises along a run
      for (int64_t q = 0; q<run; q = q + 2 * L> run && q + L < run ? run - L : q + L)
        store<S>(to + q, load_widened<T>(pixel + q));
    } else {
      for (int64_t q = 0; q < run; ++q) to[q] = inside(col, q) ? S(widen(pixel[q])) : S(0);
    }
  }
}

// Image n, channels first .. first + source.run - 1 of one source row: row `row` of the strip's block, whose first output
// column is w0, into to[q * channel_step + x].
template <class T>
void pack_channels(const Source& source, const Window& window, const StripShape& shape, int64_t n,
                   int64_t first, int64_t row, int64_t w0, Compute<T>* to, int64_t channel_step) {
  using S = Compute<T>;
  const int64_t fine = row * source.row_scale + source.channel_row[first];
  const bool outside = fine < 0 || fine >= source.hr_h, inner = channel_step == 1;
  if (outside && inner) {
    for (int64_t x = 0; x < shape.phases * shape.phase_columns; ++x)
      std::memset(to + x * shape.column_step, 0, sizeof(S) * static_cast<size_t>(source.run));
    return;
  }
  if (outside) {
    for (int64_t q = 0; q < source.run; ++q)
      std::memset(to + q * channel_step, 0, sizeof(S) * static_cast<size_t>(shape.row_step));
    return;
  }
  const T* from = static_cast<const T*>(source.data) + n * source.batch_stride +
                  source.channel_offset[first] + row * source.row_stride;
  for (int64_t phase = 0; phase < shape.phases; ++phase) {
    const int64_t col = w0 * window.stride_w - window.pad_left + phase;
    S* first_column = to + phase * shape.phase_columns * shape.column_step;
    if (inner)
      copy_row<T>(source, from, source.channel_col + first, source.run, col, window.stride_w,
                  shape.phase_columns, first_column, shape.column_step);
    else
      pack_row<T>(source, from, source.channel_col + first, source.run, col, window.stride_w,
                  shape.phase_columns, first_column, channel_step);
  }
}

// n gradients become those before the activation: f(gradient, output), of values or of vectors of them.
template <class T, bool kRounds, class F>
FS_INLINE void apply_to_row(Compute<T>* gradient, const Compute<T>* output, int64_t n, F&& f) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  int64_t x = 0;
  for (; x + L <= n; x += L) {
    Vec<S> v = f(load<S>(gradient + x), load<S>(output + x));
    if constexpr (kRounds && sizeof(T) != sizeof(S)) {
      T rounded[L];
      store_narrowed<T>(rounded, v);
      v = load_widened<T>(rounded);
    }
    store<S>(gradient + x, v);
  }
  for (; x < n; ++x) gradient[x] = S(widen(narrow<T>(f(gradient[x], output[x]))));
}

// As PyTorch computes it, rounded to the element type. What is zero because it does not exist stays zero.
template <class T>
void apply_activation(Activation activation, double negative_slope, Compute<T>* gradient,
                      const Compute<T>* output, int64_t n) {
  using S = Compute<T>;
  const S slope = static_cast<S>(negative_slope);
  switch (activation) {
    case Activation::kReLU:
      return apply_to_row<T, false>(gradient, output, n,
                                    [](auto g, auto y) { return y <= decltype(y){} ? decltype(g){} : g; });
    case Activation::kLeakyReLU:
      return apply_to_row<T, true>(gradient, output, n,
                                   [=](auto g, auto y) { return y > decltype(y){} ? g : g * slope; });
    case Activation::kTanh:
      return apply_to_row<T, true>(gradient, output, n, [](auto g, auto y) { return g * (S(1) - y * y); });
    case Activation::kSigmoid:
      return apply_to_row<T, true>(gradient, output, n, [](auto g, auto y) { return g * (S(1) - y) * y; });
    default: return;
  }
}

// Elements that pack_strip needs for a row of the output, if there is one.
FS_INLINE int64_t output_row_size(const Source& source, const StripShape& shape) {
  return source.output ? source.output->run * shape.row_step : 0;
}

// Of NCHW, a strip takes a few short rows of each channel, far apart from one channel to the next: too short for a
// hardware prefetcher, and what memory takes to answer is paid row by row. So the same row of the next channel is
// fetched while one is packed; the prefetcher follows where it is long.
template <class T>
FS_INLINE void fetch_row(const T* row, int64_t n) {
  constexpr int64_t kBytes = 1024, kLine = 64, size = sizeof(T);
  for (int64_t x = 0; x < smaller(n, kBytes / size); x += kLine / size) __builtin_prefetch(row + x);
}

// The strip of `images` images and all channels of group g for the block whose first output pixel is (h0, w0).
// Where the strip still holds the block `below_rows` output rows further up (0: it does not), the rows that both
// have move up and only new ones are read. output_row: scratch, of output_row_size elements.
template <class T>
void pack_strip(const Source& source, const Window& window, const StripShape& shape, int64_t g, int64_t n0,
                int64_t images, int64_t h0, int64_t w0, Compute<T>* strip, int64_t below_rows,
                Compute<T>* output_row) {
  using S = Compute<T>;
  const int64_t kept = below_rows > 0 ? larger<int64_t>(shape.rows - below_rows * window.stride_h, 0) : 0;
  const bool inner = shape.channel_step == 1;
  if (kept > 0) {
    const int64_t planes = inner ? 1 : window.channels;
    for (int64_t q = 0; q < images * planes; ++q) {
      S* to = strip + q / planes * shape.image_step + q % planes * shape.channel_step;
      std::memmove(to, to + (shape.rows - kept) * shape.row_step,
                   sizeof(S) * static_cast<size_t>(kept * shape.row_step));
    }
  }
  // Row after row of the same channels: in NCHW they are neighbours in memory.
  const auto rows_of = [&](const Source& from, auto&& pack) {
    for (int64_t n = 0; n < images; ++n)
      for (int64_t k = 0; k < window.channels; k += from.run)
        for (int64_t y = kept; y < shape.rows; ++y)
          pack(n, k, h0 * window.stride_h - window.pad_top + y,
               strip + n * shape.image_step + y * shape.row_step + k * shape.channel_step);
  };
  rows_of(source, [&](int64_t n, int64_t k, int64_t row, S* to) {
    if (source.col_stride == 1 && k + source.run < window.channels)
      fetch_row(static_cast<const T*>(source.data) + (n0 + n) * source.batch_stride +
                    source.channel_offset[g * window.channels + k + source.run] + row * source.row_stride +
                    w0 * window.stride_w,
                shape.phases * shape.phase_columns);
    pack_channels<T>(source, window, shape, n0 + n, g * window.channels + k, row, w0, to, shape.channel_step);
  });
  if (!source.output) return;
  rows_of(*source.output, [&](int64_t n, int64_t k, int64_t row, S* to) {
    pack_channels<T>(*source.output, window, shape, n0 + n, g * window.channels + k, row, w0, output_row,
                     shape.row_step);
    for (int64_t q = 0; q < source.output->run; ++q)
      apply_activation<T>(source.activation, source.negative_slope, to + q * shape.channel_step,
                          output_row + q * shape.row_step, shape.row_step);
  });
}

// Rows of the filter that make a tile: offset[t * step], 0 <= t < count.
struct FilterRows {
  const int64_t* offset;
  const uint8_t* lacks;  // as Filter has them; or null, where the taps are given without
  int64_t step, count;
  int64_t operator[](int64_t t) const { return offset[t * step]; }
  FilterRows from(int64_t t, int64_t n) const {
    return {offset + t * step, lacks ? lacks + t * step : nullptr, step, n};
  }
};

// Whether each L rows are neighbours in memory.
template <int L>
bool rows_dense(const FilterRows& rows) {
  for (int64_t t = 0; t < rows.count; ++t)
    if (rows[t] != rows[t - t % L] + t % L) return false;
  return true;
}

// Of the taps that rows of a filter have, as Filter::tap_offset.
struct Taps {
  const int64_t* offset;
  int64_t count, columns;
  bool all;
};

// Finds out whether all values that pass through it are finite: zero times another value is NaN, not a signed zero.
template <class S>
struct FiniteCheck {
  using Bits = decltype(Vec<S>{} < Vec<S>{});
  Bits seen{};
  bool nan = false;
  FS_INLINE Vec<S> operator()(Vec<S> v) {
    seen |= bit_cast<Bits>(v * Vec<S>{});
    return v;
  }
  FS_INLINE S operator()(S x) {
    nan |= x * S(0) != S(0);
    return x;
  }
  bool finite() const {
    S part[kLanes<S>];
    store<S>(part, bit_cast<Vec<S>>(seen));
    bool all = !nan;
    for (S zero : part) all = all && zero == S(0);
    return all;
  }
  void tell(bool* infinite) const {
    if (!finite()) __atomic_store_n(infinite, true, __ATOMIC_RELAXED);
  }
};

// Tiles of `rows` rows each, tile_step from one to the next, into packed[k * rows + t]; rows past those there are become
// zero.
template <class T>
void pack_filter(const Filter& filter, const Taps& taps, int64_t g, int64_t channels, const FilterRows& row,
                 int64_t rows, int64_t tile_step, Compute<T>* packed, FiniteCheck<Compute<T>>& check) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  const T* data = static_cast<const T*>(filter.data);
  const int64_t* channel = filter.channel_offset + g * channels;
  // What lies side by side is read as it lies, through all tiles, and not a line here and there.
  if (!row.lacks && rows % L == 0 && row.count % rows == 0 && rows_dense<L>(row)) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < taps.count; ++tap, packed += rows) {
        const T* from = data + channel[c] + taps.offset[tap];
        const T* ahead = data + channel[smaller(c + 8, channels - 1)] + taps.offset[tap];
        S* to = packed;
        for (int64_t t = 0; t < row.count; to += tile_step) {
          for (int64_t v = 0; v < rows; v += L, t += L) {
            __builtin_prefetch(ahead + row[t]);
            store<S>(to + v, check(load_widened<T>(from + row[t])));
          }
        }
      }
    }
    return;
  }
  if (row.count > rows) {
    for (int64_t t = 0; t < row.count; t += rows, packed += tile_step)
      pack_filter<T>(filter, taps, g, channels, row.from(t, smaller(rows, row.count - t)), rows, tile_step,
                     packed, check);
    return;
  }
  const bool all = filter.dense == Filter::Dense::kAll && taps.all;
  if (!row.lacks && (all || filter.dense == Filter::Dense::kChannels) && rows % L == 0 && row.count == rows) {
    const int64_t n = all ? channels * taps.count : channels;
    if (n >= L) {
      const int64_t step = all ? rows : rows * taps.count;
      for (int64_t tap = 0; tap < (all ? 1 : taps.count); ++tap) {
        const T* from = data + channel[0] + taps.offset[tap];
        S* to = packed + tap * rows;
        for (int64_t t = 0; t < rows; t += L) {
          for (int64_t k = 0; k<n; k = k + 2 * L> n && k + L < n ? n - L : k + L) {
            Vec<S> v[L];
            FS_UNROLL
            for (int l = 0; l < L; ++l) v[l] = check(load_widened<T>(from + row[t + l] + k));
            transpose<S>(v);
            FS_UNROLL
            for (int l = 0; l < L; ++l) store<S>(to + (k + l) * step + t, v[l]);
          }
        }
      }
      return;
    }
  }
  // Product after product, not row after row: the taps of one channel lie in the same cache lines, which are still there.
  const auto pack = [&](auto&& has) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < taps.count; ++tap) {
        const T* from = data + channel[c] + taps.offset[tap];
        for (int64_t t = 0; t < rows; ++t)
          *packed++ = t < row.count && has(t, tap) ? check(S(widen(from[row[t]]))) : S(0);
      }
    }
  };
  if (!row.lacks) return pack([](int64_t, int64_t) { return true; });
  pack([&](int64_t t, int64_t tap) {
    const int first = (tap % taps.columns == 0) + 2 * (tap < taps.columns);
    return (row.lacks[t * row.step] & first) == 0;
  });
}

}  // namespace fused_subpixel::cpu::FS_ISA
