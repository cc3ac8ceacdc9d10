// SPDX-License-Identifier: BSD-3-Clause
// Kernels that try the emulator: right ones, and ones with a known mistake that it must notice.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>

#include "cuda/device.cuh"

namespace py = pybind11;
using namespace fused_subpixel;
using namespace fused_subpixel::cuda;

namespace {

// ---- barriers ---------------------------------------------------------------------------------------------
struct SumParams {
  const float* in;  // [grid_x, block_threads]
  float* out;       // [grid_x]
};
// A tree of sums in shared memory; without the barrier inside, threads add what is not there yet.
template <bool kBarrier>
FS_KERNEL(1024, 1)
block_sum(SumParams p) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int i = thread_index();
  shared[i] = p.in[block_x() * block_threads() + i];
  for (int half = block_threads() / 2; half > 0; half /= 2) {
    if (kBarrier || half == block_threads() / 2) sync_threads();
    if (i < half) shared[i] += shared[i + half];
  }
  if (i == 0) p.out[block_x()] = shared[0];
}

// Each lane passes a value to the next, through shared memory, and adds it to all others' by shuffles.
template <bool kBarrier>
FS_KERNEL(1024, 1)
warp_sum(SumParams p) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int i = thread_index();
  shared[i] = p.in[block_x() * block_threads() + i];
  if (kBarrier) sync_warp();
  float sum = shared[i ^ 1];
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (i == 0) p.out[block_x()] = sum;
}

// ---- asynchronous copies ----------------------------------------------------------------------------------
enum Missing { kNothing, kWait, kBarrier, kOrder };
struct PipelineParams {
  const float* in;  // [tiles, block_threads, 4]
  float* out;       // [block_threads, 4]
  int tiles, valid_tiles;
};
// Sums of tiles, which three stages of copies bring; thread i sums what thread block_threads - 1 - i fetched.
template <Missing kMissing>
FS_KERNEL(1024, 1)
pipeline(PipelineParams p) {
  const int n = block_threads(), i = thread_index();
  const auto fetch = [&](int tile) {
    if (tile < p.tiles)
      cp_async<16>(shared_memory() + 16 * (tile % 3 * n + i), p.in + 4 * (tile * n + i),
                   tile < p.valid_tiles);
    cp_async_commit();
  };
  fetch(0), fetch(1);
  float sum[4] = {};
  for (int tile = 0; tile < p.tiles; ++tile) {
    if (kMissing == kOrder) fetch(tile + 2);
    if (kMissing != kWait) cp_async_wait<kMissing == kOrder ? 2 : 1>();
    if (kMissing != kBarrier) sync_threads();
    if (kMissing != kOrder) fetch(tile + 2);  // into the stage that all have read before the barrier
    const Packed16 v = load_16(shared_memory() + 16 * (tile % 3 * n + n - 1 - i));
    for (int e = 0; e < 4; ++e) sum[e] += float_of(v.word[e]);
  }
  cp_async_wait<0>();
  for (int e = 0; e < 4; ++e) p.out[4 * i + e] = sum[e];
}

// ---- tensor cores -----------------------------------------------------------------------------------------
struct LdmatrixParams {
  const unsigned char* in;  // 4 matrices [8, 8] of 16 bits
  uint32_t* out;            // [32, 4]
};
template <bool kTransposed>
FS_KERNEL(32, 1)
ldmatrix_dump(LdmatrixParams p) {
  const int lane = thread_index();
  store_16(shared_memory() + 16 * lane, load_16(p.in + 16 * lane));
  sync_threads();
  uint32_t r[4];
  if (kTransposed)
    ldmatrix_x4_transposed(r, shared_memory() + 16 * lane);
  else
    ldmatrix_x4(r, shared_memory() + 16 * lane);
  for (int q = 0; q < 4; ++q) p.out[4 * lane + q] = r[q];
}

