// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/launch.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace fused_subpixel::cpu {
namespace {

// ---- instruction sets --------------------------------------------------------------------------------------------

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return &portable::kernels;
#if FS_HAVE_AVX2
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kernels : nullptr;
#endif
#if FS_HAVE_AVX512
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                 ? &avx512::kernels
                 : nullptr;
#endif
    default: return nullptr;
  }
}

Isa best_isa() {
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2})
    if (kernels_of(isa)) return isa;
  return Isa::kPortable;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

const Kernels& current() { return *kernels_of(chosen_isa().load(std::memory_order_relaxed)); }

// ---- tables ------------------------------------------------------------------------------------------------------

int64_t compute_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

CpuTarget target_of(const Kernels& kernels, DType dtype, int threads) {
  const int bytes = static_cast<int>(compute_bytes(dtype));
  return {kernels.vector_bytes / bytes, kernels.registers, l2_bytes(), threads, bytes};
}

// The convolution channels, sorted within each group so that neighbours in memory are neighbours in the table.
struct RowOrder {
  std::vector<Phase> phase;
  std::vector<int64_t> channel;
};

// Pixels that only the phases above and left of the crop need, where these can be computed a pixel later instead.
struct Late {
  int64_t h, w;
  explicit Late(const Geometry& g)
      : h(of(g.lr_h, g.out_h, g.r_h, g.crop_top)), w(of(g.lr_w, g.out_w, g.r_w, g.crop_left)) {
    if (g.stride_h != 1 || g.stride_w != 1) h = w = 0;
  }

 private:
  static int64_t of(int64_t conv, int64_t out, int64_t factor, int64_t crop) {
    const int64_t needed = (out + factor - 1) / factor;
    return crop < factor && conv == needed + 1 && needed > 0 ? 1 : 0;
  }
};

// phased: as CpuPlan::phased wants them. Rows of one phase are neighbours, or in NCHW r_w apart, and the late columns of
// a cell follow the others.
RowOrder sorted_rows(const Geometry& g, bool channels_last, bool phased) {
  const int64_t total = g.lr_channels(), per_group = total / g.groups;
  RowOrder rows{std::vector<Phase>(static_cast<size_t>(total)),
                std::vector<int64_t>(static_cast<size_t>(total))};
  std::vector<int64_t> filled(static_cast<size_t>(g.groups), 0);
  const auto add = [&](Phase p) {
    const int64_t channel = channel_of_phase(p, g.shuffle(), g.order), group = channel / per_group;
    const auto at = static_cast<size_t>(group * per_group + filled[static_cast<size_t>(group)]++);
    rows.phase[at] = p, rows.channel[at] = channel;
  };
  const int64_t first = phased && Late(g).w ? g.crop_left : 0;
  if (channels_last) {
    for (int64_t i = 0; i < g.r_h; ++i)
      for (int64_t j = 0; j < g.r_w; ++j)
        for (int64_t c = 0; c < g.channels; ++c) add({c, i, (first + j) % g.r_w});
  } else if (phased) {
    for (int64_t i = 0; i < g.r_h; ++i)
      for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t j = 0; j < g.r_w; ++j) add({c, i, (first + j) % g.r_w});
  } else {
    for (int64_t c = 0; c < g.channels; ++c)
      for (int64_t i = 0; i < g.r_h; ++i)
        for (int64_t j = 0; j < g.r_w; ++j) add({c, i, j});
  }
  return rows;
}

// `candidate` if every group's rows split into whole runs of neighbours in one row of fine pixels, else `otherwise`.
template <class Offset>
int64_t checked_run(int64_t candidate, int64_t otherwise, const std::vector<Phase>& phase, int64_t per_group,
                    Offset offset) {
  if (candidate < 1 || per_group % candidate != 0) return otherwise;
  for (size_t row = 0; row < phase.size(); row += static_cast<size_t>(candidate)) {
    for (int64_t q = 1; q < candidate; ++q) {
      const Phase &a = phase[row], &b = phase[row + static_cast<size_t>(q)];
      if (a.i != b.i || offset(b) != offset(a) + q) return otherwise;
    }
  }
  return candidate;
}

