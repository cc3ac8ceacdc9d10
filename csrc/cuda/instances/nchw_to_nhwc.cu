// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/kernels/nchw_to_nhwc.cuh"

#include "cuda/launch.h"
#include "cuda/launch_kernel.cuh"

namespace fused_subpixel::cuda {

void launch_channels_last(DType dtype, int64_t images, const LayoutParams& p, void* stream) {
  const int grid_x = static_cast<int>(images * p.tiles), grid_y = (p.padded + kLayoutTile - 1) / kLayoutTile;
  const auto run = [&](void (*kernel)(LayoutParams), int bytes) {
    run_kernel<LayoutParams>(kernel, grid_x, grid_y, kLayoutThreads,
                             int64_t{kLayoutTile} * layout_pitch(bytes), stream, p);
  };
  if (element_bytes(dtype) == 2) return run(&channels_last_kernel<uint16_t>, 2);
  run(&channels_last_kernel<uint32_t>, 4);
}

}  // namespace fused_subpixel::cuda
