// SPDX-License-Identifier: BSD-3-Clause
// Packing input: a zero-padded tile of the source, laid out [image][channel][row][stride phase][column], or
// [image][row][stride phase][column][channel]. The kernels that follow know no other layout: NCHW, channels_last, a shuffled
// gradient and views of these are read here. Values are widened to the arithmetic type; of the second layout, they may also
// be packed as another type P. Included by kernels.cpp and matrix.cpp only.
#pragma once

#include "cpu/kernels/blocks-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

FS_INLINE int64_t floor_div(int64_t a, int64_t b) {
  if (b == 1) return a;  // usual, and a division takes as long as a short row
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}
// Cuts n >= L values into whole vectors: the one after that at x. The last vector overlaps the one before.
template <int L>
FS_INLINE int64_t next_whole(int64_t x, int64_t n) {
  return x + 2 * L > n && x + L < n ? n - L : x + L;
}

// Packs one row of `count` neighbouring channels: columns col0 .. col0 + (n - 1) * col_step into to[q * channel_step + x].
// `from` points at column 0. Whole vectors may be stored as far as x < room, where n <= room <= channel_step.
template <class T>
void pack_row(const Source& source, const T* from, const int32_t* channel_col, int64_t count, int64_t col0,
              int64_t col_step, int64_t n, int64_t room, Compute<T>* to, int64_t channel_step) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  const auto scalar = [&](int64_t x_begin, int64_t x_end) {
    for (int64_t q = 0; q < count; ++q) {
      for (int64_t x = x_begin; x < x_end; ++x) {
        const int64_t col = col0 + x * col_step, hr_col = col * source.col_scale + channel_col[q];
        to[q * channel_step + x] =
            hr_col >= 0 && hr_col < source.hr_w ? S(widen(from[q + col * source.col_stride])) : S(0);
      }
    }
  };
  if (col_step != 1) return scalar(0, n);
  // columns lo .. hi - 1, in which all these channels exist
  int64_t lo = 0, hi = n;
  // channel_col rises along an interleave group, so its ends suffice
  for (int64_t q = 0; q < count; q += larger<int64_t>(count - 1, 1)) {
    lo = larger(lo, -floor_div(channel_col[q], source.col_scale) - col0);
    hi = smaller(hi, floor_div(source.hr_w - 1 - channel_col[q], source.col_scale) + 1 - col0);
  }
  lo = smaller(lo, n);
  hi = larger(hi, lo);
  const T* const first = from + col0 * source.col_stride;  // column 0 of the tile
  scalar(0, lo);
  if (hi - lo < L && lo + L <= room && source.col_stride == count) {
    const auto few = [&](auto interleave) {
      constexpr int M = decltype(interleave)::value;
      Vec<S> v[M];
      FS_UNROLL
      for (int q = 0; q < M; ++q)
        v[q] = load_first<T>(first + lo * M + q * L,
                             smaller<int64_t>(larger<int64_t>((hi - lo) * M - q * L, 0), L));
      deinterleave<S, M>(v);
      FS_UNROLL
      for (int q = 0; q < M; ++q) store<S>(to + q * channel_step + lo, v[q]);
    };
    if (try_dispatch(RegisterInterleave{}, count, few)) return scalar(hi, n);
  }
  if (hi - lo < L) {
    if (count < L || lo + L > n) {
      scalar(hi, n);
      for (int64_t q = 0; q < count; ++q, to += channel_step)
        if (__is_same(T, S) && source.col_stride == 1)
          std::memcpy(to + lo, first + q + lo, sizeof(T) * static_cast<size_t>(hi - lo));
        else
          for (int64_t x = lo; x < hi; ++x) to[x] = S(widen(first[q + x * source.col_stride]));
      return;
    }
    // neighbouring channels, fewer pixels than lanes: transposed squares with zeros for the pixels that do not exist
    for (int64_t q = 0; q < count; q = next_whole<L>(q, count)) {
      Vec<S> v[L];
      FS_UNROLL
      for (int l = 0; l < L; ++l)
        v[l] = l < hi - lo ? load_widened<T>(first + q + (lo + l) * source.col_stride) : Vec<S>{};
      transpose<S>(v);
      FS_UNROLL
      for (int l = 0; l < L; ++l) store<S>(to + (q + l) * channel_step + lo, v[l]);
    }
    return scalar(hi, n);  // some channels of a cropped gradient exist there
  }
  scalar(hi, n);
  const auto deinterleaved = [&](auto interleave) {
    constexpr int M = decltype(interleave)::value;
    for (int64_t x = lo; x < hi; x = next_whole<L>(x, hi)) {
      Vec<S> v[M];
      FS_UNROLL
      for (int q = 0; q < M; ++q) v[q] = load_widened<T>(first + x * M + q * L);
      deinterleave<S, M>(v);
      FS_UNROLL
      for (int q = 0; q < M; ++q) store<S>(to + q * channel_step + x, v[q]);
    }
  };
  if (source.col_stride == count && try_dispatch(RegisterInterleave{}, count, deinterleaved)) return;
  if (count < L) return scalar(lo, hi);
  // square transpositions
  for (int64_t x = lo; x < hi; x = next_whole<L>(x, hi)) {
    for (int64_t q = 0; q < count; q = next_whole<L>(q, count)) {
      Vec<S> v[L];
      FS_UNROLL
      for (int l = 0; l < L; ++l) v[l] = load_widened<T>(first + q + (x + l) * source.col_stride);
      transpose<S>(v);
      FS_UNROLL
      for (int l = 0; l < L; ++l) store<S>(to + (q + l) * channel_step + x, v[l]);
    }
  }
}

