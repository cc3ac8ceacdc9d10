// SPDX-License-Identifier: BSD-3-Clause
// Convolution on the tensor cores, sm_80 and up: an implicit GEMM of pixels by rows of the weight, forward and input
// gradient alike. One block makes a tile of up to 128 pixels by kBlockOc rows.
//
//   pixels   The tile's input with its halo, a k_block of kBlockKBytes of its channels at a time, lies in shared memory
//            once and serves all taps: a tap only moves the address at which a pixel's row of the matrix is read.
//   filter   Reordered by pack_filter_kernel to the very image that shared memory needs. Small ones stay there while
//            the block goes from tile to tile, others come in steps of a few taps.
//   sums     Four warps share the pixels, 32 each; kOcWarps share the rows of the weight.
//   store    Sums, with bias and activation, meet in shared memory; from there go 16 bytes at a time to their
//            shuffled places, with residual and clamp.
//
// A matrix row in shared memory is one pixel's (or one filter row's) k_block. Its 16-byte vectors are permuted by the
// index of the row, so that the eight rows that ldmatrix reads at once lie in different banks. A step of the sum is 32
// bytes of channels: 16 elements of half types, 8 of tf32.
#pragma once

#include "cuda/kernels/store.cuh"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

constexpr int kPixelWarps = 4, kPixelsPerWarp = kMmaPixels / kPixelWarps;
constexpr int kPackThreads = 256;

// Where vec `vec` of matrix row `row` lies.
template <int kBlockKBytes>
FS_DEVICE unsigned swizzled(unsigned row, unsigned vec) {
  constexpr unsigned kVectors = kBlockKBytes / 16, kRowsPerLine = 128 / kBlockKBytes;
  static_assert(kVectors * kRowsPerLine == 8, "eight rows on, all is the same again: multiply() counts on it");
  return row * kBlockKBytes + (vec ^ (row / kRowsPerLine % kVectors)) * 16;
}
// The same as a placement, which packing and loading take as a parameter: kVectors, and at(). Made of the matrix's
// rows; sm90_conv.cuh has another one, for which they matter.
template <int kBlockKBytes>
struct XorSwizzled {
  static constexpr int kVectors = kBlockKBytes / 16;
  FS_DEVICE explicit XorSwizzled(int) {}
  FS_DEVICE int at(int row, int vec) const { return swizzled<kBlockKBytes>(row, vec); }
};

FS_DEVICE uint32_t to_operand(uint32_t word, TF32) { return round_to_tf32(word); }
template <class T>
FS_DEVICE uint32_t to_operand(uint32_t word, T) {
  return word;
}

// ---- filter ---------------------------------------------------------------------------------------------------------
// A thread makes one 16-byte vec of the packed filter.
template <class T, class Layout>
FS_KERNEL(kPackThreads, 1)
pack_filter_kernel(FS_CONSTANT(PackParams) p) {
  constexpr int kVectors = Layout::kVectors, kElements = 16 / static_cast<int>(sizeof(T));
  let_next_kernel_start();
  const Layout layout(p.block_oc);
  const int taps = p.kernel_h * p.kernel_w;
  const int total = p.oc_blocks * p.k_blocks * taps * p.block_oc * kVectors;
  for (int i = block_x() * kPackThreads + thread_index(); i < total; i += grid_x() * kPackThreads) {
    const int vec = i % kVectors, by_column = i / kVectors, block = by_column / p.block_oc;
    const int column = by_column - block * p.block_oc;  // block: (row block, k_block, tap)
    const int by_chunk = block / taps, tap = block - by_chunk * taps;
    const int oc_block = by_chunk / p.k_blocks, k_block = by_chunk - oc_block * p.k_blocks;
    const int row = oc_block * p.block_oc + column;
    const int lacks = p.map_rows && row < p.oc ? missing_taps_of(p, row) : 0;
    const int first_a = p.skips_missing_taps ? lacks / 2 : 0, first_b = p.skips_missing_taps ? lacks % 2 : 0;
    const int across = p.kernel_w - first_b, a = first_a + tap / across, b = first_b + tap % across;
    const bool there = a < p.kernel_h && a >= lacks / 2 && b >= lacks % 2;
    const int64_t at_tap = (p.flipped ? p.kernel_h - 1 - a : a) * p.tap_h_stride +
                           (p.flipped ? p.kernel_w - 1 - b : b) * p.tap_w_stride;
    const int first = (k_block * kVectors + vec) * kElements;
    Packed16 packed = {};
    const auto lr_channel = [&](int counted) {
      const PhaseOf<int> at = phase_of(p.map, counted);
      return at.c * p.lr_channel_stride.c + at.i * p.lr_channel_stride.i + at.j * p.lr_channel_stride.j;
    };
    if (row < p.oc && there) {
      const int64_t at_row = p.map_rows ? lr_channel(row) : row * p.in_stride;
      FS_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int k = first + e;
        if (k >= p.ic) break;
        const int64_t at_channel = p.map_rows ? k * p.in_stride : lr_channel(k);
        put_element(packed, e, static_cast<const T*>(p.weight)[at_row + at_channel + at_tap]);
      }
    }
    FS_UNROLL
    for (int word = 0; word < 4; ++word) packed.word[word] = to_operand(packed.word[word], T{});
    store_16(static_cast<unsigned char*>(p.packed) + int64_t{block} * p.block_oc * kVectors * 16 +
                 layout.at(column, vec),
             packed);
  }
}

