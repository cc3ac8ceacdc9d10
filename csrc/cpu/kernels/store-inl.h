// SPDX-License-Identifier: BSD-3-Clause
// From a tile's sums to the output: bias, activation, residual and clamp in registers, then the shuffled, cropped
// store. Sums arrive in one of two forms: planar (lanes are neighbouring pixels of one row) or row-major (lanes are
// neighbouring rows of one pixel). Included by kernels.cpp only.
#pragma once

#include "cpu/kernels/pack-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// Neighbouring low-resolution pixels (n, h, w .. w + count - 1), count <= lanes.
struct PixelVector {
  int64_t n, h, w;
  int count;
};

// Per-row constants of one group, gathered once per call so that the store loops only add and load.
template <class S>
struct RowTable {
  int64_t rows;
  const int64_t* dest;      // element offset of the row's pixel (0, 0) in the output, crop subtracted
  const int64_t* residual;  // the same in the residual
  const int32_t* hr_row;    // i - crop_top
  const int32_t* hr_col;    // j - crop_left
  const int64_t* run_left;  // rows from here to the end of the run, or 0 without runs
  const S* bias;
  const S* slope;
};

template <class S>
FS_INLINE Vec<S> map_lanes(Vec<S> v, S (*f)(S)) {
  S part[kLanes<S>];
  store<S>(part, v);
  for (int l = 0; l < kLanes<S>; ++l) part[l] = f(part[l]);
  return load<S>(part);
}

// Builtins rather than <cmath>: std:: overloads are inline functions that would leak out of this instruction set.
FS_INLINE float exp_of(float x) { return __builtin_expf(x); }
FS_INLINE double exp_of(double x) { return __builtin_exp(x); }
FS_INLINE float erf_of(float x) { return __builtin_erff(x); }
FS_INLINE double erf_of(double x) { return __builtin_erf(x); }
FS_INLINE float tanh_of(float x) { return __builtin_tanhf(x); }
FS_INLINE double tanh_of(double x) { return __builtin_tanh(x); }

// NaN stays NaN in every branch, as in PyTorch.
template <class S>
FS_INLINE Vec<S> activate(Activation activation, Vec<S> v, Vec<S> slope) {
  switch (activation) {
    case Activation::kNone: return v;
    case Activation::kReLU: return v < Vec<S>{} ? Vec<S>{} : v;
    case Activation::kLeakyReLU:
    case Activation::kPReLU: return v > Vec<S>{} ? v : v * slope;
    case Activation::kSiLU: return map_lanes<S>(v, [](S x) { return x / (S(1) + exp_of(-x)); });
    case Activation::kGELU:
      return map_lanes<S>(v, [](S x) { return x * S(0.5) * (S(1) + erf_of(x * S(0.70710678118654752440))); });
    case Activation::kTanh: return map_lanes<S>(v, [](S x) { return tanh_of(x); });
    case Activation::kSigmoid: return map_lanes<S>(v, [](S x) { return S(1) / (S(1) + exp_of(-x)); });
  }
  return v;
}

template <class T>
struct Store {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  const Destination& dest;
  const TaskEpilogue& epilogue;
  RowTable<S> table;
  Vec<S> clamp_min, clamp_max;
  int64_t residual_row, residual_col;  // residual elements per low-resolution row, column
  int64_t cell_left;                   // columns that the crop takes off the first pixel's
  bool clamped;

  Store(const Destination& d, const TaskEpilogue& e, const Window& w)
      : dest(d), epilogue(e), table{}, cell_left(w.late_w ? 0 : d.crop_left) {
    clamp_min = splat<S>(static_cast<S>(e.clamp_min)), clamp_max = splat<S>(static_cast<S>(e.clamp_max));
    clamped = e.clamp_min > -__builtin_inf() || e.clamp_max < __builtin_inf();
    const bool high = e.residual_kind == ResidualKind::kHighRes;
    residual_row = e.residual_stride.h * (high ? d.r_h : 1);
    residual_col = e.residual_stride.w * (high ? d.r_w : 1);
  }