// n values of one pixel, L of them at least.
template <class T, class P>
FS_INLINE void copy_channels(const T* from, int64_t n, P* to) {
  constexpr int L = kLanes<Compute<T>>;
  if constexpr (__is_same(T, P)) {
    constexpr int64_t kWhole = kVectorBytes / static_cast<int64_t>(sizeof(T));
    if (n >= kWhole) {
      int64_t q = 0;
      for (; q + kWhole <= n; q += kWhole) std::memcpy(to + q, from + q, kVectorBytes);
      if (q < n) std::memcpy(to + n - kWhole, from + n - kWhole, kVectorBytes);
      return;
    }
  }
  for (int64_t q = 0; q < n; q = next_whole<L>(q, n)) store_narrowed<P>(to + q, load_widened<T>(from + q));
}

// The same into a tile whose channels are neighbours: to[x * column_step + q].
template <class T, class P>
void copy_row(const Source& source, const T* from, const int32_t* channel_col, int64_t count, int64_t col0,
              int64_t col_step, int64_t n, P* to, int64_t column_step) {
  constexpr int L = kLanes<Compute<T>>;
  // columns lo .. hi - 1, in which all these channels exist, see pack_row
  int64_t lo = 0, hi = n;
  for (int64_t q = 0; q < count; q += larger<int64_t>(count - 1, 1)) {
    lo = larger(lo, -floor_div(floor_div(channel_col[q], source.col_scale) + col0, col_step));
    hi = smaller(
        hi, floor_div(floor_div(source.hr_w - 1 - channel_col[q], source.col_scale) - col0, col_step) + 1);
  }
  lo = smaller(lo, n);
  hi = larger(hi, lo);
  const int64_t pixel_step = col_step * source.col_stride;
  const T* const first = from + col0 * source.col_stride;
  const auto scalar = [&](int64_t x_begin, int64_t x_end) {
    for (int64_t x = x_begin; x < x_end; ++x) {
      for (int64_t q = 0; q < count; ++q) {
        const int64_t hr_col = (col0 + x * col_step) * source.col_scale + channel_col[q];
        to[x * column_step + q] =
            hr_col >= 0 && hr_col < source.hr_w ? narrow<P>(widen(first[x * pixel_step + q])) : P{};
      }
    }
  };
  scalar(0, lo);
  scalar(hi, n);
  if (__is_same(T, P) && pixel_step == count && column_step == count)
    std::memcpy(to + lo * count, first + lo * count, sizeof(T) * static_cast<size_t>((hi - lo) * count));
  else if (count < L) {
    const auto group = [&](auto interleave) {
      constexpr size_t kBytes = sizeof(T) * decltype(interleave)::value;
      for (int64_t x = lo; x < hi; ++x)
        __builtin_memcpy(to + x * column_step, first + x * pixel_step, kBytes);
    };
    if (!(__is_same(T, P) && try_dispatch(RegisterInterleave{}, count, group))) scalar(lo, hi);
  } else
    for (int64_t x = lo; x < hi; ++x) copy_channels<T>(first + x * pixel_step, count, to + x * column_step);
}

