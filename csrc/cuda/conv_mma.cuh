// SPDX-License-Identifier: BSD-3-Clause
// Convolution on the tensor cores, sm_80 and up: an implicit GEMM of pixels by rows of the weight, forward and input
// gradient alike. One block makes a tile of up to 128 pixels by kColumns rows.
//
//   pixels   The tile's input with its halo, a chunk of kChunkBytes of its channels at a time, lies in shared memory
//            once and serves all taps: a tap only moves the address at which a pixel's row of the matrix is read.
//   filter   Reordered by pack_filter_kernel to the very image that shared memory needs. Small ones stay there while
//            the block goes from tile to tile, others come in steps of a few taps.
//   sums     Four warps share the pixels, 32 each; kColumnWarps share the rows of the weight.
//   store    Sums, with bias and activation, meet in shared memory; from there go 16 bytes at a time to their
//            shuffled places, with residual and clamp.
//
// A matrix row in shared memory is one pixel's (or one filter row's) chunk. Its 16-byte pieces are permuted by the
// index of the row, so that the eight rows that ldmatrix reads at once lie in different banks. A step of the sum is 32
// bytes of channels: 16 elements of half types, 8 of tf32.
#pragma once

#include "epilogue.cuh"

namespace fused_subpixel::cuda {

constexpr int kPixelWarps = 4, kPixelsPerWarp = kMmaPixels / kPixelWarps;
constexpr int kStagingPad = 8;  // floats between rows of the staging area: rows start in different banks
constexpr int kPackThreads = 256;

// Where piece `piece` of matrix row `row` lies.
template <int kChunkBytes>
FS_DEVICE unsigned swizzled(unsigned row, unsigned piece) {
  constexpr unsigned kPieces = kChunkBytes / 16, kRowsPerLine = 128 / kChunkBytes;
  static_assert(kPieces * kRowsPerLine == 8, "eight rows on, all is the same again: multiply() counts on it");
  return row * kChunkBytes + (piece ^ (row / kRowsPerLine % kPieces)) * 16;
}

FS_DEVICE Phase phase_of(const ShuffledChannels& m, int64_t counted) {
  return phase_of_channel(counted, m.channels, m.cell_h, m.cell_w, m.order);
}
FS_DEVICE int64_t conv_channel_of(const ShuffledChannels& m, int64_t counted) {
  return channel_of_phase(phase_of(m, counted), m.channels, m.cell_h, m.cell_w, m.call_order);
}

FS_DEVICE uint32_t to_operand(uint32_t word, TF32) { return round_to_tf32(word); }
template <class T>
FS_DEVICE uint32_t to_operand(uint32_t word, T) {
  return word;
}

// ---- filter ---------------------------------------------------------------------------------------------------------
// A thread makes one 16-byte piece of the packed filter.
template <class T, int kChunkBytes>
FS_KERNEL(kPackThreads, 1)
pack_filter_kernel(FS_CONSTANT(PackParams) p) {
  constexpr int kPieces = kChunkBytes / 16, kElements = 16 / static_cast<int>(sizeof(T));
  const int taps = p.kernel_h * p.kernel_w;
  const int64_t total = int64_t{p.row_blocks} * p.chunks * taps * p.columns * kPieces;
  for (int64_t i = int64_t{block_x()} * kPackThreads + thread_index(); i < total;
       i += int64_t{grid_x()} * kPackThreads) {
    const int piece = static_cast<int>(i % kPieces), column = static_cast<int>(i / kPieces % p.columns);
    const int64_t block = i / kPieces / p.columns;  // (row block, chunk, tap)
    const int tap = static_cast<int>(block % taps), chunk = static_cast<int>(block / taps % p.chunks);
    const int64_t row = block / taps / p.chunks * p.columns + column;
    const int a = tap / p.kernel_w, b = tap % p.kernel_w;
    const int64_t at_tap = (p.turned ? p.kernel_h - 1 - a : a) * p.tap_h_stride +
                           (p.turned ? p.kernel_w - 1 - b : b) * p.tap_w_stride;
    const int64_t first = int64_t{chunk} * kPieces * kElements + piece * kElements;
    Packed16 packed = {};
    if (row < p.rows) {
      const int64_t at_row = (p.map_rows ? conv_channel_of(p.map, row) : row) * p.row_stride;
      FS_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int64_t k = first + e;
        if (k >= p.channels) break;
        const int64_t at_channel = (p.map_rows ? k : conv_channel_of(p.map, k)) * p.channel_stride;
        put_element(packed, e, static_cast<const T*>(p.weight)[at_row + at_channel + at_tap]);
      }
    }
    FS_UNROLL
    for (int word = 0; word < 4; ++word) packed.word[word] = to_operand(packed.word[word], T{});
    store_16(static_cast<unsigned char*>(p.packed) + block * p.columns * kChunkBytes +
                 swizzled<kChunkBytes>(column, piece),
             packed);
  }
}

