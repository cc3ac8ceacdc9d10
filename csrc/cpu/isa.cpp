// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/isa.h"

#include <unistd.h>

#include <atomic>
#include <initializer_list>

namespace fused_subpixel::cpu {
namespace {

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return &portable::kernels;
#if FS_HAVE_AVX2
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kernels : nullptr;
#endif
#if FS_HAVE_AVX512
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                 ? &avx512::kernels
                 : nullptr;
#endif
    default: return nullptr;
  }
}

Isa best_isa() {
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2})
    if (kernels_of(isa)) return isa;
  return Isa::kPortable;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

int32_t usable_isas() {
  int32_t mask = 0;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512})
    if (kernels_of(isa)) mask |= 1 << static_cast<int32_t>(isa);
  return mask;
}

Isa current_isa() { return chosen_isa().load(); }

bool select_isa(Isa isa) {
  if (!kernels_of(isa)) return false;
  chosen_isa().store(isa);
  return true;
}

const Kernels& current_kernels() { return *kernels_of(chosen_isa().load(std::memory_order_relaxed)); }

int64_t l2_bytes() {
  static const int64_t bytes = [] {
    long found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? static_cast<int64_t>(found) : int64_t{512} << 10;  // unknown: what most have at least
  }();
  return bytes;
}

Target target_of(const Kernels& kernels, DType dtype, int threads) {
  const int bytes = dtype == DType::kFloat64 ? 8 : 4;
  return {.lanes = kernels.vector_bytes / bytes,
          .registers = kernels.registers,
          .l2_bytes = l2_bytes(),
          .threads = threads,
          .element_bytes = bytes};
}

}  // namespace fused_subpixel::cpu