// Packs image n, channels first .. first + count - 1, which are neighbours in an interleave group, of source row `row`, for a
// block whose first output column is w0, into to[q * channel_step + x].
template <class T, class P>
void pack_channels(const Source& source, const ConvShape& conv, const InputTile& tile, int64_t n,
                   int64_t first, int64_t count, int64_t row, int64_t w0, P* to, int64_t channel_step) {
  using S = Compute<T>;
  const int64_t hr_row = row * source.row_scale + source.channel_row[first];
  const bool outside = hr_row < 0 || hr_row >= source.hr_h, inner = channel_step == 1;
  if (outside && inner) {
    for (int64_t x = 0; x < tile.stride_phases * tile.phase_columns; ++x)
      std::memset(to + x * tile.column_step, 0, sizeof(P) * static_cast<size_t>(count));
    return;
  }
  if (outside) {
    for (int64_t q = 0; q < count; ++q)
      std::memset(to + q * channel_step, 0, sizeof(P) * static_cast<size_t>(tile.row_step));
    return;
  }
  const T* from = static_cast<const T*>(source.data) + n * source.batch_stride +
                  source.channel_offset[first] + row * source.row_stride;
  for (int64_t phase = 0; phase < tile.stride_phases; ++phase) {
    const int64_t col = w0 * conv.stride_w - conv.pad_left + phase;
    P* first_column = to + phase * tile.phase_columns * tile.column_step;
    if (inner)
      copy_row<T>(source, from, source.channel_col + first, count, col, conv.stride_w, tile.phase_columns,
                  first_column, tile.column_step);
    else if constexpr (__is_same(P, S))
      pack_row<T>(source, from, source.channel_col + first, count, col, conv.stride_w, tile.phase_columns,
                  tile.row_step - phase * tile.phase_columns, first_column, channel_step);
  }
}

// Replaces n gradients by those before the activation: f(gradient, output), of values or of vectors.
template <class T, bool kRounds, class P, class F>
FS_INLINE void apply_to_row(P* gradient, const P* output, int64_t n, F&& f) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  int64_t x = 0;
  for (; x + L <= n; x += L) {
    Vec<S> v = f(load_widened<P>(gradient + x), load_widened<P>(output + x));
    if constexpr (kRounds && sizeof(T) != sizeof(S)) {
      T rounded[L];
      store_narrowed<T>(rounded, v);
      v = load_widened<T>(rounded);
    }
    store_narrowed<P>(gradient + x, v);
  }
  for (; x < n; ++x)
    gradient[x] = narrow<P>(S(widen(narrow<T>(f(S(widen(gradient[x])), S(widen(output[x])))))));
}

// As PyTorch computes it, rounded to the element type. What is zero because it does not exist stays zero.
template <class T, class P>
void apply_activation(Activation activation, double negative_slope, P* gradient, const P* output, int64_t n) {
  using S = Compute<T>;
  const S slope = static_cast<S>(negative_slope);
  const auto apply = [&](auto rounds, auto chosen) {
    apply_to_row<T, decltype(rounds)::value>(gradient, output, n, [=](auto g, auto y) {
      return grad_from_output<decltype(g)>(Activation{decltype(chosen)::value}, slope - decltype(g){}, g, y);
    });
  };
  const IntConstant<0> exact;  // the gradients of relu and relu6 are values that are there already
  const IntConstant<1> rounds;
  switch (activation) {
    case Activation::kReLU: return apply(exact, IntConstant<int(Activation::kReLU)>{});
    case Activation::kReLU6: return apply(exact, IntConstant<int(Activation::kReLU6)>{});
    case Activation::kLeakyReLU: return apply(rounds, IntConstant<int(Activation::kLeakyReLU)>{});
    case Activation::kTanh: return apply(rounds, IntConstant<int(Activation::kTanh)>{});
    case Activation::kSigmoid: return apply(rounds, IntConstant<int(Activation::kSigmoid)>{});
    default: return;
  }
}