struct StmatrixParams {
  const uint32_t* in;  // [32, 4]
  unsigned char* out;  // 4 matrices [8, 8] of 16 bits
};
FS_KERNEL(32, 1)
stmatrix_dump(StmatrixParams p) {
  const int lane = thread_index();
  uint32_t r[4];
  for (int q = 0; q < 4; ++q) r[q] = p.in[4 * lane + q];
  stmatrix_x4(shared_memory() + 16 * lane, r);
  sync_threads();
  store_16(p.out + 16 * lane, load_16(shared_memory() + 16 * lane));
}

struct MmaParams {
  const void *a, *b;  // [16, K], [K, 8], dense, K = 16 (TF32: 8)
  float* d;           // [16, 8]
};
// One instruction, its operands loaded element by element.
template <class T>
FS_KERNEL(32, 1)
mma_once(MmaParams p) {
  const int g = thread_index() / 4, t = thread_index() % 4;
  uint32_t a[4], b[2];
  float d[4] = {};
  if constexpr (sizeof(T) == 4) {
    const auto *left = static_cast<const uint32_t*>(p.a), *right = static_cast<const uint32_t*>(p.b);
    for (int q = 0; q < 4; ++q) a[q] = left[(g + q % 2 * 8) * 8 + t + q / 2 * 4];
    for (int q = 0; q < 2; ++q) b[q] = right[(t + q * 4) * 8 + g];
  } else {
    const auto *left = static_cast<const uint16_t*>(p.a), *right = static_cast<const uint16_t*>(p.b);
    for (int q = 0; q < 4; ++q) {
      const uint16_t* pair = left + (g + q % 2 * 8) * 16 + 2 * t + q / 2 * 8;
      a[q] = pair[0] | uint32_t{pair[1]} << 16;
    }
    for (int q = 0; q < 2; ++q) {
      const uint16_t* pair = right + (2 * t + q * 8) * 8 + g;
      b[q] = pair[0] | uint32_t{pair[8]} << 16;
    }
  }
  mma<T>(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

struct GemmParams {
  const unsigned char *a, *b;  // [M, K], and [N, K] or [K, N]; rows are whole multiples of 16 bytes
  float* d;                    // [M, N]
  int m, n, k;
};
constexpr int kTile = 128, kStepBytes = 64, kRow = kStepBytes + 16, kWideRow = kTile * 2 + 16;
constexpr int kStage = 2 * kTile * kRow, kGemmShared = 2 * kStage;
static_assert(kStepBytes / 2 * kWideRow <= kTile * kRow);

// d = a b in tiles of 128 x 128: four warps of 64 x 64, steps of 64 bytes along K, two stages.
template <class T, bool kRowsAreK>
FS_KERNEL(128, 1)
gemm(FS_CONSTANT(GemmParams) p) {
  constexpr int kSize = sizeof(T), kStep = kStepBytes / kSize;
  static_assert(!kRowsAreK || kSize == 2, "ldmatrix transposes elements of 16 bits");
  const int m0 = block_y() * kTile, n0 = block_x() * kTile;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int warp_m = warp / 2 * 64, warp_n = warp % 2 * 64;

  // One tile: `rows` rows of `row_bytes` bytes from (row, column) of a matrix of height x width elements.
  const auto fetch_tile = [&](unsigned char* to, int pitch, const unsigned char* from, int rows,
                              int row_bytes, int row, int column, int height, int width) {
    const int chunks = row_bytes / 16;
    for (int c = thread_index(); c < rows * chunks; c += block_threads()) {
      const int r = c / chunks, x = c % chunks * 16;
      const bool valid = row + r < height && column * kSize + x < width * kSize;
      cp_async<16>(to + r * pitch + x, from + (int64_t{row + r} * width + column) * kSize + x, valid);
    }
  };
  const auto fetch = [&](int step) {
    unsigned char* to = shared_memory() + step % 2 * kStage;
    if (step * kStep < p.k) {
      fetch_tile(to, kRow, p.a, kTile, kStepBytes, m0, step * kStep, p.m, p.k);
      to += kTile * kRow;
      if (kRowsAreK)
        fetch_tile(to, kWideRow, p.b, kStep, kTile * kSize, step * kStep, n0, p.k, p.n);
      else
        fetch_tile(to, kRow, p.b, kTile, kStepBytes, n0, step * kStep, p.n, p.k);
    }
    cp_async_commit();
  };

  float d[4][8][4] = {};
  fetch(0);
  for (int step = 0; step * kStep < p.k; ++step) {
    cp_async_wait<0>();
    sync_threads();
    fetch(step + 1);
    const unsigned char* left = shared_memory() + step % 2 * kStage;
    const unsigned char* right = left + kTile * kRow;
    for (int x = 0; x < kStepBytes; x += 32) {
      uint32_t a[4][4], b[8][2];
      for (int i = 0; i < 4; ++i)
        ldmatrix_x4(a[i], left + (warp_m + i * 16 + lane % 16) * kRow + x + lane / 16 * 16);
      for (int j = 0; j < 8; j += 2) {
        uint32_t r[4];
        if (kRowsAreK)
          ldmatrix_x4_transposed(
              r, right + (x / 2 + lane % 16) * kWideRow + (warp_n + j * 8 + lane / 16 * 8) * kSize);
        else
          ldmatrix_x4(r, right + (warp_n + j * 8 + lane % 8 + lane / 16 * 8) * kRow + x + lane / 8 % 2 * 16);
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
      }
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 8; ++j) mma<T>(d[i][j], a[i], b[j]);
    }
  }
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 8; ++j)
      for (int e = 0; e < 4; ++e) {
        const int row = m0 + warp_m + i * 16 + lane / 4 + e / 2 * 8;
        const int column = n0 + warp_n + j * 8 + 2 * (lane % 4) + e % 2;
        if (row < p.m && column < p.n) p.d[int64_t{row} * p.n + column] = d[i][j][e];
      }
}

