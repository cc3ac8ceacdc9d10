// SPDX-License-Identifier: BSD-3-Clause
// Can the copy engine shuffle? A tile of low-resolution sums in shared memory goes to the high-resolution channels_last
// output by one store through a 5-D tensor map with the dimensions (channel of a pixel row's sub-pixels j*C + c, w, i, h,
// n). Boxes reach beyond the tensor at both ends of every dimension, also with negative starts, and must be clipped. With
// a crop each phase has a map of its own, whose first pixels a tile may begin one pixel before.
#include <cuda.h>

#include <array>
#include <cstring>
#include <functional>
#include <vector>

#include "check.cuh"
#include "cuda/device.cuh"

namespace gpu_checks {
namespace {

constexpr const char* kQuestion =
    "a 5-D tensor-map store shuffles pixels and clips boxes with negative starts";
constexpr int kRank = 5,
              kGuard = 1 << 20;  // bytes before and after the output, as far as a box could reach unclipped
constexpr unsigned char kUntouched = 0x5a;

struct Coordinates {
  int at[kRank];
};

// The output [n, h*r - crops, w*r - crops, c] of a shuffle, channels_last.
struct Shuffle {
  int n, c, h, w, r, element_bytes;
  int top = 0, left = 0, bottom = 0, right = 0;

  int out_h() const { return h * r - top - bottom; }
  int out_w() const { return w * r - left - right; }
  size_t bytes() const { return size_t(n) * out_h() * out_w() * c * element_bytes; }
};

// One tensor map, and which boxes are stored through it.
struct Map {
  size_t start;                             // of the first element, in bytes
  std::array<uint64_t, kRank> dims;         // elements
  std::array<uint64_t, kRank - 1> strides;  // bytes, of all dimensions but the first
  std::array<uint32_t, kRank> box;
  Coordinates origin;  // of the first box; further ones follow in steps of a box until the tensor is covered
  bool swizzle;        // the box in shared memory, in rows of 128 bytes
  // The low-resolution element at the map's coordinates, as (n, h, w, i, j, c): any number for those outside.
  std::function<uint32_t(const Coordinates&)> value;

