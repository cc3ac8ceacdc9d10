// SPDX-License-Identifier: BSD-3-Clause
// The gradient as PyTorch's convolution backward reads it, in one pass: activation's gradient, unshuffle, channels_last
// with channels padded to 16 bytes, and the bias's gradient.
//
//   read     A thread has one vector of 8, 4 or 2 channels for all its pixels, so that it finds their places once. The
//            neighbours of a channels_last gradient are channels, and neighbouring threads take neighbouring vectors.
//            Else the neighbours are pixels, and so are those of neighbouring threads.
//   store    16 bytes at a time, neighbouring vectors by neighbouring threads. Where these have read neighbouring pixels,
//            vectors cross shared memory.
//   sums     Every block writes partial sums of the bias's gradient. bias_sums_kernel adds them in a fixed order.
#pragma once

#include "cuda/kernels/load_tile.cuh"

namespace fused_subpixel::cuda {

constexpr int kSummedChannels = 16, kSumStrips = 16;  // of a block of bias_sums_kernel

// What 16 bytes hold, element by element.
template <class T>
struct alignas(16) Vector16 {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  T element[kElements];
};
template <class T>
FS_DEVICE void store_vector(void* to, const Vector16<T>& value) {
  Packed16 packed;
  memcpy(&packed, &value, sizeof packed);
  store_16(to, packed);
}
template <class T>
FS_DEVICE Vector16<T> load_vector(const void* from) {
  const Packed16 packed = load_16(from);
  Vector16<T> value;
  memcpy(&value, &packed, sizeof packed);
  return value;
}

// Neighbours in memory, read at once.
template <class T, int kVector>
struct alignas(kVector * sizeof(T)) Neighbours {
  T element[kVector];
};

// One slot per thread for its sums of the channels of a vector.
template <class T>
struct BlockSums {
  using S = Compute<T>;
  static constexpr int kChannels = Vector16<T>::kElements, kTogether = Vector16<S>::kElements;
  unsigned char* shared;

  FS_DEVICE unsigned char* slot(int thread, int c) const {
    return shared + (c / kTogether * block_threads() + thread) * 16;
  }
  FS_DEVICE void put(int thread, const S (&sum)[kChannels]) const {
    FS_UNROLL
    for (int c = 0; c < kChannels; c += kTogether) {
      Vector16<S> some;
      FS_UNROLL
      for (int k = 0; k < kTogether; ++k) some.element[k] = sum[c + k];
      store_vector(slot(thread, c), some);
    }
  }
  FS_DEVICE void add(int thread, S (&sum)[kChannels]) const {
    FS_UNROLL
    for (int c = 0; c < kChannels; c += kTogether) {
      const Vector16<S> some = load_vector<S>(slot(thread, c));
      FS_UNROLL
      for (int k = 0; k < kTogether; ++k) sum[c + k] += some.element[k];
    }
  }
};

// kRead: elements that are read at once, 1 or all of a vector. kActivated: an activation's gradient is applied. Without it,
// half the places need no registers.
template <class T, int kRead, bool kActivated>
struct UnshuffleReduceBlock {
  using S = Compute<T>;
  static constexpr int kElements = Vector16<T>::kElements;
  // The pixel of a tile and the vector of a block that a thread reads, or stores.
  struct Part {
    int pixel, vector;
  };
  const UnshuffleReduceParams& p;
  int split, first_vector;  // of the block
  Part part, stored;
  // from the first of a sub-pixel block
  int offset[kElements / kRead], output_offset[kActivated ? kElements / kRead : 1];
  unsigned channels;  // a bit for each that the thread's vector has: not the padding
  S sum[kElements];

