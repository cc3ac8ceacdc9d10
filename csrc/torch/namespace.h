// SPDX-License-Identifier: BSD-3-Clause
// The namespace of the operators in torch.ops. The build may give another one, which the Python package then has too
// (NAMESPACE in fused_subpixel/ops/schemas.py).
#pragma once

#if !defined(FS_NAMESPACE)
#define FS_NAMESPACE fused_subpixel
#endif
