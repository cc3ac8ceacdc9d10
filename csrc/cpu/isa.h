// SPDX-License-Identifier: BSD-3-Clause
// The instruction sets that the kernels were compiled for, and the one that is used.
#pragma once

#include <cstdint>

#include "cpu/conv_task.h"

namespace fused_subpixel::cpu {

enum class Isa : int32_t {
  kPortable,
  kAvx2,
  kAvx512,
  kAvx512Bf16,  // AVX-512, and matrix tiles by its products of pairs of bfloat16
  kAmx,         // AVX-512, and matrix tiles in tile registers
  kNeonBf16,    // portable, which is NEON on aarch64, and matrix tiles by its products of pairs of bfloat16
  // portable, and matrix tiles in software: for tests, never chosen
  kAvx512Bf16StandIn,
  kAmxStandIn,
};
constexpr int kIsas = 8;

// AMX's, which the operating system may refuse.
enum class TileRegisters : int32_t { kAbsent, kRefused, kUsable };
TileRegisters tile_registers();

// Instruction sets that were built and that this processor can run; bit 1 << isa.
int32_t usable_isas();
Isa current_isa();
// Returns false, and nothing changes, if this processor or this build cannot.
bool select_isa(Isa isa);
const Kernels& current_kernels();

// Bytes of the L2 cache.
int64_t l2_bytes();

// What a plan has to know of the machine.
Target target_of(const Kernels& kernels, DType dtype, int threads);

}  // namespace fused_subpixel::cpu
