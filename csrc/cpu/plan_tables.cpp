// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/plan_tables.h"

#include <algorithm>

namespace fused_subpixel::cpu {
namespace {

// `candidate` if the channels of every group split into interleave groups of so many neighbours in one high-resolution
// row, otherwise 0.
template <class Offset>
int64_t checked_interleave(int64_t candidate, const std::vector<Phase>& phase, int64_t per_group,
                           Offset offset) {
  if (candidate < 1 || per_group % candidate != 0) return 0;
  for (size_t oc = 0; oc < phase.size(); oc += static_cast<size_t>(candidate)) {
    for (int64_t q = 1; q < candidate; ++q) {
      const Phase &a = phase[oc], &b = phase[oc + static_cast<size_t>(q)];
      if (a.i != b.i || offset(b) != offset(a) + q) return 0;
    }
  }
  return candidate;
}

// The forward pass's residual at an output channel.
int64_t residual_offset(const TaskEpilogue& e, const Phase& p, int64_t channel, int64_t i, int64_t j) {
  const Strides& s = e.residual_stride;
  if (e.residual_kind == ResidualKind::kHighRes) return p.c * s.c + i * s.h + j * s.w;
  if (e.residual_kind == ResidualKind::kLowRes) return channel * s.c;
  return p.c * s.c;
}

}  // namespace

SparedPixels spared_pixels(const Geometry& g) {
  if (g.stride_h != 1 || g.stride_w != 1) return {0, 0};
  const PhaseGeometry phases(g);
  return {phases.h.spared_pixels() == 1 ? 1 : 0, phases.w.spared_pixels() == 1 ? 1 : 0};
}

OcOrder oc_order(const Geometry& g, bool channels_last, bool single_phase) {
  const int64_t total = g.lr_channels(), per_group = total / g.groups;
  OcOrder order{std::vector<Phase>(static_cast<size_t>(total)),
                std::vector<int64_t>(static_cast<size_t>(total))};
  std::vector<int64_t> filled(static_cast<size_t>(g.groups), 0);
  const auto add = [&](Phase p) {
    const int64_t channel = channel_of_phase(p, g.shuffle(), g.order), group = channel / per_group;
    const auto at = static_cast<size_t>(group * per_group + filled[static_cast<size_t>(group)]++);
    order.phase[at] = p;
    order.channel[at] = channel;
  };
  const int64_t first = single_phase && spared_pixels(g).w > 0 ? g.crop_left : 0;
  if (channels_last) {
    for (int64_t i = 0; i < g.r_h; ++i)
      for (int64_t j = 0; j < g.r_w; ++j)
        for (int64_t c = 0; c < g.channels; ++c) add({c, i, (first + j) % g.r_w});
  } else if (single_phase) {
    for (int64_t i = 0; i < g.r_h; ++i)
      for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t j = 0; j < g.r_w; ++j) add({c, i, (first + j) % g.r_w});
  } else {
    for (int64_t c = 0; c < g.channels; ++c)
      for (int64_t i = 0; i < g.r_h; ++i)
        for (int64_t j = 0; j < g.r_w; ++j) add({c, i, j});
  }
  return order;
}

int64_t shuffled_interleave(const Geometry& g, const Strides& s, const std::vector<Phase>& phase) {
  // one low-resolution pixel holds r_w high-resolution columns of s.w elements each
  return checked_interleave(g.r_w * s.w, phase, g.lr_channels() / g.groups,
                            [&](const Phase& p) { return p.c * s.c + p.j * s.w; });
}

int64_t plain_interleave(const Strides& s, int64_t per_group) {
  if (s.w < 1 || per_group % s.w != 0) return 0;
  return s.w == 1 || s.c == 1 ? s.w : 0;
}

ShuffledOc shuffled_oc(const Geometry& g, const Strides& s) {
  const bool channels_last = channels_are_neighbours(s, g.channels);
  ShuffledOc oc{oc_order(g, channels_last, false), 0, channels_last};
  oc.interleave = shuffled_interleave(g, s, oc.order.phase);
  return oc;
}

Source input_source(const Geometry& g, const Strides& s, SourceTables& tables) {
  for (int64_t c = 0; c < g.in_channels; ++c) tables.offset.push_back(c * s.c);
  tables.row.assign(tables.offset.size(), 0);
  tables.col.assign(tables.offset.size(), 0);
  return {.data = nullptr,
          .batch_stride = s.n,
          .row_stride = s.h,
          .col_stride = s.w,
          .channel_offset = tables.offset.data(),
          .channel_row = tables.row.data(),
          .channel_col = tables.col.data(),
          .row_scale = 1,
          .col_scale = 1,
          .hr_h = g.in_h,
          .hr_w = g.in_w,
          .interleave = channels_are_neighbours(s, g.in_channels) ? g.in_channels / g.groups : 1,
          .output = nullptr,
          .activation = Activation::kNone,
          .negative_slope = 0.0};
}

