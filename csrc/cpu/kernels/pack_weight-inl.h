// SPDX-License-Identifier: BSD-3-Clause
// Packing weights: widened to the arithmetic type and laid out [channel][tap][output channel of the tile], tile after tile.
// Included by kernels.cpp and matrix.cpp only.
#pragma once

#include "cpu/conv_task.h"
#include "cpu/kernels/simd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// Output channels to be packed: element offset of weight t at offset[t * step], 0 <= t < count.
struct WeightOc {
  const int64_t* offset;
  const uint8_t* missing_taps;  // as in Weight; null if the taps are given without the missing ones
  int64_t step, count;
  int64_t operator[](int64_t t) const { return offset[t * step]; }
  int missing(int64_t t) const { return missing_taps ? missing_taps[t * step] : 0; }
  WeightOc from(int64_t t, int64_t n) const {
    return {offset + t * step, missing_taps ? missing_taps + t * step : nullptr, step, n};
  }
};

// Do each L output channels lack the same taps?
template <int L>
bool alike_oc(const WeightOc& oc) {
  for (int64_t t = 0; t < oc.count; ++t)
    if (oc.missing(t) != oc.missing(t - t % L)) return false;
  return true;
}

// Are each L output channels neighbours in memory, and lack the same taps?
template <int L>
bool contiguous_oc(const WeightOc& oc) {
  for (int64_t t = 0; t < oc.count; ++t)
    if (oc[t] != oc[t - t % L] + t % L) return false;
  return alike_oc<L>(oc);
}

// Finds out whether all values that pass through it are finite. Zero times any other value is NaN, not a signed zero.
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
  void report(bool* nonfinite) const {
    if (!finite()) __atomic_store_n(nonfinite, true, __ATOMIC_RELAXED);
  }
};

// The taps that lie at neighbouring addresses, from the first to the last of those that an output channel has.
struct TapRun {
  static constexpr int64_t kMost = 128;
  int64_t first = 0, length = 0;  // 0: there is none
  int16_t tap_at[kMost];          // -1: no tap
  TapRun(const Taps& taps, int missing) {
    const auto exists = [&](int64_t tap) { return !lacks_tap(missing, tap, taps.columns); };
    int64_t last = 0;
    bool any = false;
    for (int64_t tap = 0; tap < taps.count; ++tap) {
      if (!exists(tap)) continue;
      first = any ? smaller(first, taps.offset[tap]) : taps.offset[tap];
      last = any ? larger(last, taps.offset[tap]) : taps.offset[tap];
      any = true;
    }
    if (!any || last - first >= kMost) return;
    length = last - first + 1;
    for (int64_t at = 0; at < length; ++at) tap_at[at] = -1;
    for (int64_t tap = 0; tap < taps.count; ++tap) {
      if (!exists(tap)) continue;
      int16_t& at = tap_at[taps.offset[tap] - first];
      if (at >= 0) length = 0;  // two taps at one address, of a view that repeats them
      at = static_cast<int16_t>(tap);
    }
  }
};

// The taps of an output channel are near one another, as in the weight of a transposed convolution: whole runs of some output
// channels are transposed, and those of other phases dropped. Returns whether it could.
template <class T>
bool pack_close_taps(const T* data, const Taps& taps, const int64_t* channel, int64_t channels,
                     const WeightOc& oc, int64_t tile_oc, Compute<T>* packed,
                     FiniteCheck<Compute<T>>& check) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  if (tile_oc % L != 0 || taps.count < 2 || !alike_oc<L>(oc)) return false;
  for (int64_t t = 0; t < oc.count; t += L)
    if (const int64_t n = TapRun(taps, oc.missing(t)).length; n == 0 || n > 2 * L * taps.count) return false;
  for (int64_t t = 0; t < tile_oc; t += L) {
    const int missing = t < oc.count ? oc.missing(t) : 0;
    const TapRun run(taps, missing);
    const int64_t exist = smaller<int64_t>(larger<int64_t>(oc.count - t, 0), L);
    S* to = packed + t;
    for (int64_t c = 0; c < channels; ++c, to += taps.count * tile_oc) {
      const T* from = data + channel[c] + run.first;
      const T* ahead = data + channel[smaller(c + 2, channels - 1)] + run.first;
      for (int64_t tap = 0; tap < taps.count; ++tap)
        if (lacks_tap(missing, tap, taps.columns)) store<S>(to + tap * tile_oc, Vec<S>{});
      for (int64_t x = 0; x < run.length; x += L) {
        const int64_t some = smaller<int64_t>(L, run.length - x);
        Vec<S> v[L];
        FS_UNROLL
        for (int l = 0; l < L; ++l) {
          const int64_t of_row = oc[t + (l < exist ? l : 0)] + x;
          __builtin_prefetch(ahead + of_row);
          v[l] = l < exist ? load_first<T>(from + of_row, some) : Vec<S>{};
        }
        transpose<S>(v);
        FS_UNROLL
        for (int l = 0; l < L; ++l)
          if (l < some && run.tap_at[x + l] >= 0) store<S>(to + run.tap_at[x + l] * tile_oc, check(v[l]));
      }
    }
  }
  return true;
}

