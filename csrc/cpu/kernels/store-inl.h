// SPDX-License-Identifier: BSD-3-Clause
// From accumulators to the output: bias, activation, residual and clamp in registers, then the shuffled, cropped store.
// Accumulators arrive in one of two forms. Planar: lanes are neighbouring pixels of one row. Pixel-major: lanes are
// neighbouring output channels of one pixel. Included by kernels.cpp and matrix.cpp only.
#pragma once

#include "cpu/conv_task.h"
#include "cpu/kernels/activations-inl.h"
#include "cpu/kernels/blocks-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

template <class T>
struct Store {
  using S = Compute<T>;
  static constexpr int L = kLanes<S>;
  const Destination& dest;
  const TaskEpilogue& epilogue;
  // Of the group that is computed: where its output channels go, and their bias and slope.
  OcTable table{};
  S *bias = nullptr, *slope = nullptr;
  Vec<S> clamp_min, clamp_max;
  int64_t residual_row, residual_col;  // residual elements per low-resolution row, column
  const T* like_output;                // a residual that lies in memory as the output does, or null
  bool clamped;

  Store(const Destination& d, const TaskEpilogue& e) : dest(d), epilogue(e) {
    clamp_min = splat<S>(static_cast<S>(e.clamp_min));
    clamp_max = splat<S>(static_cast<S>(e.clamp_max));
    clamped = e.clamp_min > -__builtin_inf() || e.clamp_max < __builtin_inf();
    const bool high = e.residual_kind == ResidualKind::kHighRes;
    residual_row = e.residual_stride.h * (high ? d.r_h : 1);
    residual_col = e.residual_stride.w * (high ? d.r_w : 1);
    like_output = e.residual_like_output ? static_cast<const T*>(e.residual) : nullptr;
  }

  // Gathers the constants of a group's `count` output channels, so that the store loops only add and load. to_bias and
  // to_slope have room for whole vectors.
  void enter(const OcTable& group, int64_t count, S* to_bias, S* to_slope) {
    table = group;
    bias = to_bias;
    slope = to_slope;
    const TaskEpilogue& e = epilogue;
    for (int64_t oc = 0; oc < count; ++oc) {
      bias[oc] = e.bias ? S(widen(static_cast<const T*>(e.bias)[constant_index(e.bias_index, oc)])) : S(0);
      slope[oc] = e.prelu ? S(widen(static_cast<const T*>(e.prelu)[constant_index(e.prelu_index, oc)]))
                          : static_cast<S>(e.negative_slope);
    }
  }
  int64_t constant_index(PerChannel index, int64_t oc) const {
    if (index == PerChannel::kHighRes) return table.hr_channel[oc];
    return index == PerChannel::kLowRes ? table.lr_channel[oc] : 0;
  }

  // Transcendental activations are applied, with the bias, to all sums of a store before anything else.
  FS_INLINE bool transcendental() const { return !is_piecewise_polynomial(epilogue.activation); }
  FS_INLINE Vec<S> finish(Vec<S> v, Vec<S> bias_of, Vec<S> slope_of) const {
    if (transcendental()) return v;
    return activate_piecewise_polynomial<S>(epilogue.activation, v + bias_of, slope_of);
  }
  FS_INLINE Vec<S> clamp(Vec<S> v) const {
    if (!clamped) return v;
    v = v < clamp_min ? clamp_min : v;
    return v > clamp_max ? clamp_max : v;
  }
  FS_INLINE bool row_inside(const PixelVector& p, int64_t oc) const {
    const int64_t y = p.h * dest.r_h + table.hr_row[oc];
    return y >= 0 && y < dest.out_h;
  }
  FS_INLINE bool col_inside(int64_t w, int64_t oc) const {
    const int64_t x = w * dest.r_w + table.hr_col[oc];
    return x >= 0 && x < dest.out_w;
  }
  FS_INLINE bool block_inside(int64_t w) const {  // all r_w columns of a sub-pixel block
    const int64_t x = w * dest.r_w - dest.crop_left;
    return x >= 0 && x + dest.r_w <= dest.out_w;
  }
  FS_INLINE int64_t dest_pixel(const PixelVector& p) const {
    return p.n * dest.stride.n + p.h * dest.r_h * dest.stride.h + p.w * dest.r_w * dest.stride.w;
  }
  FS_INLINE int64_t dest_step() const { return dest.r_w * dest.stride.w; }  // to the next pixel of a row
  FS_INLINE T* at(const PixelVector& p) const { return static_cast<T*>(dest.data) + dest_pixel(p); }
  FS_INLINE bool adds_bias_only() const {
    return epilogue.activation == Activation::kNone && !clamped && !epilogue.residual;
  }
  // Can whole vectors of the output be stored: is there no residual, or one that is read in the same vectors?
  FS_INLINE bool has_plain_residual() const { return like_output || !epilogue.residual; }
  FS_INLINE const T* residual_of(const T* to) const {
    return like_output + (to - static_cast<const T*>(dest.data));
  }
  FS_INLINE int64_t residual_pixel(const PixelVector& p) const {
    return p.n * epilogue.residual_stride.n + p.h * residual_row + p.w * residual_col;
  }

