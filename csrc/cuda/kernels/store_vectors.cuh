// SPDX-License-Identifier: BSD-3-Clause
// The store of vectors, for the common case: everything is done with an accumulator when it is staged - bias, rectifier or
// relu6, clamp, rounding to the element type - and the staging area holds the 16-byte vectors of the output as they are to be
// stored. See VectorStoreParams.
#pragma once

#include "cuda/kernels/store.cuh"

namespace fused_subpixel::cuda {

template <class T, int kBlockOc>
struct VectorStore {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const MmaParams& p;

  // What the epilogue must know of the output channels. late_bias: what staging adds, the bias or, where a slope has been
  // applied before, nothing. place: from the pixel's, in bytes; or kNowhere.
  struct alignas(16) OcTable {
    float bias[kBlockOc], slope[kBlockOc], late_bias[kBlockOc];
    int place[kBlockOc];
  };
  // Where the output has the first channel of a vector: from the block's sub-pixel, elements and rows; and its element of
  // an interleave group.
  struct alignas(16) Place {
    int64_t offset;
    int row, element;
  };
  // A row of low-resolution pixels: its first output row, and where that begins.
  struct alignas(16) Line {
    int64_t offset;
    int row;
  };
  static_assert(sizeof(OcTable) + kBlockOc * sizeof(Place) == kBlockOc * kOcPlaceBytes &&
                sizeof(Line) == kLineBytes);
  static constexpr int kNowhere = -(1 << 30);  // negative, whatever is added
  static constexpr int kNoElement = 1 << 30;   // past the end of every line

  FS_DEVICE OcTable& oc_table() const {
    return *reinterpret_cast<OcTable*>(shared_memory() + p.plan.table_offset);
  }
  FS_DEVICE Place* places() const { return reinterpret_cast<Place*>(&oc_table() + 1); }
  FS_DEVICE Line* lines() const { return reinterpret_cast<Line*>(places() + kBlockOc); }

  // Vectors are permuted within rows of 128 bytes of shared memory: neighbouring pixels, which a warp stages at once, are in
  // different banks.
  static FS_DEVICE unsigned char* permuted(int byte) { return shared_memory() + (byte ^ (byte >> 3 & 0x70)); }

  FS_DEVICE void fill_tables() const {
    const VectorStoreParams& v = p.vectors;
    const int first_oc = block_y() * kBlockOc;
    const bool sloped = has_slopes(p.epilogue.activation);
    for (int column = thread_index(); column < kBlockOc; column += block_threads()) {
      FS_MARK(Mark::kOcTable);
      float bias = 0, slope = 0;
      int place = kNowhere;
      if (first_oc + column < p.oc) {
        const PhaseOf<int> at = phase_of(p.map, first_oc + column);
        const int o = channel_of_phase(at, p.map.sizes, p.map.call_order);
        const int stretch = v.stretch.divide(column);
        bias = bias_of<T>(p.epilogue, at.c, o);
        if (sloped) slope = slope_of<T>(p.epilogue, at.c, o);
        place =
            static_cast<int>(sizeof(T)) * (stretch * v.stretch_step + column - stretch * v.stretch.divisor);
      }
      OcTable& table = oc_table();
      table.bias[column] = bias;
      table.slope[column] = slope;
      table.late_bias[column] = sloped ? -0.f : bias;  // -0 changes nothing, not even a zero
      table.place[column] = place;
    }
    for (int i = thread_index(); i < v.places; i += block_threads()) {
      FS_MARK(Mark::kPlaceTable);
      const int oc = first_oc + i * v.place_columns, group = p.store_interleave.divide(oc);
      const int block = p.map.sizes.r_h.divide(group), row = group - block * p.map.sizes.r_h.divisor;
      places()[i] = {block * p.out_group_stride + row * p.out_row_stride, row,
                     oc < p.oc ? oc - group * p.interleave : kNoElement};
    }
  }

  // Of the tile at `origin`; before its accumulators are staged.
  FS_DEVICE void begin(const TileOrigin& origin) const {
    for (int line = thread_index(); line < p.plan.tile_n * p.plan.tile_h; line += block_threads()) {
      FS_MARK(Mark::kLineTable);
      const int image = p.tile_h.divide(line), n = origin.n + image,
                h = origin.h + line - image * p.plan.tile_h;
      const int row = h * p.map.sizes.r_h.divisor - p.crop_top;
      lines()[line] = {n * p.out_batch_stride + row * p.out_row_stride,
                       n < p.load.batch && h < p.lr_h ? row : kNowhere};
    }
  }

  // What staging must know of two neighbouring output channels, the same for all pixels; and of two pixels, eight apart.
  struct OcInfo {
    float bias, slope, late_bias;
    int place;
  };
  struct Columns {
    OcInfo left, right;
  };
  FS_DEVICE OcInfo oc_info(int column) const {
    const OcTable& table = oc_table();
    return {table.bias[column], table.slope[column], table.late_bias[column], table.place[column]};
  }
  FS_DEVICE Columns columns_at(int column) const { return {oc_info(column), oc_info(column + 1)}; }
  struct Pixels {
    int place[2];  // in shared memory
  };
  FS_DEVICE int place_of(int pixel) const {
    const int line = p.tile_w.divide(pixel), column = pixel - line * p.tile_w.divisor;
    const int place = line * p.vectors.line_elements + column * p.vectors.pixel_elements;
    return pixel < p.plan.tile_n * p.plan.tile_h * p.plan.tile_w
               ? static_cast<int>(p.plan.staging_offset) + place * static_cast<int>(sizeof(T))
               : kNowhere;
  }
  FS_DEVICE Pixels pixels_at(int pixel) const { return {{place_of(pixel), place_of(pixel + 8)}}; }

