// SPDX-License-Identifier: BSD-3-Clause
// Can wgmma read B N-major, 128-byte-swizzled, for 16-bit types? 64 columns of one k are 128 contiguous bytes, and eight
// k are the eight rows of the swizzle's pattern, as a tensor-map load of a weight with contiguous output channels puts
// them. Of the 128 columns, each half is a pattern of its own; both orders of patterns in memory are tried, so that the
// descriptor's two strides cannot be mixed up.
#include "wgmma.cuh"

namespace gpu_checks {
namespace {

constexpr const char* kQuestion = "wgmma reads N-major 128-byte-swizzled B of 16-bit types";

// As wgmma of device.cuh, with the last immediate set: B is N-major.
template <class T>
struct NMajor;
template <>
struct NMajor<Float16> {
  static FS_DEVICE void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    FS_WGMMA("k16.f32.f16.f16", ", 0, 1");
  }
};
template <>
struct NMajor<BFloat16> {
  static FS_DEVICE void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    FS_WGMMA("k16.f32.bf16.bf16", ", 0, 1");
  }
};

constexpr int kK = 64, kWeightStart = kM * kRowBytes;

// From 64 columns to the next, and from eight k to the next, in bytes.
struct Order {
  const char* name;
  int leading, stride;
};
constexpr Order kOrders[] = {{"all k of 64 columns together", kK* kRowBytes, 8 * kRowBytes},
                             {"all columns of eight k together", 8 * kRowBytes, 2 * 8 * kRowBytes}};

int a_value(int m, int k) { return small_integer(static_cast<uint32_t>(m * kK + k)); }
int b_value(int k, int n) { return small_integer(static_cast<uint32_t>(1 << 20 | k * kN + n)); }

std::vector<float> expected() {
  std::vector<float> d(kM * kN);
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n)
      for (int k = 0; k < kK; ++k) d[m * kN + n] += static_cast<float>(a_value(m, k) * b_value(k, n));
  return d;
}

template <class T>
Image image_of(const Order& order) {
  Image image(kWeightStart + kK * kN * sizeof(T));
  for (int k = 0; k < kK; ++k) {
    for (int m = 0; m < kM; ++m) put<T>(image, m * kRowBytes + k * sizeof(T), a_value(m, k));
    for (int n = 0; n < kN; ++n)
      put<T>(image,
             kWeightStart + n / 64 * order.leading + k / 8 * order.stride + k % 8 * kRowBytes +
                 n % 64 * sizeof(T),
             b_value(k, n));
  }
  return image;
}

Steps steps_of(const Order& order) {
  Steps steps;
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t two_patterns_on = kWeightStart + step * 2 * order.stride;  // 16 k
    steps.a[step] = Operand{static_cast<uint32_t>(step * 32), 8 * kRowBytes, 16, 0}.descriptor();
    steps.b[step] = Operand{two_patterns_on, order.stride, order.leading, 0}.descriptor();
  }
  return steps;
}

template <class T>
void prove(const char* dtype) {
  for (const Order& order : kOrders) {
    const Image image = image_of<T>(order);
    Steps steps = steps_of(order);
    expect(difference(modelled<T>(image, steps, true), expected()).empty(),
           format("%s: the model misses the numbers", dtype));
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t start = kWeightStart + step * 2 * order.stride;
      steps.b[step] = Operand{start, order.leading, order.stride, 0}.descriptor();
    }
    expect(!difference(modelled<T>(image, steps, true), expected()).empty(),
           format("%s: exchanged strides go unnoticed", dtype));
  }
}

template <class T>
std::string mismatch(const char* dtype) {
  for (const Order& order : kOrders) {
    const std::string found =
        difference(computed<NMajor<T>>(image_of<T>(order), steps_of(order)), expected());
    if (!found.empty()) return format("%s, %s: %s", dtype, order.name, found.c_str());
  }
  return {};
}

int run() {
  prove_swizzle();
  prove<Float16>("float16");
  prove<BFloat16>("bfloat16");
  require_hopper();
  std::string found = mismatch<Float16>("float16");
  if (found.empty()) found = mismatch<BFloat16>("bfloat16");
  return answer(kQuestion, 4, found);
}

}  // namespace
}  // namespace gpu_checks

int main() { return gpu_checks::run(); }
