// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/instances/sm90_launch.cuh"

namespace fused_subpixel::cuda {
template void launch_wgmma<Float16>(const PackParams&, const MmaParams&, void*);
}