// In NCHW a tile takes a few short rows of each channel, and channels are far apart. Such rows are too short for a hardware
// prefetcher, so each would wait for memory. Therefore rows are fetched while others are packed. On long rows the hardware
// prefetcher takes over.
template <class T>
FS_INLINE void fetch_row(const T* row, int64_t n) {
  constexpr int64_t kBytes = 1024, kLine = 64, size = sizeof(T);
  for (int64_t x = 0; x < smaller(n, kBytes / size); x += kLine / size) __builtin_prefetch(row + x);
}
// Row `row` of channels first .. end - 1, counted through all groups, for a block whose first output column is w0.
template <class T>
FS_INLINE void fetch_channels(const Source& source, const ConvShape& conv, int64_t n, int64_t first,
                              int64_t end, int64_t row, int64_t w0, int64_t columns) {
  for (int64_t k = first; k < end; k += source.interleave) {
    const T* from = static_cast<const T*>(source.data) + n * source.batch_stride + source.channel_offset[k] +
                    row * source.row_stride + w0 * conv.stride_w * source.col_stride;
    for (int64_t x = 0; x < columns * source.col_stride; x += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(from + x);
  }
}

// The rows of a tile that the block so many output rows further up has as well; 0 rows: there is no such block.
FS_INLINE int64_t kept_rows(const InputTile& tile, const ConvShape& conv, int64_t below_rows) {
  return below_rows > 0 ? larger<int64_t>(tile.rows - below_rows * conv.stride_h, 0) : 0;
}

// Calls f(k, count) for channels begin .. end - 1, cut where an interleave group ends.
template <class F>
FS_INLINE void for_each_interleaved(int64_t interleave, int64_t begin, int64_t end, F&& f) {
  for (int64_t k = begin, next; k < end; k = next) {
    next = smaller(k - k % interleave + interleave, end);
    f(k, next - k);
  }
}

// Channels 0 .. count - 1 of `columns` pixels into to[x * column_step + q], by square transpositions, of pairs of channels if
// they are packed as bfloat16, which then is what they are in the source. load_pixels(q, x) returns a vector of pixels of channel q; of the last pixels, those that exist are used. Fewer
// channels than a vector holds: what is stored reaches into the next column, which is written later.
template <class S, class P, class F>
FS_INLINE void transpose_channels(int64_t count, int64_t columns, P* to, int64_t column_step,
                                  F&& load_pixels) {
  constexpr int L = kLanes<S>, kPacked = sizeof(S) / sizeof(P);
  const auto pixels = [&](int64_t q, int64_t x) { return q < count ? load_pixels(q, x) : Vec<S>{}; };
  for (int64_t x = 0; x < columns; x += L) {
    for (int64_t q = 0; q < count; q = next_whole<kPacked * L>(q, count)) {
      Vec<S> v[L];
      FS_UNROLL
      for (int l = 0; l < L; ++l) {
        if constexpr (kPacked == 2)
          v[l] = bit_cast<Vec<S>>(join_pair(pixels(q + 2 * l, x), pixels(q + 2 * l + 1, x)));
        else
          v[l] = pixels(q + l, x);
      }
      transpose<S>(v);
      FS_UNROLL
      for (int l = 0; l < L; ++l)
        if (x + l < columns) std::memcpy(to + (x + l) * column_step + q, &v[l], sizeof(v[l]));
    }
  }
}

// One row of a tile whose channels are neighbours, straight from planes: channels first .. first + count - 1 of a source that
// is neither shuffled nor strided.
template <class T, class P>
void transpose_row(const Source& source, const ConvShape& conv, const InputTile& tile, int64_t n,
                   int64_t first, int64_t count, int64_t row, int64_t w0, P* to) {
  using S = Compute<T>;
  constexpr int64_t L = kLanes<S>;
  const int64_t columns = tile.phase_columns, col0 = w0 - conv.pad_left + source.channel_col[first];
  const int64_t hr_row = row + source.channel_row[first];
  const int64_t lo = smaller(larger<int64_t>(-col0, 0), columns), hi = smaller(columns, source.hr_w - col0);
  const bool outside = hr_row < 0 || hr_row >= source.hr_h;
  const auto clear = [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x)
      std::memset(to + x * tile.column_step, 0, sizeof(P) * static_cast<size_t>(count));
  };
  if (outside || hi <= lo) return clear(0, columns);
  const T* from = static_cast<const T*>(source.data) + n * source.batch_stride + row * source.row_stride +
                  w0 - conv.pad_left + lo;
  const int64_t* plane = source.channel_offset + first;
  const int64_t pixels = hi - lo, whole = pixels / L * L;
  P* const first_pixel = to + lo * tile.column_step;
  clear(0, lo);
  const auto pixels_from = [&](int64_t begin) {
    return [=](int64_t q, int64_t x) { return load_widened<T>(from + plane[q] + begin + x); };
  };
  if (pixels < L)
    transpose_channels<S>(count, pixels, first_pixel, tile.column_step,
                          [&](int64_t q, int64_t) { return load_first<T>(from + plane[q], pixels); });
  else
    transpose_channels<S>(count, whole, first_pixel, tile.column_step, pixels_from(0));
  if (pixels > L && whole < pixels)
    transpose_channels<S>(count, L, to + (hi - L) * tile.column_step, tile.column_step,
                          pixels_from(pixels - L));
  clear(hi, columns);
}