// ---- wgmma ------------------------------------------------------------------------------------------------
// d[64, 128] = rows start ... start + 63 of a[8 planes of 16 bytes, 72, 8 elements] (TF32: 4 elements) by
// b[planes, 128, elements]: a comes by ordinary stores, b by the copy engine. `Lack` is left out.
enum Lack { kNothingLacks, kFence, kArrival, kParity, kBytes, kWgmmaWait };
struct WgmmaParams {
  const void *a, *b;
  float* d;
  int start;
};
constexpr int kWgmmaPlanes = 8, kARows = 72;
constexpr int kABytes = kARows * kWgmmaPlanes * 16, kBBytes = 128 * kWgmmaPlanes * 16;
constexpr int kWgmmaShared = kABytes + kBBytes + 8;

template <class T, Lack lack>
void wgmma_gemm(WgmmaParams p) {
  unsigned char *a = shared_memory(), *b = a + kABytes;
  auto* arrived = reinterpret_cast<uint64_t*>(b + kBBytes);
  const int t = thread_index();
  if (t == 0) {
    mbarrier_init(arrived, 1);
    fence_async_proxy();
    mbarrier_arrive_expect(arrived, lack == kBytes ? kBBytes - 16 : kBBytes);
    bulk_copy(b, p.b, kBBytes, arrived);
  }
  for (int at = t * 16; at < kABytes; at += 128 * 16)
    store_16(a + at, load_16(static_cast<const unsigned char*>(p.a) + at));
  if (lack != kFence) fence_async_proxy();
  sync_threads();
  if (lack != kArrival) mbarrier_wait(arrived, lack == kParity ? 1 : 0);
  sync_warp();
  float d[kWgmmaAcc];
  const uint64_t left = wgmma_operand(a + p.start * 16, 128, kARows * 16),
                 right = wgmma_operand(b, 128, 128 * 16);
  wgmma_fence();
  for (int k = 0; k < kWgmmaPlanes; k += 2)
    wgmma<T>(d, moved_operand(left, k * kARows * 16), moved_operand(right, k * 128 * 16), k > 0);
  wgmma_commit();
  if (lack != kWgmmaWait) wgmma_wait_for(d);
  for (int q = 0; q < kWgmmaAcc; ++q)
    p.d[(t / 32 * 16 + q / 2 % 2 * 8 + t % 32 / 4) * 128 + q / 4 * 8 + t % 4 * 2 + q % 2] = d[q];
  if (lack == kWgmmaWait) wgmma_wait_for(d);
}

