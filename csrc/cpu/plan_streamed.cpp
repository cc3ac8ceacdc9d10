// SPDX-License-Identifier: BSD-3-Clause
// kStreamed: which weights have rows for it, what it would take, and its tables.
#include "cpu/plan_streamed.h"

#include <algorithm>

#include "cpu/plan_k_blocks.h"
#include "cpu/plan_offers.h"

namespace fused_subpixel::cpu {
namespace {

// More pixels are worth packed weights, and are not considered.
constexpr int64_t kMostPixels = 1024;
// Taps times pixels; more would need large tables.
constexpr int64_t kMostReads = 1 << 18;
// The windows of a chunk, and the sums of an item, take such shares of the L2 cache.
constexpr int64_t kWindowsShareOfL2 = 2, kSumsShareOfL2 = 4;
// Rows of input channels that are summed at a time: so many lines of one column stay in the first cache.
constexpr int64_t kChunkOfInputs = 32;
// Measured on Zen 4, in cycles: a weight from beyond the L2 cache; a sum across lanes; an element of a window, by value and by
// vectors; a product that is added to an output, and a vector of them. Products wait longer than those of packed weights.
constexpr double kWeight = 0.4, kFold = 6, kWindow = 2.7, kWindowVector = 0.7 * 16, kAdd = 3, kAddVector = 4;
constexpr double kWait = 1.2;
// Cycles of one thread that are worth waking others.
constexpr double kParallelCycles = 4e4;

size_t size(int64_t n) { return static_cast<size_t>(n); }
int64_t even_tile(int64_t count, int64_t most) { return ceil_div(count, ceil_div(count, most)); }

// Output channels that are stored together: whole vectors, and groups that interleave in registers.
int64_t stored_unit(int64_t interleave, int64_t lanes) {
  return interleaves_in_registers(interleave) ? round_up(lanes, interleave) : lanes;
}

// Are the offsets of all pairs different, and do they fill a run of memory?
struct Run {
  int64_t first, length;  // length 0: they do not
};
template <class Exists>
Run run_of(const int64_t* outer, int64_t count, const std::vector<int64_t>& taps, Exists exists) {
  int64_t first = INT64_MAX, last = INT64_MIN, pairs = 0;
  const auto each = [&](auto&& f) {
    for (int64_t o = 0; o < count; ++o)
      for (size_t tap = 0; tap < taps.size(); ++tap)
        if (exists(o, static_cast<int64_t>(tap))) f(outer[o] + taps[tap]);
  };
  each([&](int64_t at) {
    first = std::min(first, at);
    last = std::max(last, at);
    ++pairs;
  });
  if (pairs == 0 || last - first + 1 != pairs) return {0, 0};
  std::vector<bool> seen(size(pairs));
  bool distinct = true;
  each([&](int64_t at) {
    auto place = seen.begin() + (at - first);
    distinct = distinct && !*place;
    *place = true;
  });
  return {first, distinct ? pairs : 0};
}

std::vector<int64_t> read_lines(int64_t pixels, int64_t taps, int64_t stride, int64_t dilation, int64_t pad,
                                int64_t in) {
  std::vector<int64_t> lines;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t a = 0; a < taps; ++a)
      if (const int64_t at = p * stride + a * dilation - pad; at >= 0 && at < in) lines.push_back(at);
  std::sort(lines.begin(), lines.end());
  lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
  return lines;
}

// Does a table of all groups say the same of each?
template <class E>
bool alike(const std::vector<E>& table, int64_t of_group) {
  for (size_t i = size(of_group); i < table.size(); ++i)
    if (table[i] != table[i - size(of_group)]) return false;
  return true;
}

bool evenly_apart(const std::vector<int64_t>& offset, int64_t count) {
  for (size_t c = 2; c < size(count); ++c)
    if (offset[c] - offset[c - 1] != offset[1] - offset[0]) return false;
  return true;
}

// Are output channels in the order of channels, or in that of channels for one phase after the other, and is the place of each
// in a row that of its channel, channel_step apart, in one of several runs of all channels?
template <class Exists>
bool has_channels_in_order(const ConvShape& s, const ConvPass& pass, const std::vector<int64_t>& channel,
                           const WeightRows& rows, Exists exists) {
  const int64_t run = rows.channels * rows.channel_step, phases = s.oc / rows.channels;
  if (rows.channel_step < 1 || rows.length % run != 0 || s.oc % rows.channels != 0) return false;
  const bool by_phase = phases > 1 && channel[0] != channel[1];
  for (int64_t oc = 0; oc < s.oc; ++oc) {
    if (channel[size(oc)] - channel[0] != (by_phase ? oc % rows.channels : oc / phases)) return false;
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t at = pass.oc_offset[size(oc)] + pass.tap_offset[size(tap)] - rows.first;
      if (exists(oc, tap) && at % run / rows.channel_step != channel[size(oc)] - channel[0]) return false;
    }
  }
  return true;
}

