// SPDX-License-Identifier: BSD-3-Clause
// Everything that device code needs and C++ does not have: threads, barriers, asynchronous copies, tensor-core
// instructions, each behind a small name of its own. Kernels use these names only, so that g++ compiles the very same
// kernels for a CPU: with FS_SIMT defined, tests/simt/simt.h supplies the names instead.
#pragma once

#include <cstdint>

#include "common/op_arguments.h"
#include "cuda/marks.h"
#include "cuda/wgmma_shape.h"

#if defined(FS_SIMT)
#include "simt.h"
#else

#include <cuda_runtime.h>

#define FS_DEVICE __device__ __forceinline__
#define FS_KERNEL(threads, blocks_per_sm) __global__ void __launch_bounds__((threads), (blocks_per_sm))
#define FS_CONSTANT(Params) const __grid_constant__ Params  // of a kernel: read where it is, never copied
#define FS_UNROLL _Pragma("unroll")
#define FS_PRAGMA(text) _Pragma(#text)
#define FS_UNROLL_BY(times) FS_PRAGMA(unroll times)
#define FS_NO_UNROLL _Pragma("unroll 1")  // where registers are short
#if defined(FS_MARKS)
#define FS_MARK(mark) asm volatile("pmevent %0;" ::"n"(static_cast<int>(mark)))
#else
#define FS_MARK(mark)
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // compiled for sm_90a
#define FS_SM90A 1
#endif

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

// The same value, which the compiler must not have found before: in a loop, where registers are short.
FS_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
FS_DEVICE uint64_t opaque(uint64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

// ---- meeting ------------------------------------------------------------------------------------------------------
FS_DEVICE void sync_threads() { __syncthreads(); }
FS_DEVICE void sync_warp() { __syncwarp(); }
// Lane l gets the value of lane l ^ mask. All 32 lanes take part.
template <class T>
FS_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// ---- kernels that overlap (sm_90): see Start in launch_kernel.cuh --------------------------------------------------
FS_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Until the kernel before has ended and all that it wrote is there. Returns at once where nothing was started early.
FS_DEVICE void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- 16, 8, 4 or 2 bytes at a time, global or shared; the address must be a multiple of as many -------------------
struct alignas(16) Packed16 {
  uint32_t word[4];
};
FS_DEVICE Packed16 load_16(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
FS_DEVICE void store_16(void* to, const Packed16& value) {
  *static_cast<uint4*>(to) = make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]);
}
FS_DEVICE void store_8(void* to, uint32_t first, uint32_t second) {
  *static_cast<uint2*>(to) = make_uint2(first, second);
}
FS_DEVICE uint32_t load_4(const void* from) { return *static_cast<const uint32_t*>(from); }
FS_DEVICE void store_4(void* to, uint32_t value) { *static_cast<uint32_t*>(to) = value; }
FS_DEVICE void store_2(void* to, uint16_t value) { *static_cast<uint16_t*>(to) = value; }

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
  // By the instruction's own predicate: a number of bytes to read would first have to become one.
  const uint32_t skip = valid ? 0 : 1;
  if constexpr (kBytes == 16)
    asm volatile(
        "{\n.reg .pred skip;\nsetp.ne.u32 skip, %2, 0;\ncp.async.cg.shared.global [%0], [%1], 16, skip;\n}" ::
            "r"(shared_address(to)),
        "l"(from), "r"(skip)
        : "memory");
  else
    asm volatile(
        "{\n.reg .pred skip;\nsetp.ne.u32 skip, %3, 0;\ncp.async.ca.shared.global [%0], [%1], %2, skip;\n}" ::
            "r"(shared_address(to)),
        "l"(from), "n"(kBytes), "r"(skip)
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
FS_DEVICE void mma<Float16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
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

// ---- Hopper (sm_90a): mbarriers, bulk copies, products of a warpgroup -----------------------------------------------
// An mbarrier in shared memory goes from phase to phase: one ends when all arrivals have come and all bytes that they
// announced have been copied.
FS_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
#if FS_SM90A
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
#endif
}
FS_DEVICE void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
#if FS_SM90A
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
// Until the phase of this parity has ended: 0 for the first one, then 1, 0, ...
FS_DEVICE void mbarrier_wait(uint64_t* barrier, int parity) {
#if FS_SM90A
  uint32_t ended;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!ended);
#endif
}
// Global to shared memory, by the copy engine for one thread: addresses and bytes are multiples of 16. Counts in the
// barrier's phase, and is seen by those that have waited for it.
FS_DEVICE void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier) {
#if FS_SM90A
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}
// Four 8x8 matrices of 16-bit elements (sm_90), the reverse of ldmatrix_x4.
FS_DEVICE void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
#if FS_SM90A
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
// Copy engine and wgmma see what this thread has written to shared memory until now, by cp_async too; those that other
// threads issue after a barrier that follows.
FS_DEVICE void fence_async_proxy() {
#if FS_SM90A
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// d[64x128] += a[64x16] b[16x128] (TF32: a[64x8] b[8x128]; of float32 operands only the bits of tf32 count), or = if
// !accumulate, by the four warps of a warpgroup, in the background: in order,
// but d is there, and a and b in shared memory are free, only after the wgmma_wait that covers it. Warp w of the four
// has rows 16w to 16w + 15 of d, eight columns to every four registers, which hold them as mma's d does.
// Orders what was done with the registers of d before the wgmma that comes next.
FS_DEVICE void wgmma_fence() {
#if FS_SM90A
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
FS_DEVICE void wgmma_commit() {
#if FS_SM90A
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most kPending of the groups that were committed are under way.
template <int kPending>
FS_DEVICE void wgmma_wait() {
#if FS_SM90A
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}
// For all of them, after which d may be used: no use of it moves to before this.
FS_DEVICE void wgmma_wait_for(float (&d)[kWgmmaAcc]) {
  wgmma_wait<0>();
  FS_UNROLL
  for (int i = 0; i < kWgmmaAcc; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Used by tools/gpu_checks too, with other layouts.
#if FS_SM90A
#define FS_WGMMA(shape_and_types, layouts)                                                              \
  asm volatile(                                                                                         \
      "{\n"                                                                                             \
      ".reg .pred p;\n"                                                                                 \
      "setp.ne.b32 p, %66, 0;\n"                                                                        \
      "wgmma.mma_async.sync.aligned.m64n128" shape_and_types                                            \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"                         \
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"                \
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"                \
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63},"               \
      " %64, %65, p, 1, 1" layouts                                                                      \
      ";\n"                                                                                             \
      "}"                                                                                               \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),        \
        "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),      \
        "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),      \
        "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),      \
        "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),      \
        "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),      \
        "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),      \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])       \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