Source shuffled_source(const Geometry& g, const Strides& s, const std::vector<Phase>& phases,
                       int64_t interleave, SourceTables& tables) {
  for (const Phase& p : phases) {
    const int64_t i = p.i - g.crop_top, j = p.j - g.crop_left;
    tables.offset.push_back(p.c * s.c + i * s.h + j * s.w);
    tables.row.push_back(static_cast<int32_t>(i));
    tables.col.push_back(static_cast<int32_t>(j));
  }
  return {.data = nullptr,
          .batch_stride = s.n,
          .row_stride = g.r_h * s.h,
          .col_stride = g.r_w * s.w,
          .channel_offset = tables.offset.data(),
          .channel_row = tables.row.data(),
          .channel_col = tables.col.data(),
          .row_scale = g.r_h,
          .col_scale = g.r_w,
          .hr_h = g.out_h,
          .hr_w = g.out_w,
          .interleave = std::max<int64_t>(interleave, 1),
          .output = nullptr,
          .activation = Activation::kNone,
          .negative_slope = 0.0};
}

OcTable OcTables::view() const {
  return {.dest = dest.data(),
          .residual = residual.data(),
          .interleave_left = interleave_left.data(),
          .hr_row = hr_row.data(),
          .hr_col = hr_col.data(),
          .hr_channel = hr_channel.data(),
          .lr_channel = lr_channel.data(),
          .first_row = first_row.data(),
          .first_col = first_col.data()};
}

OcTables oc_tables(const Geometry& g, const OcOrder& order, const ConvTask& task) {
  const Destination& d = task.dest;
  const int64_t per_group = g.lr_channels() / g.groups;
  const PhaseGeometry phases(g);
  OcTables t;
  for (size_t at = 0; at < order.phase.size(); ++at) {
    const Phase& p = order.phase[at];
    const int64_t channel = order.channel[at], oc = static_cast<int64_t>(at) % per_group;
    const int64_t row = task.plan.spared_h > 0 ? phases.h.first_pixel(p.i) : 0;
    const int64_t col = task.plan.spared_w > 0 ? phases.w.first_pixel(p.j) : 0;
    const int64_t i = p.i - g.crop_top + row * g.r_h, j = p.j - g.crop_left + col * g.r_w;
    t.dest.push_back(p.c * d.stride.c + i * d.stride.h + j * d.stride.w);
    t.residual.push_back(residual_offset(task.epilogue, p, channel, i, j));
    t.interleave_left.push_back(d.interleave > 0 ? d.interleave - oc % d.interleave : 0);
    t.hr_row.push_back(static_cast<int32_t>(i));
    t.hr_col.push_back(static_cast<int32_t>(j));
    t.hr_channel.push_back(p.c);
    t.lr_channel.push_back(channel);
    t.first_row.push_back(static_cast<uint8_t>(row));
    t.first_col.push_back(static_cast<uint8_t>(col));
  }
  return t;
}

OcTables plain_oc_tables(int64_t channels, const ConvTask& task) {
  const Destination& d = task.dest;
  OcTables t;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t oc = c % task.plan.shape.oc;
    t.dest.push_back(c * d.stride.c);
    t.interleave_left.push_back(d.interleave > 0 ? d.interleave - oc % d.interleave : 0);
    t.hr_channel.push_back(c);
  }
  const auto count = static_cast<size_t>(channels);
  t.residual.assign(count, 0);
  t.hr_row.assign(count, 0);
  t.hr_col.assign(count, 0);
  t.lr_channel = t.hr_channel;
  t.first_row.assign(count, 0);
  t.first_col.assign(count, 0);
  return t;
}

Weight::Dense weight_density(const Strides& s, const Geometry& g) {
  const int64_t taps = g.kernel_h * g.kernel_w, ic = g.in_channels / g.groups;
  if ((g.kernel_w == 1 || s.w == 1) && (g.kernel_h == 1 || s.h == g.kernel_w) && (ic == 1 || s.c == taps))
    return Weight::Dense::kAll;
  return s.c == 1 ? Weight::Dense::kChannels : Weight::Dense::kNone;
}

std::vector<int64_t> tap_offsets(const Geometry& g, const Strides& s, bool flipped) {
  std::vector<int64_t> taps;
  for (int64_t a = 0; a < g.kernel_h; ++a)
    for (int64_t b = 0; b < g.kernel_w; ++b)
      taps.push_back((flipped ? g.kernel_h - 1 - a : a) * s.h + (flipped ? g.kernel_w - 1 - b : b) * s.w);
  return taps;
}

}  // namespace fused_subpixel::cpu