  // ---- planar accumulators -------------------------------------------------------------------------------------

  // Epilogue of one output channel. The residual is not read for lanes past p.count or cropped ones.
  FS_INLINE Vec<S> planar(Vec<S> acc, const PixelVector& p, int64_t oc) const {
    Vec<S> v = finish(acc, splat<S>(bias[oc]), splat<S>(slope[oc]));
    if (epilogue.residual) {
      const T* from = static_cast<const T*>(epilogue.residual) + residual_pixel(p) + table.residual[oc];
      const bool high = epilogue.residual_kind == ResidualKind::kHighRes;
      if (residual_col == 1 && p.count == L && (!high || (block_inside(p.w) && block_inside(p.w + L - 1)))) {
        v += load_widened<T>(from);
      } else {
        S part[L] = {};
        for (int l = 0; l < p.count; ++l)
          if (!high || col_inside(p.w + l, oc)) part[l] = widen(from[l * residual_col]);
        v += load<S>(part);
      }
    }
    return clamp(v);
  }

  // acc[(oc - first_oc) * oc_step + v * L + lane], output channels first_oc .. first_oc + count - 1 of the group.
  void store_planar(S* acc, int64_t oc_step, int64_t first_oc, int64_t count, const PixelVector* pixels,
                    int vectors) const {
    const int64_t end = first_oc + count;
    if (dest.oc_contiguous) {  // square transpositions, as far as they go
      for (; first_oc + L <= end; first_oc += L, acc += L * oc_step) {
        for (int v = 0; v < vectors; ++v) {
          Vec<S> square[L];
          FS_UNROLL
          for (int l = 0; l < L; ++l) square[l] = load<S>(acc + l * oc_step + v * L);
          transpose<S>(square);
          S part[L * L];
          FS_UNROLL
          for (int l = 0; l < L; ++l) store<S>(part + l * L, square[l]);
          store_pixels(part, L, first_oc, L, pixels[v]);
        }
      }
    }
    if (transcendental())
      for (int64_t oc = first_oc; oc < end; ++oc)
        activate_sums<S>(epilogue.activation, acc + (oc - first_oc) * oc_step, L, vectors,
                         splat<S>(bias[oc]));
    if (first_oc == end || store_groups(acc, oc_step, first_oc, end, pixels, vectors)) return;
    const int64_t interleave = dest.interleave;
    for (int v = 0; v < vectors; ++v) {
      const PixelVector& p = pixels[v];
      const S* from = acc + v * L;
      for (int64_t oc = first_oc; oc < end;) {
        const bool whole =
            interleave > 0 && table.interleave_left[oc] == interleave && oc + interleave <= end;
        const S* of_oc = from + (oc - first_oc) * oc_step;
        if (!row_inside(p, oc)) {
          oc += whole ? interleave : 1;
        } else if (whole && store_group(of_oc, oc_step, oc, p)) {
          oc += interleave;
        } else {
          store_channel(of_oc, oc, p);
          ++oc;
        }
      }
    }
  }