// Host: fills the packed filter of a plan.
template <class T, class Layout>
void launch_pack(const PackParams& params, const Plan& plan, void* stream) {
  const int64_t vectors = plan.packed_bytes / 16;
  const int blocks = static_cast<int>((vectors + kPackThreads - 1) / kPackThreads);
  run_kernel<PackParams>(&pack_filter_kernel<T, Layout>, blocks, 1, kPackThreads, 0, stream, params);
}

// ---- pixels -----------------------------------------------------------------------------------------------------------
// Offset of a channel from a low-resolution pixel, and the fine pixel of the cell that it belongs to.
struct ChannelPlace {
  int64_t offset;
  int row, column;
  bool exists;
};
FS_DEVICE ChannelPlace channel_place(const PixelLoad& p, const PixelStrides& by, int s) {
  const PixelSource& from = p.source;
  const ShuffledChannels& m = from.map;
  int c = s, i = 0, j = 0;
  if (m.r_h * m.r_w > 1) {
    if (m.order == ChannelOrder::kDCR) {
      const int cell = p.channels.divide(s);
      i = p.r_w.divide(cell);
      c = s - cell * m.channels, j = cell - i * m.r_w;
    } else {
      const int above = p.r_w.divide(s);
      c = p.r_h.divide(above);
      j = s - above * m.r_w, i = above - c * m.r_h;
    }
  }
  const int row = i - from.crop_top, column = j - from.crop_left;
  return {c * by.channel + row * by.hr_row + column * by.hr_col, row, column, s < from.total};
}
// Whether it exists at this pixel. What lies before the first row or column wraps to behind the last.
FS_DEVICE bool exists_at(const PixelSource& from, const ChannelPlace& channel, int row, int column) {
  return channel.exists &&
         static_cast<unsigned>(row * from.map.r_h + channel.row) < static_cast<unsigned>(from.hr_h) &&
         static_cast<unsigned>(column * from.map.r_w + channel.column) < static_cast<unsigned>(from.hr_w);
}

// Image, low-resolution row and column of a pixel of the halo.
struct PixelPlace {
  int n, row, column;
};
FS_DEVICE PixelPlace pixel_place(const PixelLoad& p, const TileOrigin& origin, int pixel) {
  const int line = p.halo_w.divide(pixel), image = p.halo_h.divide(line);
  return {origin.n + image, origin.h * p.stride_h - p.pad_top + line - image * p.halo_h.divisor,
          origin.w * p.stride_w - p.pad_left + pixel - line * p.halo_w.divisor};
}
FS_DEVICE int64_t pixel_offset(const PixelStrides& by, const PixelPlace& at) {
  return at.n * by.batch + at.row * by.row + at.column * by.col;
}

// Neighbouring threads take neighbouring vectors of a pixel or, where these do not lie side by side in memory,
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