// Packs rows kept .. rows - 1 of channels begin .. end - 1 into a tile whose channels are neighbours, through planes of some
// channels. scratch: see packing_elements().
template <class T, class P>
void pack_by_planes(const Source& source, const ConvShape& conv, const InputTile& tile, int64_t g,
                    const Block& b, int64_t begin, int64_t end, int64_t kept, P* packed,
                    Compute<T>* scratch) {
  using S = Compute<T>;
  constexpr int L = kVectorBytes / static_cast<int>(sizeof(P));
  const PackedPlanes by = packed_planes(source, tile, L);
  const int64_t most = larger(source.interleave, source.output ? source.output->interleave : int64_t{1});
  const int64_t columns = tile.stride_phases * tile.phase_columns;
  InputTile planar = tile;
  planar.row_step = by.step;
  planar.column_step = 1;
  S* const of_output = scratch + by.channels * by.step;
  constexpr int64_t kRowsAhead = 2;
  const bool plain = !source.output && source.interleave == 1 && source.row_scale == 1 &&
                     source.col_scale == 1 && source.col_stride == 1 && conv.stride_w == 1;
  for (int64_t n = 0; n < b.images; ++n) {
    for (int64_t k = begin, next; k < end; k = next) {
      next = smaller(k - k % most + by.channels - most, end);
      // the last channels, with enough before them for a vector
      if (end - k < L && end - begin >= L) k = larger((end - L) - (end - L) % most, begin);
      for (int64_t y = kept; y < tile.rows; ++y) {
        const int64_t row = b.h * conv.stride_h - conv.pad_top + y;
        const bool same = y + kRowsAhead < tile.rows;  // or those of the next channels
        const int64_t ahead = g * conv.ic + (same ? k : next), rows = same ? 0 : tile.rows - kept;
        fetch_channels<T>(source, conv, b.n + n, ahead, smaller(ahead + next - k, g * conv.ic + end),
                          row + kRowsAhead - rows, b.w, columns);
        P* const to_row = packed + n * tile.image_step + y * tile.row_step + k;
        if (plain) {
          transpose_row<T>(source, conv, tile, b.n + n, g * conv.ic + k, next - k, row, b.w, to_row);
          continue;
        }
        const auto pack = [&](const Source& from, S* to) {
          for_each_interleaved(from.interleave, k, next, [&](int64_t first, int64_t count) {
            pack_channels<T>(from, conv, planar, b.n + n, g * conv.ic + first, count, row, b.w,
                             to + (first - k) * by.step, by.step);
          });
        };
        pack(source, scratch);
        if (source.output) {
          pack(*source.output, of_output);
          for (int64_t q = 0; q < next - k; ++q)
            apply_activation<T>(source.activation, source.negative_slope, scratch + q * by.step,
                                of_output + q * by.step, columns);
        }
        transpose_channels<S>(next - k, columns, to_row, tile.column_step,
                              [&](int64_t q, int64_t x) { return load<S>(scratch + q * by.step + x); });
      }
    }
  }
}

// Are the channels of interleave groups, as they lie together, copied into a tile whose channels are neighbours? Where there are
// many small groups, each is written to other cache lines, and transposed squares take less time.
FS_INLINE bool copies_groups(const Source& source, int64_t channels) {
  constexpr int64_t kFewChannels = 64, kLargeGroup = 8;
  return source.interleave >= kLargeGroup || (source.interleave > 1 && channels <= kFewChannels);
}
template <class T>
void pack_by_groups(const Source& source, const ConvShape& conv, const InputTile& tile, int64_t g,
                    const Block& b, int64_t begin, int64_t end, int64_t kept, T* packed,
                    Compute<T>* scratch) {
  const int64_t columns = tile.stride_phases * tile.phase_columns,
                elements = (columns - 1) * tile.column_step + end - begin;  // of a row, with its gaps
  T* const output = reinterpret_cast<T*>(scratch);
  for (int64_t n = 0; n < b.images; ++n) {
    for (int64_t y = kept; y < tile.rows; ++y) {
      const int64_t row = b.h * conv.stride_h - conv.pad_top + y;
      T* const to = packed + n * tile.image_step + y * tile.row_step + begin;
      const auto pack_row_of = [&](const Source& from, T* first) {
        for_each_interleaved(from.interleave, begin, end, [&](int64_t k, int64_t count) {
          pack_channels<T>(from, conv, tile, b.n + n, g * conv.ic + k, count, row, b.w, first + k - begin, 1);
        });
      };
      pack_row_of(source, to);
      if (!source.output) continue;
      std::memset(output, 0, sizeof(T) * static_cast<size_t>(elements));  // gaps stay zero
      pack_row_of(*source.output, output);
      apply_activation<T>(source.activation, source.negative_slope, to, output, elements);
    }
  }
}

