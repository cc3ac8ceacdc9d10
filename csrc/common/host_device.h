// SPDX-License-Identifier: BSD-3-Clause
// FS_HOST_DEVICE marks functions that device code may call. On the host they are always inlined: cpu/kernels is compiled
// once per instruction set, and a copy kept by the linker could contain instructions that the processor lacks.
#pragma once

#if defined(__CUDACC__)
#define FS_HOST_DEVICE __host__ __device__ inline
#else
#define FS_HOST_DEVICE inline __attribute__((always_inline))
#endif