  // The elements lo <= e < hi of an interleave group's vector of pixels that lie in the output.
  struct GroupPart {
    int64_t lo, hi;
  };
  FS_INLINE GroupPart group_part(const PixelVector& p) const {
    const int64_t x = p.w * dest.r_w - dest.crop_left, per_col = dest.interleave / dest.r_w;
    return {larger<int64_t>(0, -x) * per_col, smaller<int64_t>(p.count * dest.r_w, dest.out_w - x) * per_col};
  }
  template <int M>
  FS_INLINE void store_part(T* to, Vec<S> (&v)[M], const GroupPart& part) const {
    T elements[M * L];
    FS_UNROLL
    for (int q = 0; q < M; ++q) store_narrowed<T>(elements + q * L, v[q]);
    copy_part(to, elements, M, part);
  }
  // Vector by vector. A copy of all elements at once would load across two stores, and wait for both.
  static FS_NOINLINE void copy_part(T* to, const T* elements, int vectors, const GroupPart& part) {
    for (int64_t begin = 0; begin < vectors * L; begin += L) {
      if (part.lo <= begin && begin + L <= part.hi) {
        __builtin_memcpy(to + begin, elements + begin, L * sizeof(T));
      } else {
        const int64_t end = smaller<int64_t>(part.hi, begin + L);
        for (int64_t e = larger<int64_t>(part.lo, begin); e < end; ++e) to[e] = elements[e];
      }
    }
  }

  // The same elements of the residual; the others are not read.
  template <int M>
  FS_INLINE void add_part(Vec<S> (&v)[M], const T* residual, const GroupPart& part) const {
    T elements[M * L] = {};
    copy_part(elements, residual, M, part);
    FS_UNROLL
    for (int q = 0; q < M; ++q) v[q] += load_widened<T>(elements + q * L);
  }

  // Whole interleave groups, and no residual that lies otherwise than the output: the usual case. All conditions are checked
  // once for all groups. Returns false, and nothing is stored, in any other case. Vectors are the inner loop, because
  // neighbouring pixels are neighbours in memory, while groups lie far apart.
  bool store_groups(const S* acc, int64_t oc_step, int64_t oc, int64_t end, const PixelVector* pixels,
                    int vectors) const {
    if (dest.interleave == 0 || !has_plain_residual() || table.interleave_left[oc] != dest.interleave ||
        (end - oc) % dest.interleave != 0)
      return false;
    struct {
      GroupPart part;
      T* first;
    } place[kMaxStoredVectors];
    for (int v = 0; v < vectors; ++v) place[v] = {group_part(pixels[v]), at(pixels[v])};
    const bool bias_only = adds_bias_only(), activated = transcendental();
    return try_dispatch(RegisterInterleave{}, dest.interleave, [&](auto m) {
      constexpr int M = decltype(m)::value;
      for (; oc < end; oc += M, acc += M * oc_step) {
        for (int x = 0; x < vectors; ++x) {
          if (!row_inside(pixels[x], oc)) continue;
          const S* from = acc + x * L;
          Vec<S> v[M];
          FS_UNROLL
          for (int q = 0; q < M; ++q) {
            v[q] = load<S>(from + q * oc_step);
            if (activated) continue;
            v[q] += splat<S>(bias[oc + q]);
            if (!bias_only)
              v[q] = activate_piecewise_polynomial<S>(epilogue.activation, v[q], splat<S>(slope[oc + q]));
          }
          interleave<S, M>(v);
          const GroupPart& part = place[x].part;
          const bool whole = part.lo == 0 && part.hi == M * L;
          T* to = place[x].first + table.dest[oc];
          if (like_output) {
            if (whole) {
              FS_UNROLL
              for (int q = 0; q < M; ++q) v[q] += load_widened<T>(residual_of(to) + q * L);
            } else {
              add_part<M>(v, residual_of(to), part);
            }
          }
          if (clamped) {
            FS_UNROLL
            for (int q = 0; q < M; ++q) v[q] = clamp(v[q]);
          }
          if (whole) {
            FS_UNROLL
            for (int q = 0; q < M; ++q) store_narrowed<T>(to + q * L, v[q]);
          } else {
            store_part<M>(to, v, part);
          }
        }
      }
    });
  }

