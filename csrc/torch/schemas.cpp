// SPDX-License-Identifier: BSD-3-Clause
// The operators' schemas, for processes without Python, where nobody else defines them. The build writes the array
// kSchemas of schemas.h from the Python package's list.
#include <torch/csrc/stable/library.h>

#include "schemas.h"
#include "torch/namespace.h"

STABLE_TORCH_LIBRARY_FRAGMENT(FS_NAMESPACE, m) {
  for (const char* schema : kSchemas) m.def(schema);
}