// ---- pixels -----------------------------------------------------------------------------------------------------------
// Offset of a channel, and whether it exists at a low-resolution pixel.
struct ChannelPlace {
  int64_t offset;
  bool exists;
};
FS_DEVICE ChannelPlace channel_place(const PixelLoad& p, int s, int row, int column) {
  const PixelSource& from = p.source;
  const ShuffledChannels& m = from.map;
  if (m.cell_h * m.cell_w == 1) {
    const int y = row - from.crop_top, x = column - from.crop_left;
    return {s * from.channel_stride - from.crop_top * from.row_stride - from.crop_left * from.col_stride,
            s < from.total && y >= 0 && y < from.fine_h && x >= 0 && x < from.fine_w};
  }
  int c, i, j;
  if (m.order == ChannelOrder::kDCR) {
    const int cell = p.channels.divide(s);
    i = p.cell_w.divide(cell);
    c = s - cell * m.channels, j = cell - i * m.cell_w;
  } else {
    const int above = p.cell_w.divide(s);
    c = p.cell_h.divide(above);
    j = s - above * m.cell_w, i = above - c * m.cell_h;
  }
  const int y = row * m.cell_h + i - from.crop_top, x = column * m.cell_w + j - from.crop_left;
  return {c * from.channel_stride + (i - from.crop_top) * from.fine_row_stride +
              (j - from.crop_left) * from.fine_col_stride,
          s < from.total && y >= 0 && y < from.fine_h && x >= 0 && x < from.fine_w};
}

// First pixel of a tile.
struct TileOrigin {
  int n, h, w;
};
template <class AnyPlan>
FS_DEVICE TileOrigin tile_origin(const AnyPlan& plan, int tile) {
  const int w = tile % plan.tiles_w, rest = tile / plan.tiles_w;
  return {rest / plan.tiles_h * plan.tile_n, rest % plan.tiles_h * plan.tile_h, w * plan.tile_w};
}

