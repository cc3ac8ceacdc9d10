// SPDX-License-Identifier: BSD-3-Clause
// The pure host logic of csrc - index map, plan, strip geometry, shares - for pytest.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/pixel_shuffle.h"
#include "cpu/conv_task.h"
#include "cpu/plan.h"

namespace py = pybind11;
using namespace fused_subpixel;

PYBIND11_MODULE(fused_subpixel_host, m) {
  py::enum_<ChannelOrder>(m, "ChannelOrder")
      .value("CRD", ChannelOrder::kCRD)
      .value("DCR", ChannelOrder::kDCR);
  m.def("phase_of_channel",
        [](int64_t channel, int64_t channels, int64_t r_h, int64_t r_w, ChannelOrder order) {
          const Phase p = phase_of_channel(channel, shuffle_sizes(channels, r_h, r_w), order);
          return py::make_tuple(p.c, p.i, p.j);
        });
  m.def("channel_of_phase",
        [](int64_t c, int64_t i, int64_t j, int64_t channels, int64_t r_h, int64_t r_w, ChannelOrder order) {
          return channel_of_phase(Phase{c, i, j}, shuffle_sizes(channels, r_h, r_w), order);
        });

  m.attr("TILE_ROWS") = std::vector<int>(std::begin(kTileRows), std::end(kTileRows));
  m.def("pixel_vectors", &pixel_vectors);
  m.def("channel_pixels", &channel_pixels);
  m.def("gradient_columns", &gradient_columns);

  m.attr("PIXEL_LANES") = static_cast<int>(CpuKernel::kPixelLanes);
  m.attr("CHANNEL_LANES") = static_cast<int>(CpuKernel::kChannelLanes);
  m.attr("WINOGRAD") = static_cast<int>(CpuKernel::kWinograd);

#define FS_FIELD(Class, field) def_readwrite(#field, &Class::field)
  py::class_<CpuTarget>(m, "CpuTarget")
      .def(py::init<>())
      .FS_FIELD(CpuTarget, lanes)
      .FS_FIELD(CpuTarget, registers)
      .FS_FIELD(CpuTarget, l2_bytes)
      .FS_FIELD(CpuTarget, threads)
      .FS_FIELD(CpuTarget, element_bytes);
  py::class_<CpuProblem>(m, "CpuProblem")
      .def(py::init<>())
      .FS_FIELD(CpuProblem, batch)
      .FS_FIELD(CpuProblem, groups)
      .FS_FIELD(CpuProblem, channels)
      .FS_FIELD(CpuProblem, rows)
      .FS_FIELD(CpuProblem, lr_h)
      .FS_FIELD(CpuProblem, lr_w)
      .FS_FIELD(CpuProblem, kernel_h)
      .FS_FIELD(CpuProblem, kernel_w)
      .FS_FIELD(CpuProblem, stride_h)
      .FS_FIELD(CpuProblem, stride_w)
      .FS_FIELD(CpuProblem, dilation_h)
      .FS_FIELD(CpuProblem, dilation_w)
      .FS_FIELD(CpuProblem, run)
      .FS_FIELD(CpuProblem, rows_dense)
      .FS_FIELD(CpuProblem, late_h)
      .FS_FIELD(CpuProblem, late_w)
      .FS_FIELD(CpuProblem, phase_taps)
      .FS_FIELD(CpuProblem, phase_rows)
      .FS_FIELD(CpuProblem, phase_turns)
      .FS_FIELD(CpuProblem, source_dense)
      .FS_FIELD(CpuProblem, source_planes)
      .FS_FIELD(CpuProblem, direct);
  py::class_<CpuPlan>(m, "CpuPlan")
      .def_property_readonly("kernel", [](const CpuPlan& p) { return static_cast<int>(p.kernel); })
      .FS_FIELD(CpuPlan, tile_rows)
      .FS_FIELD(CpuPlan, tile_pixels)
      .FS_FIELD(CpuPlan, phased)
      .FS_FIELD(CpuPlan, panel_tiles)
      .FS_FIELD(CpuPlan, turns)
      .FS_FIELD(CpuPlan, block_n)
      .FS_FIELD(CpuPlan, block_h)
      .FS_FIELD(CpuPlan, block_w)
      .FS_FIELD(CpuPlan, blocks_n)
      .FS_FIELD(CpuPlan, blocks_h)
      .FS_FIELD(CpuPlan, blocks_w)
      .FS_FIELD(CpuPlan, items)
      .FS_FIELD(CpuPlan, filter_resident)
      .FS_FIELD(CpuPlan, parallel)
      .FS_FIELD(CpuPlan, panels)
      .FS_FIELD(CpuPlan, panel_elements)
      .FS_FIELD(CpuPlan, channels_inner);
  py::class_<StripShape>(m, "StripShape")
      .FS_FIELD(StripShape, rows)
      .FS_FIELD(StripShape, phases)
      .FS_FIELD(StripShape, phase_columns)
      .FS_FIELD(StripShape, row_step)
      .FS_FIELD(StripShape, column_step)
      .FS_FIELD(StripShape, channel_step)
      .FS_FIELD(StripShape, image_step);
#undef FS_FIELD
  m.def("plan_cpu_conv", &plan_cpu_conv);
  m.def("plan_cpu_weight_grad", &plan_cpu_weight_grad);
  m.def("strip_shape", &strip_shape);
  m.def("winograd_strip", &winograd_strip);
  py::class_<cpu::Shares>(m, "Shares").def(py::init<int64_t, int>()).def("take", [](cpu::Shares& shares) {
    const cpu::Shares::Share s = shares.take();
    return py::make_tuple(s.begin, s.end);
  });
}