// One k_block of the tile's pixels into `stage`, kVector elements at a time; the threads share (pixel, vec) pairs. All
// pairs of a thread are of one vec here, of which everything is found once.
template <class T, int kVector, class Layout>
FS_DEVICE void load_pixels(const PixelLoad& p, const TileOrigin& origin, int k_block, unsigned char* stage,
                           const Layout& layout) {
  constexpr int kVectors = Layout::kVectors, kElements = 16 / static_cast<int>(sizeof(T));
  const PixelSource& from = p.source;
  const int vec = thread_index() % kVectors;
  ChannelPlace channel[kElements / kVector];
  FS_UNROLL
  for (int e = 0; e < kElements; e += kVector)
    channel[e / kVector] = channel_place(p, from.stride, (k_block * kVectors + vec) * kElements + e);
  FS_NO_UNROLL
  for (int pixel = thread_index() / kVectors; pixel < p.halo_pixels.divisor;
       pixel += block_threads() / kVectors) {
    const PixelPlace at = pixel_place(p, origin, pixel);
    const T* data = static_cast<const T*>(from.data) + pixel_offset(from.stride, at);
    unsigned char* to = stage + layout.at(pixel, vec);
    FS_UNROLL
    for (int e = 0; e < kElements; e += kVector) {
      const bool exists = exists_at(from, channel[e / kVector], at.row, at.column) && at.n < p.batch;
      cp_async<kVector * sizeof(T)>(to + e * sizeof(T),
                                    exists ? data + channel[e / kVector].offset : from.data, exists);
    }
  }
}

// The same where elements that lie side by side in shared memory do not in the source, or not at even addresses: four
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

// Neighbours in memory, read at once.
template <class T, int kVector>
struct alignas(kVector * sizeof(T)) Neighbours {
  T element[kVector];
};

// A vec of the gradient before the activation, from channel `first` on, read kVector elements at a time. What does not
// exist is zero, and stays zero.
template <class T, int kVector>
FS_DEVICE Packed16 activated_vector(const PixelLoad& p, const PixelPlace& at, int first) {
  const PixelSource& from = p.source;
  Packed16 gathered = {};
  FS_UNROLL
  for (int e = 0; e < 16 / static_cast<int>(sizeof(T)); e += kVector) {
    Neighbours<T, kVector> gradient = {}, output = {};
    const auto read = [&](const void* data, const PixelStrides& by, Neighbours<T, kVector>& to) {
      const ChannelPlace channel = channel_place(p, by, first + e);
      if (!exists_at(from, channel, at.row, at.column) || at.n >= p.batch) return;
      const T* pixel = static_cast<const T*>(data) + pixel_offset(by, at);
      to = *reinterpret_cast<const Neighbours<T, kVector>*>(pixel + channel.offset);
    };
    read(from.data, from.stride, gradient);
    read(from.output, from.output_stride, output);
    FS_UNROLL
    for (int v = 0; v < kVector; ++v) {
      T before;
      narrow(before_activation(from.activation, from.negative_slope, widen(gradient.element[v]),
                               widen(output.element[v])),
             before);
      put_element(gathered, e + v, before);
    }
  }
  return gathered;
}

// As load_pixels, with the activation's gradient applied on the way. 16 bytes at a time, 4 or an element: more ways would
// make the kernel long.
template <class T, class Layout>
FS_DEVICE void load_activated(const PixelLoad& p, const TileOrigin& origin, int k_block, unsigned char* stage,
                              const Layout& layout) {
  constexpr int kVectors = Layout::kVectors;
  constexpr int kAll = 16 / static_cast<int>(sizeof(T)), kSome = 4 / static_cast<int>(sizeof(T));
  FS_NO_UNROLL
  for (int i = thread_index(); i < p.halo_pixels.divisor * kVectors; i += block_threads()) {
    const VectorPlace here = vector_place<kVectors>(p, i);
    const PixelPlace at = pixel_place(p, origin, here.pixel);
    const int vector = p.source.vector, first = (k_block * kVectors + here.vec) * kAll;
    store_16(stage + layout.at(here.pixel, here.vec), vector == kAll ? activated_vector<T, kAll>(p, at, first)
                                                       : vector >= kSome
                                                           ? activated_vector<T, kSome>(p, at, first)
                                                           : activated_vector<T, 1>(p, at, first));
  }
}

// Either of them, by whether the source has an output.
template <class T, class Layout>
FS_DEVICE void load_source(const PixelLoad& p, const TileOrigin& origin, int k_block, unsigned char* stage,
                           const Layout& layout) {
  if (p.source.output) return load_activated<T>(p, origin, k_block, stage, layout);
  load_pixels<T>(p, origin, k_block, stage, layout);
}

FS_DEVICE void copy_bytes(const unsigned char* from, unsigned char* to, int bytes) {
  FS_NO_UNROLL
  for (int at = thread_index() * 16; at < bytes; at += block_threads() * 16)
    cp_async<16>(to + at, from + at, true);
}

