// SPDX-License-Identifier: BSD-3-Clause
// The pure host logic of csrc for pytest: the index map, the CPU's plans, work queue and plan cache.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/pixel_shuffle.h"
#include "common/plan_cache.h"
#include "cpu/plan_pass.h"
#include "cpu/work_queue.h"

namespace py = pybind11;
using namespace fused_subpixel;
using namespace fused_subpixel::cpu;

namespace {

// What the tests keep in a PlanCache.
struct CachedNumber {
  int64_t number, size;
  int64_t bytes() const { return size; }
};

PlanKey key_from(const std::vector<int64_t>& numbers) {
  PlanKey key;
  for (int64_t n : numbers) key.add(n);
  return key;
}

}  // namespace

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

  m.attr("TILE_OC") = std::vector<int>(std::begin(TileOc::values), std::end(TileOc::values));
  m.attr("REGISTER_INTERLEAVE") =
      std::vector<int>(std::begin(RegisterInterleave::values), std::end(RegisterInterleave::values));
  m.def("ow_tile_vectors", &ow_tile_vectors);
  m.def("oc_tile_pixels", &oc_tile_pixels);

  m.attr("OW_VECTORISED") = static_cast<int>(ConvKernel::kOwVectorised);
  m.attr("OC_VECTORISED") = static_cast<int>(ConvKernel::kOcVectorised);
  m.attr("WINOGRAD") = static_cast<int>(ConvKernel::kWinograd);
  m.attr("WINOGRAD_ROW") = static_cast<int>(ConvKernel::kWinogradRow);
  m.attr("STREAMED") = static_cast<int>(ConvKernel::kStreamed);
  m.attr("WINOGRAD4") = static_cast<int>(ConvKernel::kWinograd4);
  m.attr("MATRIX") = static_cast<int>(ConvKernel::kMatrix);
  m.attr("WINOGRAD_PANELS") = static_cast<int>(WinogradScheme::kPanels);
  m.attr("WINOGRAD_POSITIONS") = static_cast<int>(WinogradScheme::kPositions);
  m.attr("WINOGRAD_PASSES") = static_cast<int>(WinogradScheme::kPasses);

  py::enum_<MatrixTiles>(m, "MatrixTiles")
      .value("NONE", MatrixTiles::kNone)
      .value("VECTORS", MatrixTiles::kVectors)
      .value("REGISTERS", MatrixTiles::kRegisters);

  py::enum_<WeightRow>(m, "WeightRow")
      .value("NONE", WeightRow::kNone)
      .value("OF_OUTPUT", WeightRow::kOfOutput)
      .value("OF_INPUT", WeightRow::kOfInput);

