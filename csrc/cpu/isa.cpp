// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/isa.h"

#if !defined(_WIN32)
#include <unistd.h>
#endif
#if FS_HAVE_AVX512
#include <cpuid.h>
#endif
#if FS_HAVE_NEON_BF16 && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if FS_HAVE_AMX && defined(__linux__)
#include <sys/syscall.h>
#endif

#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fused_subpixel::cpu {
namespace {

#if FS_HAVE_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
unsigned cpu_family() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const unsigned base = a >> 8 & 0xf, extended = a >> 20 & 0xff;
  return base == 0xf ? base + extended : base;
}
#endif

#if FS_HAVE_AVX512_BF16
bool has_avx512_bf16() {
  constexpr unsigned kAvx512Bf16 = 1u << 5;
  unsigned a, b, c, d;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvx512Bf16);
}
// AMD's processors multiply a vector of pairs in the time of a vector of float32. Intel's take longer, so that widened values are
// faster there.
bool multiplies_pairs_fast() { return __builtin_cpu_is("amd"); }
#else
bool multiplies_pairs_fast() { return false; }
#endif

// Zen 4 computes a vector of AVX-512 in both pipes of half its width. (Asked once: in a virtual machine cpuid takes microseconds.)
bool halves_avx512() {
#if FS_HAVE_AVX512
  static const bool halves = has_avx512() && __builtin_cpu_is("amd") && cpu_family() == 0x19;
  return halves;
#else
  return false;
#endif
}

#if FS_HAVE_NEON_BF16
bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int found = 0;
  size_t bytes = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &bytes, nullptr, 0) == 0 && found;
#else
  return false;
#endif
}
#endif

#if FS_HAVE_AMX && defined(__linux__)
bool has_amx() {
  constexpr unsigned kTileBits = 1u << 24 | 1u << 22;  // AMX-TILE, AMX-BF16
  unsigned a, b, c, d;
  return has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTileBits) == kTileBits;
}
// The kernel of the operating system saves 8 KiB more for each thread that uses tile registers, and wants to be asked.
bool permits_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool has_amx() { return false; }
bool permits_amx() { return false; }
#endif

Kernels with_matrix(Kernels kernels, const char* name, const MatrixKernels& matrix) {
  kernels.name = name;
  kernels.matrix = &matrix;
  return kernels;
}

// The newest instruction set that may be used: with FUSED_SUBPIXEL_MAX_CPU_ISA=avx2, a processor with AVX-512
// does as one without it. Python refuses unknown names.
Isa newest_allowed() {
  static const Isa newest = [] {
    constexpr const char* kNames[] = {"portable",    "avx2", "avx512",
                                      "avx512_bf16", "amx",  "neon_bf16"};  // enum Isa
    if (const char* asked = std::getenv("FUSED_SUBPIXEL_MAX_CPU_ISA"))
      for (const char* const& name : kNames)
        if (std::strcmp(asked, name) == 0) return static_cast<Isa>(&name - kNames);
    return static_cast<Isa>(kIsas - 1);
  }();
  return newest;
}

const Kernels* kernels_of(Isa isa) {
  const bool for_tests = isa >= Isa::kAvx512Bf16StandIn;
  if (isa > newest_allowed() && !for_tests) return nullptr;
  switch (isa) {
    case Isa::kPortable: return &portable::kernels;
#if FS_HAVE_AVX2
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kernels : nullptr;
#endif
#if FS_HAVE_AVX512
    case Isa::kAvx512: {
      static const bool usable = has_avx512();
      return usable ? &avx512::kernels : nullptr;
    }
#endif
#if FS_HAVE_AVX512_BF16
    case Isa::kAvx512Bf16: {
      static const Kernels kernels = with_matrix(avx512::kernels, "avx512_bf16", avx512_bf16::matrix_kernels);
      static const bool usable = has_avx512_bf16();
      return usable ? &kernels : nullptr;
    }
#endif
#if FS_HAVE_AMX
    case Isa::kAmx: {
      static const Kernels kernels = with_matrix(avx512::kernels, "amx", amx::matrix_kernels);
      return tile_registers() == TileRegisters::kUsable ? &kernels : nullptr;
    }
#endif
#if FS_HAVE_NEON_BF16
    case Isa::kNeonBf16: {
      static const Kernels kernels = with_matrix(portable::kernels, "neon_bf16", neon_bf16::matrix_kernels);
      static const bool usable = has_neon_bf16();
      return usable ? &kernels : nullptr;
    }
#endif
    case Isa::kAvx512Bf16StandIn: {
      static const Kernels kernels =
          with_matrix(portable::kernels, "avx512_bf16_stand_in", avx512_bf16_stand_in::matrix_kernels);
      return &kernels;
    }
    case Isa::kAmxStandIn: {
      static const Kernels kernels =
          with_matrix(portable::kernels, "amx_stand_in", amx_stand_in::matrix_kernels);
      return &kernels;
    }
    default: return nullptr;
  }
}

Isa best_isa() {
  if (kernels_of(Isa::kAmx)) return Isa::kAmx;
  if (kernels_of(Isa::kAvx512Bf16) && multiplies_pairs_fast()) return Isa::kAvx512Bf16;
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kNeonBf16})
    if (kernels_of(isa)) return isa;
  return Isa::kPortable;
}

int64_t reported_l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) return bytes;
#endif
#if defined(__linux__)  // on aarch64 glibc does not know
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index2/size", "r")) {
    char text[32];
    const char* const end = text + std::fread(text, 1, sizeof(text), file);
    std::fclose(file);
    int64_t kib = 0;
    const std::from_chars_result read = std::from_chars(text, end, kib);
    if (read.ec == std::errc{} && read.ptr != end && *read.ptr == 'K') return kib * 1024;
  }
#elif defined(__APPLE__)
  int64_t bytes = 0;
  size_t size = sizeof(bytes);
  if (sysctlbyname("hw.perflevel0.l2cachesize", &bytes, &size, nullptr, 0) == 0) return bytes;
#endif
  return 0;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

TileRegisters tile_registers() {
  static const TileRegisters found = !has_amx()      ? TileRegisters::kAbsent
                                     : permits_amx() ? TileRegisters::kUsable
                                                     : TileRegisters::kRefused;
  return found;
}

int32_t usable_isas() {
  int32_t mask = 0;
  for (int32_t isa = 0; isa < kIsas; ++isa)
    if (kernels_of(static_cast<Isa>(isa))) mask |= 1 << isa;
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
    const int64_t found = reported_l2_bytes();
    return found > 0 ? found : int64_t{512} << 10;  // unknown: what most have at least
  }();
  return bytes;
}

Target target_of(const Kernels& kernels, DType dtype, int threads) {
  const int bytes = dtype == DType::kFloat64 ? 8 : 4;
  return {.lanes = kernels.vector_bytes / bytes,
          .registers = kernels.registers,
          .l2_bytes = l2_bytes(),
          .threads = threads,
          .element_bytes = bytes,
          .matrix_tiles =
              kernels.matrix && dtype == DType::kBFloat16 ? kernels.matrix->tiles : MatrixTiles::kNone,
          .half_rate = kernels.vector_bytes == 64 && halves_avx512()};
}

}  // namespace fused_subpixel::cpu