// A shuffled tensor's rows: used as destination (forward) and as source (gradients).
struct ShuffledRows {
  RowOrder order;
  int64_t run;  // 0: none
  bool channels_last;
};

int64_t shuffled_run(const Geometry& g, const Strides& s, const std::vector<Phase>& phase) {
  // one low-resolution pixel holds r_w fine columns of s.w elements each
  return checked_run(g.r_w * s.w, 0, phase, g.lr_channels() / g.groups,
                     [&](const Phase& p) { return p.c * s.c + p.j * s.w; });
}

ShuffledRows shuffled_rows(const Geometry& g, const Strides& s) {
  const bool channels_last = channels_are_neighbours(s, g.channels);
  ShuffledRows rows{sorted_rows(g, channels_last, false), 0, channels_last};
  rows.run = shuffled_run(g, s, rows.order.phase);
  return rows;
}

struct SourceTables {
  std::vector<int64_t> offset;
  std::vector<int32_t> row, col;
};

Source input_source(const Geometry& g, const ConstTensorRef& input, SourceTables& tables) {
  const int64_t per_group = g.in_channels / g.groups;
  tables.offset.resize(static_cast<size_t>(g.in_channels));
  for (int64_t c = 0; c < g.in_channels; ++c) tables.offset[static_cast<size_t>(c)] = c * input.stride.c;
  tables.row.assign(tables.offset.size(), 0);
  tables.col.assign(tables.offset.size(), 0);
  const Strides& s = input.stride;
  const int64_t run = channels_are_neighbours(s, g.in_channels) ? per_group : 1;
  return {input.data,
          s.n,
          s.h,
          s.w,
          tables.offset.data(),
          tables.row.data(),
          tables.col.data(),
          1,
          1,
          g.in_h,
          g.in_w,
          run,
          nullptr,
          Activation::kNone,
          0.0};
}

// A shuffled tensor, read as the low-resolution channels it came from, in the order of `phases`.
Source shuffled_source(const Geometry& g, const ConstTensorRef& t, const std::vector<Phase>& phases,
                       int64_t run, SourceTables& tables) {
  const Strides& s = t.stride;
  for (const Phase& p : phases) {
    const int64_t i = p.i - g.crop_top, j = p.j - g.crop_left;
    tables.offset.push_back(p.c * s.c + i * s.h + j * s.w);
    tables.row.push_back(static_cast<int32_t>(i));
    tables.col.push_back(static_cast<int32_t>(j));
  }
  return {t.data,
          s.n,
          g.r_h * s.h,
          g.r_w * s.w,
          tables.offset.data(),
          tables.row.data(),
          tables.col.data(),
          g.r_h,
          g.r_w,
          g.out_h,
          g.out_w,
          std::max<int64_t>(run, 1),
          nullptr,
          Activation::kNone,
          0.0};
}

// The gradient of the output, with the forward pass's output where an activation's gradient is applied. Stays where it
// is: `source` points to `output`.
struct GradientSource {
  ShuffledRows rows;
  SourceTables tables, output_tables;
  Source output, source;

  GradientSource(const Geometry& g, const ConstTensorRef& grad, const SavedOutput& saved)
      : rows(shuffled_rows(g, grad.stride)),
        source(shuffled_source(g, grad, rows.order.phase, rows.run, tables)) {
    if (saved.activation == Activation::kNone) return;
    // counted in the gradient's order, which has no runs in an output of the other layout
    output = shuffled_source(g, saved.output, rows.order.phase,
                             shuffled_run(g, saved.output.stride, rows.order.phase), output_tables);
    source.output = &output;
    source.activation = saved.activation, source.negative_slope = saved.negative_slope;
  }
  GradientSource(const GradientSource&) = delete;
};