// Can the source be read as it lies: a tensor that is not shuffled, without a gradient of an activation to be applied?
bool is_plain(const Source& source, const SourceTables& tables) {
  const auto zero = [](const std::vector<int32_t>& v) {
    return std::all_of(v.begin(), v.end(), [](int32_t x) { return x == 0; });
  };
  return !source.output && source.row_scale == 1 && source.col_scale == 1 && zero(tables.row) &&
         zero(tables.col) && evenly_apart(tables.offset, static_cast<int64_t>(tables.offset.size()));
}

// Of rows of an output channel, only what is between the first and the last element that some pixel is multiplied by.
void set_output_rows(const ConvShape& s, const ConvPass& pass, int64_t in_h, int64_t in_w, WeightRows& rows) {
  const auto reads = [](int64_t pixels, int64_t tap, int64_t stride, int64_t dilation, int64_t pad,
                        int64_t in) {
    for (int64_t p = 0; p < pixels; ++p)
      if (const int64_t at = p * stride + tap * dilation - pad; at >= 0 && at < in) return true;
    return false;
  };
  const auto [least, most] = std::minmax_element(pass.ic_offset.begin(), pass.ic_offset.begin() + s.ic);
  int64_t first = INT64_MAX, last = INT64_MIN;
  for (int64_t a = 0; a < s.kernel_h; ++a)
    for (int64_t b = 0; b < s.kernel_w; ++b)
      if (reads(s.lr_h, a, s.stride_h, s.dilation_h, s.pad_top, in_h) &&
          reads(s.lr_w, b, s.stride_w, s.dilation_w, s.pad_left, in_w)) {
        const int64_t tap = pass.tap_offset[size(a * s.kernel_w + b)];
        first = std::min(first, *least + tap);
        last = std::max(last, *most + tap);
      }
  if (first > last) return;
  rows.kind = WeightRow::kOfOutput;
  rows.first = first;
  rows.length = last - first + 1;
  rows.channel_step = s.ic > 1 ? pass.ic_offset[1] - pass.ic_offset[0] : rows.length;
}

int64_t pixels_of(const ConvShape& s) { return s.batch * s.lr_h * s.lr_w; }

}  // namespace

WeightRows weight_rows(const ConvShape& s, const ConvPass& pass, const std::vector<int64_t>& channel) {
  WeightRows rows;
  const Source& source = pass.task.source;
  const int64_t in_h = source.hr_h, in_w = source.hr_w;
  if (!is_plain(source, pass.source_tables)) return rows;
  if (s.ic == 0 || s.oc == 0 || pixels_of(s) < 1 || pixels_of(s) > kMostPixels) return rows;
  rows.read_h = read_lines(s.lr_h, s.kernel_h, s.stride_h, s.dilation_h, s.pad_top, in_h);
  rows.read_w = read_lines(s.lr_w, s.kernel_w, s.stride_w, s.dilation_w, s.pad_left, in_w);
  if (pass.missing_taps.empty() && alike(pass.ic_offset, s.ic) && evenly_apart(pass.ic_offset, s.ic)) {
    const Run run =
        run_of(pass.ic_offset.data(), s.ic, pass.tap_offset, [](int64_t, int64_t) { return true; });
    if (run.length > 0) {
      set_output_rows(s, pass, in_h, in_w, rows);
      return rows;
    }
  }
  if (s.taps() * s.lr_h * s.lr_w > kMostReads) return rows;
  const auto exists = [&](int64_t oc, int64_t tap) {
    return pass.missing_taps.empty() || !lacks_tap(pass.missing_taps[size(oc)], tap, s.kernel_w);
  };
  const Run run = run_of(pass.oc_offset.data(), s.oc, pass.tap_offset, exists);
  if (run.length == 0 || rows.read_h.empty() || rows.read_w.empty()) return rows;
  if (!alike(pass.oc_offset, s.oc) || !alike(pass.missing_taps, s.oc)) return rows;
  rows.first = run.first;
  rows.length = run.length;
  rows.step = s.ic > 1 ? pass.ic_offset[1] - pass.ic_offset[0] : 0;
  const auto of_group = channel.begin() + s.oc;
  rows.channels = *std::max_element(channel.begin(), of_group) - channel[0] + 1;
  const auto second = std::find(channel.begin(), of_group, channel[0] + 1);
  rows.channel_step = second == of_group
                          ? rows.length
                          : pass.oc_offset[static_cast<size_t>(second - channel.begin())] - pass.oc_offset[0];
  if (evenly_apart(pass.ic_offset, s.ic) && has_channels_in_order(s, pass, channel, rows, exists))
    rows.kind = WeightRow::kOfInput;
  return rows;
}