// One chunk of the tile's pixels into `stage`, kVector elements at a time; the threads share (pixel, piece) pairs.
template <class T, int kChunkBytes, int kVector>
FS_DEVICE void load_pixels(const PixelLoad& p, const TileOrigin& origin, int chunk, unsigned char* stage) {
  constexpr int kPieces = kChunkBytes / 16, kElements = 16 / static_cast<int>(sizeof(T));
  const PixelSource& from = p.source;
  const int pixels = p.halo_pixels.divisor;
  FS_NO_UNROLL
  for (int i = thread_index(); i < pixels * kPieces; i += block_threads()) {
    const int by_pixel = p.halo_pixels.divide(i);
    const int piece = from.by_pixel ? by_pixel : i % kPieces;
    const int pixel = from.by_pixel ? i - by_pixel * pixels : i / kPieces;
    const int line = p.halo_w.divide(pixel), image = p.halo_h.divide(line);
    const int n = origin.n + image, row = origin.h * p.stride_h - p.pad_top + line - image * p.halo_h.divisor;
    const int column = origin.w * p.stride_w - p.pad_left + pixel - line * p.halo_w.divisor;
    const T* at = static_cast<const T*>(from.data) + n * from.batch_stride + row * from.row_stride +
                  column * from.col_stride;
    const int first = (chunk * kPieces + piece) * kElements;
    unsigned char* to = stage + swizzled<kChunkBytes>(pixel, piece);
    Packed16 gathered = {};
    FS_UNROLL
    for (int e = 0; e < kElements; e += kVector) {
      const ChannelPlace place = channel_place(p, first + e, row, column);
      const bool exists = place.exists && n < p.batch;
      if constexpr (kVector * sizeof(T) >= 4) {
        cp_async<kVector * sizeof(T)>(to + e * sizeof(T), exists ? at + place.offset : from.data, exists);
      } else if (exists) {
        put_element(gathered, e, at[place.offset]);
      }
    }
    if constexpr (kVector * sizeof(T) < 4) store_16(to, gathered);
  }
}

template <class T, int kChunkBytes>
FS_DEVICE void load_pixels(const PixelLoad& p, const TileOrigin& origin, int chunk, unsigned char* stage) {
  if constexpr (sizeof(T) == 2) {
    if (p.source.vector == 8) return load_pixels<T, kChunkBytes, 8>(p, origin, chunk, stage);
  }
  if (p.source.vector >= 4) return load_pixels<T, kChunkBytes, 4>(p, origin, chunk, stage);
  if (p.source.vector == 2) return load_pixels<T, kChunkBytes, 2>(p, origin, chunk, stage);
  load_pixels<T, kChunkBytes, 1>(p, origin, chunk, stage);
}

FS_DEVICE void copy_bytes(const unsigned char* from, unsigned char* to, int bytes) {
  FS_NO_UNROLL
  for (int at = thread_index() * 16; at < bytes; at += block_threads() * 16)
    cp_async<16>(to + at, from + at, true);
}

// ---- the sum ----------------------------------------------------------------------------------------------------------
// What the next step to be fetched is, tiles ahead of the one that is computed.
struct Cursor {
  int tile, chunk, step;  // step: of the chunk
  int pixel_stage, filter_stage;
};

template <class T, int kChunkBytes, int kColumnTiles, int kColumnWarps>
struct MmaBlock {
  static constexpr int kColumns = 8 * kColumnTiles * kColumnWarps, kPitch = kColumns + kStagingPad;
  static constexpr int kTapBytes = kColumns * kChunkBytes;  // of the filter
  const MmaParams& p;
  int base[2];                    // halo index, at tap 0, of the pixels whose rows this lane reads
  float sum[2][kColumnTiles][4];  // 16 pixels x 8 columns each

  // Found anew where they are needed: registers are short.
  static FS_DEVICE unsigned char* shared() { return shared_memory(); }
  static FS_DEVICE int lane() { return thread_index() % 32; }
  static FS_DEVICE int pixel_warp() { return thread_index() / 32 % kPixelWarps; }
  static FS_DEVICE int column_warp() { return thread_index() / 32 / kPixelWarps; }
  FS_DEVICE const unsigned char* packed() const {  // of this row block
    return static_cast<const unsigned char*>(p.packed) +
           int64_t{block_y()} * p.plan.chunks * p.taps * kTapBytes;
  }

