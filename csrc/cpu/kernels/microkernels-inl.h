// SPDX-License-Identifier: BSD-3-Clause
// The microkernels: the only loops that multiply. Each runs over k = (channel, tap) of one group, or over pixels, and leaves
// its accumulators in memory. Bias, activation and the shuffle follow in store-inl.h. (An OC-vectorised microkernel adds the
// bias itself and stores to the output, if that is contiguous there and nothing else is to be done.) Included by
// kernels.cpp only.
//
//   ow_vectorised<M, V>        M output channels x V vectors of neighbouring pixels; weights are broadcast
//                              acc[M][V]: lane l is pixel v * lanes + l
//   oc_vectorised<P, NV>       P neighbouring pixels x NV vectors of output channels; pixels are broadcast
//                              acc[P][NV]: lane l is output channel v * lanes + l
//   sum_products<P, NV>        P columns x NV vectors of lanes of the weight's gradient, summed over pixels; columns are
//                              broadcast
//                              sums[P][NV]: lane l is lane v * lanes + l
#pragma once

#include "cpu/conv_task.h"
#include "cpu/kernels/simd-inl.h"

namespace fused_subpixel::cpu::FS_ISA {

// Weights are packed [k][weight_step], of which M are used. pixels[v] is where vector v begins in the packed input tile.
// Registers: M * V accumulators, V vectors of pixels, one broadcast.
template <class S, int M, int V>
void ow_vectorised(const S* weight, const S* const* pixels, const KOffsets& offsets, S* out) {
  Vec<S> acc[M][V];
  FS_UNROLL
  for (int m = 0; m < M; ++m) {
    FS_UNROLL
    for (int v = 0; v < V; ++v) acc[m][v] = Vec<S>{};
  }
  const S* p[V];
  FS_UNROLL
  for (int v = 0; v < V; ++v) p[v] = pixels[v];
  for (int64_t k = 0; k < offsets.count; ++k) {
    const int64_t at = offsets.at[k];
    Vec<S> x[V];
    FS_UNROLL
    for (int v = 0; v < V; ++v) x[v] = load<S>(p[v] + at);
    FS_UNROLL
    for (int m = 0; m < M; ++m) {
      const Vec<S> w = splat<S>(weight[m]);
      FS_UNROLL
      for (int v = 0; v < V; ++v) acc[m][v] += w * x[v];
    }
    weight += offsets.weight_step;
  }
  const bool add = offsets.add;
  FS_UNROLL
  for (int m = 0; m < M; ++m) {
    FS_UNROLL
    for (int v = 0; v < V; ++v) {
      S* to = out + m * offsets.acc_step + v * kLanes<S>;
      store<S>(to, add ? load<S>(to) + acc[m][v] : acc[m][v]);
    }
  }
}

// Where the accumulators of an OC-vectorised microkernel go, pixel_step elements from one pixel to the next, and what is
// added to them first: earlier accumulators, which have no gaps, and the bias of every output channel.
template <class S>
struct OcAcc {
  const S *earlier, *bias;  // or null
  S* to;
  int64_t pixel_step;
};

// Weights are [k][weight_step], of which NV vectors are used. Registers: P * NV accumulators, NV vectors of weights, one
// broadcast.
template <class S, int P, int NV>
void oc_vectorised(const S* weight, const S* pixels, const KOffsets& offsets, const OcAcc<S>& out) {
  Vec<S> acc[P][NV];
  FS_UNROLL
  for (int p = 0; p < P; ++p) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) acc[p][v] = Vec<S>{};
  }
  // A pixel's offset is an odd multiple of the column step times 1, 2, 4 or 8, which fits an address, so that no pointer
  // moves. (FS_HIDE keeps the compiler from storing all multiples, which would take more registers than there are.)
  int64_t odd[(P + 1) / 2];
  FS_UNROLL
  for (int p = 0; p < (P + 1) / 2; ++p)
    odd[p] = (2 * p + 1) * offsets.column_step * static_cast<int64_t>(sizeof(S));
  const S* next = pixels + offsets.at[0];
  FS_UNROLL_TWICE
  for (int64_t k = 0; k < offsets.count; ++k) {
    FS_UNROLL
    for (int p = 0; p < (P + 1) / 2; ++p) FS_HIDE(odd[p]);
    const char* x = reinterpret_cast<const char*>(next);
    next = pixels + offsets.at[k + 1];
    Vec<S> w[NV];
    FS_UNROLL
    for (int v = 0; v < NV; ++v) w[v] = load<S>(weight + v * kLanes<S>);
    FS_UNROLL
    for (int p = 0; p < P; ++p) {
      const int power = p ? __builtin_ctz(static_cast<unsigned>(p)) : 0;
      const Vec<S> b =
          splat<S>(*reinterpret_cast<const S*>(x + (p ? odd[(p >> power) / 2] * (int64_t{1} << power) : 0)));
      FS_UNROLL
      for (int v = 0; v < NV; ++v) acc[p][v] += b * w[v];
    }
    weight += offsets.weight_step;
  }
  if (out.earlier) {
    FS_UNROLL
    for (int p = 0; p < P; ++p) {
      FS_UNROLL
      for (int v = 0; v < NV; ++v) acc[p][v] += load<S>(out.earlier + (p * NV + v) * kLanes<S>);
    }
  }
  if (out.bias) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) {
      const Vec<S> bias = load<S>(out.bias + v * kLanes<S>);
      FS_UNROLL
      for (int p = 0; p < P; ++p) acc[p][v] += bias;
    }
  }
  S* to = out.to;
  FS_UNROLL
  for (int p = 0; p < P; ++p, to += out.pixel_step) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) store<S>(to + v * kLanes<S>, acc[p][v]);
  }
}