// ---- mistakes ---------------------------------------------------------------------------------------------
// Launched with 2 blocks of 64 threads and 1032 bytes of shared memory.
struct MistakeParams {
  float *first, *last;  // 30 floats each; `first` right after an unreadable page, `last` almost before one
};
using Mistake = void (*)(MistakeParams);

void none(MistakeParams) {}
void read_past_end(MistakeParams p) { p.last[0] = p.last[32 + thread_index()]; }
void read_far_past_end(MistakeParams p) { p.last[0] = p.last[100000]; }
void read_before_start(MistakeParams p) { p.first[0] = p.first[-1 - thread_index()]; }
void write_past_end(MistakeParams p) { p.last[31] = 1; }
void write_before_start(MistakeParams p) { p.last[-1] = 1; }
void null_read(MistakeParams p) { p.first[0] = *static_cast<const volatile float*>(nullptr); }
void load_16_past_end(MistakeParams p) { p.first[0] = float_of(load_16(p.last + 28).word[0]); }
void store_16_past_end(MistakeParams p) { store_16(p.last + 32, {}); }
void shared_write(MistakeParams) { reinterpret_cast<float*>(shared_memory())[198 + thread_index()] = 1; }
void shared_write_far(MistakeParams) { reinterpret_cast<float*>(shared_memory())[thread_index() * 50] = 1; }
void misaligned_load(MistakeParams p) { p.first[0] = float_of(load_16(p.last + 1).word[0]); }
void misaligned_store(MistakeParams) { store_16(shared_memory() + 8, {}); }
void misaligned_copy(MistakeParams p) { cp_async<8>(shared_memory(), p.last + 1, false); }
void misaligned_stmatrix(MistakeParams) {
  const uint32_t r[4] = {};
  stmatrix_x4(shared_memory() + 8, r);
}
void misaligned_ldmatrix(MistakeParams) {
  uint32_t r[4];
  ldmatrix_x4(r, shared_memory() + 8);
}
void divergent_barrier(MistakeParams) {
  if (thread_index() % 32 < 16) sync_threads();
  shuffle_xor(1, 1);
}
void other_barrier(MistakeParams) {
  if (thread_index() < 32)
    sync_threads();
  else
    sync_threads();
}
void early_exit(MistakeParams) {
  if (thread_index() == 37) return;
  sync_threads();
}
void divergent_collective(MistakeParams) {
  if (thread_index() % 32 < 16)
    sync_warp();
  else
    shuffle_xor(1, 1);
}
void absent_lane(MistakeParams) {
  if (thread_index() != 40) sync_warp();
}
void strange_shuffle(MistakeParams) { shuffle_xor(1, 32); }
void pending_copy(MistakeParams p) {
  cp_async<4>(shared_memory() + 4 * thread_index(), p.first, true);
  cp_async_commit();
}
void uncommitted_copy(MistakeParams p) {
  cp_async<4>(shared_memory() + 4 * thread_index(), p.first, true);
  cp_async_wait<0>();
}
void copy_twice(MistakeParams p) {
  for (int i = 0; i < 2; ++i) cp_async<4>(shared_memory() + 4 * thread_index(), p.first, true);
  cp_async_commit();
  cp_async_wait<0>();
}
void copy_past_end(MistakeParams p) { cp_async<16>(shared_memory(), p.last + 28, true); }
void copy_from_shared(MistakeParams) { cp_async<4>(shared_memory(), shared_memory() + 4, true); }
void copy_to_global(MistakeParams p) { cp_async<4>(p.first, p.last, true); }
void copy_to_past_shared(MistakeParams p) { cp_async<16>(shared_memory() + 1024, p.last, true); }
void use_before_wait(MistakeParams p) {
  cp_async<16>(shared_memory() + 16 * thread_index(), p.last, true);
  load_16(shared_memory() + 16 * thread_index());
}
unsigned char* slot(int thread) { return shared_memory() + 16 * thread; }
void race_in_warp(MistakeParams) {
  store_16(slot(thread_index()), {});
  shuffle_xor(1, 1);  // lanes meet, but it orders nothing
  load_16(slot(thread_index() ^ 1));
}
void race_between_warps(MistakeParams) {
  load_16(slot(thread_index() ^ 32));
  sync_warp();
  store_16(slot(thread_index()), {});
}
void race_to_write(MistakeParams) { store_16(slot(0), {}); }
void race_of_copies(MistakeParams p) {
  cp_async<16>(slot(thread_index()), p.last, true);
  cp_async_commit();
  cp_async_wait<0>();
  uint32_t r[4];
  ldmatrix_x4(r, slot(thread_index()));
  ldmatrix_x4(r, slot(thread_index() ^ 1));
}
void no_race(MistakeParams p) {
  const int i = thread_index();
  cp_async<16>(slot(i), p.last, true);
  cp_async_commit();
  cp_async_wait<0>();
  load_16(slot(i));
  sync_warp();
  load_16(slot(i ^ 1));
  load_16(slot(i & ~3));
  sync_threads();
  load_16(slot(i ^ 32));
  sync_threads();
  store_16(slot(i ^ 33), {});
  store_16(slot(i ^ 33), {});
}
void race_of_stmatrix(MistakeParams) {
  const uint32_t r[4] = {};
  stmatrix_x4(slot(thread_index() / 32 * 32), r);
}
void ldmatrix_of_global(MistakeParams p) {
  uint32_t r[4];
  ldmatrix_x4(r, p.first);
}
[[gnu::noinline]] int recurse(volatile int* p) {
  volatile int local[1000];
  local[0] = *p + 1;
  return *p < 0 ? 0 : recurse(local) + local[0];
}
void stack_overflow(MistakeParams p) {
  volatile int start = 0;
  p.first[0] = static_cast<float>(recurse(&start));
}
void trap(MistakeParams) { __builtin_trap(); }
void division(MistakeParams p) {
  volatile int one = 1, zero = 0;
  p.first[0] = static_cast<float>(one / zero);
}