#else
#define FS_WGMMA(shape_and_types, layouts)
#endif
template <class T>
FS_DEVICE void wgmma(float (&d)[kWgmmaAcc], uint64_t a, uint64_t b, bool accumulate);
template <>
FS_DEVICE void wgmma<Float16>(float (&d)[kWgmmaAcc], uint64_t a, uint64_t b, bool accumulate) {
  FS_WGMMA("k16.f32.f16.f16", ", 0, 0");
}
template <>
FS_DEVICE void wgmma<BFloat16>(float (&d)[kWgmmaAcc], uint64_t a, uint64_t b, bool accumulate) {
  FS_WGMMA("k16.f32.bf16.bf16", ", 0, 0");
}
template <>
FS_DEVICE void wgmma<TF32>(float (&d)[kWgmmaAcc], uint64_t a, uint64_t b, bool accumulate) {
  FS_WGMMA("k8.f32.tf32.tf32", "");
}

// ---- conversions --------------------------------------------------------------------------------------------------
FS_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
FS_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

FS_DEVICE float widen(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
FS_DEVICE void narrow(float x, Float16& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
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

// One operand of wgmma, which lies in shared memory in vectors of eight elements along k (TF32: four), 16 bytes, at
// 16-byte aligned addresses. Eight rows (columns, of b) are neighbours, 128 bytes; `rows_stride` is from these to the
// next eight, `k_stride` from the first to the second vec along k, both in bytes. In the manual's words: K-major, no
// swizzle, and the "leading" offset is the one along k, the "stride" offset that along the rows. Without a swizzle the
// place of a byte depends on no bits of its address, so that any 16-byte aligned start will do.
FS_DEVICE uint64_t wgmma_operand(const void* start, int rows_stride, int k_stride) {
  return static_cast<uint64_t>(shared_address(start) >> 4 & 0x3fff) |
         static_cast<uint64_t>(k_stride >> 4 & 0x3fff) << 16 |
         static_cast<uint64_t>(rows_stride >> 4 & 0x3fff) << 32;
}
// The same operand `bytes` further on.
FS_DEVICE uint64_t moved_operand(uint64_t operand, int bytes) {
  // the start has 14 bits, which hold all of shared memory: nothing is carried into the upper half
  return (operand & ~uint64_t{0xffffffff}) |
         (static_cast<uint32_t>(operand) + static_cast<uint32_t>(bytes >> 4));
}

FS_DEVICE float widen(float x) { return x; }
FS_DEVICE double widen(double x) { return x; }
FS_DEVICE float widen(TF32 x) { return x.value; }
FS_DEVICE float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
FS_DEVICE void narrow(float x, float& to) { to = x; }
FS_DEVICE void narrow(double x, double& to) { to = x; }
FS_DEVICE void narrow(float x, TF32& to) { to.value = x; }
FS_DEVICE void narrow(float x, BFloat16& to) {  // to nearest even
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const uint32_t u = bits_of(x);
  to.bits = x != x ? static_cast<uint16_t>(u >> 16 | 0x40u)
                   : static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
}

// Two elements of a half type, in the order of memory.
template <class T>
FS_DEVICE uint32_t narrow_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if constexpr (__is_same(T, Float16))
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  T low, high;
  narrow(first, low), narrow(second, high);
  return uint32_t{high.bits} << 16 | low.bits;
#endif
}

// The larger, or the smaller, of two; NaN if one of them is.
FS_DEVICE float larger_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a != a || a > b ? a : b;
#endif
}
FS_DEVICE float smaller_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a != a || a < b ? a : b;
#endif
}

// The same of two pairs of a half type.
template <class T>
FS_DEVICE uint32_t larger_pair(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t y;
  if constexpr (__is_same(T, Float16))
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  else
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
#else
  const auto of = [](uint32_t bits) { return widen(T{static_cast<uint16_t>(bits)}); };
  return narrow_pair<T>(larger_or_nan(of(a), of(b)), larger_or_nan(of(a >> 16), of(b >> 16)));
#endif
}
template <class T>
FS_DEVICE uint32_t smaller_pair(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t y;
  if constexpr (__is_same(T, Float16))
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  else
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
#else
  const auto of = [](uint32_t bits) { return widen(T{static_cast<uint16_t>(bits)}); };
  return narrow_pair<T>(smaller_or_nan(of(a), of(b)), smaller_or_nan(of(a >> 16), of(b >> 16)));
#endif
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
FS_DEVICE void put_element(Packed16& to, int e, Float16 value) { put_word(to, e, value.bits); }
FS_DEVICE void put_element(Packed16& to, int e, BFloat16 value) { put_word(to, e, value.bits); }
FS_DEVICE void put_element(Packed16& to, int e, TF32 value) { put_word(to, e, bits_of(value.value)); }

}  // namespace fused_subpixel::cuda