// Packs the tile of a block: channels begin .. end - 1 of group g; where channels are apart in the tile, in whole groups of
// source.interleave. `kept` rows that the tile still holds from the block above move up, and only new ones are read.
// scratch: see packing_elements().
template <class T, class P>
void pack_channels_of(const Source& source, const ConvShape& conv, const InputTile& tile, int64_t g,
                      const Block& b, int64_t begin, int64_t end, int64_t kept, P* packed,
                      Compute<T>* scratch) {
  const bool inner = tile.channel_step == 1;
  if (kept > 0) {
    const int64_t planes = inner ? 1 : end - begin;
    for (int64_t q = 0; q < b.images * planes; ++q) {
      P* to = packed + q / planes * tile.image_step + (begin + q % planes) * tile.channel_step;
      std::memmove(to, to + (tile.rows - kept) * tile.row_step,
                   sizeof(P) * static_cast<size_t>(kept * tile.row_step));
    }
  }
  if constexpr (sizeof(P) < sizeof(Compute<T>)) {
    if (inner && copies_groups(source, end - begin))
      return pack_by_groups<T>(source, conv, tile, g, b, begin, end, kept, packed, scratch);
  }
  if (inner && packed_planes(source, tile, kVectorBytes / static_cast<int>(sizeof(P))).channels > 0)
    return pack_by_planes<T>(source, conv, tile, g, b, begin, end, kept, packed, scratch);
  // All rows of the same channels first, because they are neighbours in memory in NCHW.
  const auto rows_of = [&](const Source& from, auto&& pack) {
    for (int64_t n = 0; n < b.images; ++n)
      for_each_interleaved(from.interleave, begin, end, [&](int64_t k, int64_t count) {
        for (int64_t y = kept; y < tile.rows; ++y)
          pack(n, k, count, b.h * conv.stride_h - conv.pad_top + y,
               packed + n * tile.image_step + y * tile.row_step + k * tile.channel_step);
      });
  };
  rows_of(source, [&](int64_t n, int64_t k, int64_t count, int64_t row, P* to) {
    if (source.col_stride == 1 && k + source.interleave < conv.ic)
      fetch_row(static_cast<const T*>(source.data) + (b.n + n) * source.batch_stride +
                    source.channel_offset[g * conv.ic + k + source.interleave] + row * source.row_stride +
                    b.w * conv.stride_w,
                tile.stride_phases * tile.phase_columns);
    pack_channels<T>(source, conv, tile, b.n + n, g * conv.ic + k, count, row, b.w, to, tile.channel_step);
  });
  if (!source.output) return;
  rows_of(*source.output, [&](int64_t n, int64_t k, int64_t count, int64_t row, P* to) {
    P* const output = reinterpret_cast<P*>(scratch);
    pack_channels<T>(*source.output, conv, tile, b.n + n, g * conv.ic + k, count, row, b.w, output,
                     inner ? 1 : tile.row_step);
    // whole rows where channels have no gap
    const int64_t columns = tile.stride_phases * tile.phase_columns;
    const bool without_gap = inner && count == tile.column_step;
    const int64_t runs = without_gap ? 1 : inner ? columns : count;
    const int64_t step = inner ? tile.column_step : tile.channel_step;
    for (int64_t q = 0; q < runs; ++q)
      apply_activation<T>(source.activation, source.negative_slope, to + q * step,
                          output + q * (inner ? tile.column_step : tile.row_step),
                          without_gap ? columns * count
                          : inner     ? count
                                      : tile.row_step);
  });
}
// All channels of group g.
template <class T, class P>
void pack_input(const Source& source, const ConvShape& conv, const InputTile& tile, int64_t g, const Block& b,
                int64_t kept, P* packed, Compute<T>* scratch) {
  pack_channels_of<T>(source, conv, tile, g, b, 0, conv.ic, kept, packed, scratch);
}

}  // namespace fused_subpixel::cpu::FS_ISA