  int elements() const { return static_cast<int>(box[0] * box[1] * box[2] * box[3] * box[4]); }
};

// The sum that belongs to sub-pixel (i, j) of low-resolution pixel (h, w), channel c. Distinct enough: nothing else in
// reach has the same.
uint32_t low_value(int n, int h, int w, int i, int j, int c) {
  return scrambled(static_cast<uint32_t>((((n * 64 + h + 16) * 64 + w + 16) * 8 + i) * 8 + j) * 512 + c);
}

void put(unsigned char* to, uint32_t value, int bytes) { std::memcpy(to, &value, bytes); }

// ---- what must come out, by the definition: y[n, y, x, c] is sub-pixel (y % r, x % r) of pixel (y / r, x / r) --------
std::vector<unsigned char> expected(const Shuffle& s) {
  std::vector<unsigned char> out(s.bytes() + 2 * kGuard, kUntouched);
  unsigned char* to = out.data() + kGuard;
  for (int n = 0; n < s.n; ++n)
    for (int y = s.top; y < s.top + s.out_h(); ++y)
      for (int x = s.left; x < s.left + s.out_w(); ++x)
        for (int c = 0; c < s.c; ++c, to += s.element_bytes)
          put(to, low_value(n, y / s.r, x / s.r, y % s.r, x % s.r, c), s.element_bytes);
  return out;
}

// ---- maps -----------------------------------------------------------------------------------------------------------
// Without a crop: one map for all phases.
Map whole(const Shuffle& s, Coordinates origin, int tile_h, int tile_w, int phase_rows, int box_channels,
          bool swizzle) {
  const uint64_t pixel = s.c * s.element_bytes, row = pixel * s.out_w();
  Map map = {};
  map.dims = {uint64_t(s.r * s.c), uint64_t(s.w), uint64_t(s.r), uint64_t(s.h), uint64_t(s.n)};
  map.strides = {s.r * pixel, row, s.r * row, s.h * s.r * row};
  map.box = {uint32_t(box_channels), uint32_t(tile_w), uint32_t(phase_rows), uint32_t(tile_h), 1};
  map.origin = origin, map.swizzle = swizzle;
  map.value = [s](const Coordinates& x) {
    return low_value(x.at[4], x.at[3], x.at[1], x.at[2], x.at[0] / s.c, x.at[0] % s.c);
  };
  return map;
}

// With a crop: phase (i, j) alone, tiles from low-resolution pixel (0, 0) on. Its first pixels may lie in the crop; the
// map begins after them, so that the first tile begins at -1.
Map phase(const Shuffle& s, int i, int j, int tile_h, int tile_w, bool swizzle) {
  const auto pixels_before = [&](int crop, int sub_pixel) { return (crop - sub_pixel + s.r - 1) / s.r; };
  const int first_h = s.top > i ? pixels_before(s.top, i) : 0,
            first_w = s.left > j ? pixels_before(s.left, j) : 0;
  const int y = first_h * s.r + i - s.top, x = first_w * s.r + j - s.left;  // in the output
  const uint64_t pixel = s.c * s.element_bytes, row = pixel * s.out_w();
  Map map = {};
  map.start = y * row + x * pixel;
  map.dims = {uint64_t(s.c), uint64_t((s.out_w() - x + s.r - 1) / s.r), 1,
              uint64_t((s.out_h() - y + s.r - 1) / s.r), uint64_t(s.n)};
  map.strides = {s.r * pixel, s.r * row, s.r * row, s.out_h() * row};
  map.box = {uint32_t(128 / s.element_bytes), uint32_t(tile_w), 1, uint32_t(tile_h), 1};
  map.origin = {{0, -first_w, 0, -first_h, 0}}, map.swizzle = swizzle;
  map.value = [=](const Coordinates& x) {
    return low_value(x.at[4], x.at[3] + first_h, x.at[1] + first_w, i, j, x.at[0]);
  };
  return map;
}

std::vector<Coordinates> boxes_of(const Map& map) {
  std::vector<Coordinates> all = {map.origin};
  for (int d = 0; d < kRank; ++d) {
    std::vector<Coordinates> more;
    for (Coordinates start : all)
      for (; start.at[d] < static_cast<int>(map.dims[d]); start.at[d] += static_cast<int>(map.box[d]))
        more.push_back(start);
    all = more;
  }
  return all;
}

// ---- boxes in shared memory, the first dimension fastest ----------------------------------------------------------
template <class Visit>  // (offset in bytes, coordinates)
void for_each_element(const Map& map, Coordinates start, int element_bytes, Visit visit) {
  for (int e = 0; e < map.elements(); ++e) {
    Coordinates x = start;
    for (int d = 0, rest = e; d < kRank; ++d) {
      x.at[d] += rest % static_cast<int>(map.box[d]);
      rest /= static_cast<int>(map.box[d]);
    }
    const uint32_t offset = static_cast<uint32_t>(e * element_bytes);
    visit(map.swizzle ? swizzled(offset) : offset, x);
  }
}

bool inside(const Map& map, const Coordinates& x) {
  for (int d = 0; d < kRank; ++d)
    if (x.at[d] < 0 || x.at[d] >= static_cast<int>(map.dims[d])) return false;
  return true;
}

int image_bytes(const Map& map, int element_bytes) { return (map.elements() * element_bytes + 15) / 16 * 16; }

// All boxes, one after the other. Elements outside the tensor are there too, and must not reach the output.
std::vector<unsigned char> images_of(const Map& map, const std::vector<Coordinates>& boxes,
                                     int element_bytes) {
  const int bytes = image_bytes(map, element_bytes);
  std::vector<unsigned char> images(boxes.size() * bytes);
  for (size_t b = 0; b < boxes.size(); ++b)
    for_each_element(map, boxes[b], element_bytes, [&](uint32_t offset, const Coordinates& x) {
      put(&images[b * bytes + offset], inside(map, x) ? map.value(x) : 0xdeaddead, element_bytes);
    });
  return images;
}

// ---- a model of the store -----------------------------------------------------------------------------------------
void model_store(const Map& map, const std::vector<Coordinates>& boxes,
                 const std::vector<unsigned char>& images, int element_bytes,
                 std::vector<unsigned char>& out) {
  const int bytes = image_bytes(map, element_bytes);
  for (size_t b = 0; b < boxes.size(); ++b)
    for_each_element(map, boxes[b], element_bytes, [&](uint32_t offset, const Coordinates& x) {
      if (!inside(map, x)) return;
      size_t at = kGuard + map.start + x.at[0] * element_bytes;
      for (int d = 1; d < kRank; ++d) at += x.at[d] * map.strides[d - 1];
      std::memcpy(&out[at], &images[b * bytes + offset], element_bytes);
    });
}

// ---- the GPU ------------------------------------------------------------------------------------------------------
__global__ void store_kernel(const __grid_constant__ CUtensorMap map, const uint4* images, int vectors,
                             const Coordinates* starts) {
#if FS_SM90A
  using namespace fused_subpixel::cuda;
  unsigned char* memory = shared_memory();
  memory += -shared_address(memory) & 1023;
  for (int i = thread_index(); i < vectors; i += block_threads())
    reinterpret_cast<uint4*>(memory)[i] = images[static_cast<size_t>(block_x()) * vectors + i];
  fence_async_proxy();
  sync_threads();
  if (thread_index() != 0) return;
  const Coordinates start = starts[block_x()];
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
      "r"(shared_address(memory)), "r"(start.at[0]), "r"(start.at[1]), "r"(start.at[2]), "r"(start.at[3]),
      "r"(start.at[4])
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

// Found at run time, so that nothing has to be linked with the driver's library.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  CHECK_CUDA(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
#else
  CHECK_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result));
#endif
  if (result != cudaDriverEntryPointSuccess) stop(3, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(found);
}

// Whether the driver takes the map.
bool store(Encode encode, const Map& map, const std::vector<Coordinates>& boxes,
           const std::vector<unsigned char>& images, int element_bytes, unsigned char* out) {
  CUtensorMap encoded;
  const uint32_t every[kRank] = {1, 1, 1, 1, 1};
  const CUresult status = encode(
      &encoded, element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT32, kRank,
      out + kGuard + map.start, map.dims.data(), map.strides.data(), map.box.data(), every,
      CU_TENSOR_MAP_INTERLEAVE_NONE, map.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) return false;
  const int bytes = image_bytes(map, element_bytes), shared = bytes + 1024;
  Buffer<unsigned char> source(images.size());
  Buffer<Coordinates> starts(boxes.size());
  source.copy_from(images.data());
  starts.copy_from(boxes.data());
  CHECK_CUDA(cudaFuncSetAttribute(store_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  store_kernel<<<static_cast<unsigned>(boxes.size()), 128, shared>>>(
      encoded, reinterpret_cast<uint4*>(source.data()), bytes / 16, starts.data());
  CHECK_CUDA(cudaGetLastError());
  CHECK_CUDA(cudaDeviceSynchronize());
  return true;
}

// ---- cases --------------------------------------------------------------------------------------------------------
struct Case {
  const char* name;
  Shuffle shuffle;
  std::vector<Map> maps;
};

std::vector<Case> cases() {
  const Coordinates zero = {}, before = {{-16, -3, -1, -5, -1}};
  const Shuffle wide = {2, 64, 11, 13, 2, 2}, narrow = {2, 24, 11, 13, 2, 2}, odd = {1, 8, 9, 10, 3, 2},
                single = {2, 32, 11, 13, 2, 4};
  std::vector<Case> all = {
      {"float16, 64 channels", wide, {whole(wide, zero, 8, 8, 1, 64, false)}},
      {"float16, 64 channels, swizzled", wide, {whole(wide, zero, 8, 8, 1, 64, true)}},
      {"float16, 64 channels, swizzled, negative starts", wide, {whole(wide, before, 8, 8, 1, 64, true)}},
      {"float16, 64 channels, both rows of sub-pixels, negative starts",
       wide,
       {whole(wide, before, 8, 8, 2, 64, false)}},
      {"float16, 24 channels, a box wider than the tensor",
       narrow,
       {whole(narrow, before, 8, 9, 1, 64, true)}},
      {"float16, 8 channels, r = 3", odd, {whole(odd, {{0, -2, -1, -3, 0}}, 8, 14, 3, 24, false)}},
      {"float32, 32 channels, swizzled, negative starts", single, {whole(single, before, 8, 8, 1, 32, true)}},
  };
  for (const Shuffle& cropped :
       {Shuffle{2, 64, 11, 13, 2, 2, 1, 1, 1, 1}, Shuffle{1, 32, 9, 10, 3, 4, 2, 1, 1, 4}}) {
    Case phases = {cropped.r == 2 ? "float16, r = 2, cropped by phases" : "float32, r = 3, cropped by phases",
                   cropped,
                   {}};
    for (int i = 0; i < cropped.r; ++i)
      for (int j = 0; j < cropped.r; ++j) phases.maps.push_back(phase(cropped, i, j, 8, 8, true));
    all.push_back(phases);
  }
  return all;
}

std::string difference(const Shuffle& s, const std::vector<unsigned char>& found) {
  const std::vector<unsigned char> right = expected(s);
  for (size_t i = 0; i < right.size(); ++i) {
    if (found[i] == right[i]) continue;
    if (i < kGuard || i >= kGuard + s.bytes()) return "something was written outside the output";
    const int e = static_cast<int>(i - kGuard) / s.element_bytes, pixel = e / s.c;
    return format("image %d, y %d, x %d, channel %d%s", pixel / s.out_w() / s.out_h(),
                  pixel / s.out_w() % s.out_h(), pixel % s.out_w(), e % s.c,
                  found[i] == kUntouched ? " was not written" : " is wrong");
  }
  return {};
}

// What cuTensorMapEncodeTiled and the copy engine demand of a map.
bool allowed(const Map& map, int element_bytes) {
  const uint32_t row_bytes = map.box[0] * element_bytes;
  bool good = map.start % 16 == 0 && row_bytes % 16 == 0 && (!map.swizzle || row_bytes == 128);
  for (uint64_t stride : map.strides) good = good && stride % 16 == 0;
  for (uint32_t size : map.box) good = good && size >= 1 && size <= 256;
  return good;
}

void prove(const Case& c) {
  std::vector<unsigned char> out(c.shuffle.bytes() + 2 * kGuard, kUntouched), misled = out;
  const int element_bytes = c.shuffle.element_bytes;
  for (const Map& map : c.maps) {
    expect(allowed(map, element_bytes), format("%s: no such tensor map can be", c.name));
    std::vector<Coordinates> boxes = boxes_of(map);
    const std::vector<unsigned char> images = images_of(map, boxes, element_bytes);
    model_store(map, boxes, images, element_bytes, out);
    for (Coordinates& box : boxes) ++box.at[1];
    model_store(map, boxes, images, element_bytes, misled);
  }
  const std::string found = difference(c.shuffle, out);
  expect(found.empty(), format("%s: by the model, %s", c.name, found.c_str()));
  expect(!difference(c.shuffle, misled).empty(), format("%s: moved boxes go unnoticed", c.name));
}

std::string stored_mismatch(Encode encode, const Case& c) {
  std::vector<unsigned char> out(c.shuffle.bytes() + 2 * kGuard, kUntouched);
  const int element_bytes = c.shuffle.element_bytes;
  Buffer<unsigned char> memory(out.size());
  memory.copy_from(out.data());
  for (const Map& map : c.maps) {
    const std::vector<Coordinates> boxes = boxes_of(map);
    if (!store(encode, map, boxes, images_of(map, boxes, element_bytes), element_bytes, memory.data()))
      return "cuTensorMapEncodeTiled refuses the map";
  }
  memory.copy_to(out.data());
  return difference(c.shuffle, out);
}

int run() {
  prove_swizzle();
  const std::vector<Case> all = cases();
  for (const Case& c : all) prove(c);
  require_hopper();
  const Encode encode = find_encode();
  std::string found;
  for (const Case& c : all) {
    const std::string mismatch = stored_mismatch(encode, c);
    if (!mismatch.empty()) {
      found = format("%s: %s", c.name, mismatch.c_str());
      break;
    }
  }
  return answer(kQuestion, static_cast<int>(all.size()), found);
}

}  // namespace
}  // namespace gpu_checks

int main() { return gpu_checks::run(); }
