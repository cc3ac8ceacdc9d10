// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/instances/sm80_launch.cuh"

namespace fused_subpixel::cuda {
template void launch_weight_grad_mma<Float16>(const WeightGradParams&, void*);
}
