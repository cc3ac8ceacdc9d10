// SPDX-License-Identifier: BSD-3-Clause
// Loads the input tile of a block, with its halo, into shared memory: a plain tensor, or a shuffled gradient that is read
// as the low-resolution channels it came from.
#pragma once

#include "cuda/kernels/smem_layout.cuh"
#include "cuda/kernels/store.cuh"

namespace fused_subpixel::cuda {

// Offset of a channel from a low-resolution pixel, and the high-resolution pixel of its sub-pixel block.
struct ChannelPlace {
  int64_t offset;
  int row, column;
  bool exists;
};
template <class AnyDivisor, class Int = typename AnyDivisor::Int>
FS_DEVICE ChannelPlace channel_place(const PixelSource& from, const ShuffleSizes<AnyDivisor>& shuffle,
                                     const PixelStrides& by, int s) {
  PhaseOf<Int> at{static_cast<Int>(s), 0, 0};
  if (from.map.sizes.r_h.divisor * from.map.sizes.r_w.divisor > 1)
    at = phase_of_channel(static_cast<Int>(s), shuffle, from.map.order);
  const int row = static_cast<int>(at.i) - from.crop_top, column = static_cast<int>(at.j) - from.crop_left;
  return {at.c * by.channel + row * by.hr_row + column * by.hr_col, row, column, s < from.total};
}
FS_DEVICE ChannelPlace channel_place(const PixelLoad& p, const PixelStrides& by, int s) {
  return channel_place(p.source, p.source.map.sizes, by, s);
}
// Whether it exists at this pixel. A negative row or column wraps to a large one.
FS_DEVICE bool exists_at(const PixelSource& from, const ChannelPlace& channel, int row, int column) {
  return channel.exists &&
         static_cast<unsigned>(row * from.map.sizes.r_h.divisor + channel.row) <
             static_cast<unsigned>(from.hr_h) &&
         static_cast<unsigned>(column * from.map.sizes.r_w.divisor + channel.column) <
             static_cast<unsigned>(from.hr_w);
}

// Image, low-resolution row and column of a pixel of the halo.
struct PixelPlace {
  int n, row, column;
};
FS_DEVICE PixelPlace halo_place(const PixelLoad& p, int pixel) {  // from the halo's first pixel
  const int line = p.halo_w.divide(pixel), image = p.halo_h.divide(line);
  return {image, line - image * p.halo_h.divisor, pixel - line * p.halo_w.divisor};
}
FS_DEVICE PixelPlace pixel_place(const PixelLoad& p, const TileOrigin& origin, int pixel) {
  const PixelPlace at = halo_place(p, pixel);
  return {origin.n + at.n, origin.h * p.stride_h - p.pad_top + at.row,
          origin.w * p.stride_w - p.pad_left + at.column};
}
FS_DEVICE int64_t pixel_offset(const PixelStrides& by, const PixelPlace& at) {
  return at.n * by.batch + at.row * by.row + at.column * by.col;
}

// Neighbouring threads take neighbouring vectors of a pixel or, if these are not neighbours in memory,
// neighbouring pixels.
struct VectorPlace {
  int pixel, vec;
};
template <int kVectors>
FS_DEVICE VectorPlace vector_place(const PixelLoad& p, int i) {
  if (!p.source.by_pixel) return {i / kVectors, i % kVectors};
  const int vec = p.halo_pixels.divide(i);
  return {i - vec * p.halo_pixels.divisor, vec};
}

// Where the pixels of a tile's halo are in memory: bytes from the first of them, in a table in shared memory. For sources
// whose sub-pixel blocks are all inside the image or outside, so that the channels of a pixel exist together, and for tiles
// that are not larger than what 31 bits count. See lists_pixels() of plan.cpp.
struct PixelTable {
  static constexpr uint32_t kOutside = 0x80000000;
  const unsigned char* corner = nullptr;  // of the tile
  bool whole = false;                     // no pixel of the table is outside: so it serves all such tiles