// ---- the sum ----------------------------------------------------------------------------------------------------------
// What the next step to be fetched is, tiles ahead of the one that is computed.
struct Cursor {
  int tile, k_block, step;  // step: of the k_block
  int pixel_stage, filter_stage;
};

template <class T, int kBlockKBytes, int kOcTiles, int kOcWarps>
struct MmaBlock {
  static constexpr int kBlockOc = 8 * kOcTiles * kOcWarps;
  static constexpr int kTapBytes = kBlockOc * kBlockKBytes;  // of the filter
  const MmaParams& p;
  TileStore<T, kBlockOc> store;
  int range;                      // of taps
  int base[2];                    // halo index, at tap 0, of the pixels whose rows this lane reads
  float acc[2][kOcTiles][4];  // 16 pixels x 8 columns each

  // Found opaque where they are needed: registers are short.
  static FS_DEVICE unsigned char* shared() { return shared_memory(); }
  static FS_DEVICE int lane() { return thread_index() % 32; }
  static FS_DEVICE int pixel_warp() { return thread_index() / 32 % kPixelWarps; }
  static FS_DEVICE int oc_warp() { return thread_index() / 32 / kPixelWarps; }
  FS_DEVICE const unsigned char* packed() const {  // of this row block
    return static_cast<const unsigned char*>(p.packed) +
           int64_t{block_y()} * p.plan.k_blocks * p.taps * kTapBytes;
  }

  FS_DEVICE const TapRange& taps() const { return p.ranges[range]; }

  FS_DEVICE explicit MmaBlock(const MmaParams& params)
      : p(params), store{params}, range(params.plan.single_phase ? missing_taps_of(params, block_y() * kBlockOc) : 0) {
    FS_UNROLL
    for (int m = 0; m < 2; ++m) {
      int pixel = pixel_warp() * kPixelsPerWarp + m * 16 + lane() % 16;
      if (pixel >= p.plan.tile_n * p.plan.tile_h * p.plan.tile_w) pixel = 0;  // computed in vain
      const int line = p.tile_w.divide(pixel), image = p.tile_h.divide(line);
      const int row = (line - image * p.plan.tile_h) * p.load.stride_h;
      base[m] =
          (image * p.plan.halo_h + row) * p.plan.halo_w + (pixel - line * p.plan.tile_w) * p.load.stride_w;
    }
  }

  // Of the step that begins with this tap.
  FS_DEVICE int step_taps(int tap) const {
    const int most = p.plan.step_taps;
    return tap + most > taps().taps ? taps().taps - tap : most;
  }

  // Fetches what `at` points to and moves it on. One group of copies, empty after the last step.
  FS_DEVICE void fetch(Cursor& at) const {
    const Plan& plan = p.plan;
    if (at.tile < p.tiles) {
      if (at.step == 0) {
        const TileOrigin origin = tile_origin(p, at.tile);
        unsigned char* to = shared() + at.pixel_stage * plan.pixel_stage_bytes;
        const XorSwizzled<kBlockKBytes> layout(p.load.halo_pixels.divisor);
        if constexpr (kBlockOc <= kActivatedBlockOc)
          load_source<T>(p.load, origin, at.k_block, to, layout);
        else
          load_pixels<T>(p.load, origin, at.k_block, to, layout);
      }
      if (!plan.resident) {
        const int tap = at.step * plan.step_taps;
        copy_bytes(packed() + (int64_t{at.k_block} * p.taps + tap) * kTapBytes,
                   shared() + plan.filter_offset + at.filter_stage * plan.filter_step_bytes,
                   step_taps(tap) * kTapBytes);
      }
      if (++at.step == taps().steps) {
        at.step = 0;
        if (++at.pixel_stage == plan.pixel_stages) at.pixel_stage = 0;
        if (++at.k_block == plan.k_blocks) at.k_block = 0, at.tile += grid_x();
      }
    }
    if (++at.filter_stage == plan.stages) at.filter_stage = 0;
    cp_async_commit();
  }