const std::map<std::string, Mistake> kMistakes = {
#define FS_MISTAKE(name) \
  { #name, name }
    FS_MISTAKE(none),
    FS_MISTAKE(read_past_end),
    FS_MISTAKE(read_far_past_end),
    FS_MISTAKE(read_before_start),
    FS_MISTAKE(write_past_end),
    FS_MISTAKE(write_before_start),
    FS_MISTAKE(null_read),
    FS_MISTAKE(load_16_past_end),
    FS_MISTAKE(store_16_past_end),
    FS_MISTAKE(shared_write),
    FS_MISTAKE(shared_write_far),
    FS_MISTAKE(misaligned_load),
    FS_MISTAKE(misaligned_store),
    FS_MISTAKE(misaligned_copy),
    FS_MISTAKE(misaligned_ldmatrix),
    FS_MISTAKE(misaligned_stmatrix),
    FS_MISTAKE(race_of_stmatrix),
    FS_MISTAKE(divergent_barrier),
    FS_MISTAKE(other_barrier),
    FS_MISTAKE(early_exit),
    FS_MISTAKE(divergent_collective),
    FS_MISTAKE(absent_lane),
    FS_MISTAKE(strange_shuffle),
    FS_MISTAKE(pending_copy),
    FS_MISTAKE(uncommitted_copy),
    FS_MISTAKE(copy_twice),
    FS_MISTAKE(copy_past_end),
    FS_MISTAKE(copy_from_shared),
    FS_MISTAKE(copy_to_global),
    FS_MISTAKE(copy_to_past_shared),
    FS_MISTAKE(use_before_wait),
    FS_MISTAKE(race_in_warp),
    FS_MISTAKE(race_between_warps),
    FS_MISTAKE(race_to_write),
    FS_MISTAKE(race_of_copies),
    FS_MISTAKE(no_race),
    FS_MISTAKE(ldmatrix_of_global),
    FS_MISTAKE(stack_overflow),
    FS_MISTAKE(trap),
    FS_MISTAKE(division),
#undef FS_MISTAKE
};

// ---- from and to numpy ------------------------------------------------------------------------------------
using Floats = py::array_t<float, py::array::c_style>;

// Arrays come as they are: their bytes are the kernel's.
struct Input : simt::GuardedBuffer {
  explicit Input(const py::array& array)
      : GuardedBuffer(static_cast<size_t>(array.nbytes()), kEnd, "an input") {
    if (!(array.flags() & py::array::c_style)) throw std::invalid_argument("arrays must be contiguous");
    std::memcpy(data(), array.data(), size());
  }
};
template <class T = float>
struct Output : simt::GuardedBuffer {
  explicit Output(int64_t n) : GuardedBuffer(static_cast<size_t>(n) * sizeof(T), kEnd, "the output") {}
  py::array_t<T> array() const {
    check();
    return py::array_t<T>(static_cast<py::ssize_t>(size() / sizeof(T)), as<T>());
  }
};

template <class To, class From, class Convert>
py::array_t<To> convert(const py::array_t<From, py::array::c_style>& from, Convert one) {
  py::array_t<To> to(from.size());
  for (py::ssize_t i = 0; i < from.size(); ++i) to.mutable_data()[i] = one(from.data()[i]);
  return to;
}

Floats sum(void (*kernel)(SumParams), const Floats& in, int threads) {
  const Input input(in);
  const int blocks = static_cast<int>(in.size()) / threads;
  const Output<> output(blocks);
  simt::launch(kernel, blocks, 1, threads, 4 * threads, {input.as<float>(), output.as<float>()});
  return output.array();
}

}  // namespace

