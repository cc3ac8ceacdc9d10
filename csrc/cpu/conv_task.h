// SPDX-License-Identifier: BSD-3-Clause
// What the CPU launcher hands to the kernels: a plan, tables and pointers. The forward pass and the input gradient are the
// same task, a convolution whose output is written through the shuffle. Their sources differ: the input, or a shuffled
// gradient that is read as the low-resolution channels it came from.
// No torch in here, and no std:: either: kernels.cpp is compiled once per instruction set, and the linker could pick a
// library template instantiated there for every machine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/op_arguments.h"
#include "cpu/plan.h"
#include "cpu/plan_weight_grad.h"
#include "cpu/work_queue.h"

namespace fused_subpixel::cpu {

// A [batch, groups * ic, h, w] tensor of low resolution, as the packer reads it. Element (n, k, h, w) lies at
// data[n * batch_stride + channel_offset[k] + h * row_stride + w * col_stride]. It exists where
// 0 <= h * row_scale + channel_row[k] < hr_h and 0 <= w * col_scale + channel_col[k] < hr_w.
// (A plain input has scale 1 and channel_row = channel_col = 0. A shuffled gradient has the upscale factor.)
struct Source {
  const void* data;
  int64_t batch_stride, row_stride, col_stride;
  const int64_t* channel_offset;
  const int32_t* channel_row;
  const int32_t* channel_col;
  int64_t row_scale, col_scale, hr_h, hr_w;
  // Channels q * interleave .. q * interleave + interleave - 1 are neighbours in memory, in the same high-resolution row.
  int64_t interleave;  // at least 1
  // The gradient of an activation is applied as a gradient is read: this is the forward pass's output, with the same
  // channels. Null: there is nothing to apply.
  const Source* output;
  Activation activation;
  double negative_slope;
};

// Weight of (oc, ic, tap): data[oc_offset[oc] + ic_offset[ic] + tap_offset[tap]], where oc and ic count through all groups.
struct Weight {
  const void* data;
  const int64_t* oc_offset;
  const int64_t* ic_offset;
  const int64_t* tap_offset;
  // [groups * oc], or null: see missing_taps in conv_geometry.h. Missing taps count as zero and are not read.
  const uint8_t* missing_taps;
  // Which neighbours in k order are neighbours in memory: all of (channel, tap), the channels of one tap (channels_last
  // weights), or neither. Packing takes a shortcut there.
  enum class Dense { kNone, kAll, kChannels } dense;
};

// How channels that are apart in the source, or in the output that is applied, get into a packed input tile where they are
// neighbours: through planes of so many channels, `step` elements each. No planes: they are neighbours in the source.
struct PackedPlanes {
  int64_t channels, step;
};
FS_HOST_DEVICE PackedPlanes packed_planes(const Source& source, const InputTile& tile, int64_t lanes) {
  const int64_t of_output = source.output ? source.output->interleave : lanes;
  const int64_t most = source.interleave > of_output ? source.interleave : of_output;
  if (source.interleave >= lanes && of_output >= lanes) return {0, 0};
  // whole interleave groups, and one more for the last planes, which begin earlier to be enough for a vector
  return {round_up(lanes, most) + most, round_up(tile.stride_phases * tile.phase_columns, lanes) + lanes};
}
// Elements of scratch that packing a tile takes.
FS_HOST_DEVICE int64_t packing_elements(const Source& source, const InputTile& tile, int64_t lanes) {
  if (tile.channel_step != 1) return source.output ? source.output->interleave * tile.row_step : 0;
  const PackedPlanes planes = packed_planes(source, tile, lanes);
  if (planes.channels == 0) return source.output ? tile.row_step : 0;
  return (source.output ? 2 : 1) * planes.channels * planes.step;
}

// Where each output channel goes, [groups * oc] each. Output channels are sorted so that neighbours in memory are
// neighbours here.
struct OcTable {
  const int64_t* dest;      // element offset of pixel (0, 0) in the output, crop subtracted
  const int64_t* residual;  // the same in the residual
  const int64_t*
      interleave_left;    // output channels from here to the end of the interleave group, or 0 without groups
  const int32_t* hr_row;  // high-resolution row of low-resolution row 0, crop subtracted
  const int32_t* hr_col;
  const int64_t* hr_channel;
  const int64_t* lr_channel;
  const uint8_t*
      first_row;  // first low-resolution row, 0 or 1: 1 if the crop takes the first one off this phase
  const uint8_t* first_col;

