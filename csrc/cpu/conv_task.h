// SPDX-License-Identifier: BSD-3-Clause
// What the CPU launcher hands to the kernels. Forward and input gradient are the same task - a convolution whose
// output rows are written through the shuffle - over different sources: the input, or a shuffled gradient that is
// read unshuffled. No torch in here, and no std:: either: kernels.cpp is compiled once per instruction set, and a
// library template instantiated there could be picked by the linker for every machine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/op_arguments.h"
#include "cpu/plan.h"

namespace fused_subpixel::cpu {

// A [batch, groups * channels, rows, columns] tensor, as the packer reads it. Element (n, k, h, w) lies at
// data[n * batch_stride + channel_offset[k] + h * row_stride + w * col_stride], and exists where
// 0 <= h * row_scale + channel_row[k] < hr_h and 0 <= w * col_scale + channel_col[k] < hr_w.
// (A plain input has scale 1 and channel_row = channel_col = 0; a shuffled gradient has the upscale factor.)
struct Source {
  const void* data;
  int64_t batch_stride, row_stride, col_stride;
  const int64_t* channel_offset;
  const int32_t* channel_row;
  const int32_t* channel_col;
  int64_t row_scale, col_scale, hr_h, hr_w;
  int64_t run;  // channels q*run .. q*run+run-1 lie side by side in memory, in the same row of fine pixels
  // Of a gradient to which that of an activation is applied: the forward pass's output, with the same channels. Or null.
  const Source* output;
  Activation activation;
  double negative_slope;
};

// Convolution geometry in low-resolution pixels; output pixel (h, w), tap (a, b) reads source pixel
// (h * stride_h + a * dilation_h - pad_top, w * stride_w + b * dilation_w - pad_left).
struct Window {
  int64_t batch, groups, channels;  // channels: source channels of one group
  int64_t lr_h, lr_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  // 1: rows whose phase the crop takes off the first pixel row (column) are computed one pixel later than the others,
  // instead of one pixel more for all. lr_h, lr_w are without that pixel.
  int64_t late_h, late_w;
  int64_t taps() const { return kernel_h * kernel_w; }
};

// Weight of (row, channel, tap): data[row_offset[row] + channel_offset[channel] + tap_offset[tap]], where row and
// channel count through all groups.
struct Filter {
  const void* data;
  const int64_t* row_offset;
  const int64_t* channel_offset;
  const int64_t* tap_offset;
  // [groups * rows], or null: the taps that a row lacks, 1 the first column + 2 the first row. They count as zero, and are
  // not read.
  const uint8_t* lacks;
  // Which neighbours in k order are neighbours in memory: all of (channel, tap), the channels of one tap
  // (channels_last weights), or neither. Only a shortcut for packing.
  enum class Dense { kNone, kAll, kChannels } dense;
};

// Where the rows (output channels of the convolution) go. Rows are sorted so that neighbours in memory are
// neighbours here; `run` rows fill consecutive elements of one pixel cell row, or run == 0 where they do not.
struct Destination {
  void* data;
  Strides stride;
  const Phase* row_phase;      // [groups * rows]
  const int64_t* row_channel;  // [groups * rows]: convolution channel of each row
  int64_t rows;                // of one group
  int64_t run;
  bool rows_dense;  // whole vectors of rows lie side by side in memory (channels_last)
  int64_t r_h, r_w, crop_top, crop_left, out_h, out_w;
};

struct TaskEpilogue {
  const void* bias;        // or null
  int64_t bias_c, bias_o;  // index = bias_c * c + bias_o * convolution channel
  Activation activation;
  double negative_slope, clamp_min, clamp_max;
  const void* prelu;         // or null
  int64_t prelu_c, prelu_o;  // prelu slope index = prelu_c * c + prelu_o * convolution channel
  const void* residual;      // or null; element at n, c (or o), h, w
  ResidualKind residual_kind;
  Strides residual_stride;
};

struct ConvTask {
  DType dtype;
  Window window;
  Source source;
  Filter filter;
  Destination dest;
  TaskEpilogue epilogue;
  CpuPlan plan;
  // Where the plan does not keep the filter per thread: the panels of all groups, packed once before the items run.
  void* panels;
  bool* infinite_filter;  // set by whoever packs a weight that is not finite
};

// Weight gradient: partial[slot][row][channel * taps + tap] += sum over pixels of gradient(row) * input(channel).
// One slot per worker, summed afterwards in order. The gradient is a Source whose channels are the rows.
struct WeightGradTask {
  DType dtype;
  Window window;
  Source input;
  Source gradient;
  int64_t rows;  // of one group
  CpuPlan plan;
  int64_t slots;
  void* partial;  // arithmetic type: [slots][groups * rows][channels * taps + 1]; the last column is the bias
  const int64_t* row_channel;  // [groups * rows]: convolution channel of each row
  void* grad_weight;           // [groups * rows, channels, kernel_h, kernel_w], contiguous
  void* grad_bias;             // [groups * rows]
};

// Items that threads take from one another, for they are not equally fast: a core may be a small one, or busy. Large
// shares first, so that few are taken, and single items at last, so that nobody waits long for the slowest. Which thread
// computes an item has no influence on its result.
class Shares {
 public:
  struct Share {
    int64_t begin, end;  // nothing is left if they are equal
  };
  Shares(int64_t items, int threads) : items_(items), threads_(threads) {}
  Share take() {
    int64_t begin = __atomic_load_n(&next_, __ATOMIC_RELAXED), end;
    do {
      const int64_t part = (items_ - begin) / (2 * threads_);
      end = begin + (part > 0 ? part : begin < items_ ? 1 : 0);
    } while (!__atomic_compare_exchange_n(&next_, &begin, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return {begin, end};
  }

 private:
  const int64_t items_, threads_;
  int64_t next_ = 0;
};

// Scratch of the calling thread, kept between calls while it is small; 64-byte aligned.
void* thread_scratch(size_t bytes);

struct Kernels {
  const char* name;
  int vector_bytes, registers;
  void (*conv)(const ConvTask&, Shares& items);          // see plan.h
  void (*redo_borders)(const ConvTask&, Shares& items);  // where the filter is not finite; after conv
  void (*pack_panels)(const ConvTask&, Shares& panels);  // of all groups, into task.panels
  void (*weight_grad)(const WeightGradTask&, int64_t slot, int64_t begin, int64_t end);
  void (*finish_weight_grad)(const WeightGradTask&);  // adds the slots in order
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

}  // namespace fused_subpixel::cpu