Window forward_window(const Geometry& g) {
  return {g.batch,
          g.groups,
          g.in_channels / g.groups,
          g.lr_h,
          g.lr_w,
          g.kernel_h,
          g.kernel_w,
          g.stride_h,
          g.stride_w,
          g.dilation_h,
          g.dilation_w,
          g.pad_top,
          g.pad_left,
          0,
          0};
}

// The input gradient is a convolution of the low-resolution gradient with the kernel turned by 180 degrees.
Window input_grad_window(const Geometry& g) {
  return {g.batch,
          g.groups,
          g.lr_channels() / g.groups,
          g.in_h,
          g.in_w,
          g.kernel_h,
          g.kernel_w,
          1,
          1,
          g.dilation_h,
          g.dilation_w,
          (g.kernel_h - 1) * g.dilation_h - g.pad_top,
          (g.kernel_w - 1) * g.dilation_w - g.pad_left,
          0,
          0};
}

CpuProblem problem_of(const Window& w, int64_t rows, int64_t run, bool rows_dense) {
  return {w.batch,
          w.groups,
          w.channels,
          rows,
          w.lr_h,
          w.lr_w,
          w.kernel_h,
          w.kernel_w,
          w.stride_h,
          w.stride_w,
          w.dilation_h,
          w.dilation_w,
          run,
          rows_dense,
          0,
          0,
          static_cast<double>(w.taps()),
          0,
          1,
          false,
          false,
          false};
}

void set_phases(const Geometry& g, bool channels_last, CpuProblem& p) {
  if (g.groups != 1 && g.order != ChannelOrder::kCRD) return;  // groups split its phases
  const Late late(g);
  p.late_h = late.h, p.late_w = late.w;
  const auto mean = [](int64_t taps, int64_t phases, int64_t lacking) {
    return static_cast<double>(taps) - static_cast<double>(lacking) / static_cast<double>(phases);
  };
  p.phase_taps = mean(g.kernel_h, g.r_h, g.kernel_pad_h) * mean(g.kernel_w, g.r_w, g.kernel_pad_w);
  p.phase_rows = g.channels / g.groups, p.phase_turns = channels_last ? 1 : g.r_w;
}

Filter::Dense density(const Strides& s, const Geometry& g) {
  const int64_t taps = g.kernel_h * g.kernel_w, channels = g.in_channels / g.groups;
  if ((g.kernel_w == 1 || s.w == 1) && (g.kernel_h == 1 || s.h == g.kernel_w) &&
      (channels == 1 || s.c == taps))
    return Filter::Dense::kAll;
  return s.c == 1 ? Filter::Dense::kChannels : Filter::Dense::kNone;
}

std::vector<int64_t> multiples(int64_t n, int64_t step) {
  std::vector<int64_t> v(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k) v[static_cast<size_t>(k)] = k * step;
  return v;
}

std::vector<int64_t> tap_table(const Geometry& g, const Strides& s, bool turned) {
  std::vector<int64_t> taps;
  for (int64_t a = 0; a < g.kernel_h; ++a)
    for (int64_t b = 0; b < g.kernel_w; ++b)
      taps.push_back((turned ? g.kernel_h - 1 - a : a) * s.h + (turned ? g.kernel_w - 1 - b : b) * s.w);
  return taps;
}

bool rows_dense(const Strides& s, int64_t run, int64_t lanes) { return s.c == 1 && run >= lanes; }

