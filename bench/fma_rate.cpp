// SPDX-License-Identifier: BSD-3-Clause
// How fast the processor multiplies and adds when nothing has to be loaded; limits.py compiles and calls it.

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kChains =
    12;  // more than latency x ports of any processor, and with two operands within 16 registers

template <typename T>
long fma_loop(long iterations, double* sink) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int kLanes = kVectorBytes / sizeof(T);
  Vector factor = {}, term = {}, sums[kChains] = {};
  factor += static_cast<T>(0.5);
  term += static_cast<T>(*sink);
  // all different and unknown to the compiler, which would do equal chains once
  for (int chain = 0; chain < kChains; ++chain) sums[chain] += static_cast<T>(chain * *sink);
  for (long i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = sums[chain] * factor + term;
  }
  for (const Vector& sum : sums)
    for (int lane = 0; lane < kLanes; ++lane) *sink += static_cast<double>(sum[lane]);
  return iterations * kChains * kLanes * 2;
}

}  // namespace

// The number of operations done.
extern "C" long fma_float32(long iterations, double* sink) { return fma_loop<float>(iterations, sink); }
extern "C" long fma_float64(long iterations, double* sink) { return fma_loop<double>(iterations, sink); }