  // One interleave group, which fills p.count * interleave consecutive elements of the output.
  bool store_group(const S* acc, int64_t oc_step, int64_t oc, const PixelVector& p) const {
    return try_dispatch(RegisterInterleave{}, dest.interleave, [&](auto m) {
      constexpr int M = decltype(m)::value;
      S part[M * L];  // `planar` is long: a loop that is not unrolled holds it once
      for (int q = 0; q < M; ++q) store<S>(part + q * L, planar(load<S>(acc + q * oc_step), p, oc + q));
      Vec<S> v[M];
      FS_UNROLL
      for (int q = 0; q < M; ++q) v[q] = load<S>(part + q * L);
      interleave<S, M>(v);
      store_part<M>(at(p) + table.dest[oc], v, group_part(p));
    });
  }

  void store_channel(const S* acc, int64_t oc, const PixelVector& p) const {
    S part[L];
    store<S>(part, planar(load<S>(acc), p, oc));
    T* to = at(p) + table.dest[oc];
    for (int l = 0; l < p.count; ++l)
      if (col_inside(p.w + l, oc)) to[l * dest_step()] = narrow<T>(part[l]);
  }

  // Pixel-major accumulators [pixel][tile_oc] of tiles that interleave, tile_step apart, become planar, [oc][tile][pixel]: a square of
  // lanes at a time, and of a half type as many pixels as fill a cache line.
  void store_transposed(const S* acc, int64_t tile_oc, int tiles, int64_t tile_step, int64_t first_oc,
                        int64_t count, const PixelVector& p) const {
    constexpr int kVectors = sizeof(S) / sizeof(T);
    alignas(64) S part[kMaxTransposedOc * kVectors * L];
    for (int x = 0; x < p.count; x += kVectors * L) {
      PixelVector pixels[kVectors];
      int vectors = 0;
      for (; vectors < kVectors && x + vectors * L < p.count; ++vectors) {
        const int begin = x + vectors * L;
        pixels[vectors] = {p.n, p.h, p.w + begin, smaller(L, p.count - begin)};
        const S* from = acc + begin * tile_oc;
        for (int q = 0; q < tiles; ++q, from += tile_step) {
          for (int64_t v = 0; v < tile_oc; v += L) {
            Vec<S> square[L];
            FS_UNROLL
            for (int l = 0; l < L; ++l)
              square[l] = l < pixels[vectors].count ? load<S>(from + l * tile_oc + v) : Vec<S>{};
            transpose<S>(square);
            FS_UNROLL
            for (int l = 0; l < L; ++l)
              store<S>(part + (((v + l) * tiles + q) * kVectors + vectors) * L, square[l]);
          }
        }
      }
      store_planar(part, kVectors * L, first_oc, count, pixels, vectors);
    }
  }

  // ---- pixel-major accumulators --------------------------------------------------------------------------------

  // Are all values of these pixels, in `height` rows of them, whole vectors within the output, and does no residual lie
  // otherwise? Then nothing has to be checked for single values. This is the usual case.
  bool plain(const PixelVector& p, int64_t height, int64_t first_oc, int64_t count) const {
    if (!has_plain_residual() || count % L != 0) return false;
    const PixelVector lowest{p.n, p.h + height - 1, p.w, p.count};
    const int64_t last = p.w + p.count - 1;
    bool all = true;
    for (int64_t oc = first_oc; oc < first_oc + count; oc += L)
      all = all && table.interleave_left[oc] >= L && row_inside(p, oc) && row_inside(lowest, oc) &&
            col_inside(p.w, oc) && col_inside(p.w, oc + L - 1) && col_inside(last, oc) &&
            col_inside(last, oc + L - 1);
    return all;
  }