void run_shares(bool parallel, int64_t items, const Pool& pool, const std::function<void(Shares&)>& run) {
  const int64_t workers = parallel ? std::min<int64_t>(items, pool.threads) : 1;
  Shares shares(items, static_cast<int>(workers));
  if (workers > 1)
    pool.for_each_share(workers, [&](int64_t, int64_t) { run(shares); });
  else if (items > 0)
    run(shares);
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

Memory aligned(size_t bytes) {
  Memory memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  return memory;
}

void compute(ConvTask& task, const Kernels& kernels, const Pool& pool) {
  const CpuPlan& plan = task.plan;
  Memory panels;
  if (!plan.filter_resident) {
    const int64_t count = task.window.groups * plan.panels;
    panels = aligned(static_cast<size_t>(count * plan.panel_elements * compute_bytes(task.dtype)));
    task.panels = panels.get();
    run_shares(plan.parallel, count, pool, [&](Shares& shares) { kernels.pack_panels(task, shares); });
  }
  run_shares(plan.parallel, plan.items, pool, [&](Shares& shares) { kernels.conv(task, shares); });
}

// The plan belongs to `problem`. padded: windows may reach outside of the source. Packing reports a weight that is not
// finite. Then Winograd, which subtracts weights, is replaced by the direct tile, and the border is computed again.
void run_conv(ConvTask& task, CpuProblem problem, bool padded, const CpuTarget& target,
              const Kernels& kernels, const Pool& pool) {
  if (task.plan.items == 0) return;
  bool infinite = false;
  task.infinite_filter = &infinite;
  compute(task, kernels, pool);
  if (!infinite) return;
  if (task.plan.kernel == CpuKernel::kWinograd) {
    problem.direct = true, problem.phase_rows = 0;
    task.plan = plan_cpu_conv(problem, target);
    compute(task, kernels, pool);
  }
  if (padded)
    run_shares(task.plan.parallel, task.plan.items, pool,
               [&](Shares& shares) { kernels.redo_borders(task, shares); });
}

}  // namespace

int32_t usable_isas() {
  int32_t mask = 0;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512})
    if (kernels_of(isa)) mask |= 1 << static_cast<int32_t>(isa);
  return mask;
}

Isa current_isa() { return chosen_isa().load(); }

bool select_isa(Isa isa) {
  if (!kernels_of(isa)) return false;
  chosen_isa().store(isa);
  return true;
}

int64_t l2_bytes() {
  static const int64_t bytes = [] {
    long found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? static_cast<int64_t>(found) : int64_t{512} << 10;  // unknown: what most have at least
  }();
  return bytes;
}

// Kept per thread while it is no larger than a strip and a filter panel in a large L2 cache; more than that only
// extreme layers ask for, and it goes back to the system when something smaller comes.
void* thread_scratch(size_t bytes) {
  constexpr size_t kKept = size_t{4} << 20;
  thread_local Memory memory;
  thread_local size_t size = 0;
  if (bytes > size || (size > kKept && bytes <= kKept)) {
    memory.reset();
    size = 0;
    memory = aligned(bytes);
    size = bytes;
  }
  return memory.get();
}

