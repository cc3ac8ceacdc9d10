// SPDX-License-Identifier: BSD-3-Clause
// The emulator for pytest, with the kernels that try it and those that it is there for.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "simt.h"

namespace py = pybind11;
using namespace fused_subpixel;

void bind_selftest(py::module_& m);
void bind_kernels(py::module_& m);

PYBIND11_MODULE(fused_subpixel_simt, m) {
  m.def("set_seed", [](uint64_t seed) { simt::options().seed = seed; });
  m.def("skip", [](const std::string& file, int line) {  // "", 0: nothing
    simt::options().skipped_file = file, simt::options().skipped_line = line;
  });
  m.def("set_check_races", [](bool check) { simt::options().check_races = check; });
  m.def("set_blocks", [](std::vector<int64_t> blocks) { simt::options().blocks = std::move(blocks); });
  m.def("statistics", [] {  // of the last launch
    const simt::Statistics& s = simt::options().statistics;
    using namespace py::literals;
    return py::dict("blocks"_a = s.blocks, "barriers"_a = s.barriers, "collectives"_a = s.collectives,
                    "mmas"_a = s.mmas, "wgmmas"_a = s.wgmmas, "copies"_a = s.copies,
                    "switches"_a = s.switches, "grid_x"_a = s.grid_x, "grid_y"_a = s.grid_y,
                    "threads"_a = s.threads, "shared_bytes"_a = s.shared_bytes, "marks"_a = s.marks);
  });
  bind_selftest(m);
#if FS_SIMT_KERNELS
  bind_kernels(m);
#endif
}