void offer_streamed(const ConvProblem& p, const Target& t, Offers& offers) {
  const ConvShape& s = p.shape;
  if (p.weight_row == WeightRow::kNone || p.no_winograd || pixels_of(s) == 0) return;
  const int64_t L = t.lanes, pixels = pixels_of(s),
                weights = p.row_length * (p.weight_row == WeightRow::kOfOutput ? s.oc : s.ic);
  const auto of_groups = [&](double cycles) {
    const double read = weights_stay(s.groups * weights, t) ? 0 : kWeight * static_cast<double>(weights);
    const double stored = static_cast<double>(s.oc * s.batch * s.lr_h * ceil_div(s.lr_w, L));
    return static_cast<double>(s.groups) * (cycles + read + stored * planar_store(p, t));
  };
  if (p.weight_row == WeightRow::kOfOutput) {
    const int rows = streamed_rows(t.registers);
    const int64_t most = even_tile(pixels, kMaxStreamedPixels), splits = ceil_div(pixels, most);
    const double products = kWait *
                            static_cast<double>(ceil_div(s.oc, rows) * splits * ceil_div(p.row_length, L)) *
                            k_cycles(rows * most, most, rows, kHiddenWeights);
    const double windows = (p.row_by_tap && p.ic_contiguous ? kWindowVector / L : kWindow) *
                           static_cast<double>(pixels * p.row_length * t.threads);
    offers.add({ConvKernel::kStreamed, rows, static_cast<int>(most),
                of_groups(products + kFold * static_cast<double>(pixels * s.oc) + windows)});
    return;
  }
  const int64_t read = s.batch * p.read_pixels;
  for (int nv : TileOcVectors::values) {
    if (nv * L > p.row_length) continue;
    // a tile holds channels of one tap and one item
    if (p.row_by_tap && nv > 1 && nv * L * t.threads > s.oc / p.phases) continue;
    const int64_t most = even_tile(read, oc_tile_pixels(nv, t.registers)), splits = ceil_div(read, most);
    const double products = kWait * static_cast<double>(ceil_div(p.row_length, nv * L) * splits * s.ic) *
                            k_cycles(nv * most, most, nv, kHiddenWeights);
    const double added =
        (p.row_by_tap && p.oc_contiguous ? kAddVector / L : kAdd) * static_cast<double>(read * p.row_length);
    const double packed = kWindow * static_cast<double>(read * s.ic * t.threads);
    offers.add({ConvKernel::kStreamed, static_cast<int>(nv * L), static_cast<int>(most),
                of_groups(products + added + packed)});
  }
}

void set_streamed_parts(const ConvProblem& p, const Target& t, ConvPlan& plan) {
  const ConvShape& s = plan.shape;
  const int64_t pixels = pixels_of(s), bytes = t.element_bytes;
  plan.parallel = t.threads > 1 && plan.cycles[static_cast<int>(ConvKernel::kStreamed)] > kParallelCycles;
  const int64_t threads = plan.parallel ? t.threads : 1;
  plan.weight_row = p.weight_row;
  plan.weights_resident = true;  // nothing of them is packed
  plan.panel_tiles = plan.interleaved_tiles = 1;
  plan.block_n = s.batch;
  plan.block_h = s.lr_h;
  plan.block_w = s.lr_w;
  plan.blocks_n = plan.blocks_h = plan.blocks_w = 1;
  // parts keep groups of output channels together that interleave in registers
  int64_t channels = s.oc, unit = t.lanes, of_channel = pixels;
  if (p.weight_row == WeightRow::kOfOutput) {
    unit = stored_unit(p.interleave, t.lanes);
    const int64_t most = t.l2_bytes / kWindowsShareOfL2 / (pixels * bytes);
    plan.row_chunk = std::clamp<int64_t>(most / t.lanes * t.lanes, 8 * t.lanes, kMaxChain * t.lanes);
  } else {
    channels = s.oc / p.phases;
    unit = p.row_by_tap ? plan.tile_oc : p.oc_contiguous ? t.lanes : ceil_div(int64_t{t.lanes}, p.phases);
    of_channel = pixels * p.phases + s.batch * p.read_pixels * p.row_length / channels;
    plan.row_chunk = std::min(kChunkOfInputs, s.ic);
  }
  const int64_t most = std::max(t.l2_bytes / kSumsShareOfL2 / (of_channel * bytes), unit);
  const int64_t parts = round_up(ceil_div(channels, most), ceil_div(threads, s.groups));
  plan.part_channels = std::min(round_up(ceil_div(channels, parts), unit), channels);
  plan.parts = ceil_div(channels, plan.part_channels);
  plan.items = s.groups * plan.parts;
}

