// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "cpu/conv_task.h"

namespace fused_subpixel::cpu {

// Can the tiles read the source itself? It has to be a plain tensor of the arithmetic type whose channels are neighbours,
// and no window may reach outside of it. Winograd's transform knows where the image ends, and reads whole vectors of channels.
// Matrix tiles read whole strips and whole tiles of channels, and may compute a strip twice, so that nothing may be added to
// its sums.
// Sets task.in_place, and then the steps of the packed input tile to those of the source where the kernel goes by them.
void read_in_place(DType dtype, const Target& target, ConvTask& task);

}  // namespace fused_subpixel::cpu