  FS_INLINE Vec<S> finish(Vec<S> v, Vec<S> bias, Vec<S> slope) const {
    return activate<S>(epilogue.activation, v + bias, slope);
  }
  FS_INLINE Vec<S> clamp(Vec<S> v) const {
    if (!clamped) return v;
    v = v < clamp_min ? clamp_min : v;
    return v > clamp_max ? clamp_max : v;
  }
  FS_INLINE bool row_inside(const PixelVector& p, int64_t row) const {
    const int64_t y = p.h * dest.r_h + table.hr_row[row];
    return y >= 0 && y < dest.out_h;
  }
  FS_INLINE bool col_inside(int64_t w, int64_t row) const {
    const int64_t x = w * dest.r_w + table.hr_col[row];
    return x >= 0 && x < dest.out_w;
  }
  FS_INLINE bool cell_inside(int64_t w) const {  // all r_w columns of a low-resolution pixel
    const int64_t x = w * dest.r_w - cell_left;
    return x >= 0 && x + dest.r_w <= dest.out_w;
  }
  FS_INLINE int64_t dest_pixel(const PixelVector& p) const {
    return p.n * dest.stride.n + p.h * dest.r_h * dest.stride.h + p.w * dest.r_w * dest.stride.w;
  }
  FS_INLINE int64_t dest_step() const { return dest.r_w * dest.stride.w; }  // to the next pixel of a row
  FS_INLINE bool adds_bias_only() const { return epilogue.activation == Activation::kNone && !clamped; }
  FS_INLINE int64_t residual_pixel(const PixelVector& p) const {
    return p.n * epilogue.residual_stride.n + p.h * residual_row + p.w * residual_col;
  }

  // Planar epilogue of one row; lanes past count, or cropped, are never read from the residual.
  FS_INLINE Vec<S> planar(Vec<S> sum, const PixelVector& p, int64_t row) const {
    Vec<S> v = finish(sum, splat<S>(table.bias[row]), splat<S>(table.slope[row]));
    if (epilogue.residual) {
      const T* from = static_cast<const T*>(epilogue.residual) + residual_pixel(p) + table.residual[row];
      const bool high = epilogue.residual_kind == ResidualKind::kHighRes;
      if (residual_col == 1 && p.count == L && (!high || (cell_inside(p.w) && cell_inside(p.w + L - 1)))) {
        v += load_widened<T>(from);
      } else {
        S part[L] = {};
        for (int l = 0; l < p.count; ++l)
          if (!high || col_inside(p.w + l, row)) part[l] = widen(from[l * residual_col]);
        v += load<S>(part);
      }
    }
    return clamp(v);
  }

  // sums[row * row_step + v * L + lane], rows first_row .. first_row + rows - 1 of the group.
  void store_planar(const S* sums, int64_t row_step, int64_t first_row, int64_t rows,
                    const PixelVector* pixels, int vectors) const {
    const int64_t end = first_row + rows;
    if (dest.rows_dense) {  // square transpositions, as far as they go
      for (; first_row + L <= end; first_row += L, sums += L * row_step) {
        for (int v = 0; v < vectors; ++v) {
          Vec<S> square[L];
          FS_UNROLL
          for (int l = 0; l < L; ++l) square[l] = load<S>(sums + l * row_step + v * L);
          transpose<S>(square);
          S part[L * L];
          FS_UNROLL
          for (int l = 0; l < L; ++l) store<S>(part + l * L, square[l]);
          store_pixels(part, L, first_row, L, pixels[v]);
        }
      }
    }
    const int64_t run = dest.run;
    for (int v = 0; v < vectors; ++v) {
      const PixelVector& p = pixels[v];
      const S* from = sums + v * L;
      if (store_runs(from, row_step, first_row, end, p)) continue;
      for (int64_t row = first_row; row < end;) {
        const bool whole = run > 0 && table.run_left[row] == run && row + run <= end;
        const S* sum = from + (row - first_row) * row_step;
        if (!row_inside(p, row)) {
          row += whole ? run : 1;
        } else if (whole && store_run(sum, row_step, row, p)) {
          row += run;
        } else {
          store_row(sum, row, p);
          ++row;
        }
      }
    }
  }