void set_streamed(const Target& t, const WeightRows& rows, ConvPass& pass) {
  ConvTask& task = pass.task;
  const ConvPlan& plan = task.plan;
  const ConvShape& s = plan.shape;
  StreamedRows& streamed = task.streamed;
  const int64_t L = t.lanes, pixels = pixels_of(s);
  const auto odd_vectors = [L](int64_t n) { return (ceil_div(n, L) | 1) * L; };
  std::vector<int64_t>&at = pass.k[0].at, &k = pass.k[1].at, &begin = pass.k[2].at;
  streamed = {};
  streamed.first = rows.first;
  streamed.length = rows.length;
  ConvScratch& scratch = task.scratch;
  if (plan.weight_row == WeightRow::kOfOutput) {
    for (int64_t tap : pass.tap_offset) at.push_back(pass.ic_offset[0] + tap - rows.first);
    streamed.channel_step = rows.channel_step;
    streamed.window_step = odd_vectors(std::min(plan.row_chunk, rows.length));
    streamed.stored_channels = std::min(plan.part_channels, stored_unit(task.dest.interleave, L));
    scratch.streamed_pixels = pixels * streamed.window_step + L;
    scratch.acc = plan.part_channels * pixels + L;
  } else {
    const auto &h = rows.read_h, &w = rows.read_w;
    for (int64_t y : h)
      for (int64_t x : w) at.push_back(y * task.source.row_stride + x * task.source.col_stride);
    const auto place = [](const std::vector<int64_t>& lines, int64_t line) {
      const auto found = std::lower_bound(lines.begin(), lines.end(), line);
      return found == lines.end() || *found != line ? int64_t{-1} : found - lines.begin();
    };
    for (int64_t a = 0; a < s.kernel_h; ++a)
      for (int64_t b = 0; b < s.kernel_w; ++b) {
        begin.push_back(static_cast<int64_t>(pass.streamed_reads.size()));
        for (int64_t y = 0; y < s.lr_h; ++y)
          for (int64_t x = 0; x < s.lr_w; ++x) {
            const int64_t row = place(h, y * s.stride_h + a * s.dilation_h - s.pad_top);
            const int64_t column = place(w, x * s.stride_w + b * s.dilation_w - s.pad_left);
            if (row < 0 || column < 0) continue;
            pass.streamed_reads.push_back(
                {static_cast<int32_t>(y * s.lr_w + x),
                 static_cast<int32_t>(row * static_cast<int64_t>(w.size()) + column)});
          }
      }
    begin.push_back(static_cast<int64_t>(pass.streamed_reads.size()));
    streamed.read_pixels = static_cast<int64_t>(at.size());
    const int64_t read = s.batch * streamed.read_pixels, phases = s.oc / rows.channels;
    streamed.channels = rows.channels;
    streamed.channel_step = rows.channel_step;
    for (int64_t c = 0; c <= plan.row_chunk; ++c) k.push_back(c * read);
    streamed.offsets = {.at = k.data(),
                        .count = plan.row_chunk,
                        .column_step = 1,
                        .weight_step = rows.step,
                        .acc_step = 0,
                        .add = false};
    streamed.reads = pass.streamed_reads.data();
    streamed.reads_begin = begin.data();
    streamed.stored_channels =
        std::min(plan.part_channels * phases, task.dest.oc_contiguous ? L : round_up(L, phases));
    const int64_t runs = rows.length / (rows.channels * rows.channel_step);
    scratch.streamed_pixels = s.ic * read + L;
    scratch.streamed_products =
        runs * round_up(plan.part_channels * rows.channel_step, plan.tile_oc) * read + L;
    scratch.acc = round_up(plan.part_channels * phases, L) * pixels + L;
  }
  streamed.at = at.data();
  scratch.input_tile = 2 * L;  // see ConvWorker
  scratch.streamed_planar = streamed.stored_channels * kMaxStoredVectors * L;
  scratch.oc = s.oc + L;
}

}  // namespace fused_subpixel::cpu