#define FS_FIELD(Class, field) def_readwrite(#field, &Class::field)
  py::class_<Target>(m, "Target")
      .def(py::init<>())
      .FS_FIELD(Target, lanes)
      .FS_FIELD(Target, registers)
      .FS_FIELD(Target, l2_bytes)
      .FS_FIELD(Target, threads)
      .FS_FIELD(Target, element_bytes)
      .FS_FIELD(Target, matrix_tiles)
      .FS_FIELD(Target, half_rate);
  py::class_<ConvShape>(m, "ConvShape")
      .def(py::init<>())
      .FS_FIELD(ConvShape, batch)
      .FS_FIELD(ConvShape, groups)
      .FS_FIELD(ConvShape, ic)
      .FS_FIELD(ConvShape, oc)
      .FS_FIELD(ConvShape, lr_h)
      .FS_FIELD(ConvShape, lr_w)
      .FS_FIELD(ConvShape, kernel_h)
      .FS_FIELD(ConvShape, kernel_w)
      .FS_FIELD(ConvShape, stride_h)
      .FS_FIELD(ConvShape, stride_w)
      .FS_FIELD(ConvShape, dilation_h)
      .FS_FIELD(ConvShape, dilation_w);
  py::class_<ConvProblem>(m, "ConvProblem")
      .def(py::init<>())
      .FS_FIELD(ConvProblem, shape)
      .FS_FIELD(ConvProblem, interleave)
      .FS_FIELD(ConvProblem, oc_contiguous)
      .FS_FIELD(ConvProblem, spared_h)
      .FS_FIELD(ConvProblem, spared_w)
      .FS_FIELD(ConvProblem, mean_taps)
      .FS_FIELD(ConvProblem, phase_oc)
      .FS_FIELD(ConvProblem, phase_interleave)
      .FS_FIELD(ConvProblem, unused_h)
      .FS_FIELD(ConvProblem, unused_w)
      .FS_FIELD(ConvProblem, ic_interleave)
      .FS_FIELD(ConvProblem, ic_contiguous)
      .FS_FIELD(ConvProblem, planar_input)
      .FS_FIELD(ConvProblem, no_winograd)
      .FS_FIELD(ConvProblem, inexact)
      .FS_FIELD(ConvProblem, weight_row)
      .FS_FIELD(ConvProblem, row_length)
      .FS_FIELD(ConvProblem, row_by_tap)
      .FS_FIELD(ConvProblem, read_pixels)
      .FS_FIELD(ConvProblem, phases);
  py::class_<InputTile>(m, "InputTile")
      .FS_FIELD(InputTile, rows)
      .FS_FIELD(InputTile, stride_phases)
      .FS_FIELD(InputTile, phase_columns)
      .FS_FIELD(InputTile, row_step)
      .FS_FIELD(InputTile, column_step)
      .FS_FIELD(InputTile, channel_step)
      .FS_FIELD(InputTile, image_step);
  py::class_<ConvPlan>(m, "ConvPlan")
      .def_property_readonly("kernel", [](const ConvPlan& p) { return static_cast<int>(p.kernel); })
      .def_property_readonly("scheme", [](const ConvPlan& p) { return static_cast<int>(p.scheme); })
      .def_property_readonly(
          "cycles",
          [](const ConvPlan& p) { return std::vector<double>(std::begin(p.cycles), std::end(p.cycles)); })
      .FS_FIELD(ConvPlan, shape)
      .FS_FIELD(ConvPlan, tile_oc)
      .FS_FIELD(ConvPlan, tile_pixels)
      .FS_FIELD(ConvPlan, weight_row)
      .FS_FIELD(ConvPlan, parts)
      .FS_FIELD(ConvPlan, part_channels)
      .FS_FIELD(ConvPlan, row_chunk)
      .FS_FIELD(ConvPlan, row_outputs)
      .FS_FIELD(ConvPlan, single_phase)
      .FS_FIELD(ConvPlan, panel_tiles)
      .FS_FIELD(ConvPlan, pass_panels)
      .FS_FIELD(ConvPlan, k_channels)
      .FS_FIELD(ConvPlan, interleaved_tiles)
      .FS_FIELD(ConvPlan, block_n)
      .FS_FIELD(ConvPlan, block_h)
      .FS_FIELD(ConvPlan, block_w)
      .FS_FIELD(ConvPlan, blocks_n)
      .FS_FIELD(ConvPlan, blocks_h)
      .FS_FIELD(ConvPlan, blocks_w)
      .FS_FIELD(ConvPlan, items)
      .FS_FIELD(ConvPlan, weights_resident)
      .FS_FIELD(ConvPlan, parallel)
      .FS_FIELD(ConvPlan, panels)
      .FS_FIELD(ConvPlan, panel_elements)
      .FS_FIELD(ConvPlan, channels_inner)
      .FS_FIELD(ConvPlan, chunk_rows)
      .FS_FIELD(ConvPlan, row_pixels)
      .FS_FIELD(ConvPlan, flat)
      .FS_FIELD(ConvPlan, joined_taps)
      .FS_FIELD(ConvPlan, input_tile);
  py::class_<WeightGradProblem>(m, "WeightGradProblem")
      .def(py::init<>())
      .FS_FIELD(WeightGradProblem, shape)
      .FS_FIELD(WeightGradProblem, planar_input)
      .FS_FIELD(WeightGradProblem, planar_gradient)
      .FS_FIELD(WeightGradProblem, no_winograd);
  py::class_<WeightGradPlan>(m, "WeightGradPlan")
      .FS_FIELD(WeightGradPlan, winograd)
      .FS_FIELD(WeightGradPlan, matrix)
      .FS_FIELD(WeightGradPlan, input_in_lanes)
      .FS_FIELD(WeightGradPlan, merged_taps)
      .FS_FIELD(WeightGradPlan, tile_vectors)
      .FS_FIELD(WeightGradPlan, tile_columns)
      .FS_FIELD(WeightGradPlan, block_oc)
      .FS_FIELD(WeightGradPlan, block_ic)
      .FS_FIELD(WeightGradPlan, blocks_oc)
      .FS_FIELD(WeightGradPlan, blocks_ic)
      .FS_FIELD(WeightGradPlan, block_n)
      .FS_FIELD(WeightGradPlan, block_h)
      .FS_FIELD(WeightGradPlan, block_w)
      .FS_FIELD(WeightGradPlan, blocks_n)
      .FS_FIELD(WeightGradPlan, blocks_h)
      .FS_FIELD(WeightGradPlan, blocks_w)
      .FS_FIELD(WeightGradPlan, tiles)
      .FS_FIELD(WeightGradPlan, chain)
      .FS_FIELD(WeightGradPlan, slots)
      .FS_FIELD(WeightGradPlan, items)
      .FS_FIELD(WeightGradPlan, parallel)
      .FS_FIELD(WeightGradPlan, input_tile)
      .FS_FIELD(WeightGradPlan, gradient_tile)
      .FS_FIELD(WeightGradPlan, winograd_cycles)
      .FS_FIELD(WeightGradPlan, direct_cycles)
      .FS_FIELD(WeightGradPlan, matrix_cycles)
      .FS_FIELD(WeightGradPlan, row_pixels)
      .FS_FIELD(WeightGradPlan, flat)
      .def("segments", &WeightGradPlan::segments);
#undef FS_FIELD
  m.def("plan_conv", &plan_conv);
  m.def("plan_weight_grad", &plan_weight_grad);
  m.def("input_tile", &input_tile);
  m.def("describe", py::overload_cast<const ConvPlan&>(&describe));
  m.def("describe", py::overload_cast<const WeightGradPlan&>(&describe));

  py::class_<WorkQueue>(m, "WorkQueue").def(py::init<int64_t, int>()).def("take", [](WorkQueue& queue) {
    const WorkQueue::Range r = queue.take();
    return py::make_tuple(r.begin, r.end);
  });

  using Cache = PlanCache<CachedNumber>;
  py::class_<Cache>(m, "PlanCache")
      .def(py::init<>())
      .def_property_readonly_static("ENTRIES", [](const py::object&) { return size_t{Cache::kEntries}; })
      .def_property_readonly_static("BYTES", [](const py::object&) { return int64_t{Cache::kBytes}; })
      .def("__len__", &Cache::size)
      .def_property_readonly("bytes", &Cache::bytes)
      // The number found under a key; (number, size) is made if there is none.
      .def("get", [](Cache& cache, const std::vector<int64_t>& key, int64_t number, int64_t size) {
        const auto make = [&] { return std::make_unique<CachedNumber>(CachedNumber{number, size}); };
        return cache.get(key_from(key), make)->number;
      });
}