  // Where a microkernel may store plain values itself, because only the bias has to be added; otherwise null. `to` as in
  // store_plain.
  FS_INLINE S* direct(T* to, int64_t first_oc, int64_t count) const {
    if constexpr (__is_same(T, S)) {
      if (adds_bias_only() && table.interleave_left[first_oc] >= count) return to + table.dest[first_oc];
    }
    return nullptr;
  }

  // store_pixels for plain values; `to` is the first pixel's place in the output. Pixels are the inner loop, because a
  // processor's prefetcher learns their distance.
  FS_INLINE void store_plain(S* acc, int64_t pixel_step, int64_t first_oc, int64_t count, T* to,
                             int pixels) const {
    const bool bias_only = adds_bias_only();
    for (int64_t oc = first_oc; oc < first_oc + count; oc += L, acc += L) {
      const Vec<S> bias_of = load<S>(bias + oc), slope_of = load<S>(slope + oc);
      if (transcendental()) activate_sums<S>(epilogue.activation, acc, pixel_step, pixels, bias_of);
      const S* from = acc;
      T* whole = to + table.dest[oc];
      // of a half type, two vectors fill a cache line
      if (bias_only && sizeof(T) < sizeof(S) && oc + 2 * L <= first_oc + count &&
          table.dest[oc + L] == table.dest[oc] + L) {
        const Vec<S> next_bias = load<S>(bias + oc + L);
        for (int x = 0; x < pixels; ++x, whole += dest_step(), from += pixel_step) {
          store_narrowed<T>(whole, load<S>(from) + bias_of, load<S>(from + L) + next_bias);
        }
        oc += L;
        acc += L;
        continue;
      }
      const auto store_all = [&](auto&& finished) {
        for (int x = 0; x < pixels; ++x, whole += dest_step(), from += pixel_step)
          store_narrowed<T>(whole, finished(load<S>(from)));
      };
      if (bias_only)  // hoisted out of the loop
        store_all([&](Vec<S> v) { return v + bias_of; });
      else if (like_output)
        store_all([&](Vec<S> v) {
          return clamp(finish(v, bias_of, slope_of) + load_widened<T>(residual_of(whole)));
        });
      else
        store_all([&](Vec<S> v) { return clamp(finish(v, bias_of, slope_of)); });
    }
  }