  // Of the tile at `origin`. All threads together, with a barrier after they have read the table the last time.
  template <class T>
  FS_DEVICE void fill(const PixelLoad& p, const TileOrigin& origin, unsigned char* table) {
    const PixelSource& from = p.source;
    const PixelPlace first = pixel_place(p, origin, 0);
    corner = reinterpret_cast<const unsigned char*>(static_cast<const T*>(from.data) +
                                                    pixel_offset(from.stride, first));
    const int r_h = from.map.sizes.r_h.divisor, r_w = from.map.sizes.r_w.divisor;
    const int images = p.batch - origin.n;
    const bool inside =
        first.row >= 0 && first.column >= 0 && first.row * r_h <= from.hr_h - p.halo_h.divisor * r_h &&
        first.column * r_w <= from.hr_w - p.halo_w.divisor * r_w &&
        (images >= kMmaPixels || images * p.halo_h.divisor * p.halo_w.divisor >= p.halo_pixels.divisor);
    if (inside && whole) return;
    whole = inside;
    const auto bytes = [](int64_t elements) { return static_cast<uint32_t>(elements) * uint32_t{sizeof(T)}; };
    const uint32_t image_bytes = bytes(from.stride.batch), row_bytes = bytes(from.stride.row),
                   column_bytes = bytes(from.stride.col);
    for (int pixel = thread_index(); pixel < p.halo_pixels.divisor; pixel += block_threads()) {
      FS_MARK(Mark::kPixelTable);
      const PixelPlace at = halo_place(p, pixel);
      const int y = (first.row + at.row) * r_h, x = (first.column + at.column) * r_w;
      const bool exists = (static_cast<unsigned>(y) < static_cast<unsigned>(from.hr_h)) &
                          (static_cast<unsigned>(x) < static_cast<unsigned>(from.hr_w)) & (at.n < images);
      const uint32_t offset = static_cast<uint32_t>(at.n) * image_bytes +
                              static_cast<uint32_t>(at.row) * row_bytes +
                              static_cast<uint32_t>(at.column) * column_bytes;
      store_4(table + pixel * kPixelTableEntry, exists ? offset : kOutside);
    }
    sync_threads();
  }
};

// Bytes from a pixel's first channel to channel s, of the tensors that a PixelTable serves.
template <class T>
FS_DEVICE int channel_bytes(const PixelSource& from, int s) {
  int elements = s;
  if (from.map.sizes.r_h.divisor * from.map.sizes.r_w.divisor > 1) {
    const PhaseOf<int> at = phase_of_channel(s, from.map.sizes, from.map.order);
    elements =
        at.c + at.i * static_cast<int>(from.stride.hr_row) + at.j * static_cast<int>(from.stride.hr_col);
  }
  return elements * static_cast<int>(sizeof(T));
}

// A thread's share of one vector of channels, from channel s on: of every step-th pixel, kBytes to each.
template <class T, int kBytes, class Layout>
FS_DEVICE void copy_listed(const PixelLoad& p, const PixelTable& pixels, const unsigned char* table, int s,
                           int first, int step, unsigned char* to, const Layout& layout) {
  const unsigned char* data = pixels.corner + channel_bytes<T>(p.source, s);
  const uint32_t outside = s < p.source.total ? 0 : PixelTable::kOutside;
  const unsigned char* entry = table + first * kPixelTableEntry;
  FS_NO_UNROLL
  for (int pixel = first; pixel < p.halo_pixels.divisor; pixel += step) {
    FS_MARK(kBytes == 16 ? Mark::kPixels : Mark::kPixelParts);
    const auto offset = static_cast<int>(load_4(entry) | outside);
    cp_async<kBytes>(to, data + offset, offset >= 0);
    to += layout.rows_on(step), entry += step * kPixelTableEntry;
  }
}

// One k_block of the tile's pixels into `stage`, in copies of 16 bytes, or of 8, or with kFours of 4, if the source allows
// no more. The threads share (pixel, vec) pairs; all pairs of a thread are of one vec.
template <class T, bool kFours, class Layout>
FS_DEVICE void load_listed(const PixelLoad& p, const PixelTable& pixels, const unsigned char* table,
                           int k_block, unsigned char* stage, const Layout& layout) {
  constexpr int kVectors = Layout::kVectors, kElements = 16 / static_cast<int>(sizeof(T));
  const int vec = thread_index() % kVectors, s = (k_block * kVectors + vec) * kElements;
  const int first = thread_index() / kVectors, step = block_threads() / kVectors;
  unsigned char* to = stage + layout.at(first, vec);
  if (p.source.vector == kElements) return copy_listed<T, 16>(p, pixels, table, s, first, step, to, layout);
  if constexpr (kFours) {
    if (4 * p.source.vector == kElements) {
      FS_NO_UNROLL
      for (int part = 0; part < 4; ++part)
        copy_listed<T, 4>(p, pixels, table, s + part * kElements / 4, first, step, to + part * 4, layout);
      return;
    }
  }
  FS_NO_UNROLL
  for (int half = 0; half < 2; ++half)
    copy_listed<T, 8>(p, pixels, table, s + half * kElements / 2, first, step, to + half * 8, layout);
}

// For the weight gradient: without a table, any crop. One k_block of the tile's pixels into `stage`, kVector elements at a
// time; the threads share (pixel, vec) pairs. All pairs of a thread are of one vec here, and its pixels are equal steps apart:
// everything is found once, and then moved on by additions.
template <class T, int kVector, class Layout>
FS_DEVICE void load_pixels(const PixelLoad& p, const TileOrigin& origin, int k_block, unsigned char* stage,
                           const Layout& layout) {
  constexpr int kVectors = Layout::kVectors, kElements = 16 / static_cast<int>(sizeof(T));
  const PixelSource& from = p.source;
  const PixelStrides& by = from.stride;
  const int vec = thread_index() % kVectors;
  ChannelPlace channel[kElements / kVector];
  int hr_h[kElements / kVector];  // no row of a channel that does not exist is in the image
  FS_UNROLL
  for (int e = 0; e < kElements; e += kVector) {
    channel[e / kVector] = channel_place(p, by, (k_block * kVectors + vec) * kElements + e);
    hr_h[e / kVector] = channel[e / kVector].exists ? from.hr_h : 0;
  }

  const int first = thread_index() / kVectors, step = block_threads() / kVectors;
  const PixelPlace corner = pixel_place(p, origin, 0), start = halo_place(p, first),
                   move = halo_place(p, step);
  const auto* data = reinterpret_cast<const unsigned char*>(static_cast<const T*>(from.data) +
                                                            channel[0].offset + pixel_offset(by, corner));
  // Unsigned: a tile of one image may not need, nor hold, the step to the next.
  const auto bytes = [](int64_t elements) { return static_cast<uint64_t>(elements) * sizeof(T); };
  const uint64_t image_bytes = bytes(by.batch), row_bytes = bytes(by.row), col_bytes = bytes(by.col);
  const auto within = [&](const PixelPlace& place) {
    return place.n * image_bytes + place.row * row_bytes + place.column * col_bytes;
  };
  // When a column passes the halo's width it goes back, one row further down, and so do rows.
  uint64_t at = within(start);
  const uint64_t moves = within(move), next_row = row_bytes - p.halo_w.divisor * col_bytes,
                 next_image = image_bytes - p.halo_h.divisor * row_bytes;
  // In high-resolution rows and columns, of the first channel.
  const int r_h = from.map.sizes.r_h.divisor, r_w = from.map.sizes.r_w.divisor;
  const int rows = p.halo_h.divisor * r_h, columns = p.halo_w.divisor * r_w;
  const int end_row = corner.row * r_h + channel[0].row + rows,
            end_column = corner.column * r_w + channel[0].column + columns;
  int row = end_row - rows + start.row * r_h, column = end_column - columns + start.column * r_w;
  const int images = p.batch - origin.n, pixels = p.halo_pixels.divisor;  // pixels past the batch are zeros
  const int exist = images < kMmaPixels ? images * p.halo_h.divisor * p.halo_w.divisor : pixels;
  unsigned char* to = stage + layout.at(first, vec);
  FS_NO_UNROLL
  for (int pixel = first; pixel < pixels; pixel += step) {
    FS_MARK(kVector == kElements ? Mark::kPixels : Mark::kPixelParts);
    FS_UNROLL
    for (int e = 0; e < kElements; e += kVector) {
      const ChannelPlace& here = channel[e / kVector];
      const int y = row + here.row - channel[0].row, x = column + here.column - channel[0].column;
      const bool exists = (static_cast<unsigned>(y) < static_cast<unsigned>(hr_h[e / kVector])) &
                          (static_cast<unsigned>(x) < static_cast<unsigned>(from.hr_w)) & (pixel < exist);
      cp_async<kVector * sizeof(T)>(
          to + e * sizeof(T),
          data + static_cast<int64_t>(at) + (here.offset - channel[0].offset) * int64_t{sizeof(T)}, exists);
    }
    to += layout.rows_on(step);
    at += moves, column += move.column * r_w, row += move.row * r_h;
    if (column >= end_column) column -= columns, row += r_h, at += next_row;
    if (row >= end_row) row -= rows, at += next_image;
  }
}

FS_DEVICE void round_vector(unsigned char* at) {
  Packed16 vec = load_16(at);
  FS_UNROLL
  for (int word = 0; word < 4; ++word) vec.word[word] = round_to_tf32(vec.word[word]);
  store_16(at, vec);
}

// tf32: mma and wgmma would cut the last bits off. Every thread rounds what load_pixels has had it copy, before others
// see it: once, and not for every tap.
template <class Layout>
FS_DEVICE void round_pixels(const PixelLoad& p, unsigned char* stage, const Layout& layout) {
  constexpr int kVectors = Layout::kVectors;
  const int first = thread_index() / kVectors, step = block_threads() / kVectors;
  unsigned char* at = stage + layout.at(first, thread_index() % kVectors);
  FS_NO_UNROLL
  for (int pixel = first; pixel < p.halo_pixels.divisor; pixel += step, at += layout.rows_on(step)) {
    FS_MARK(Mark::kRound);
    round_vector(at);
  }
}

// The same for elements that are no neighbours in the source, or that are misaligned there: four
// at a time, all read before the first is needed. More would take too many registers.
template <class T, class Layout>
FS_DEVICE void gather_pixels(const PixelLoad& p, const TileOrigin& origin, int k_block, unsigned char* stage,
                             const Layout& layout) {
  constexpr int kVectors = Layout::kVectors, kElements = 16 / static_cast<int>(sizeof(T));
  const PixelSource& from = p.source;
  FS_NO_UNROLL
  for (int i = thread_index(); i < p.halo_pixels.divisor * kVectors; i += block_threads()) {
    const VectorPlace here = vector_place<kVectors>(p, i);
    const PixelPlace at = pixel_place(p, origin, here.pixel);
    const T* data = static_cast<const T*>(from.data) + pixel_offset(from.stride, at);
    unsigned char* to = stage + layout.at(here.pixel, here.vec);
    FS_NO_UNROLL
    for (int four = 0; four < kElements; four += 4, to += 4 * sizeof(T)) {
      [[maybe_unused]] T element[4];
      FS_UNROLL
      for (int e = 0; e < 4; ++e) {
        const ChannelPlace channel =
            channel_place(p, from.stride, (k_block * kVectors + here.vec) * kElements + four + e);
        const bool exists = exists_at(from, channel, at.row, at.column) && at.n < p.batch;
        if constexpr (sizeof(T) >= 4)
          cp_async<sizeof(T)>(to + e * sizeof(T), exists ? data + channel.offset : from.data, exists);
        else
          element[e] = exists ? data[channel.offset] : T{};
      }
      if constexpr (sizeof(T) < 4) {
        Packed16 gathered = {};
        FS_UNROLL
        for (int e = 0; e < 4; ++e) put_element(gathered, e, element[e]);
        store_8(to, gathered.word[0], gathered.word[1]);
      }
    }
  }
}

template <class T, class Layout>
FS_DEVICE void load_pixels(const PixelLoad& p, const TileOrigin& origin, int k_block, unsigned char* stage,
                           const Layout& layout) {
  if constexpr (sizeof(T) == 2) {
    if (p.source.vector == 8) return load_pixels<T, 8>(p, origin, k_block, stage, layout);
  }
  if (p.source.vector >= 4) return load_pixels<T, 4>(p, origin, k_block, stage, layout);
  if (p.source.vector == 2) return load_pixels<T, 2>(p, origin, k_block, stage, layout);
  gather_pixels<T>(p, origin, k_block, stage, layout);
}

FS_DEVICE void copy_bytes(const unsigned char* from, unsigned char* to, int bytes) {
  FS_NO_UNROLL
  for (int at = thread_index() * 16; at < bytes; at += block_threads() * 16) {
    FS_MARK(Mark::kWeights);
    cp_async<16>(to + at, from + at, true);
  }
}

}  // namespace fused_subpixel::cuda
