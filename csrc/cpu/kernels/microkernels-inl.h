// SPDX-License-Identifier: BSD-3-Clause
// The register tiles: the only loops that count. Each runs over k = (channel, tap) of one group and leaves its sums
// in memory; bias, activation and the shuffle follow in store-inl.h. (Where rows lie side by side in the output, and only a
// bias is to be added, a channel tile does that itself: what it would leave is what is stored.) Included by kernels.cpp
// only.
//
//   pixel_tile<T, V>    T rows x V vectors of neighbouring pixels; weights are broadcast.  sums[T][V][lanes]
//   channel_tile<P, NV> P neighbouring pixels x NV vectors of rows; pixels are broadcast.  sums[P][NV][lanes]
//   gradient_tile<T, V> T rows x V (channel, tap) columns, summed over pixel vectors.      sums[T][V]
#pragma once

#include "cpu/kernels/simd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// Strip addressing: value of (pixel p, product k = (channel, tap)) is at strip[p * column_step + at[k]], where a pixel
// tile takes a column_step of one for granted; the filter moves on by
// filter_step elements with every product. One loop with a table: an inner one over so few taps would be mispredicted
// as often as it ends. Sums of a pixel tile's rows lie sums_step apart.
struct StripMap {
  const int64_t* at;  // and one more: a channel tile loads it while it computes the product before
  int64_t products, column_step, filter_step, sums_step;
  bool add;  // to the sums that are there, instead of replacing them
};

// Filter is packed [products][filter_step], T of them used; registers: T * V sums, V pixel vectors, one broadcast.
template <class S, int T, int V>
void pixel_tile(const S* filter, const S* const* pixels, const StripMap& map, S* sums) {
  Vec<S> sum[T][V];
  FS_UNROLL
  for (int t = 0; t < T; ++t) {
    FS_UNROLL
    for (int v = 0; v < V; ++v) sum[t][v] = Vec<S>{};
  }
  const S* p[V];
  FS_UNROLL
  for (int v = 0; v < V; ++v) p[v] = pixels[v];
  for (int64_t k = 0; k < map.products; ++k) {
    const int64_t at = map.at[k];
    Vec<S> x[V];
    FS_UNROLL
    for (int v = 0; v < V; ++v) x[v] = load<S>(p[v] + at);
    FS_UNROLL
    for (int t = 0; t < T; ++t) {
      const Vec<S> w = splat<S>(filter[t]);
      FS_UNROLL
      for (int v = 0; v < V; ++v) sum[t][v] += w * x[v];
    }
    filter += map.filter_step;
  }
  const bool add = map.add;
  FS_UNROLL
  for (int t = 0; t < T; ++t) {
    FS_UNROLL
    for (int v = 0; v < V; ++v) {
      S* to = sums + t * map.sums_step + v * kLanes<S>;
      store<S>(to, add ? load<S>(to) + sum[t][v] : sum[t][v]);
    }
  }
}

// Where the sums of a channel tile go, pixel_step from one pixel's to the next's, and what is added before: earlier
// sums, which have no gaps, and a bias of every row.
template <class S>
struct ChannelSums {
  const S *earlier, *bias;  // or null
  S* to;
  int64_t pixel_step;
};

// Filter is packed [products][NV * lanes]; registers: P * NV sums, NV filter vectors, one broadcast.
template <class S, int P, int NV>
void channel_tile(const S* filter, const S* pixels, const StripMap& map, const ChannelSums<S>& sums) {
  Vec<S> sum[P][NV];
  FS_UNROLL
  for (int p = 0; p < P; ++p) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) sum[p][v] = Vec<S>{};
  }
  // A pixel's offset is an odd multiple of the step times 1, 2, 4 or 8, as an address may have it: no pointer moves.
  // (What these are is hidden from the compiler, which would keep all multiples and run out of registers.)
  int64_t odd[(P + 1) / 2];
  FS_UNROLL
  for (int p = 0; p < (P + 1) / 2; ++p)
    odd[p] = (2 * p + 1) * map.column_step * static_cast<int64_t>(sizeof(S));
  const S* next = pixels + map.at[0];
  FS_UNROLL_TWICE
  for (int64_t k = 0; k < map.products; ++k) {
    FS_UNROLL
    for (int p = 0; p < (P + 1) / 2; ++p) FS_HIDE(odd[p]);
    const char* x = reinterpret_cast<const char*>(next);
    next = pixels + map.at[k + 1];
    Vec<S> w[NV];
    FS_UNROLL
    for (int v = 0; v < NV; ++v) w[v] = load<S>(filter + v * kLanes<S>);
    FS_UNROLL
    for (int p = 0; p < P; ++p) {
      const int power = p ? __builtin_ctz(static_cast<unsigned>(p)) : 0;
      const Vec<S> b =
          splat<S>(*reinterpret_cast<const S*>(x + (p ? odd[(p >> power) / 2] * (int64_t{1} << power) : 0)));
      FS_UNROLL
      for (int v = 0; v < NV; ++v) sum[p][v] += b * w[v];
    }
    filter += NV * kLanes<S>;
  }
  if (sums.earlier) {
    FS_UNROLL
    for (int p = 0; p < P; ++p) {
      FS_UNROLL
      for (int v = 0; v < NV; ++v) sum[p][v] += load<S>(sums.earlier + (p * NV + v) * kLanes<S>);
    }
  }
  if (sums.bias) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) {
      const Vec<S> bias = load<S>(sums.bias + v * kLanes<S>);
      FS_UNROLL
      for (int p = 0; p < P; ++p) sum[p][v] += bias;
    }
  }
  S* to = sums.to;
  FS_UNROLL
  for (int p = 0; p < P; ++p, to += sums.pixel_step) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) store<S>(to + v * kLanes<S>, sum[p][v]);
  }
}