  FS_HOST_DEVICE OcTable from(int64_t oc) const {
    return {dest + oc,       residual + oc,   interleave_left + oc, hr_row + oc,   hr_col + oc,
            hr_channel + oc, lr_channel + oc, first_row + oc,       first_col + oc};
  }
};

struct Destination {
  void* data;
  Strides stride;
  int64_t
      interleave;  // output channels that fill consecutive elements of one row of a sub-pixel block; 0: there are none
  bool oc_contiguous;  // whole vectors of output channels are contiguous (channels_last)
  int64_t r_h, r_w, out_h, out_w;
  int64_t crop_left;  // high-resolution columns that the crop takes off the first pixel of all phases
};

// Which element of a bias or of prelu's slopes belongs to an output channel.
enum class PerChannel : int32_t { kScalar, kHighRes, kLowRes };

struct TaskEpilogue {
  const void* bias;  // or null
  PerChannel bias_index;
  Activation activation;
  double negative_slope, clamp_min, clamp_max;
  const void* prelu;  // or null
  PerChannel prelu_index;
  const void* residual;  // or null
  ResidualKind residual_kind;
  Strides residual_stride;
  bool residual_like_output;  // shaped as the output, with its strides
};

// The taps that an output channel has, as Weight::tap_offset.
struct Taps {
  const int64_t* offset;
  int64_t count, columns;
  bool all;
};

// Addresses of a microkernel. The value of pixel p and k = (channel, tap) is at input[p * column_step + at[k]]; the
// OW-vectorised microkernel has a column_step of 1. Packed weights move on by weight_step elements with every k.
// One loop with a table: an inner loop over so few taps would be mispredicted as often as it ends.
struct KOffsets {
  const int64_t* at;  // and one more: the OC-vectorised microkernel loads it one k ahead
  int64_t count, column_step, weight_step;
  // From one output channel's accumulators to the next's (OW-vectorised), or from those of one position of a register tile to
  // the next's (Winograd's kernels with channels in the lanes).
  int64_t acc_step;
  bool add;                      // to the accumulators in memory, instead of replacing them
  int64_t whole = 0, pairs = 0;  // kMatrix: the first `whole` have 16 pairs of channels, the others so many
};

// What one call of a microkernel sums, and where it begins in the packed weights and in the packed input tile.
struct KBlock {
  KOffsets offsets;
  int64_t weight, input;
};

// All that is summed for an output channel, by the taps that it has.
struct KBlocks {
  Taps taps;
  const KBlock* blocks;
  int64_t count;
};

// Neighbouring low-resolution pixels (n, h, w .. w + count - 1), count <= lanes.
struct PixelVector {
  int64_t n, h, w;
  int count;
};
// The pixels of one OC-vectorised tile, and where the first lies in the packed input tile and in the output, all counted
// from the block's first pixel.
struct PixelTile {
  PixelVector pixels;
  int64_t input, dest;
};

// Elements of each array in a worker's scratch, and the bytes of all.
struct ConvScratch {
  int64_t input_tile, packing, weights, weight_planes, acc, pixel_tiles, oc;
  int64_t winograd_input, winograd_packed, winograd_planar;
  int64_t streamed_pixels, streamed_products, streamed_planar;
  int64_t bytes;
};

struct TapRead {
  int32_t output, input;
};

// Of kStreamed. Elements of a row are counted from its first one in memory.
struct StreamedRows {
  int64_t first;   // from where the offsets of Weight say that a row lies, to its first element
  int64_t length;  // elements of a row, in one group
  // kOfOutput. window_step: from one pixel's window, in the order of a row, to the next. channel_step: from one input channel to
  // the next in a row. at: the place of the first channel of each tap in a row; it may lie before the row.
  int64_t window_step;
  // kOfInput. channels: of the output, in one group. channel_step: from one of these to the next in a row. at: the pixels of an
  // image that are read, in the source. reads: which of these are read by the tap of which low-resolution pixel, those of
  // tap t from reads_begin[t] to reads_begin[t + 1].
  int64_t channels, channel_step, read_pixels;
  KOffsets offsets;
  const int64_t *at, *reads_begin;
  const TapRead* reads;
  int64_t stored_channels;  // output channels that are stored together
};

// Vectors of pixels that are stored together, at most.
constexpr int kMaxStoredVectors = 16;

// One for each position of kWinogradRow, or for each combination of missing taps.
constexpr int kMaxKBlockLists = 12;

struct ConvTask {
  DType dtype;
  ConvPlan plan;
  bool in_place;           // the source itself serves as packed input tile
  int64_t deferred_tiles;  // tiles that are computed before they are stored
  // Winograd's steps, in elements: between channels and (of kWinograd) positions of the transformed input, and between
  // positions of the weights (of kWinograd; those of kWinogradRow differ in size, and its K blocks tell where they begin).
  int64_t winograd_channel_step, winograd_input_step, winograd_position_step;
  // Of kWinogradRow, where its worker keeps rows: from one row of deinterleaved pixels to the next, and from one row of outputs
  // to the next.
  int64_t winograd_pixel_step, winograd_planar_step;
  ConvScratch scratch;

