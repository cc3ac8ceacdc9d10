// SPDX-License-Identifier: BSD-3-Clause
// Everything that device code needs and C++ does not have: threads, barriers, asynchronous copies, tensor-core
// instructions, each behind a small name of its own. Kernels use these names only, so that g++ compiles the very same
// kernels for a CPU: with FS_SIMT defined, tests/simt/simt.h supplies the names instead.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "element.h"

#if defined(FS_SIMT)
#include "simt.h"
#else

#include <cuda_runtime.h>

#define FS_DEVICE __device__ __forceinline__
#define FS_KERNEL(threads, blocks_per_sm) __global__ void __launch_bounds__((threads), (blocks_per_sm))
#define FS_CONSTANT(Params) const __grid_constant__ Params  // of a kernel: read where it is, never copied
#define FS_UNROLL _Pragma("unroll")
#define FS_NO_UNROLL _Pragma("unroll 1")  // where registers are short

namespace fused_subpixel::cuda {

// ---- where a thread is; blocks of threads are one-dimensional -----------------------------------------------------
FS_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FS_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
FS_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
FS_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
FS_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }

// The block's dynamic shared memory, 128-byte aligned.
FS_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// ---- meeting ------------------------------------------------------------------------------------------------------
FS_DEVICE void sync_threads() { __syncthreads(); }
FS_DEVICE void sync_warp() { __syncwarp(); }
// Lane l gets the value of lane l ^ mask. All 32 lanes take part.
template <class T>
FS_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// ---- 16 bytes at a time; the address must be a multiple of 16 -----------------------------------------------------
struct alignas(16) Packed16 {
  uint32_t word[4];
};
FS_DEVICE Packed16 load_16(const void* from) {  // global or shared
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
FS_DEVICE void store_16(void* to, const Packed16& value) {
  *static_cast<uint4*>(to) = make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]);
}

// ---- asynchronous copies from global to shared memory (sm_80) -----------------------------------------------------
// 4, 8 or 16 bytes, aligned as many; zeros if !valid, and then `from` is not read. Seen by this thread after the
// cp_async_wait that covers it, by others after a barrier that follows.
FS_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

template <int kBytes>
FS_DEVICE void cp_async(void* to, const void* from, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if __CUDA_ARCH__ >= 800
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from),
                 "n"(kBytes), "r"(valid ? kBytes : 0)
                 : "memory");
#endif
}
FS_DEVICE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most kPending of the groups this thread has committed are under way.
template <int kPending>
FS_DEVICE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// ---- tensor cores (sm_80); fragments as in the PTX manual, with g = lane / 4, t = lane % 4 -------------------------
// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned);
// register q holds elements (g, 2t) and (g, 2t + 1) of matrix q. The transposed form: (2t, g) and (2t + 1, g).
FS_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}
FS_DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// d[16x8] += a[16x16] b[16x8] (TF32: a[16x8] b[8x8]), float sums. Registers, elements in order of their bits:
// a[0] (g, k), a[1] (g + 8, k), a[2] (g, k'), a[3] (g + 8, k'); b[0] (k, g), b[1] (k', g), with k = 2t, 2t + 1 and
// k' = k + 8 (TF32: k = t, k' = t + 4); d[0] (g, 2t), d[1] (g, 2t + 1), d[2] (g + 8, 2t), d[3] (g + 8, 2t + 1).
#if __CUDA_ARCH__ >= 800
#define FS_MMA(shape_and_types)                                                   \
  asm volatile("mma.sync.aligned." shape_and_types                                \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#else
#define FS_MMA(shape_and_types)
#endif
template <class T>
FS_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
FS_DEVICE void mma<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  FS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
FS_DEVICE void mma<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  FS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
FS_DEVICE void mma<TF32>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  FS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef FS_MMA

// ---- conversions --------------------------------------------------------------------------------------------------
FS_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
FS_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

FS_DEVICE float widen(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
FS_DEVICE void narrow(float x, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

// To the nearest tf32, ties away from zero, as the hardware's own conversion.
FS_DEVICE uint32_t round_to_tf32(uint32_t float_bits) {
#if __CUDA_ARCH__ >= 800
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(float_bits)));
  return y;
#else
  return float_bits;
#endif
}

}  // namespace fused_subpixel::cuda

#endif  // FS_SIMT

// ---- the same for both --------------------------------------------------------------------------------------------
namespace fused_subpixel::cuda {

FS_DEVICE float widen(float x) { return x; }
FS_DEVICE double widen(double x) { return x; }
FS_DEVICE float widen(TF32 x) { return x.value; }
FS_DEVICE float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
FS_DEVICE void narrow(float x, float& to) { to = x; }
FS_DEVICE void narrow(double x, double& to) { to = x; }
FS_DEVICE void narrow(float x, TF32& to) { to.value = x; }
FS_DEVICE void narrow(float x, BFloat16& to) {  // to nearest even; the instruction needs sm_80
  const uint32_t u = bits_of(x);
  to.bits = x != x ? static_cast<uint16_t>(u >> 16 | 0x40u)
                   : static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

// Puts integer e into its place, which was zero.
template <class Word>
FS_DEVICE void put_word(Packed16& to, int e, Word value) {
  if constexpr (sizeof(Word) == 8) {
    to.word[2 * e] = static_cast<uint32_t>(value), to.word[2 * e + 1] = static_cast<uint32_t>(value >> 32);
  } else {
    constexpr int kPerWord = 4 / static_cast<int>(sizeof(Word));
    to.word[e / kPerWord] |= uint32_t{value} << e % kPerWord * (32 / kPerWord);
  }
}
FS_DEVICE void put_element(Packed16& to, int e, Half value) { put_word(to, e, value.bits); }
FS_DEVICE void put_element(Packed16& to, int e, BFloat16 value) { put_word(to, e, value.bits); }
FS_DEVICE void put_element(Packed16& to, int e, TF32 value) { put_word(to, e, bits_of(value.value)); }

// Storage type T is computed in type Compute<T>.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

}  // namespace fused_subpixel::cuda
