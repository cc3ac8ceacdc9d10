// SPDX-License-Identifier: BSD-3-Clause
// Can wgmma read A from a 128-byte-swizzled tile with a halo, moved by whole pixels? Pixels of 128 bytes of channels lie
// row by row, halo_w to a row, as a tensor-map load puts them. The 64 pixels of A are 8 x 8 of them: eight neighbours are
// the eight rows of a core matrix, and the next eight start halo_w pixels later. A tap moves the start by whole pixels,
// so that it is not aligned to the eight rows of the swizzle's pattern.
#include "wgmma.cuh"

namespace gpu_checks {
namespace {

constexpr const char* kQuestion = "wgmma reads 128-byte-swizzled A at starts moved by whole rows";
constexpr int kHaloWidths[] = {8, 9, 10, 12, 16, 18, 34};

struct Case {
  int halo_w, shift;     // in pixels
  bool set_base_offset;  // the descriptor's field, by the row of the pattern that the start is in
};

int pixel_value(int pixel, int k) { return small_integer(static_cast<uint32_t>(pixel * 64 + k)); }
int weight_value(int n, int k) { return small_integer(static_cast<uint32_t>(1 << 20 | n * 64 + k)); }

template <class T>
std::vector<float> expected(const Case& c) {
  std::vector<float> d(kM * kN);
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n)
      for (int k = 0; k < kDepth<T>; ++k)
        d[m * kN + n] +=
            static_cast<float>(pixel_value(c.shift + m / 8 * c.halo_w + m % 8, k) * weight_value(n, k));
  return d;
}

// The weight first: 128 columns; then all pixels that a tap could reach.
template <class T>
Image image_of(const Case& c) {
  const int pixels = (c.shift + 7 * c.halo_w + 8 + 7) / 8 * 8;
  Image image((kN + pixels) * kRowBytes);
  for (int k = 0; k < kDepth<T>; ++k) {
    for (int n = 0; n < kN; ++n) put<T>(image, n * kRowBytes + k * sizeof(T), weight_value(n, k));
    for (int pixel = 0; pixel < pixels; ++pixel)
      put<T>(image, (kN + pixel) * kRowBytes + k * sizeof(T), pixel_value(pixel, k));
  }
  return image;
}

Steps steps_of(const Case& c, int error = 0) {
  Steps steps;
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t start = (kN + c.shift + error) * kRowBytes + step * 32;
    const int base_offset = c.set_base_offset ? static_cast<int>(start >> 7 & 7) : 0;
    steps.a[step] = Operand{start, c.halo_w * kRowBytes, 16, base_offset}.descriptor();
    steps.b[step] = Operand{static_cast<uint32_t>(step * 32), 8 * kRowBytes, 16, 0}.descriptor();
  }
  return steps;
}

std::vector<Case> cases(bool set_base_offset) {
  std::vector<Case> all;
  for (int halo_w : kHaloWidths) {
    for (int shift = 0; shift < 16; ++shift) all.push_back({halo_w, shift, set_base_offset});
    for (int row = 1; row < 3; ++row)  // the taps of a 3x3 kernel in the rows below
      for (int column = 0; column < 3; ++column)
        all.push_back({halo_w, row * halo_w + column, set_base_offset});
  }
  return all;
}

template <class T>
void prove(const char* dtype) {
  for (const Case& c : {Case{8, 0, false}, Case{10, 3, false}, Case{34, 70, false}}) {
    const Image image = image_of<T>(c);
    const std::vector<float> right = expected<T>(c);
    expect(difference(modelled<T>(image, steps_of(c), false), right).empty(),
           format("%s: the model misses the numbers", dtype));
    expect(!difference(modelled<T>(image, steps_of(c, -1), false), right).empty(),
           format("%s: a start that is a row too early goes unnoticed", dtype));
  }
}

template <class T>
std::string mismatch(const char* dtype, const std::vector<Case>& all) {
  for (const Case& c : all) {
    const std::string found = difference(computed<KMajor<T>>(image_of<T>(c), steps_of(c)), expected<T>(c));
    if (!found.empty()) return format("%s, halo_w %d, shift %d: %s", dtype, c.halo_w, c.shift, found.c_str());
  }
  return {};
}

std::string mismatch(bool set_base_offset) {
  const std::string found = mismatch<Float16>("float16", cases(set_base_offset));
  return found.empty() ? mismatch<TF32>("tf32", cases(set_base_offset)) : found;
}

int run() {
  prove_swizzle();
  prove<Float16>("float16");
  prove<TF32>("tf32");
  require_hopper();
  // the layout that every program with this swizzle uses: no doubt about it
  const std::string plain = mismatch<Float16>("float16", {{8, 0, false}});
  expect(plain.empty(), "without a shift, " + plain);
  const std::string found = mismatch(false);
  const int status = answer(kQuestion, 2 * static_cast<int>(cases(false).size()), found);
  if (status != 0)
    std::printf("   with the base offset set to the row of the start: %s\n",
                mismatch(true).empty() ? "all is right" : "wrong too");
  return status;
}

}  // namespace
}  // namespace gpu_checks

int main() { return gpu_checks::run(); }
