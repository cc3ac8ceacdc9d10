// SPDX-License-Identifier: BSD-3-Clause
// The operators' schemas, for processes without Python, where nobody else defines them. In schemas.inc the build writes
// those of fused_subpixel/_schemas.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fused_subpixel, m) {
  for (const char* schema : {
#include "schemas.inc"
       })
    m.def(schema);
}