  // The elements of a vector of pixels' run that lie in the window: lo <= e < hi.
  struct RunPart {
    int64_t lo, hi;
  };
  FS_INLINE RunPart run_part(const PixelVector& p) const {
    const int64_t x = p.w * dest.r_w - cell_left, per_col = dest.run / dest.r_w;
    return {larger<int64_t>(0, -x) * per_col, smaller<int64_t>(p.count * dest.r_w, dest.out_w - x) * per_col};
  }
  // Vector by vector: a copy of all at once would load across two stores, and wait for both.
  template <int M>
  FS_INLINE void store_part(T* to, Vec<S> (&v)[M], const RunPart& part) const {
    FS_UNROLL
    for (int q = 0; q < M; ++q) {
      if (part.lo <= q * L && q * L + L <= part.hi) {
        store_narrowed<T>(to + q * L, v[q]);
      } else {
        T elements[L];
        store_narrowed<T>(elements, v[q]);
        const int64_t end = smaller<int64_t>(part.hi, q * L + L);
        for (int64_t e = larger<int64_t>(part.lo, q * L); e < end; ++e) to[e] = elements[e - q * L];
      }
    }
  }

  // Whole runs without a residual: nearly always, so that little is asked of single ones.
  bool store_runs(const S* sum, int64_t row_step, int64_t row, int64_t end, const PixelVector& p) const {
    if (dest.run == 0 || epilogue.residual || table.run_left[row] != dest.run || (end - row) % dest.run != 0)
      return false;
    const RunPart part = run_part(p);
    T* const first = at(p);
    const bool bias_only = adds_bias_only();
    return with_register_run(dest.run, [&](auto m) {
      constexpr int M = decltype(m)::value;
      const bool whole = part.lo == 0 && part.hi == M * L;
      for (; row < end; row += M, sum += M * row_step) {
        if (!row_inside(p, row)) continue;
        Vec<S> v[M];
        FS_UNROLL
        for (int q = 0; q < M; ++q) {
          v[q] = load<S>(sum + q * row_step) + splat<S>(table.bias[row + q]);
          if (!bias_only)
            v[q] = clamp(activate<S>(epilogue.activation, v[q], splat<S>(table.slope[row + q])));
        }
        interleave<S, M>(v);
        T* to = first + table.dest[row];
        if (whole) {
          FS_UNROLL
          for (int q = 0; q < M; ++q) store_narrowed<T>(to + q * L, v[q]);
        } else {
          store_part<M>(to, v, part);
        }
      }
    });
  }

  // One run: rows interleave into count * run consecutive elements of the output.
  bool store_run(const S* sum, int64_t row_step, int64_t row, const PixelVector& p) const {
    return with_register_run(dest.run, [&](auto m) {
      constexpr int M = decltype(m)::value;
      Vec<S> v[M];
      FS_UNROLL
      for (int q = 0; q < M; ++q) v[q] = planar(load<S>(sum + q * row_step), p, row + q);
      interleave<S, M>(v);
      store_part<M>(static_cast<T*>(dest.data) + dest_pixel(p) + table.dest[row], v, run_part(p));
    });
  }

  void store_row(const S* sum, int64_t row, const PixelVector& p) const {
    S part[L];
    store<S>(part, planar(load<S>(sum), p, row));
    T* to = static_cast<T*>(dest.data) + dest_pixel(p) + table.dest[row];
    for (int l = 0; l < p.count; ++l)
      if (col_inside(p.w + l, row)) to[l * dest_step()] = narrow<T>(part[l]);
  }

  FS_INLINE T* at(const PixelVector& p) const { return static_cast<T*>(dest.data) + dest_pixel(p); }

  // Whether all values of these pixels, in so many rows of them, are whole vectors within the output, without a
  // residual, so that nothing need be asked of the single ones: nearly always.
  bool plain(const PixelVector& p, int64_t height, int64_t first_row, int64_t rows) const {
    if (epilogue.residual || rows % L != 0) return false;
    const PixelVector lowest{p.n, p.h + height - 1, p.w, p.count};
    const int64_t last = p.w + p.count - 1;
    bool all = true;
    for (int64_t row = first_row; row < first_row + rows; row += L)
      all = all && table.run_left[row] >= L && row_inside(p, row) && row_inside(lowest, row) &&
            col_inside(p.w, row) && col_inside(p.w, row + L - 1) && col_inside(last, row) &&
            col_inside(last, row + L - 1);
    return all;
  }

  // Where a tile itself may store what is plain, for nothing but the bias is left to do; else null. `to` as in store_plain.
  FS_INLINE S* direct(T* to, int64_t first_row, int64_t rows) const {
    if constexpr (__is_same(T, S)) {
      if (adds_bias_only() && table.run_left[first_row] >= rows) return to + table.dest[first_row];
    }
    return nullptr;
  }