void conv_forward(const ForwardArguments& a, const Pool& pool) {
  const Geometry& g = a.geometry;
  const Kernels& kernels = current();
  const CpuTarget target = target_of(kernels, a.dtype, pool.threads);
  const int64_t per_group = g.lr_channels() / g.groups;
  ShuffledRows rows = shuffled_rows(g, a.output.stride);
  SourceTables tables;
  ConvTask task{};
  task.dtype = a.dtype;
  task.window = forward_window(g);
  task.source = input_source(g, a.input, tables);

  const bool dense = rows_dense(a.output.stride, rows.run, target.lanes);
  const ResidualKind residual = a.epilogue.residual_kind;
  CpuProblem problem = problem_of(task.window, per_group, rows.run, dense);
  problem.source_dense = task.source.run >= target.lanes, problem.source_planes = task.source.run == 1;
  if (residual != ResidualKind::kNearest && residual != ResidualKind::kLowRes)
    set_phases(g, rows.channels_last, problem);
  task.plan = plan_cpu_conv(problem, target);
  if (task.plan.phased) {
    Window& window = task.window;
    window.late_h = problem.late_h, window.late_w = problem.late_w;
    window.lr_h -= problem.late_h, window.lr_w -= problem.late_w;
    rows.order = sorted_rows(g, rows.channels_last, true);
  }

  const Strides& ws = a.weight.stride;
  std::vector<int64_t> row_offset;
  for (const Phase& p : rows.order.phase)
    row_offset.push_back(p.c * a.weight_rows.c + p.i * a.weight_rows.i + p.j * a.weight_rows.j);
  std::vector<uint8_t> lacks;
  if (g.kernel_pad_h + g.kernel_pad_w > 0)
    for (const Phase& p : rows.order.phase)
      lacks.push_back(
          static_cast<uint8_t>((p.j >= g.r_w - g.kernel_pad_w) + 2 * (p.i >= g.r_h - g.kernel_pad_h)));
  // every group reads the same channels of its own rows
  std::vector<int64_t> channel_offset;
  for (int64_t c = 0; c < g.in_channels; ++c) channel_offset.push_back(c % task.window.channels * ws.c);
  const std::vector<int64_t> taps = tap_table(g, ws, a.weight_flipped);
  task.filter = {a.weight.data,
                 row_offset.data(),
                 channel_offset.data(),
                 taps.data(),
                 lacks.empty() ? nullptr : lacks.data(),
                 a.weight_flipped ? Filter::Dense::kNone : density(ws, g)};

  task.dest = {a.output.data,
               a.output.stride,
               rows.order.phase.data(),
               rows.order.channel.data(),
               per_group,
               rows.run,
               dense,
               g.r_h,
               g.r_w,
               g.crop_top,
               g.crop_left,
               g.out_h,
               g.out_w};
  const bool prelu_per_channel = a.prelu_size == g.channels && a.prelu_size > 1;
  const bool prelu_per_row = !prelu_per_channel && a.prelu_size > 1;
  task.epilogue = {a.bias,
                   a.weight_flipped ? 1 : 0,
                   a.weight_flipped ? 0 : 1,
                   a.epilogue.activation,
                   a.epilogue.negative_slope,
                   a.epilogue.clamp_min,
                   a.epilogue.clamp_max,
                   a.prelu,
                   prelu_per_channel,
                   prelu_per_row,
                   a.residual.data,
                   residual,
                   a.residual.stride};
  const bool padded = g.pad_top > 0 || g.pad_left > 0 || g.pad_bottom > 0 || g.pad_right > 0;
  run_conv(task, problem, padded, target, kernels, pool);
}

void conv_input_grad(const InputGradArguments& a, const Pool& pool) {
  const Geometry& g = a.geometry;
  const Kernels& kernels = current();
  const CpuTarget target = target_of(kernels, a.dtype, pool.threads);
  const int64_t per_group = g.in_channels / g.groups;
  const GradientSource gradient(g, a.grad_output, a.saved);
  ConvTask task{};
  task.dtype = a.dtype;
  task.window = input_grad_window(g);
  task.source = gradient.source;

  const Strides& ws = a.weight.stride;
  std::vector<int64_t> row_offset, channel_offset;
  for (int64_t c = 0; c < g.in_channels; ++c) row_offset.push_back(c % per_group * ws.c);
  for (int64_t channel : gradient.rows.order.channel) channel_offset.push_back(channel * ws.n);
  const std::vector<int64_t> taps = tap_table(g, ws, true);
  task.filter = {a.weight.data, row_offset.data(), channel_offset.data(),
                 taps.data(),   nullptr,           Filter::Dense::kNone};

  // rows are the input's channels, written without a shuffle
  const std::vector<int64_t> channel = multiples(g.in_channels, 1);
  std::vector<Phase> phase;
  for (int64_t c = 0; c < g.in_channels; ++c) phase.push_back({c, 0, 0});
  const Strides& s = a.grad_input.stride;
  const int64_t run = checked_run(s.w, 0, phase, per_group, [&](const Phase& p) { return p.c * s.c; });
  const bool dense = rows_dense(s, run, target.lanes);
  task.dest = {
      a.grad_input.data, s, phase.data(), channel.data(), per_group, run, dense, 1, 1, 0, 0, g.in_h, g.in_w};
  const double inf = __builtin_inf();
  task.epilogue = {nullptr, 0, 0,       Activation::kNone,   0.0, -inf, inf, nullptr,
                   0,       0, nullptr, ResidualKind::kNone, {}};
  CpuProblem problem = problem_of(task.window, per_group, run, dense);
  problem.source_dense = task.source.run >= target.lanes && !task.source.output;
  task.plan = plan_cpu_conv(problem, target);
  run_conv(task, problem, true, target, kernels, pool);
}