  // Fetches what is going to be stored, and the residual, while the accumulators are computed. Stores leave the processor
  // in order, so one that waits for memory holds up all that follow. `to` is the place of the first of `pixels`
  // neighbouring pixels.
  FS_INLINE void fetch(int64_t first_oc, int64_t count, const T* to, int64_t pixels) const {
    fetch_lines<1>(first_oc, count, to, pixels);
    if (like_output) fetch_lines<0>(first_oc, count, residual_of(to), pixels);
  }
  template <int kForWriting>
  FS_INLINE void fetch_lines(int64_t first_oc, int64_t count, const T* to, int64_t pixels) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    const int64_t end = first_oc + count;
    if (dest.oc_contiguous) {
      for (int64_t oc = first_oc; oc < end; oc += kLine)
        for (int64_t x = 0; x < pixels; ++x)
          __builtin_prefetch(to + table.dest[oc] + x * dest_step(), kForWriting);
    } else if (dest.interleave > 0) {
      for (int64_t oc = first_oc; oc < end; oc += dest.interleave)
        for (int64_t e = 0; e < pixels * dest.interleave; e += kLine)
          __builtin_prefetch(to + table.dest[oc] + e, kForWriting);
    }
  }

  // The same for a block, a few cache lines at a time: `steps` calls of step() fetch all of it.
  class Fetch {
   public:
    void start(const Store& store, const Block& b, int64_t first_oc, int64_t count, int64_t steps) {
      const bool inner = store.dest.oc_contiguous;
      oc_ = first_oc;
      oc_step_ = inner ? count : larger<int64_t>(store.dest.interleave, 1);
      end_ = first_oc + count;
      pixels_ = inner ? kPixels : b.width;
      h_ = w_ = 0;
      to_fetch_ = b.height * ceil_div(b.width, pixels_) * ceil_div(count, oc_step_);
      steps_ = larger<int64_t>(steps, 1);
      done_ = 0;
    }
    void stop() { to_fetch_ = done_ = 0; }  // step() does nothing
    FS_INLINE void step(const Store& store, const Block& b) {
      for (done_ += to_fetch_; done_ >= steps_ && h_ < b.height; done_ -= steps_) {
        const int count = static_cast<int>(smaller(pixels_, b.width - w_));
        store.fetch(oc_, smaller(oc_step_, end_ - oc_), store.at(absolute({0, h_, w_, count}, b)), count);
        if ((w_ += pixels_) < b.width) continue;
        w_ = 0;
        if (++h_ < b.height) continue;
        oc_ += oc_step_;
        if (oc_ < end_) h_ = 0;
      }
    }

   private:
    static constexpr int64_t kPixels = 4;
    int64_t oc_, oc_step_, end_, pixels_, h_, w_, to_fetch_, steps_ = 1, done_;
  };

  // acc[x * pixel_step + oc - first_oc], neighbouring pixels x.
  // Whole vectors of acc are activated in place, also where `count` ends within one.
  void store_pixels(S* acc, int64_t pixel_step, int64_t first_oc, int64_t count, const PixelVector& p) const {
    const bool high = epilogue.residual_kind == ResidualKind::kHighRes;
    for (int64_t oc = first_oc; oc < first_oc + count; oc += L) {
      const int n = static_cast<int>(smaller<int64_t>(L, first_oc + count - oc));
      if (plain(p, 1, oc, n)) {
        store_plain(acc + oc - first_oc, pixel_step, oc, n, at(p), p.count);
        continue;
      }
      const Vec<S> bias_of = load<S>(bias + oc), slope_of = load<S>(slope + oc);
      // One store if the whole vector stays within an interleave group, and likewise one load of the residual. There the
      // distance of the two ends suffices, because any gap between neighbouring channels would make it larger.
      const bool within_group = table.interleave_left[oc] >= n;
      const bool residual_dense = within_group && epilogue.residual_stride.c == 1 &&
                                  epilogue.residual_kind != ResidualKind::kLowRes &&
                                  table.residual[oc + n - 1] - table.residual[oc] == n - 1;
      if (within_group && !row_inside(p, oc)) continue;
      if (transcendental())
        activate_sums<S>(epilogue.activation, acc + oc - first_oc, pixel_step, p.count, bias_of);
      T* to = at(p);
      const T* from = static_cast<const T*>(epilogue.residual) + (epilogue.residual ? residual_pixel(p) : 0);
      for (int x = 0; x < p.count; ++x, to += dest_step(), from += residual_col) {
        const bool dense = within_group && col_inside(p.w + x, oc) && col_inside(p.w + x, oc + n - 1);
        Vec<S> v = finish(load<S>(acc + x * pixel_step + oc - first_oc), bias_of, slope_of);
        if (epilogue.residual) {
          if (dense && residual_dense) {
            v += n == L ? load_widened<T>(from + table.residual[oc])
                        : load_first<T>(from + table.residual[oc], n);
          } else {
            S part[L] = {};
            for (int l = 0; l < n; ++l)
              if (!high || (row_inside(p, oc + l) && col_inside(p.w + x, oc + l)))
                part[l] = widen(from[table.residual[oc + l]]);
            v += load<S>(part);
          }
        }
        v = clamp(v);
        if (dense && n == L) {
          store_narrowed<T>(to + table.dest[oc], v);
        } else if (dense) {
          store_first<T>(to + table.dest[oc], v, n);
        } else {
          S part[L];
          store<S>(part, v);
          for (int l = 0; l < n; ++l)
            if (row_inside(p, oc + l) && col_inside(p.w + x, oc + l))
              to[table.dest[oc + l]] = narrow<T>(part[l]);
        }
      }
    }
  }
};

}  // namespace fused_subpixel::cpu::FS_ISA