  FS_DEVICE explicit MmaBlock(const MmaParams& params) : p(params) {
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

  // Fetches what `at` points to and moves it on. One group of copies, empty after the last step.
  FS_DEVICE void fetch(Cursor& at) const {
    const Plan& plan = p.plan;
    if (at.tile < p.tiles) {
      if (at.step == 0)
        load_pixels<T, kChunkBytes>(p.load, tile_origin(plan, at.tile), at.chunk,
                                    shared() + at.pixel_stage * plan.pixel_stage_bytes);
      if (!plan.resident) {
        const int tap = at.step * plan.step_taps,
                  count = tap + plan.step_taps > p.taps ? p.taps - tap : plan.step_taps;
        copy_bytes(packed() + (int64_t{at.chunk} * p.taps + tap) * kTapBytes,
                   shared() + plan.filter_offset + at.filter_stage * plan.filter_step_bytes,
                   count * kTapBytes);
        if (++at.filter_stage == plan.stages) at.filter_stage = 0;
      }
      if (++at.step == plan.steps) {
        at.step = 0;
        if (++at.pixel_stage == plan.pixel_stages) at.pixel_stage = 0;
        if (++at.chunk == plan.chunks) at.chunk = 0, at.tile += grid_x();
      }
    }
    cp_async_commit();
  }

  // Taps first .. first + count - 1 of one chunk; filter holds these taps.
  FS_DEVICE void multiply(const unsigned char* pixels, const unsigned char* filter, int first, int count) {
    int a = first / p.kernel_w, b = first - a * p.kernel_w;
    for (int tap = 0; tap < count; ++tap, filter += kTapBytes) {
      const int moved = a * p.dilation_h * p.plan.halo_w + b * p.dilation_w;
      if (++b == p.kernel_w) b = 0, ++a;
      FS_UNROLL
      for (int k = 0; k < kChunkBytes / 32; ++k) {
        uint32_t x[2][4];
        FS_UNROLL
        for (int m = 0; m < 2; ++m) {
          ldmatrix_x4(x[m], pixels + swizzled<kChunkBytes>(base[m] + moved, 2 * k + lane() / 16));
          FS_UNROLL
          for (int q = 0; q < 4; ++q) x[m][q] = to_operand(x[m][q], T{});
        }
        FS_UNROLL
        for (int c = 0; c < kColumnTiles; c += 2) {
          uint32_t w[4];  // two tiles of eight columns
          ldmatrix_x4(w, filter + (column_warp() * kColumnTiles + c) * 8 * kChunkBytes +
                             swizzled<kChunkBytes>(lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
          const uint32_t left[2] = {w[0], w[1]}, right[2] = {w[2], w[3]};
          FS_UNROLL
          for (int m = 0; m < 2; ++m) {
            mma<T>(sum[m][c], x[m], left);
            mma<T>(sum[m][c + 1], x[m], right);
          }
        }
      }
    }
  }

  FS_DEVICE void clear() {
    FS_UNROLL
    for (int m = 0; m < 2; ++m) {
      FS_UNROLL
      for (int c = 0; c < kColumnTiles; ++c) {
        FS_UNROLL
        for (int q = 0; q < 4; ++q) sum[m][c][q] = 0;
      }
    }
  }

  // ---- store ------------------------------------------------------------------------------------------------------
  // What the epilogue must know of each row of the weight.
  struct RowInfo {
    float bias, slope;
    int c, j, conv_channel;
  };
  FS_DEVICE RowInfo* row_info() const { return reinterpret_cast<RowInfo*>(shared() + p.plan.table_offset); }
  FS_DEVICE float* staging() const { return reinterpret_cast<float*>(shared() + p.plan.staging_offset); }

  FS_DEVICE void fill_row_info() const {
    for (int column = thread_index(); column < kColumns; column += block_threads()) {
      const int row = block_y() * kColumns + column;
      RowInfo info = {};
      if (row < p.rows) {
        const Phase at = phase_of(p.map, row);
        const int64_t o = channel_of_phase(at, p.map.channels, p.map.cell_h, p.map.cell_w, p.map.call_order);
        info = {bias_of<T>(p.epilogue, o), slope_of<T>(p.epilogue, at.c, o), static_cast<int>(at.c),
                static_cast<int>(at.j), static_cast<int>(o)};
      }
      row_info()[column] = info;
    }
  }

  FS_DEVICE void stage_sums() const {
    const Activation activation = p.epilogue.activation;
    FS_UNROLL
    for (int c = 0; c < kColumnTiles; ++c) {
      const int column = (column_warp() * kColumnTiles + c) * 8 + lane() % 4 * 2;
      const RowInfo left = row_info()[column], right = row_info()[column + 1];
      FS_UNROLL
      for (int m = 0; m < 2; ++m) {
        FS_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int pixel = pixel_warp() * kPixelsPerWarp + m * 16 + half * 8 + lane() / 4;
          float* to = staging() + pixel * kPitch + column;
          to[0] = activate_straight(activation, sum[m][c][2 * half] + left.bias, left.slope);
          to[1] = activate_straight(activation, sum[m][c][2 * half + 1] + right.bias, right.slope);
        }
      }
    }
  }

  FS_DEVICE void curve_sums() const {
    FS_NO_UNROLL
    for (int i = thread_index(); i < kMmaPixels * kColumns; i += block_threads()) {
      float& value = staging()[i / kColumns * kPitch + i % kColumns];
      value = activate(p.epilogue.activation, value, 0.f);
    }
  }

  // Slots of 16 bytes, by (row of the tile, unit, piece, slot): neighbouring threads write neighbouring memory. A piece
  // is a stretch of memory: a tile row of a unit, or, where units are cut, one pixel of it.
  FS_DEVICE void store_tile(const TileOrigin& origin) const {
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    const Plan& plan = p.plan;
    const ShuffledChannels& m = p.map;
    const int first_row = block_y() * kColumns,
              end_row = first_row + kColumns < p.rows ? first_row + kColumns : p.rows;
    const int first_unit = first_row / p.run;
    const int width = plan.tile_w < p.conv_w - origin.w ? plan.tile_w : p.conv_w - origin.w;
    const int x0 = origin.w * m.cell_w - p.crop_left;  // fine column of the tile's first pixel
    const int from_element = x0 < 0 ? -x0 * p.per_column : 0;
    const int64_t columns_left = int64_t{p.out_w} - x0;
    const int to_element = columns_left < int64_t{width} * m.cell_w
                               ? static_cast<int>(columns_left) * p.per_column
                               : width * p.run;
    const int total =
        plan.tile_n * plan.tile_h * p.store_units.divisor * p.store_pieces.divisor * p.store_slots.divisor;
    for (int i = thread_index(); i < total; i += block_threads()) {
      const int stretch = p.store_slots.divide(i), slot = i - stretch * p.store_slots.divisor;
      const int unit_of_line = p.store_pieces.divide(stretch),
                piece = stretch - unit_of_line * p.store_pieces.divisor;
      const int line = p.store_units.divide(unit_of_line);
      const int unit = first_unit + unit_of_line - line * p.store_units.divisor;
      const int image = p.tile_h.divide(line), n = origin.n + image,
                h = origin.h + line - image * plan.tile_h;
      const int begin_row = unit * p.run > first_row ? unit * p.run : first_row;
      const int stop_row = (unit + 1) * p.run < end_row ? (unit + 1) * p.run : end_row;
      if (n >= p.load.batch || h >= p.conv_h || begin_row >= stop_row) continue;
      const int block = unit / m.cell_h, y = h * m.cell_h + unit - block * m.cell_h - p.crop_top;
      if (y < 0 || y >= p.out_h) continue;
      // Elements of the tile row, p.run to the pixel: [begin, end) are this piece's, [low, high) of these exist.
      const int begin = p.whole_units ? 0 : piece * p.run + begin_row - unit * p.run;
      const int end = p.whole_units ? width * p.run : begin + stop_row - begin_row;
      const int low = begin > from_element ? begin : from_element, high = end < to_element ? end : to_element;
      T* row = static_cast<T*>(p.output) + n * p.out_batch_stride + y * p.out_row_stride +
               block * p.out_unit_stride + int64_t{x0} * p.per_column;
      const int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row + begin) / sizeof(T) % kVector);
      const int first = begin - misaligned + slot * kVector;
      if (first >= high || first + kVector <= low) continue;
      int e = first > begin ? first : begin, w = p.store_run.divide(e), q = e - w * p.run;
      const float* sums = staging() + (line * plan.tile_w + w) * kPitch + unit * p.run - first_row;
      Packed16 packed = {};
      const bool whole = first >= low && first + kVector <= high;
      FS_UNROLL
      for (int v = 0; v < kVector; ++v) {
        if (first + v < low || first + v >= high) {
          if (first + v >= begin && ++q == p.run) q = 0, ++w, sums += kPitch;
          continue;
        }
        float value = sums[q];
        if (p.epilogue.residual) {
          const RowInfo& info = row_info()[unit * p.run + q - first_row];
          const int column = origin.w + w;
          value +=
              residual_at<T>(p.epilogue, {n, info.c, y, int64_t{column} * m.cell_w + info.j - p.crop_left, h,
                                          column, info.conv_channel});
        }
        T result;
        narrow(clamp_to(p.epilogue, value), result);
        if (whole)
          put_element(packed, v, result);
        else
          row[first + v] = result;
        if (++q == p.run) q = 0, ++w, sums += kPitch;
      }
      if (whole) store_16(row + first, packed);
    }
  }

