// SPDX-License-Identifier: BSD-3-Clause
// The host's version of csrc/cuda/device.cuh: the same names, run by an emulator (simt.cpp) that takes every
// liberty the programming model allows and turns each breach of it into an error. See README.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "common/scalar.h"
#include "cuda/marks.h"
#include "cuda/wgmma_shape.h"

#define FS_DEVICE inline
#define FS_KERNEL(threads, blocks_per_sm) void
#define FS_CONSTANT(Params) const Params
#define FS_UNROLL
#define FS_UNROLL_BY(times)
#define FS_NO_UNROLL
#define FS_MARK(begun) simt::pass_mark(begun)

namespace fused_subpixel::simt {

// ---- for tests --------------------------------------------------------------------------------------------
struct Statistics {                                                        // of the last launch
  uint64_t blocks, barriers, collectives, mmas, wgmmas, copies, switches;  // wgmmas: of warps
  int grid_x, grid_y, threads, shared_bytes;
  // How often one mark followed another, in the thread that passed the most; kStart follows the last one.
  std::array<std::array<uint32_t, cuda::kMarks>, cuda::kMarks> marks;
  uint64_t mark_count;  // all of these
};
struct Options {
  uint64_t seed = 0;  // every launch starts from it: the same seed runs the same interleaving again
  bool check_races = true;
  // A barrier, a wait or a fence that is left out, to see that it is missed: the end of its file's name, and its line.
  std::string skipped_file;
  int skipped_line = 0;
  std::vector<int64_t> blocks;  // those that run, of every launch: x + grid_x * y; empty: all
  Statistics statistics = {};
};
Options& options();

// Memory that must not be left: 128-byte aligned, full of 0xff (NaN in every floating-point type). One end
// lies as close to unreadable pages as that alignment allows; what is left in between holds a pattern that
// check() looks for.
class GuardedBuffer {
 public:
  enum Place { kEnd, kStart };  // which end is guarded by the page itself
  explicit GuardedBuffer(size_t bytes, Place place = kEnd, std::string name = "a buffer");
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  unsigned char* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  void check() const;                             // throws if anything around the buffer was written
  bool near(const void* p) const;                 // inside, or in the memory around it that is kept empty
  bool holds(const void* p, size_t bytes) const;  // completely inside
  std::string distance(const void* p) const;      // "12 bytes past the end of shared memory (4096 bytes)"

 private:
  size_t size_, mapped_;
  unsigned char *map_, *data_;
  std::string name_;
};

void run(int grid_x, int grid_y, int threads, int shared_bytes, const std::function<void()>& thread);

template <class T>
struct Same {
  using type = T;
};
// kernel<<<(grid_x, grid_y), threads, shared_bytes>>>(params...), until it has ended. Throws
// std::runtime_error.
template <class... P>
void launch(void (*kernel)(P...), int grid_x, int grid_y, int threads, int shared_bytes,
            typename Same<P>::type... params) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "parameters are copied to the device byte by byte");
  static_assert((sizeof(P) + ... + 0) <= 4096, "more than CUDA passes");
  run(grid_x, grid_y, threads, shared_bytes, [&] { kernel(params...); });
}

// ---- for the names below ----------------------------------------------------------------------------------
struct Here {  // where the thread is that now runs
  int thread, threads, block_x, block_y, grid_x;
  unsigned char* shared;
};
extern Here here;

// A named operation in the source of a kernel; collectives are the same one if it is.
struct Site {
  const char* operation;
  const char* file;
  int line;
};

enum class Multiply { kHalf, kBFloat16, kTF32 };

