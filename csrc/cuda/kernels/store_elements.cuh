// SPDX-License-Identifier: BSD-3-Clause
// The store of elements, for every epilogue and any alignment: the accumulators of a tile, with bias and activation, are
// staged in shared memory as float32 and go from there to their shuffled places, 16 bytes at a time where they can, with
// residual and clamp.
#pragma once

#include "cuda/kernels/store.cuh"

namespace fused_subpixel::cuda {

template <class T, int kBlockOc>
struct ElementStore {
  static constexpr int kPitch = kBlockOc + kStagingPad;
  const MmaParams& p;

  // What the epilogue must know of each output channel. late_bias: as VectorStore has it.
  struct OcInfo {
    float bias, slope, late_bias;
    int c, j, lr_channel;
  };
  static_assert(sizeof(OcInfo) == kOcInfoBytes);
  FS_DEVICE OcInfo* oc_info() const {
    return reinterpret_cast<OcInfo*>(shared_memory() + p.plan.table_offset);
  }
  FS_DEVICE float* staging() const {
    return reinterpret_cast<float*>(shared_memory() + p.plan.staging_offset);
  }

  FS_DEVICE void fill_tables() const {
    const bool sloped = has_slopes(p.epilogue.activation);
    for (int column = thread_index(); column < kBlockOc; column += block_threads()) {
      FS_MARK(Mark::kOcTable);
      const int row = block_y() * kBlockOc + column;
      OcInfo info = {};
      if (row < p.oc) {
        const PhaseOf<int> at = phase_of(p.map, row);
        const int o = channel_of_phase(at, p.map.sizes, p.map.call_order);
        const float bias = bias_of<T>(p.epilogue, at.c, o);
        info = {bias, sloped ? slope_of<T>(p.epilogue, at.c, o) : 0.f, sloped ? -0.f : bias, at.c, at.j, o};
      }
      oc_info()[column] = info;
    }
  }

  // Of the 16 x 8 staged from (pixel, column) on, those that a lane holds in the order of mma's d; `column` and `pixel`
  // are the lane's first. What it needs of the output channels is the same for all pixels.
  struct Columns {
    int column;
    OcInfo left, right;
  };
  FS_DEVICE Columns columns_at(int column) const {
    return {column, oc_info()[column], oc_info()[column + 1]};
  }
  using Pixels = float*;  // where the first of them is staged
  FS_DEVICE Pixels pixels_at(int pixel) const { return staging() + pixel * kPitch; }
  FS_DEVICE void begin(const TileOrigin&) const {}
  template <bool>
  FS_DEVICE void stage(Pixels pixels, const Columns& at, const float* acc) const {
    const float floor = p.epilogue.activation == Activation::kReLU ? 0.f : -__builtin_inff();
    FS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float left = larger_or_nan(acc[2 * half] + at.left.late_bias, floor);
      const float right = larger_or_nan(acc[2 * half + 1] + at.right.late_bias, floor);
      store_8(pixels + half * 8 * kPitch + at.column, bits_of(left), bits_of(right));
    }
  }

  // The activations that are no rectifiers, on the staged values: in the registers the compiler would unroll them for each,
  // and every layer would be slower for them.
  FS_DEVICE void apply_late() const {
    FS_NO_UNROLL
    for (int i = thread_index(); i < kMmaPixels * kBlockOc; i += block_threads()) {
      float& value = staging()[i / kBlockOc * kPitch + i % kBlockOc];
      value = activate(p.epilogue.activation, value, 0.f);
    }
  }

  // Adds the residual to staged values of an interleave group, `count` from pixel w and element q on, where they are at
  // `staged`; not to the first `cut`, which the crop takes off. Nobody else reads or writes these values.
  struct Stretch {
    int n, oc_group, y, h, w, q;
  };
  FS_DEVICE void add_residual(const TileOrigin& origin, Stretch at, float* staged, int cut, int count) const {
    const int r_w = p.map.sizes.r_w.divisor, first_oc = block_y() * kBlockOc;
    FS_NO_UNROLL
    for (int v = 0; v < count; ++v) {
      if (v >= cut) {
        const OcInfo& info = oc_info()[at.oc_group * p.interleave + at.q - first_oc];
        const int column = origin.w + at.w;
        staged[at.q] +=
            residual_at<T>(p.epilogue, {at.n, info.c, at.y, int64_t{column} * r_w + info.j - p.crop_left,
                                        at.h, column, info.lr_channel});
      }
      if (++at.q == p.interleave) at.q = 0, ++at.w, staged += kPitch;
    }
  }