  FS_DEVICE explicit UnshuffleReduceBlock(const UnshuffleReduceParams& params) : p(params) {
    const UnshuffleReducePlan& plan = p.plan;
    split = static_cast<int>(p.vector_blocks.divide(static_cast<uint32_t>(block_x())));
    first_vector = (block_x() - split * plan.vector_blocks) * plan.block_vectors;
    const auto thread = static_cast<uint32_t>(thread_index());
    stored.pixel = static_cast<int>(p.block_vectors.divide(thread));
    stored.vector = thread_index() - stored.pixel * plan.block_vectors;
    part = stored;
    if (plan.by_pixel) {
      part.vector = static_cast<int>(p.block_pixels.divide(thread));
      part.pixel = thread_index() - part.vector * plan.block_pixels;
    }
    channels = 0;
    FS_UNROLL
    for (int e = 0; e < kElements; e += kRead) {
      offset[e / kRead] = offset_of(e, p.gradient.stride);
      if constexpr (kActivated) output_offset[e / kRead] = offset_of(e, p.output_stride);
      channels |= ((first_vector + part.vector) * kElements + e < p.gradient.total ? 1u : 0u) << e;
    }
    FS_UNROLL
    for (int e = 0; e < kElements; ++e) sum[e] = S(0);
  }

  // Of element e of the thread's vector.
  FS_DEVICE ChannelPlace place(int e, const PixelStrides& by) const {
    return channel_place(p.gradient, p.shuffle, by, (first_vector + part.vector) * kElements + e);
  }

  FS_DEVICE int offset_of(int e, const PixelStrides& by) const {
    const PixelSource& from = p.gradient;
    return static_cast<int>(place(e, by).offset + from.crop_top * by.hr_row + from.crop_left * by.hr_col);
  }

  // The channels that exist at a pixel, a bit for each. Where the crop may cut, the phases are found again.
  FS_DEVICE unsigned channels_at(const PixelPlace& at, int row, int column) const {
    const PixelSource& from = p.gradient;
    const int r_h = from.map.sizes.r_h.divisor, r_w = from.map.sizes.r_w.divisor;
    if (row >= 0 && column >= 0 && row + r_h <= from.hr_h && column + r_w <= from.hr_w) return channels;
    unsigned found = 0;
    FS_NO_UNROLL
    for (int e = 0; e < kElements; e += kRead)
      found |= (exists_at(from, place(e, from.stride), at.row, at.column) ? 1u : 0u) << e;
    return found;
  }

  FS_DEVICE S slope() const {
    if constexpr (sizeof(T) == 8)
      return p.negative_slope;
    else
      return p.negative_slope_f;
  }

  // The thread's vector of a pixel. What the crop took off, and the padding, is zero, and stays zero.
  FS_DEVICE Vector16<T> read(uint32_t pixel) const {
    const PixelSource& from = p.gradient;
    const uint32_t line = p.lr_w.divide(pixel), image = p.lr_h.divide(line);
    const PixelPlace at{static_cast<int>(image), static_cast<int>(line - image * p.lr_h.divisor),
                        static_cast<int>(pixel - line * p.lr_w.divisor)};
    Vector16<T> value = {};
    // the first pixel of the sub-pixel block
    const int row = at.row * from.map.sizes.r_h.divisor - from.crop_top,
              column = at.column * from.map.sizes.r_w.divisor - from.crop_left;
    const unsigned exist = channels_at(at, row, column);
    const auto gather = [&](const void* data, const PixelStrides& by, const int* offsets, Vector16<T>& to) {
      const int64_t first = at.n * by.batch + row * by.hr_row + column * by.hr_col;
      FS_UNROLL
      for (int e = 0; e < kElements; e += kRead) {
        if (!(exist >> e & 1)) continue;
        const auto some = *reinterpret_cast<const Neighbours<T, kRead>*>(static_cast<const T*>(data) + first +
                                                                         offsets[e / kRead]);
        FS_UNROLL
        for (int k = 0; k < kRead; ++k) to.element[e + k] = some.element[k];
      }
    };
    gather(from.data, from.stride, offset, value);
    if constexpr (kActivated) {
      Vector16<T> output = {};
      gather(p.output, p.output_stride, output_offset, output);
      FS_UNROLL
      for (int e = 0; e < kElements; ++e)
        narrow(grad_from_output(p.activation, slope(), widen(value.element[e]), widen(output.element[e])),
               value.element[e]);
    }
    return value;
  }