  FS_DEVICE void wait_for_step() const {  // the oldest of stages - 1 groups under way
    if (p.plan.stages == 2) cp_async_wait<0>();
    if (p.plan.stages == 3) cp_async_wait<1>();
    if (p.plan.stages == 4) cp_async_wait<2>();
  }

  FS_DEVICE void run() {
    const Plan& plan = p.plan;
    fill_row_info();
    Cursor ahead = {block_x(), 0, 0, 0, 0};
    if (plan.resident) copy_bytes(packed(), shared() + plan.filter_offset, plan.chunks * p.taps * kTapBytes);
    for (int stage = 1; stage < plan.stages; ++stage) fetch(ahead);
    int pixel_stage = 0, filter_stage = 0;
    for (int tile = block_x(); tile < p.tiles; tile += grid_x()) {
      clear();
      for (int chunk = 0; chunk < plan.chunks; ++chunk) {
        for (int step = 0; step < plan.steps; ++step) {
          wait_for_step();
          sync_threads();  // all copies of this step have come; all threads are done with the step before it
          fetch(ahead);
          const int tap = step * plan.step_taps,
                    count = tap + plan.step_taps > p.taps ? p.taps - tap : plan.step_taps;
          const unsigned char* filter =
              shared() + plan.filter_offset +
              (plan.resident ? (chunk * p.taps + tap) * kTapBytes
                             : filter_stage * static_cast<int>(plan.filter_step_bytes));
          multiply(shared() + pixel_stage * plan.pixel_stage_bytes, filter, tap, count);
          if (++filter_stage == plan.stages) filter_stage = 0;
        }
        if (++pixel_stage == plan.pixel_stages) pixel_stage = 0;
      }
      if (!plan.resident) sync_threads();  // the staging area lies over pixels and filter
      stage_sums();
      sync_threads();
      if (!is_straight(p.epilogue.activation)) {
        curve_sums();
        sync_threads();
      }
      store_tile(tile_origin(plan, tile));  // the next tile's first barrier keeps its sums from overtaking
    }
  }
};

template <class T, int kChunkBytes, int kColumnTiles, int kColumnWarps>
FS_KERNEL(32 * kPixelWarps * kColumnWarps, kColumnWarps == 1 ? 3 : 2)
conv_mma_kernel(FS_CONSTANT(MmaParams) p) {
  MmaBlock<T, kChunkBytes, kColumnTiles, kColumnWarps>(p).run();
}

}  // namespace fused_subpixel::cuda