// out[t * V + v] = sum over pixel vectors of gradient row t times input column v; out has room for whole vectors.
// gradient: T rows, gradient_step apart; both strips are read at the vector offsets `at_gradient`, `at_input`.
template <class S, int T, int V>
void gradient_tile(const S* gradient, int64_t gradient_step, const S* const* input,
                   const int32_t* at_gradient, const int32_t* at_input, int64_t vectors, S* out) {
  constexpr int L = kLanes<S>, kGroups = (T * V + L - 1) / L;
  Vec<S> sum[kGroups * L];
  FS_UNROLL
  for (int q = 0; q < kGroups * L; ++q) sum[q] = Vec<S>{};
  const S* column[V];
  FS_UNROLL
  for (int v = 0; v < V; ++v) column[v] = input[v];
  for (int64_t n = 0; n < vectors; ++n) {
    const S* g = gradient + at_gradient[n];
    const int64_t at = at_input[n];
    Vec<S> x[V];
    FS_UNROLL
    for (int v = 0; v < V; ++v) x[v] = load<S>(column[v] + at);
    FS_UNROLL
    for (int t = 0; t < T; ++t) {
      const Vec<S> b = load<S>(g + t * gradient_step);
      FS_UNROLL
      for (int v = 0; v < V; ++v) sum[t * V + v] += b * x[v];
    }
  }
  FS_UNROLL
  for (int q = 0; q < kGroups; ++q) {
    fold<S>(sum + q * L);
    store<S>(out + q * L, sum[q * L]);
  }
}

// ---- tables: tile height -> function -----------------------------------------------------------------------------
template <class S>
using PixelTile = void (*)(const S*, const S* const*, const StripMap&, S*);
template <class S>
using ChannelTile = void (*)(const S*, const S*, const StripMap&, const ChannelSums<S>&);
template <class S>
using GradientTile = void (*)(const S*, int64_t, const S* const*, const int32_t*, const int32_t*, int64_t,
                              S*);

template <class S>
PixelTile<S> pixel_tile_of(int rows) {
  switch (rows) {
#define FS_CASE(T) \
  case T: return &pixel_tile<S, T, pixel_vectors(T, kRegisters)>;
    FS_CASE(1) FS_CASE(2) FS_CASE(3) FS_CASE(4) FS_CASE(5) FS_CASE(6) FS_CASE(8) FS_CASE(9) FS_CASE(12)
#undef FS_CASE
  }
  return nullptr;
}

template <class S>
GradientTile<S> gradient_tile_of(int rows) {
  switch (rows) {
#define FS_CASE(T) \
  case T: return &gradient_tile<S, T, gradient_columns(T, kRegisters)>;
    FS_CASE(1) FS_CASE(2) FS_CASE(3) FS_CASE(4) FS_CASE(5) FS_CASE(6) FS_CASE(8) FS_CASE(9) FS_CASE(12)
#undef FS_CASE
  }
  return nullptr;
}

template <class S, int NV, int... P>
ChannelTile<S> channel_tile_from(int pixels, std::integer_sequence<int, P...>) {
  static constexpr ChannelTile<S> table[] = {&channel_tile<S, P + 1, NV>...};
  return table[pixels - 1];
}
template <class S>
ChannelTile<S> channel_tile_of(int pixels, int vectors) {
  switch (vectors) {
    case 1:
      return channel_tile_from<S, 1>(pixels,
                                     std::make_integer_sequence<int, channel_pixels(1, kRegisters)>{});
    case 2:
      return channel_tile_from<S, 2>(pixels,
                                     std::make_integer_sequence<int, channel_pixels(2, kRegisters)>{});
    case 3:
      return channel_tile_from<S, 3>(pixels,
                                     std::make_integer_sequence<int, channel_pixels(3, kRegisters)>{});
    case 4:
      return channel_tile_from<S, 4>(pixels,
                                     std::make_integer_sequence<int, channel_pixels(4, kRegisters)>{});
  }
  return nullptr;
}

}  // namespace fused_subpixel::cpu::FS_ISA