void pass_mark(cuda::Mark mark);
void block_barrier(Site site);
void warp_barrier(Site site);
void exchange(void* to, const void* from, int bytes, int mask, Site site);
void load(void* to, const void* from, int bytes, Site site);
void store(void* to, const void* from, int bytes, Site site);
void copy(void* to, const void* from, int bytes, bool valid, Site site);
void copy_commit(Site site);
void copy_wait(int pending, Site site);
void load_matrices(uint32_t* r, const void* row, bool transposed, Site site);
void store_matrices(void* row, const uint32_t* r, Site site);
void multiply(Multiply type, float* d, const uint32_t* a, const uint32_t* b, Site site);
void barrier_init(uint64_t* barrier, int arrivals, Site site);
void barrier_arrive(uint64_t* barrier, int bytes, Site site);
void barrier_wait(uint64_t* barrier, int parity, Site site);
void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier, Site site);
void fence_async_proxy(Site site);
void group_fence(Site site);
void group_commit(Site site);
void group_wait(int pending, Site site);
void group_multiply(Multiply type, float* d, uint64_t a, uint64_t b, bool accumulate, Site site);

}  // namespace fused_subpixel::simt

// Each operation knows its caller's place in the source by parameters that callers leave alone.
#define FS_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace fused_subpixel::cuda {

FS_DEVICE int thread_index() { return simt::here.thread; }
FS_DEVICE int block_threads() { return simt::here.threads; }
FS_DEVICE int block_x() { return simt::here.block_x; }
FS_DEVICE int block_y() { return simt::here.block_y; }
FS_DEVICE int grid_x() { return simt::here.grid_x; }
FS_DEVICE unsigned char* shared_memory() { return simt::here.shared; }

FS_DEVICE void sync_threads(FS_PLACE) { simt::block_barrier({"sync_threads", file, line}); }
FS_DEVICE int opaque(int value) { return value; }
FS_DEVICE uint64_t opaque(uint64_t value) { return value; }
FS_DEVICE void let_next_kernel_start() {}  // here, one ends before the next begins
FS_DEVICE void wait_for_kernel_before() {}
FS_DEVICE void sync_warp(FS_PLACE) { simt::warp_barrier({"sync_warp", file, line}); }
template <class T>
FS_DEVICE T shuffle_xor(T value, int mask, FS_PLACE) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  T result;
  simt::exchange(&result, &value, sizeof(T), mask, {"shuffle_xor", file, line});
  return result;
}

struct alignas(16) Packed16 {
  uint32_t word[4];
};
FS_DEVICE Packed16 load_16(const void* from, FS_PLACE) {
  Packed16 value;
  simt::load(&value, from, 16, {"load_16", file, line});
  return value;
}
FS_DEVICE uint32_t load_4(const void* from, FS_PLACE) {
  uint32_t value;
  simt::load(&value, from, 4, {"load_4", file, line});
  return value;
}
FS_DEVICE void store_16(void* to, const Packed16& value, FS_PLACE) {
  simt::store(to, &value, 16, {"store_16", file, line});
}

FS_DEVICE void store_2(void* to, uint16_t value, FS_PLACE) {
  simt::store(to, &value, 2, {"store_2", file, line});
}
FS_DEVICE void store_4(void* to, uint32_t value, FS_PLACE) {
  simt::store(to, &value, 4, {"store_4", file, line});
}
FS_DEVICE void store_8(void* to, uint32_t first, uint32_t second, FS_PLACE) {
  const uint32_t words[2] = {first, second};
  simt::store(to, words, 8, {"store_8", file, line});
}

template <int kBytes>
FS_DEVICE void cp_async(void* to, const void* from, bool valid, FS_PLACE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::copy(to, from, kBytes, valid, {"cp_async", file, line});
}
FS_DEVICE void cp_async_commit(FS_PLACE) { simt::copy_commit({"cp_async_commit", file, line}); }
template <int kPending>
FS_DEVICE void cp_async_wait(FS_PLACE) {
  static_assert(kPending >= 0);
  simt::copy_wait(kPending, {"cp_async_wait", file, line});
}

FS_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, FS_PLACE) {
  simt::load_matrices(r, row, false, {"ldmatrix_x4", file, line});
}
FS_DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row, FS_PLACE) {
  simt::load_matrices(r, row, true, {"ldmatrix_x4_transposed", file, line});
}
FS_DEVICE void stmatrix_x4(void* row, const uint32_t (&r)[4], FS_PLACE) {
  simt::store_matrices(row, r, {"stmatrix_x4", file, line});
}