namespace {
CpuPlan weight_grad_plan(const Geometry& g, DType dtype, const Kernels& kernels, int threads) {
  return plan_cpu_weight_grad(problem_of(forward_window(g), g.lr_channels() / g.groups, 0, false),
                              target_of(kernels, dtype, threads));
}
int64_t weight_grad_slots(const CpuPlan& plan, int threads) {
  return plan.parallel ? std::clamp<int64_t>(threads, 1, std::max<int64_t>(plan.items, 1)) : 1;
}
int64_t weight_grad_row(const Geometry& g) { return g.in_channels / g.groups * g.kernel_h * g.kernel_w + 1; }
}  // namespace

int64_t weight_grad_scratch(const WeightGradArguments& a, const Pool& pool) {
  const CpuPlan plan = weight_grad_plan(a.geometry, a.dtype, current(), pool.threads);
  return weight_grad_slots(plan, pool.threads) * a.geometry.lr_channels() * weight_grad_row(a.geometry) *
         compute_bytes(a.dtype);
}

void conv_weight_grad(const WeightGradArguments& a, void* scratch, const Pool& pool) {
  const Geometry& g = a.geometry;
  const Kernels& kernels = current();
  const GradientSource gradient(g, a.grad_output, a.saved);
  SourceTables tables;
  WeightGradTask task{};
  task.dtype = a.dtype;
  task.window = forward_window(g);
  task.input = input_source(g, a.input, tables);
  task.gradient = gradient.source;
  task.rows = g.lr_channels() / g.groups;
  task.plan = weight_grad_plan(g, a.dtype, kernels, pool.threads);
  task.slots = weight_grad_slots(task.plan, pool.threads);
  task.partial = scratch;
  task.row_channel = gradient.rows.order.channel.data();
  task.grad_weight = a.grad_weight;
  task.grad_bias = a.grad_bias;
  // Fixed shares, one slot each: the sums, and so the result, do not depend on which thread came first.
  const auto run_slots = [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot)
      kernels.weight_grad(task, slot, task.plan.items * slot / task.slots,
                          task.plan.items * (slot + 1) / task.slots);
  };
  if (task.slots > 1)
    pool.for_each_share(task.slots, run_slots);
  else
    run_slots(0, task.slots);
  kernels.finish_weight_grad(task);
}

CpuPlan plan_pass(Pass pass, const Geometry& g, DType dtype, bool channels_last, int threads) {
  const Kernels& kernels = current();
  const CpuTarget target = target_of(kernels, dtype, threads);
  if (pass == Pass::kWeightGrad) return weight_grad_plan(g, dtype, kernels, threads);
  const int64_t h = g.out_h, w = g.out_w, c = g.channels;
  const Strides s = channels_last ? Strides{h * w * c, 1, w * c, c} : Strides{h * w * c, h * w, w, 1};
  const ShuffledRows shuffled = shuffled_rows(g, s);
  const int64_t low_run = shuffled.run;
  if (pass == Pass::kInputGrad) {
    const int64_t rows = g.in_channels / g.groups,
                  run = channels_last ? (g.groups == 1 ? g.in_channels : 0) : 1;
    CpuProblem problem = problem_of(input_grad_window(g), rows, run, channels_last && run >= target.lanes);
    problem.source_dense = low_run >= target.lanes;
    return plan_cpu_conv(problem, target);
  }
  CpuProblem problem = problem_of(forward_window(g), g.lr_channels() / g.groups, low_run,
                                  rows_dense(s, low_run, target.lanes));
  problem.source_dense = channels_last && g.in_channels / g.groups >= target.lanes;
  problem.source_planes = !channels_last || g.in_channels == g.groups;
  set_phases(g, shuffled.channels_last, problem);
  return plan_cpu_conv(problem, target);
}

}  // namespace fused_subpixel::cpu