  Source source;
  Weight weight;
  OcTable oc;
  Destination dest;
  TaskEpilogue epilogue;
  // By position (kWinogradRow); by missing taps if each tile reads as many taps as its phase has; otherwise k_blocks[0].
  KBlocks k_blocks[kMaxKBlockLists];
  bool k_by_missing_taps;
  // Are pixels multiplied by zeros in place of missing taps?
  FS_HOST_DEVICE bool has_zero_taps() const { return weight.missing_taps && !k_by_missing_taps; }
  StreamedRows streamed;

  // If weights are not resident: the panels of all groups, packed once before the items run.
  void* panels;
  bool* nonfinite_weight;  // set by whoever packs a weight that is not finite, or a pixel that has to be
  // Set by whoever transforms pixels for outputs that do not depend on all of them; if has_zero_taps(), and by kStreamed, if a
  // sum is not finite, whatever the reason.
  bool* nonfinite_pixel;
};

// Where the two factors of a pixel's products lie, in their packed tiles.
struct ProductOffset {
  int32_t lanes, column;
};

// The weight gradient. The gradient is a Source whose channels are the output channels. The sums of an item are those of the
// products of each segment (plan_weight_grad.h), in register tiles, and of the gradient alone, which is the bias's.
struct WeightGradTask {
  DType dtype;
  WeightGradPlan plan;
  ConvShape gradient_shape;
  // Elements of each array in a worker's scratch, and the bytes of all.
  struct Scratch {
    int64_t input_tile, gradient_tile, packing, arranged_input, arranged_gradient, pixels, sums;
    int64_t bytes;
  } scratch;
  // Elements from one transformed tile, and from one position, to the next.
  int64_t winograd_input_step, winograd_gradient_step, winograd_input_position, winograd_gradient_position;
  int64_t segment_step, sums;  // elements of sums, of a segment and of an item
  // Of matrix tiles: bfloat16 from one plane of the input to the next, and pairs from one pair of the gradient's pixels.
  int64_t plane_step, pair_step;
  Source input;
  Source gradient;
  // Where things lie: a segment's first pixel in the packed input tile; its first weight, those of a group's input channels
  // (of merged taps: [tap][channel]) and those of all output channels, in the weight.
  const int64_t *segment_input, *segment_weight, *input_weight, *gradient_weight;
  const int64_t* tap_weight;  // each tap in the weight
  int64_t input_weight_step;  // from one input channel to the next in the weight
  bool dense_weight;          // taps follow one another in the weight, and then input channels
  const int64_t* lr_channel;  // [groups * oc]: low-resolution channel of each output channel
  void* partial;              // arithmetic type: [items][sums]; unused if there is one slot
  void* grad_weight;
  void* grad_bias;       // [groups * oc], by low-resolution channel
  bool arithmetic_bias;  // it has the arithmetic type
  bool* nonfinite;       // set if a weight that Winograd's kernel computed is not finite
};

// Cuts one 64-byte aligned allocation into arrays.
struct Arena {
  char* at;
  template <class E>
  FS_HOST_DEVICE E* take(int64_t n) {
    E* p = reinterpret_cast<E*>(at);
    at += bytes(n, sizeof(E));
    return p;
  }
  FS_HOST_DEVICE static int64_t bytes(int64_t n, int64_t element) { return round_up(n * element, 64); }
};

// Scratch of the calling thread, kept between calls while it is small; 64-byte aligned.
void* thread_scratch(size_t bytes);

// Those of bfloat16 that multiply matrix tiles.
struct MatrixKernels {
  MatrixTiles tiles;
  void (*conv)(const ConvTask&, WorkQueue& items);
  void (*pack_panels)(const ConvTask&, WorkQueue& panels);
  void (*weight_grad)(const WeightGradTask&, WorkQueue& items);
  void (*finish_weight_grad)(const WeightGradTask&, WorkQueue& pairs);
};

struct Kernels {
  const char* name;
  int vector_bytes, registers;
  void (*conv)(const ConvTask&, WorkQueue& items);
  void (*redo_borders)(const ConvTask&, WorkQueue& items);  // after conv, if a weight is not finite
  void (*pack_panels)(const ConvTask&, WorkQueue& panels);  // of all groups, into task.panels
  void (*weight_grad)(const WeightGradTask&, WorkQueue& items);
  void (*finish_weight_grad)(const WeightGradTask&, WorkQueue& pairs);  // adds the slots in order
  const MatrixKernels* matrix;                                          // or null
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const MatrixKernels matrix_kernels;
}
namespace amx {
extern const MatrixKernels matrix_kernels;
}
namespace neon_bf16 {
extern const MatrixKernels matrix_kernels;
}
namespace avx512_bf16_stand_in {
extern const MatrixKernels matrix_kernels;
}
namespace amx_stand_in {
extern const MatrixKernels matrix_kernels;
}

}  // namespace fused_subpixel::cpu
