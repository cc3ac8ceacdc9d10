// SPDX-License-Identifier: BSD-3-Clause
// The kernels for everything: any dtype, layout, stride, dilation, group and size. One thread per result of forward
// and input gradient, one block per weight of the weight gradient. 64-bit indices throughout.
#pragma once

#include "cuda/kernels/epilogue.cuh"

namespace fused_subpixel::cuda {

constexpr int kGenericThreads = 256, kReduceThreads = 128;

// Splits an index into a [batch, channels, rows, columns] tensor, in the order of its memory.
struct Index4 {
  int64_t n, c, y, x;
};
FS_DEVICE Index4 index4(int64_t i, int64_t channels, int64_t rows, int64_t columns, bool channels_last) {
  Index4 at;
  if (channels_last) at.c = i % channels, i /= channels;
  at.x = i % columns;
  i /= columns;
  at.y = i % rows;
  i /= rows;
  if (!channels_last) at.c = i % channels, i /= channels;
  at.n = i;
  return at;
}
FS_DEVICE int64_t offset(const Strides& s, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * s.n + c * s.c + h * s.h + w * s.w;
}

// Neighbouring threads take neighbouring results in memory.
template <class T>
FS_KERNEL(kGenericThreads, 1)
conv_generic_kernel(FS_CONSTANT(GenericParams) p) {
  using S = Compute<T>;
  const Geometry& g = p.g;
  const T* input = static_cast<const T*>(p.input);
  const T* weight = static_cast<const T*>(p.weight);
  const int64_t total = g.batch * g.channels * g.out_h * g.out_w, step = int64_t{grid_x()} * kGenericThreads;
  const int64_t per_group = g.lr_channels() / g.groups, in_channels = g.in_channels / g.groups;
  for (int64_t i = int64_t{block_x()} * kGenericThreads + thread_index(); i < total; i += step) {
    const Index4 at = index4(i, g.channels, g.out_h, g.out_w, p.channels_last);
    const int64_t y = at.y + g.crop_top, x = at.x + g.crop_left, h = y / g.r_h, w = x / g.r_w;
    const int64_t phase_h = y - h * g.r_h, phase_w = x - w * g.r_w;
    const int64_t o = channel_of_phase(Phase{at.c, phase_h, phase_w}, g.shuffle(), g.order);
    const T* row_of_weight =
        weight + at.c * p.weight_rows.c + phase_h * p.weight_rows.i + phase_w * p.weight_rows.j;
    const int64_t first = o / per_group * in_channels;
    const int64_t first_a = phase_h >= g.r_h - g.kernel_pad_h, first_b = phase_w >= g.r_w - g.kernel_pad_w;
    S sum = S(0);
    for (int64_t a = first_a; a < g.kernel_h; ++a) {
      const int64_t row = h * g.stride_h + a * g.dilation_h - g.pad_top;
      if (row < 0 || row >= g.in_h) continue;
      for (int64_t b = first_b; b < g.kernel_w; ++b) {
        const int64_t column = w * g.stride_w + b * g.dilation_w - g.pad_left;
        if (column < 0 || column >= g.in_w) continue;
        const T* from = input + offset(p.input_stride, at.n, first, row, column);
        const T* by = row_of_weight + offset(p.weight_stride, 0, 0, p.weight_flipped ? g.kernel_h - 1 - a : a,
                                             p.weight_flipped ? g.kernel_w - 1 - b : b);
        S part = S(0);  // a sum per tap: one chain over all would lose digits
        for (int64_t c = 0; c < in_channels; ++c)
          part += S(widen(from[c * p.input_stride.c])) * S(widen(by[c * p.weight_stride.c]));
        sum += part;
      }
    }
    const EpilogueParams& e = p.epilogue;
    S v = activate<S>(e.activation, sum + bias_of<T>(e, at.c, o), slope_of<T>(e, at.c, o));
    if (e.residual) v += residual_at<T>(e, {at.n, at.c, at.y, at.x, h, w, o});
    narrow(clamp_to(e, v), static_cast<T*>(p.output)[offset(p.output_stride, at.n, at.c, at.y, at.x)]);
  }
}

// The gradient of low-resolution pixel (h, w), convolution channel o, before the activation; zero where the crop took it
// away.
template <class T>
FS_DEVICE Compute<T> low_gradient(const GenericParams& p, int64_t n, int64_t o, int64_t h, int64_t w) {
  const Geometry& g = p.g;
  const Phase at = phase_of_channel(o, g.shuffle(), g.order);
  const int64_t y = h * g.r_h + at.i - g.crop_top, x = w * g.r_w + at.j - g.crop_left;
  using S = Compute<T>;
  if (y < 0 || y >= g.out_h || x < 0 || x >= g.out_w) return S(0);
  T gradient = static_cast<const T*>(p.grad_output)[offset(p.grad_stride, n, at.c, y, x)];
  if (p.saved.activation != Activation::kNone) {
    const ConstTensorRef& output = p.saved.output;
    const T result = static_cast<const T*>(output.data)[offset(output.stride, n, at.c, y, x)];
    narrow(
        grad_from_output(p.saved.activation, S(p.saved.negative_slope), S(widen(gradient)), S(widen(result))),
        gradient);
  }
  return widen(gradient);
}

template <class T>
FS_KERNEL(kGenericThreads, 1)
input_grad_generic_kernel(FS_CONSTANT(GenericParams) p) {
  using S = Compute<T>;
  const Geometry& g = p.g;
  const T* weight = static_cast<const T*>(p.weight);
  const int64_t total = g.batch * g.in_channels * g.in_h * g.in_w, step = int64_t{grid_x()} * kGenericThreads;
  const int64_t per_group = g.lr_channels() / g.groups, in_channels = g.in_channels / g.groups;
  for (int64_t i = int64_t{block_x()} * kGenericThreads + thread_index(); i < total; i += step) {
    const Index4 at = index4(i, g.in_channels, g.in_h, g.in_w, p.channels_last);
    const int64_t first = at.c / in_channels * per_group, c = at.c % in_channels;
    S sum = S(0);
    for (int64_t a = 0; a < g.kernel_h; ++a) {
      const int64_t row = at.y + g.pad_top - a * g.dilation_h, h = row / g.stride_h;
      if (row < 0 || row % g.stride_h != 0 || h >= g.lr_h) continue;
      for (int64_t b = 0; b < g.kernel_w; ++b) {
        const int64_t column = at.x + g.pad_left - b * g.dilation_w, w = column / g.stride_w;
        if (column < 0 || column % g.stride_w != 0 || w >= g.lr_w) continue;
        S part = S(0);
        for (int64_t o = first; o < first + per_group; ++o)
          part += low_gradient<T>(p, at.n, o, h, w) * S(widen(weight[offset(p.weight_stride, o, c, a, b)]));
        sum += part;
      }
    }
    narrow(sum, static_cast<T*>(p.output)[offset(p.output_stride, at.n, at.c, at.y, at.x)]);
  }
}

// Sum of the threads' values, in a fixed order, for thread 0. It alone reads and writes the first part, so that the
// next sum may begin at once.
template <class S>
FS_DEVICE S block_sum(S value) {
  S* part = reinterpret_cast<S*>(shared_memory());
  const int t = thread_index();
  part[t] = value;
  sync_threads();
  for (int half = kReduceThreads / 2; half > 0; half /= 2) {
    if (t < half) part[t] += part[t + half];
    sync_threads();
  }
  return t == 0 ? part[0] : S(0);
}

// Blocks take weights - and, after the last of each row, its bias - threads take pixels.
template <class T>
FS_KERNEL(kReduceThreads, 1)
weight_grad_generic_kernel(FS_CONSTANT(GenericParams) p) {
  using S = Compute<T>;
  const Geometry& g = p.g;
  const T* input = static_cast<const T*>(p.input);
  const int64_t in_channels = g.in_channels / g.groups, per_group = g.lr_channels() / g.groups;
  const int64_t taps = g.kernel_h * g.kernel_w, columns = in_channels * taps + 1;
  const int64_t pixels = g.batch * g.lr_h * g.lr_w, results = g.lr_channels() * columns;
  for (int64_t i = block_x(); i < results; i += grid_x()) {
    const int64_t o = i / columns, column = i % columns, c = column / taps, a = column % taps / g.kernel_w;
    const int64_t b = column % g.kernel_w;
    const bool is_bias = column == columns - 1;
    S sum = S(0);
    for (int64_t q = thread_index(); q < pixels; q += kReduceThreads) {
      const int64_t w = q % g.lr_w, h = q / g.lr_w % g.lr_h, n = q / (g.lr_w * g.lr_h);
      if (is_bias) {
        sum += low_gradient<T>(p, n, o, h, w);
        continue;
      }
      const int64_t y = h * g.stride_h + a * g.dilation_h - g.pad_top;
      const int64_t x = w * g.stride_w + b * g.dilation_w - g.pad_left;
      if (y < 0 || y >= g.in_h || x < 0 || x >= g.in_w) continue;
      sum += low_gradient<T>(p, n, o, h, w) *
             S(widen(input[offset(p.input_stride, n, o / per_group * in_channels + c, y, x)]));
    }
    sum = block_sum(sum);
    if (thread_index() != 0) continue;
    if (is_bias)
      narrow(sum, static_cast<T*>(p.grad_bias)[o]);
    else
      narrow(sum, static_cast<T*>(p.output)[o * (columns - 1) + column]);
  }
}

}  // namespace fused_subpixel::cuda