  // Bias, relu or relu6, clamp. relu and relu6 are clamps. Half types are clamped after they are rounded, two at a time:
  // rounding keeps the order of numbers, so that the result is the same.
  struct Finished {
    uint32_t left, right;  // right: of four bytes only
  };
  FS_DEVICE Finished finish(float left, float right) const {
    const float floor = p.epilogue.floor_f, ceiling = p.epilogue.ceiling_f;
    if constexpr (sizeof(T) == 2) {
      const uint32_t pair = larger_pair<T>(narrow_pair<T>(left, right), narrow_pair<T>(floor, floor));
      return {smaller_pair<T>(pair, narrow_pair<T>(ceiling, ceiling)), 0};
    } else {
      return {bits_of(smaller_or_nan(larger_or_nan(left, floor), ceiling)),
              bits_of(smaller_or_nan(larger_or_nan(right, floor), ceiling))};
    }
  }

  // What a lane holds of 16 pixels x 8 output channels in the order of mma's d. kPairs: neighbouring output
  // channels are neighbours in the staging area, too.
  template <bool kPairs>
  FS_DEVICE void stage(const Pixels& pixels, const Columns& at, const float* acc) const {
    FS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int place = pixels.place[half], left_place = place + at.left.place,
                right_place = place + at.right.place;
      const Finished done = finish(acc[2 * half] + at.left.late_bias, acc[2 * half + 1] + at.right.late_bias);
      unsigned char* const to_left = permuted(left_place);
      unsigned char* const to_right = permuted(right_place);
      if constexpr (sizeof(T) == 2) {
        if constexpr (kPairs) {
          if (left_place >= 0) store_4(to_left, done.left);
        } else {
          if (left_place >= 0) store_2(to_left, static_cast<uint16_t>(done.left));
          if (right_place >= 0) store_2(to_right, static_cast<uint16_t>(done.left >> 16));
        }
      } else if constexpr (kPairs) {
        if (left_place >= 0) store_8(to_left, done.left, done.right);
      } else {
        if (left_place >= 0) store_4(to_left, done.left);
        if (right_place >= 0) store_4(to_right, done.right);
      }
    }
  }

  // Half types, for blocks whose output channels all exist, eight by eight neighbours in the staging area: 16 pixels x 16
  // output channels, by four matrices of them. place: of the lane's pixel, lane % 16 of the 16.
  FS_DEVICE bool takes_matrices() const {
    return sizeof(T) == 2 && p.vectors.eights && (block_y() + 1) * kBlockOc <= p.oc;
  }
  FS_DEVICE void stage_matrices(int place, int column, const float* acc) const {
    const int lane = thread_index() % 32;
    uint32_t words[4];
    FS_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float* bias = oc_table().late_bias + column + c * 8 + lane % 4 * 2;
      const float left = bias[0], right = bias[1];
      FS_UNROLL
      for (int half = 0; half < 2; ++half)
        words[2 * c + half] = finish(acc[4 * c + 2 * half] + left, acc[4 * c + 2 * half + 1] + right).left;
    }
    stmatrix_x4(permuted(place + oc_table().place[column + lane / 16 * 8]), words);
  }

  FS_DEVICE void store(const TileOrigin& origin) const {
    sync_threads();  // all accumulators are staged
    const VectorStoreParams& v = p.vectors;
    const int x0 =
        origin.w * p.map.sizes.r_w.divisor - p.crop_left;  // high-resolution column of the tile's first pixel
    // Elements of a line that the crop leaves; columns are bounded before they are multiplied.
    const int width = p.plan.tile_w < p.lr_w - origin.w ? p.plan.tile_w : p.lr_w - origin.w;
    const int columns = width * p.map.sizes.r_w.divisor,
              before = x0 < 0 ? (-x0 < columns ? -x0 : columns) : 0;
    const int left = p.out_w - x0 < columns ? p.out_w - x0 : columns;
    const int low = before * p.per_column, high = left > 0 ? left * p.per_column : 0;
    T* const first = static_cast<T*>(p.output) + int64_t{x0} * p.per_column;
    const int rest = v.a.divide(thread_index());
    int a = thread_index() - rest * v.a.divisor, line = v.b.divide(rest), b = rest - line * v.b.divisor;
    // A thread's vectors may all have one place in their lines.
    const bool moves = (v.step_a | v.step_b) != 0;
    T* to = nullptr;
    int row = 0;            // from the line's
    unsigned out_rows = 0;  // none, if the vector is not in the image
    const auto place_vector = [&] {
      const Place place = places()[a * v.place_a + b * v.place_b];
      const int element = a * v.element_a + b * v.element_b + place.element;
      to = first + place.offset + element;
      row = place.row;
      out_rows = element >= low && element < high ? static_cast<unsigned>(p.out_h) : 0;
    };
    place_vector();
    FS_NO_UNROLL
    for (int i = thread_index(); i < v.vectors; i += block_threads()) {
      FS_MARK(Mark::kStore);
      const Line at = lines()[line];
      if (static_cast<unsigned>(at.row + row) < out_rows) {
        FS_MARK(Mark::kAligned);
        store_16(to + at.offset, load_16(permuted(static_cast<int>(p.plan.staging_offset) + i * 16)));
      }
      line += v.step_line;
      if (moves) {
        FS_MARK(Mark::kPlace);
        a += v.step_a, b += v.step_b;
        if (a >= v.a.divisor) a -= v.a.divisor, ++b;
        if (b >= v.b.divisor) b -= v.b.divisor, ++line;
        place_vector();
      }
    }
  }
};

}  // namespace fused_subpixel::cuda