// Packs the weights of `channels` input channels, which lie at channel[c]. They go to packed[k * tile_oc + t] in tiles of
// tile_oc output channels, tile_step elements from one tile to the next. Surplus output channels of the last tile become zero.
template <class T>
void pack_weight(const Weight& weight, const Taps& taps, const int64_t* channel, int64_t channels,
                 const WeightOc& oc, int64_t tile_oc, int64_t tile_step, Compute<T>* packed,
                 FiniteCheck<Compute<T>>& check) {
  using S = Compute<T>;
  constexpr int L = kLanes<S>;
  const T* data = static_cast<const T*>(weight.data);
  // Contiguous output channels are read through all tiles, in the order of memory.
  if (tile_oc % L == 0 && oc.count % tile_oc == 0 && contiguous_oc<L>(oc)) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < taps.count; ++tap, packed += tile_oc) {
        const T* from = data + channel[c] + taps.offset[tap];
        const T* ahead = data + channel[smaller(c + 8, channels - 1)] + taps.offset[tap];
        S* to = packed;
        for (int64_t t = 0; t < oc.count; to += tile_step) {
          for (int64_t v = 0; v < tile_oc; v += L, t += L) {
            if (lacks_tap(oc.missing(t), tap, taps.columns)) {
              store<S>(to + v, Vec<S>{});
              continue;
            }
            __builtin_prefetch(ahead + oc[t]);
            store<S>(to + v, check(load_widened<T>(from + oc[t])));
          }
        }
      }
    }
    return;
  }
  if (oc.count > tile_oc) {
    for (int64_t t = 0; t < oc.count; t += tile_oc, packed += tile_step)
      pack_weight<T>(weight, taps, channel, channels, oc.from(t, smaller(tile_oc, oc.count - t)), tile_oc,
                     tile_step, packed, check);
    return;
  }
  // A dense k dimension is transposed, a square of lanes at a time.
  const bool all = weight.dense == Weight::Dense::kAll && taps.all;
  const int64_t n = all ? channels * taps.count : channels;
  if (!oc.missing_taps && (all || weight.dense == Weight::Dense::kChannels) && n >= L) {
    const int64_t step = all ? tile_oc : tile_oc * taps.count;
    for (int64_t tap = 0; tap < (all ? 1 : taps.count); ++tap) {
      const T* from = data + channel[0] + taps.offset[tap];
      S* to = packed + tap * tile_oc;
      for (int64_t t = 0; t < tile_oc; t += L) {
        const int64_t rows = oc.count - t, width = tile_oc - t;
        for (int64_t k = 0; k<n; k = k + 2 * L> n && k + L < n ? n - L : k + L) {
          // Rows are too many for the hardware prefetcher, and stores leave the processor in order.
          constexpr int64_t kAhead = 2 * L;
          FS_UNROLL
          for (int l = 0; l < L; ++l) {
            __builtin_prefetch(from + oc[t + (l < rows ? l : 0)] + k + kAhead);
            __builtin_prefetch(to + (k + l + kAhead) * step + t, 1);
          }
          Vec<S> v[L];
          FS_UNROLL
          for (int l = 0; l < L; ++l)
            v[l] = l < rows ? check(load_widened<T>(from + oc[t + l] + k)) : Vec<S>{};
          transpose<S>(v);
          if (width >= L) {
            FS_UNROLL
            for (int l = 0; l < L; ++l) store<S>(to + (k + l) * step + t, v[l]);
          } else {
            S part[L * L];
            FS_UNROLL
            for (int l = 0; l < L; ++l) store<S>(part + l * L, v[l]);
            for (int l = 0; l < L; ++l)
              std::memcpy(to + (k + l) * step + t, part + l * L, sizeof(S) * static_cast<size_t>(width));
          }
        }
      }
    }
    return;
  }
  if (pack_close_taps<T>(data, taps, channel, channels, oc, tile_oc, packed, check)) return;
  // Otherwise k is the outer loop, because the taps of one channel lie in the same cache lines, which are still there.
  const auto pack = [&](auto&& has) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < taps.count; ++tap) {
        const T* from = data + channel[c] + taps.offset[tap];
        for (int64_t t = 0; t < tile_oc; ++t)
          *packed++ = t < oc.count && has(t, tap) ? check(S(widen(from[oc[t]]))) : S(0);
      }
    }
  };
  if (!oc.missing_taps) return pack([](int64_t, int64_t) { return true; });
  pack([&](int64_t t, int64_t tap) { return !lacks_tap(oc.missing(t), tap, taps.columns); });
}

}  // namespace fused_subpixel::cpu::FS_ISA