  // Slots of 16 bytes, by (row of the tile, interleave group, segment, slot): neighbouring threads write neighbouring
  // memory. A segment is a stretch of memory: a tile row of a group, or one pixel of it if blocks cut groups.
  FS_DEVICE void store(const TileOrigin& origin) const {
    sync_threads();  // all accumulators are staged
    if (!is_rectifier(p.epilogue.activation)) {
      apply_late();
      sync_threads();
    }
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    const Plan& plan = p.plan;
    const int r_h = p.map.sizes.r_h.divisor, r_w = p.map.sizes.r_w.divisor;
    const int first_oc = block_y() * kBlockOc,
              end_oc = first_oc + kBlockOc < p.oc ? first_oc + kBlockOc : p.oc;
    const int first_group = first_oc / p.interleave;
    const int width = plan.tile_w < p.lr_w - origin.w ? plan.tile_w : p.lr_w - origin.w;
    const int x0 = origin.w * r_w - p.crop_left;  // high-resolution column of the tile's first pixel
    // Elements of a tile row that the crop leaves; columns are bounded before they are multiplied.
    const int columns = width * r_w, columns_before = x0 < 0 ? (-x0 < columns ? -x0 : columns) : 0;
    const int64_t columns_left = int64_t{p.out_w} - x0;
    const int from_element = columns_before * p.per_column;
    const int to_element = (columns_left < 0         ? 0
                            : columns_left < columns ? static_cast<int>(columns_left)
                                                     : columns) *
                           p.per_column;
    const int total =
        plan.tile_n * plan.tile_h * p.store_groups.divisor * p.store_segments.divisor * p.store_slots.divisor;
    FS_NO_UNROLL
    for (int i = thread_index(); i < total; i += block_threads()) {
      FS_MARK(Mark::kStore);
      const int stretch = p.store_slots.divide(i), slot = i - stretch * p.store_slots.divisor;
      const int group_of_line = p.store_segments.divide(stretch),
                segment = stretch - group_of_line * p.store_segments.divisor;
      const int line = p.store_groups.divide(group_of_line);
      const int oc_group = first_group + group_of_line - line * p.store_groups.divisor;
      const int image = p.tile_h.divide(line), n = origin.n + image,
                h = origin.h + line - image * plan.tile_h;
      const int begin_oc = oc_group * p.interleave > first_oc ? oc_group * p.interleave : first_oc;
      const int stop_oc = (oc_group + 1) * p.interleave < end_oc ? (oc_group + 1) * p.interleave : end_oc;
      if (n >= p.load.batch || h >= p.lr_h || begin_oc >= stop_oc) continue;
      const int block = p.map.sizes.r_h.divide(oc_group), y = h * r_h + oc_group - block * r_h - p.crop_top;
      if (y < 0 || y >= p.out_h) continue;
      // Elements of the tile row, p.interleave to the pixel: [begin, end) are this segment's, [low, high) of these exist.
      const int begin = p.whole_groups ? 0 : segment * p.interleave + begin_oc - oc_group * p.interleave;
      const int end = p.whole_groups ? width * p.interleave : begin + stop_oc - begin_oc;
      const int low = begin > from_element ? begin : from_element, high = end < to_element ? end : to_element;
      T* row = static_cast<T*>(p.output) + n * p.out_batch_stride + y * p.out_row_stride +
               block * p.out_group_stride + int64_t{x0} * p.per_column;
      const int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row + begin) / sizeof(T) % kVector);
      const int first = begin - misaligned + slot * kVector;
      if (first >= high || first + kVector <= low) continue;
      int e = first > begin ? first : begin, w = p.store_interleave.divide(e), q = e - w * p.interleave;
      float* staged = staging() + (line * plan.tile_w + w) * kPitch + oc_group * p.interleave - first_oc;
      const bool whole = first >= low && first + kVector <= high;
      const int count = (first + kVector < high ? first + kVector : high) - e;
      if (p.epilogue.residual) add_residual(origin, {n, oc_group, y, h, w, q}, staged, low - e, count);
      if (!whole) {
        FS_NO_UNROLL
        for (int v = 0; v < count; ++v) {
          if (e + v >= low) narrow(clamp_to(p.epilogue, staged[q]), row[e + v]);
          if (++q == p.interleave) q = 0, staged += kPitch;
        }
        continue;
      }
      float value[kVector];
      if (q + kVector <= p.interleave && reinterpret_cast<uintptr_t>(staged + q) % 16 == 0) {  // one pixel's
        FS_MARK(Mark::kAligned);
        FS_UNROLL
        for (int four = 0; four < kVector; four += 4) {
          const Packed16 part = load_16(staged + q + four);
          FS_UNROLL
          for (int v = 0; v < 4; ++v) value[four + v] = float_of(part.word[v]);
        }
      } else {
        FS_MARK(Mark::kUnaligned);
        FS_UNROLL
        for (int v = 0; v < kVector; ++v) {
          value[v] = staged[q];
          if (++q == p.interleave) q = 0, staged += kPitch;
        }
      }
      Packed16 packed = {};
      FS_UNROLL
      for (int v = 0; v < kVector; ++v) {
        T result;
        narrow(p.epilogue.clamped ? clamp_to(p.epilogue, value[v]) : value[v], result);
        put_element(packed, v, result);
      }
      store_16(row + first, packed);
    }
  }
};

}  // namespace fused_subpixel::cuda