template <class T>
FS_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FS_PLACE) {
  if constexpr (std::is_same_v<T, Float16>) {
    simt::multiply(simt::Multiply::kHalf, d, a, b, {"mma<Float16>", file, line});
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    simt::multiply(simt::Multiply::kBFloat16, d, a, b, {"mma<BFloat16>", file, line});
  } else {
    static_assert(std::is_same_v<T, TF32>);
    simt::multiply(simt::Multiply::kTF32, d, a, b, {"mma<TF32>", file, line});
  }
}

FS_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - simt::here.shared);
}
FS_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals, FS_PLACE) {
  simt::barrier_init(barrier, arrivals, {"mbarrier_init", file, line});
}
FS_DEVICE void mbarrier_arrive_expect(uint64_t* barrier, int bytes, FS_PLACE) {
  simt::barrier_arrive(barrier, bytes, {"mbarrier_arrive_expect", file, line});
}
FS_DEVICE void mbarrier_wait(uint64_t* barrier, int parity, FS_PLACE) {
  simt::barrier_wait(barrier, parity, {"mbarrier_wait", file, line});
}
FS_DEVICE void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier, FS_PLACE) {
  simt::bulk_copy(to, from, bytes, barrier, {"bulk_copy", file, line});
}
FS_DEVICE void fence_async_proxy(FS_PLACE) { simt::fence_async_proxy({"fence_async_proxy", file, line}); }

FS_DEVICE void wgmma_fence(FS_PLACE) { simt::group_fence({"wgmma_fence", file, line}); }
FS_DEVICE void wgmma_commit(FS_PLACE) { simt::group_commit({"wgmma_commit", file, line}); }
template <int kPending>
FS_DEVICE void wgmma_wait(FS_PLACE) {
  simt::group_wait(kPending, {"wgmma_wait", file, line});
}
FS_DEVICE void wgmma_wait_for(float (&)[kWgmmaAcc], FS_PLACE) {
  simt::group_wait(0, {"wgmma_wait_for", file, line});
}
template <class T>
FS_DEVICE void wgmma(float (&d)[kWgmmaAcc], uint64_t a, uint64_t b, bool accumulate, FS_PLACE) {
  constexpr simt::Multiply kType = std::is_same_v<T, Float16>    ? simt::Multiply::kHalf
                                   : std::is_same_v<T, BFloat16> ? simt::Multiply::kBFloat16
                                                                 : simt::Multiply::kTF32;
  static_assert(kType != simt::Multiply::kTF32 || std::is_same_v<T, TF32>);
  simt::group_multiply(kType, d, a, b, accumulate, {"wgmma", file, line});
}

FS_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
FS_DEVICE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

FS_DEVICE float widen(Float16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, body = x.bits & 0x7fffu;
  if (body >= 0x7c00u) return float_of(sign | 0x7f800000u | (body & 0x3ffu) << 13);  // inf, nan
  // exponents meet after scaling by 2^112, which also normalises subnormals exactly
  return float_of(sign | bits_of(float_of(body << 13) * 0x1p112f));
}
FS_DEVICE void narrow(float x, Float16& to) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, body = u & 0x7fffffffu;
  uint32_t half;
  if (body > 0x7f800000u) {
    half = 0x7fffu;  // the one NaN that the instruction gives
  } else if (body >= 0x477ff000u) {
    half = sign | 0x7c00u;  // rounds past 65504
  } else if (body < 0x38800000u) {
    half = sign | (bits_of(float_of(body) + 0.5f) - 0x3f000000u);  // subnormal: + 0.5 rounds at the right bit
  } else {
    half = sign | (body - 0x38000000u + 0xfffu + (body >> 13 & 1u)) >> 13;
  }
  to.bits = static_cast<uint16_t>(half);
}
FS_DEVICE uint32_t round_to_tf32(uint32_t float_bits) {
  const uint32_t body = float_bits & 0x7fffffffu;
  if (body > 0x7f800000u) return 0x7fffffffu;
  return body == 0x7f800000u ? float_bits : (float_bits + 0x1000u) & 0xffffe000u;
}

}  // namespace fused_subpixel::cuda

#undef FS_PLACE