  // Taps first .. first + count - 1 of one k_block; filter holds these taps.
  FS_DEVICE void multiply(const unsigned char* pixels, const unsigned char* filter, int first, int count) {
    int a = taps().across.divide(first), b = first - a * taps().across.divisor + taps().first_b;
    a += taps().first_a;
    for (int tap = 0; tap < count; ++tap, filter += kTapBytes) {
      const int moved = a * p.dilation_h * p.plan.halo_w + b * p.dilation_w;
      if (++b == p.kernel_w) b = taps().first_b, ++a;
      FS_UNROLL
      for (int k = 0; k < kBlockKBytes / 32; ++k) {
        uint32_t x[2][4];
        FS_UNROLL
        for (int m = 0; m < 2; ++m) {
          ldmatrix_x4(x[m], pixels + swizzled<kBlockKBytes>(base[m] + moved, 2 * k + lane() / 16));
          FS_UNROLL
          for (int q = 0; q < 4; ++q) x[m][q] = to_operand(x[m][q], T{});
        }
        FS_UNROLL
        for (int c = 0; c < kOcTiles; c += 2) {
          uint32_t w[4];  // two tiles of eight columns
          ldmatrix_x4(w, filter + (oc_warp() * kOcTiles + c) * 8 * kBlockKBytes +
                             swizzled<kBlockKBytes>(lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
          const uint32_t left[2] = {w[0], w[1]}, right[2] = {w[2], w[3]};
          FS_UNROLL
          for (int m = 0; m < 2; ++m) {
            mma<T>(acc[m][c], x[m], left);
            mma<T>(acc[m][c + 1], x[m], right);
          }
        }
      }
    }
  }

  FS_DEVICE void clear() {
    FS_UNROLL
    for (int m = 0; m < 2; ++m) {
      FS_UNROLL
      for (int c = 0; c < kOcTiles; ++c) {
        FS_UNROLL
        for (int q = 0; q < 4; ++q) acc[m][c][q] = 0;
      }
    }
  }

  FS_DEVICE void stage_acc() const {
    FS_UNROLL
    for (int c = 0; c < kOcTiles; ++c) {
      const int column = opaque((oc_warp() * kOcTiles + c) * 8 + lane() % 4 * 2);
      const auto at = store.columns_at(column);
      FS_UNROLL
      for (int m = 0; m < 2; ++m)
        store.stage(pixel_warp() * kPixelsPerWarp + m * 16 + lane() / 4, column, at, acc[m][c]);
    }
  }

  FS_DEVICE void wait_for_step() const {  // the oldest of stages - 1 groups under way
    if (p.plan.stages == 2) cp_async_wait<0>();
    if (p.plan.stages == 3) cp_async_wait<1>();
    if (p.plan.stages == 4) cp_async_wait<2>();
  }

  // fetch() stands here once: twice, the kernel is twice as long, and waits for instructions.
  FS_DEVICE void run() {
    const Plan& plan = p.plan;
    store.fill_oc_info();
    wait_for_kernel_before();  // that packs the filter
    Cursor ahead = {block_x(), 0, 0, 0, 0};
    if (plan.resident) copy_bytes(packed(), shared() + plan.filter_offset, plan.k_blocks * p.taps * kTapBytes);
    int pixel_stage = 0, before = plan.stages - 1;  // rounds that only fetch
    for (int tile = block_x(); tile < p.tiles; tile += grid_x()) {
      clear();
      for (int k_block = 0; k_block < plan.k_blocks; ++k_block) {
        for (int step = 0; step < taps().steps; ++step) {
          FS_NO_UNROLL
          for (;; --before) {
            if (before == 0) {
              wait_for_step();
              sync_threads();  // all copies of this step have come; all threads are done with the step before it
            }
            fetch(ahead);
            if (before == 0) break;
          }
          const int tap = step * plan.step_taps;
          const unsigned char* filter =  // `ahead` is as many steps ahead as there are stages
              shared() + plan.filter_offset +
              (plan.resident ? (k_block * p.taps + tap) * kTapBytes
                             : ahead.filter_stage * static_cast<int>(plan.filter_step_bytes));
          multiply(shared() + pixel_stage * plan.pixel_stage_bytes, filter, tap, step_taps(tap));
        }
        if (++pixel_stage == plan.pixel_stages) pixel_stage = 0;
      }
      if (!plan.resident) sync_threads();  // the staging area lies over pixels and filter
      stage_acc();
      store.store(tile_origin(p, tile));  // the next tile's first barrier keeps its sums from overtaking
    }
  }
};

template <class T, int kBlockKBytes, int kOcTiles, int kOcWarps>
FS_KERNEL(32 * kPixelWarps * kOcWarps, kOcWarps == 1 ? 3 : 2)
conv_mma_kernel(FS_CONSTANT(MmaParams) p) {
  MmaBlock<T, kBlockKBytes, kOcTiles, kOcWarps>(p).run();
}

}  // namespace fused_subpixel::cuda
