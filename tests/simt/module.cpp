// SPDX-License-Identifier: BSD-3-Clause
// The emulator for pytest, with the kernels that try it and those that it is there for.
#include <pybind11/pybind11.h>

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
  m.def("statistics", [] {  // of the last launch
    const simt::Statistics& s = simt::options().statistics;
    using namespace py::literals;
    return py::dict("blocks"_a = s.blocks, "barriers"_a = s.barriers, "collectives"_a = s.collectives,
                    "mmas"_a = s.mmas, "wgmmas"_a = s.wgmmas, "copies"_a = s.copies,
                    "switches"_a = s.switches);
  });
  bind_selftest(m);
#if FS_SIMT_KERNELS
  bind_kernels(m);
#endif
}