// Adds to sums[P][NV] the products of P neighbouring columns with NV vectors of lanes, summed over `count` pixels.
// Registers: P * NV accumulators, NV vectors of lanes, one broadcast.
template <class S, int P, int NV>
void sum_products(const S* lanes, const S* columns, const ProductOffset* at, int64_t count, S* sums) {
  Vec<S> acc[P][NV];
  FS_UNROLL
  for (int p = 0; p < P; ++p) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) acc[p][v] = Vec<S>{};
  }
  FS_UNROLL_TWICE
  for (int64_t k = 0; k < count; ++k) {
    const S* x = lanes + at[k].lanes;
    const S* y = columns + at[k].column;
    Vec<S> w[NV];
    FS_UNROLL
    for (int v = 0; v < NV; ++v) w[v] = load<S>(x + v * kLanes<S>);
    FS_UNROLL
    for (int p = 0; p < P; ++p) {
      const Vec<S> b = splat<S>(y[p]);
      FS_UNROLL
      for (int v = 0; v < NV; ++v) acc[p][v] += b * w[v];
    }
  }
  FS_UNROLL
  for (int p = 0; p < P; ++p) {
    FS_UNROLL
    for (int v = 0; v < NV; ++v) {
      S* to = sums + (p * NV + v) * kLanes<S>;
      store<S>(to, load<S>(to) + acc[p][v]);
    }
  }
}

// ---- from a planned tile to its microkernel ----------------------------------------------------------------------

template <class S>
using OwVectorised = void (*)(const S*, const S* const*, const KOffsets&, S*);
template <class S>
using OcVectorised = void (*)(const S*, const S*, const KOffsets&, const OcAcc<S>&);
template <class S>
using SumProducts = void (*)(const S*, const S*, const ProductOffset*, int64_t, S*);

template <class S>
OwVectorised<S> ow_vectorised_of(int oc) {
  OwVectorised<S> found = nullptr;
  dispatch(TileOc{}, oc, [&](auto m) {
    constexpr int M = decltype(m)::value;
    found = &ow_vectorised<S, M, ow_tile_vectors(M, kRegisters)>;
  });
  return found;
}

// A tile of fewer vectors of pixels than go with its output channels.
template <class S>
struct OwRest {
  OwVectorised<S> run;
  int oc;
};
template <class S, int... N>
OwRest<S> ow_rest_from(int vectors, std::integer_sequence<int, N...>) {
  static constexpr OwRest<S> table[] = {
      {&ow_vectorised<S, ow_rest_oc(N + 1, kRegisters), N + 1>, ow_rest_oc(N + 1, kRegisters)}...};
  if (vectors < 1 || vectors > static_cast<int>(sizeof...(N))) __builtin_trap();
  return table[vectors - 1];
}
template <class S>
OwRest<S> ow_rest_of(int vectors) {
  return ow_rest_from<S>(vectors, std::make_integer_sequence<int, kMaxTileVectors - 1>{});
}

template <class S, int NV, int... P>
OcVectorised<S> oc_vectorised_from(int pixels, std::integer_sequence<int, P...>) {
  static constexpr OcVectorised<S> table[] = {&oc_vectorised<S, P + 1, NV>...};
  if (pixels < 1 || pixels > static_cast<int>(sizeof...(P))) __builtin_trap();
  return table[pixels - 1];
}
template <class S>
OcVectorised<S> oc_vectorised_of(int pixels, int vectors) {
  OcVectorised<S> found = nullptr;
  dispatch(TileOcVectors{}, vectors, [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    found =
        oc_vectorised_from<S, NV>(pixels, std::make_integer_sequence<int, oc_tile_pixels(NV, kRegisters)>{});
  });
  return found;
}

template <class S, int NV, int... P>
SumProducts<S> sum_products_from(int columns, std::integer_sequence<int, P...>) {
  static constexpr SumProducts<S> table[] = {&sum_products<S, P + 1, NV>...};
  if (columns < 1 || columns > static_cast<int>(sizeof...(P))) __builtin_trap();
  return table[columns - 1];
}
template <class S>
SumProducts<S> sum_products_of(int columns, int vectors) {
  SumProducts<S> found = nullptr;
  dispatch(TileOcVectors{}, vectors, [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    found =
        sum_products_from<S, NV>(columns, std::make_integer_sequence<int, oc_tile_pixels(NV, kRegisters)>{});
  });
  return found;
}

}  // namespace fused_subpixel::cpu::FS_ISA
