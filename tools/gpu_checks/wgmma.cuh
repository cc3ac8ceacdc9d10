// SPDX-License-Identifier: BSD-3-Clause
// A product d[64x128] = a[64xk] b[kx128] by wgmma, from an image of shared memory that the host has laid out, with 128
// bytes of k: 64 elements of 16 bits or 32 of tf32, in four instructions. The operands are integers so small that all
// sums are exact.
#pragma once

#include <cuda_fp16.h>

#include <cstring>
#include <vector>

#include "check.cuh"
#include "cuda/device.cuh"

namespace gpu_checks {

using fused_subpixel::BFloat16;
using fused_subpixel::Float16;
using fused_subpixel::TF32;

constexpr int kM = 64, kN = 128, kRowBytes = 128, kSteps = 4;
template <class T>
constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));  // elements along k
constexpr int kAlignment = 1024;                                 // of a swizzle's pattern: eight rows

// ---- elements -----------------------------------------------------------------------------------------------------
template <class T>
T encoded(int value);
template <>
inline Float16 encoded<Float16>(int value) {
  return {__half_as_ushort(__float2half(static_cast<float>(value)))};
}
template <>
inline BFloat16 encoded<BFloat16>(int value) {
  const float wide = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &wide, 4);
  return {static_cast<uint16_t>(bits >> 16)};
}
template <>
inline TF32 encoded<TF32>(int value) {
  return {static_cast<float>(value)};
}
inline int decoded(Float16 x) { return static_cast<int>(__half2float(__ushort_as_half(x.bits))); }
inline int decoded(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return static_cast<int>(wide);
}
inline int decoded(TF32 x) { return static_cast<int>(x.value); }

inline int small_integer(uint32_t key) { return static_cast<int>(scrambled(key) % 17) - 8; }

// ---- operands -----------------------------------------------------------------------------------------------------
// A matrix descriptor with 128-byte swizzle. K-major: `stride` is from eight rows (of b: columns) to the next eight.
// N-major: `stride` is from eight k to the next eight, `leading` from 64 columns to the next 64. All in bytes, `start`
// relative to the image.
struct Operand {
  uint32_t start;
  int stride, leading, base_offset;

  uint64_t descriptor() const {
    return static_cast<uint64_t>(start >> 4 & 0x3fff) | static_cast<uint64_t>(leading >> 4 & 0x3fff) << 16 |
           static_cast<uint64_t>(stride >> 4 & 0x3fff) << 32 | static_cast<uint64_t>(base_offset & 7) << 49 |
           uint64_t{1} << 62;
  }
};

struct Steps {
  uint64_t a[kSteps], b[kSteps];
};

using Image = std::vector<unsigned char>;

template <class T>
void put(Image& image, uint32_t address, int value) {
  const T element = encoded<T>(value);
  std::memcpy(image.data() + swizzled(address), &element, sizeof(T));
}

// ---- a model of wgmma ---------------------------------------------------------------------------------------------
// Element (row, k) or (column, k) of an operand of one instruction, read by its descriptor as the PTX manual tells
// (canonical layouts), with the swizzle applied to the bits of the address.
template <class T>
int element(const Image& image, uint64_t descriptor, bool n_major, int row, int k) {
  constexpr int kSize = static_cast<int>(sizeof(T));
  const int start = static_cast<int>(descriptor & 0x3fff) << 4,
            leading = static_cast<int>(descriptor >> 16 & 0x3fff) << 4,
            stride = static_cast<int>(descriptor >> 32 & 0x3fff) << 4;
  const int at = n_major ? start + row / 64 * leading + k / 8 * stride + k % 8 * kRowBytes + row % 64 * kSize
                         : start + row / 8 * stride + row % 8 * kRowBytes + k * kSize;
  T found;
  std::memcpy(&found, image.data() + swizzled(static_cast<uint32_t>(at)), sizeof(T));
  return decoded(found);
}

template <class T>
std::vector<float> modelled(const Image& image, const Steps& steps, bool n_major) {
  std::vector<float> d(kM * kN);
  for (int step = 0; step < kSteps; ++step)
    for (int m = 0; m < kM; ++m)
      for (int n = 0; n < kN; ++n)
        for (int k = 0; k < kDepth<T> / kSteps; ++k)
          d[m * kN + n] += static_cast<float>(element<T>(image, steps.a[step], false, m, k) *
                                              element<T>(image, steps.b[step], n_major, n, k));
  return d;
}

// ---- the GPU ------------------------------------------------------------------------------------------------------
template <class T>
struct KMajor {
  static FS_DEVICE void multiply(float (&d)[kM * kN / 128], uint64_t a, uint64_t b, bool accumulate) {
    fused_subpixel::cuda::wgmma<T>(d, a, b, accumulate);
  }
};

template <class Product>
__global__ void __launch_bounds__(128)
    product_kernel(const uint4* image, int vectors, const Steps steps, float* result) {
#if FS_SM90A
  using namespace fused_subpixel::cuda;
  unsigned char* memory = shared_memory();
  const int padding = static_cast<int>(-shared_address(memory) & (kAlignment - 1));
  const int base = static_cast<int>(shared_address(memory)) + padding;
  for (int i = thread_index(); i < vectors; i += 128)
    reinterpret_cast<uint4*>(memory + padding)[i] = image[i];
  fence_async_proxy();
  sync_threads();

  float d[kM * kN / 128] = {};
  wgmma_fence();
  FS_UNROLL
  for (int step = 0; step < kSteps; ++step)
    Product::multiply(d, moved_operand(steps.a[step], base), moved_operand(steps.b[step], base), step > 0);
  wgmma_commit();
  wgmma_wait_for(d);

  const int lane = thread_index() % 32, row = thread_index() / 32 * 16 + lane / 4;
  for (int i = 0; i < kM * kN / 128; ++i)
    result[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
#endif
}

template <class Product>
std::vector<float> computed(const Image& image, const Steps& steps) {
  const int bytes = static_cast<int>(image.size());
  Buffer<unsigned char> source(image.size());
  Buffer<float> target(kM * kN);
  std::vector<float> d(kM * kN, -1e9f);
  source.copy_from(image.data());
  target.copy_from(d.data());
  CHECK_CUDA(cudaFuncSetAttribute(product_kernel<Product>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  bytes + kAlignment));
  product_kernel<Product><<<1, 128, bytes + kAlignment>>>(reinterpret_cast<uint4*>(source.data()), bytes / 16,
                                                          steps, target.data());
  CHECK_CUDA(cudaGetLastError());
  CHECK_CUDA(cudaDeviceSynchronize());
  target.copy_to(d.data());
  return d;
}

// The first difference in words, or nothing.
inline std::string difference(const std::vector<float>& found, const std::vector<float>& expected) {
  for (int i = 0; i < kM * kN; ++i)
    if (found[i] != expected[i])
      return format("row %d, column %d is %g instead of %g", i / kN, i % kN, found[i], expected[i]);
  return {};
}

}  // namespace gpu_checks