  // store_pixels where all is plain; `to` is the first pixel's place in the output. Pixels in the inner loop: their
  // distance is what a processor's prefetcher learns.
  FS_INLINE void store_plain(const S* sums, int64_t pixel_step, int64_t first_row, int64_t rows, T* to,
                             int count) const {
    const bool bias_only = adds_bias_only();
    for (int64_t row = first_row; row < first_row + rows; row += L, sums += L) {
      const Vec<S> bias = load<S>(table.bias + row), slope = load<S>(table.slope + row);
      const S* sum = sums;
      T* whole = to + table.dest[row];
      const auto store_all = [&](auto&& finished) {
        for (int x = 0; x < count; ++x, whole += dest_step(), sum += pixel_step)
          store_narrowed<T>(whole, finished(load<S>(sum)));
      };
      if (bias_only)  // asked once, not per vector
        store_all([&](Vec<S> v) { return v + bias; });
      else
        store_all([&](Vec<S> v) { return clamp(finish(v, bias, slope)); });
    }
  }

  // What is going to be stored comes into the cache while its sums are computed: stores leave in order, and one that
  // waits for memory holds up all that follow. `to` is the place of the first of `count` neighbouring pixels.
  FS_INLINE void fetch(int64_t first_row, int64_t rows, const T* to, int64_t count) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    const int64_t end = first_row + rows;
    if (dest.rows_dense) {
      for (int64_t row = first_row; row < end; row += kLine)
        for (int64_t x = 0; x < count; ++x) __builtin_prefetch(to + table.dest[row] + x * dest_step(), 1);
    } else if (dest.run > 0) {
      for (int64_t row = first_row; row < end; row += dest.run)
        for (int64_t e = 0; e < count * dest.run; e += kLine) __builtin_prefetch(to + table.dest[row] + e, 1);
    }
  }

  // Row-major sums of neighbouring pixels, sums[x * pixel_step + row - first_row].
  void store_pixels(const S* sums, int64_t pixel_step, int64_t first_row, int64_t rows,
                    const PixelVector& p) const {
    const bool high = epilogue.residual_kind == ResidualKind::kHighRes;
    for (int64_t row = first_row; row < first_row + rows; row += L) {
      const int n = static_cast<int>(smaller<int64_t>(L, first_row + rows - row));
      if (plain(p, 1, row, n)) {
        store_plain(sums + row - first_row, pixel_step, row, n, at(p), p.count);
        continue;
      }
      const Vec<S> bias = load<S>(table.bias + row), slope = load<S>(table.slope + row);
      // One store if the whole vector stays within a run; likewise one load of the residual: with channels side by
      // side the two ends tell, any step in between would show in their distance.
      const bool within_run = n == L && table.run_left[row] >= L;
      const bool residual_dense = within_run && epilogue.residual_stride.c == 1 &&
                                  epilogue.residual_kind != ResidualKind::kLowRes &&
                                  table.residual[row + L - 1] - table.residual[row] == L - 1;
      if (within_run && !row_inside(p, row)) continue;
      T* to = static_cast<T*>(dest.data) + dest_pixel(p);
      const T* from = static_cast<const T*>(epilogue.residual) + (epilogue.residual ? residual_pixel(p) : 0);
      for (int x = 0; x < p.count; ++x, to += dest_step(), from += residual_col) {
        const bool dense = within_run && col_inside(p.w + x, row) && col_inside(p.w + x, row + L - 1);
        Vec<S> v = finish(load<S>(sums + x * pixel_step + row - first_row), bias, slope);
        if (epilogue.residual) {
          if (dense && residual_dense) {
            v += load_widened<T>(from + table.residual[row]);
          } else {
            S part[L] = {};
            for (int l = 0; l < n; ++l)
              if (!high || (row_inside(p, row + l) && col_inside(p.w + x, row + l)))
                part[l] = widen(from[table.residual[row + l]]);
            v += load<S>(part);
          }
        }
        v = clamp(v);
        if (dense) {
          store_narrowed<T>(to + table.dest[row], v);
        } else {
          S part[L];
          store<S>(part, v);
          for (int l = 0; l < n; ++l)
            if (row_inside(p, row + l) && col_inside(p.w + x, row + l))
              to[table.dest[row + l]] = narrow<T>(part[l]);
        }
      }
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