void bind_selftest(py::module_& m) {
  m.def("block_sum", [](const Floats& in, int threads, bool barrier) {
    return sum(barrier ? block_sum<true> : block_sum<false>, in, threads);
  });
  m.def("warp_sum", [](const Floats& in, bool barrier) {
    return sum(barrier ? warp_sum<true> : warp_sum<false>, in, 32);
  });
  m.def("pipeline", [](const Floats& in, int threads, int valid_tiles, const std::string& missing) {
    const std::map<std::string, void (*)(PipelineParams)> kernels = {{"nothing", pipeline<kNothing>},
                                                                     {"wait", pipeline<kWait>},
                                                                     {"barrier", pipeline<kBarrier>},
                                                                     {"order", pipeline<kOrder>}};
    const int tiles = static_cast<int>(in.size()) / (4 * threads);
    // invalid tiles are not even there
    const Input input(in[py::slice(0, valid_tiles * threads * 4, 1)].cast<py::array>());
    const Output<> output(4 * threads);
    simt::launch(kernels.at(missing), 1, 1, threads, 48 * threads,
                 {input.as<float>(), output.as<float>(), tiles, valid_tiles});
    return output.array();
  });
  m.def("ldmatrix", [](const py::array_t<uint16_t>& in, bool transposed) {
    const Input input(in);
    const Output<uint32_t> output(32 * 4);
    simt::launch(transposed ? ldmatrix_dump<true> : ldmatrix_dump<false>, 1, 1, 32, 512,
                 {input.data(), output.as<uint32_t>()});
    return output.array();
  });
  m.def("stmatrix", [](const py::array_t<uint32_t>& in) {
    const Input input(in);
    const Output<uint16_t> output(4 * 8 * 8);
    simt::launch(stmatrix_dump, 1, 1, 32, 512, {input.as<uint32_t>(), output.as<unsigned char>()});
    return output.array();
  });
  m.def("mma", [](const std::string& type, const py::array& a, const py::array& b) {
    const std::map<std::string, void (*)(MmaParams)> kernels = {
        {"Float16", mma_once<Float16>}, {"BFloat16", mma_once<BFloat16>}, {"TF32", mma_once<TF32>}};
    const Input left(a), right(b);
    const Output<> output(16 * 8);
    simt::launch(kernels.at(type), 1, 1, 32, 0, {left.data(), right.data(), output.as<float>()});
    return output.array();
  });
  m.def("gemm", [](const std::string& type, bool rows_are_k, const py::array& a, const py::array& b) {
    const std::map<std::pair<std::string, bool>, void (*)(GemmParams)> kernels = {
        {{"Float16", false}, gemm<Float16, false>},
        {{"Float16", true}, gemm<Float16, true>},
        {{"BFloat16", false}, gemm<BFloat16, false>},
        {{"BFloat16", true}, gemm<BFloat16, true>},
        {{"TF32", false}, gemm<TF32, false>}};
    const int rows = static_cast<int>(a.shape(0)), k = static_cast<int>(a.shape(1));
    const int columns = static_cast<int>(b.shape(rows_are_k ? 1 : 0));
    const Input left(a), right(b);
    const Output<> output(int64_t{rows} * columns);
    simt::launch(kernels.at({type, rows_are_k}), (columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile,
                 128, kGemmShared, {left.data(), right.data(), output.as<float>(), rows, columns, k});
    return output.array();
  });
  m.def("wgmma", [](const std::string& type, const py::array& a, const py::array& b, int start,
                    const std::string& lack) {
    const std::map<std::string, void (*)(WgmmaParams)> kernels = {
        {"Float16", wgmma_gemm<Float16, kNothingLacks>}, {"BFloat16", wgmma_gemm<BFloat16, kNothingLacks>},
        {"TF32", wgmma_gemm<TF32, kNothingLacks>},       {"fence", wgmma_gemm<Float16, kFence>},
        {"arrival", wgmma_gemm<Float16, kArrival>},      {"parity", wgmma_gemm<Float16, kParity>},
        {"bytes", wgmma_gemm<Float16, kBytes>},          {"wait", wgmma_gemm<Float16, kWgmmaWait>}};
    const Input left(a), right(b);
    const Output<> output(64 * 128);
    simt::launch(kernels.at(lack.empty() ? type : lack), 1, 1, 128, kWgmmaShared,
                 {left.data(), right.data(), output.as<float>(), start});
    return output.array();
  });
  m.def("mistake", [](const std::string& name) {
    const simt::GuardedBuffer first(120, simt::GuardedBuffer::kStart, "first");
    const simt::GuardedBuffer last(120, simt::GuardedBuffer::kEnd, "last");
    simt::launch(kMistakes.at(name), 2, 1, 64, 1032, {first.as<float>(), last.as<float>()});
    first.check();
    last.check();
  });
  m.def("launch", [](int grid_x, int grid_y, int threads, int shared_bytes) {
    simt::launch(none, grid_x, grid_y, threads, shared_bytes, {});
  });

  m.def("half_to_float", [](const py::array_t<uint16_t, py::array::c_style>& x) {
    return convert<float>(x, [](uint16_t bits) { return widen(Float16{bits}); });
  });
  m.def("float_to_half", [](const Floats& x) {
    return convert<uint16_t>(x, [](float value) {
      Float16 half;
      narrow(value, half);
      return half.bits;
    });
  });
  m.def("round_to_tf32", [](const Floats& x) {
    return convert<float>(x, [](float value) { return float_of(round_to_tf32(bits_of(value))); });
  });
}