  FS_DEVICE void store(int tile, const Part& at, const Packed16& value) const {
    const int64_t pixel = int64_t{tile} * p.plan.block_pixels + at.pixel;
    if (pixel < p.pixels && first_vector + at.vector < p.plan.vectors)
      store_16(
          static_cast<unsigned char*>(p.lr_grad) + (pixel * p.plan.vectors + first_vector + at.vector) * 16,
          value);
  }

  FS_DEVICE void add_to_bias() {
    const BlockSums<T> sums{shared_memory() + p.plan.sums_offset};
    for (int half = p.plan.block_pixels / 2; half > 0; half /= 2) {
      const int above = thread_index() + half * (p.plan.by_pixel ? 1 : p.plan.block_vectors);
      if (part.pixel >= half && part.pixel < 2 * half) sums.put(thread_index(), sum);
      sync_threads();  // the upper half's sums are there; every slot is used once
      if (part.pixel < half) sums.add(above, sum);
    }
    if (part.pixel > 0) return;
    S* to = static_cast<S*>(p.partial) + int64_t{split} * p.gradient.total;
    FS_UNROLL
    for (int e = 0; e < kElements; ++e) {
      const int channel = (first_vector + part.vector) * kElements + e;
      if (channel < p.gradient.total) to[channel] = sum[e];
    }
  }

  FS_DEVICE void run() {
    let_next_kernel_start();
    unsigned char* stage = shared_memory();
    int64_t other_stage = p.plan.stage_bytes;
    FS_NO_UNROLL
    for (int tile = split; tile < p.plan.tiles; tile += p.plan.splits) {
      const auto pixel = static_cast<uint32_t>(tile) * p.plan.block_pixels + part.pixel;
      Vector16<T> value = {};
      if (pixel < static_cast<uint32_t>(p.pixels)) value = read(pixel);
      FS_UNROLL
      for (int e = 0; e < kElements; ++e) sum[e] += widen(value.element[e]);
      Packed16 packed;
      memcpy(&packed, &value, sizeof packed);
      if (p.plan.by_pixel) {
        store_16(stage + (part.pixel * p.plan.pitch + part.vector) * 16, packed);
        sync_threads();  // the tile is there; all threads are done with the one before the last, which was here
        packed = load_16(stage + (stored.pixel * p.plan.pitch + stored.vector) * 16);
        stage += other_stage, other_stage = -other_stage;
      }
      store(tile, stored, packed);
    }
    add_to_bias();
  }
};

template <class T, int kRead, bool kActivated>
FS_KERNEL(kUnshuffleThreads, kActivated ? 2 : 4)
unshuffle_reduce_kernel(FS_CONSTANT(UnshuffleReduceParams) p) {
  UnshuffleReduceBlock<T, kRead, kActivated>(p).run();
}

// Sixteen strips of the splits for each channel, then the strips in order.
template <class T>
FS_KERNEL(kSummedChannels* kSumStrips, 1)
bias_sums_kernel(FS_CONSTANT(UnshuffleReduceParams) p) {
  using S = Compute<T>;
  S* strips = reinterpret_cast<S*>(shared_memory());
  const int strip = thread_index() / kSummedChannels, within = thread_index() % kSummedChannels;
  const int channel = block_x() * kSummedChannels + within;
  wait_for_kernel_before();  // that writes the sums
  S sum = S(0);
  if (channel < p.gradient.total) {
    for (int split = strip; split < p.plan.splits; split += kSumStrips)
      sum += static_cast<const S*>(p.partial)[int64_t{split} * p.gradient.total + channel];
  }
  strips[thread_index()] = sum;
  sync_threads();
  if (strip > 0 || channel >= p.gradient.total) return;
  for (int other = 1; other < kSumStrips; ++other) sum += strips[other * kSummedChannels + within];
  narrow(sum, static_cast<T*>(p.grad_bias)[channel]);
}

}  // namespace fused_subpixel::cuda
