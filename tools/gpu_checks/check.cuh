// SPDX-License-Identifier: BSD-3-Clause
// What the check programs share. Each answers one question about Hopper with "yes" (exit status 0) or "no" (1); without
// a GPU of capability 9.0 there is no answer (2). Before that, on any machine, each program proves its own arithmetic: a
// model of the hardware on the host, as the PTX manual describes it, must give the expected numbers, and must miss them
// when it is misled (else exit status 3). So a "no" speaks about the hardware.
#pragma once

#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace gpu_checks {

inline std::string format(const char* pattern, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

// The program cannot do its work: neither a yes nor a no.
[[noreturn]] inline void stop(int status, const std::string& why) {
  std::printf("no answer: %s\n", why.c_str());
  std::exit(status);
}

inline void expect(bool holds, const std::string& what) {
  if (!holds) stop(3, "this program is wrong: " + what);
}

inline void check_cuda(cudaError_t status, const char* call) {
  if (status != cudaSuccess) stop(3, format("%s: %s", call, cudaGetErrorString(status)));
}
#define CHECK_CUDA(call) ::gpu_checks::check_cuda(call, #call)

inline void require_hopper() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) stop(2, "there is no GPU");
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  if (properties.major != 9 || properties.minor != 0)
    stop(2, format("%s has capability %d.%d, not 9.0", properties.name, properties.major, properties.minor));
}

// Prints the answer; `mismatch` is the first one, or empty.
inline int answer(const char* question, int cases, const std::string& mismatch) {
  if (mismatch.empty()) {
    std::printf("yes: %s (%d cases)\n", question, cases);
    return 0;
  }
  std::printf("no: %s; first mismatch: %s\n", question, mismatch.c_str());
  return 1;
}

// Memory of the device.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) { CHECK_CUDA(cudaMalloc(&data_, count * sizeof(T))); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }
  void copy_from(const T* host) {
    CHECK_CUDA(cudaMemcpy(data_, host, count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  void copy_to(T* host) { CHECK_CUDA(cudaMemcpy(host, data_, count_ * sizeof(T), cudaMemcpyDeviceToHost)); }

 private:
  size_t count_;
  T* data_ = nullptr;
};

// A number that looks random, the same for the same key.
inline uint32_t scrambled(uint32_t key) {
  key = (key ^ 61 ^ key >> 16) * 9;
  key = (key ^ key >> 4) * 0x27d4eb2d;
  return key ^ key >> 15;
}

// Where the 128-byte swizzle puts the byte at this address: bits 4 to 6, XOR bits 7 to 9.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// It must be its own inverse, stay within its 128 bytes and give eight rows eight places.
inline void prove_swizzle() {
  for (uint32_t address = 0; address < 4096; ++address) {
    const uint32_t row = address / 128, vec = address / 16 % 8;
    expect(swizzled(swizzled(address)) == address, "the swizzle is not its own inverse");
    expect(swizzled(address) == row * 128 + (vec ^ row % 8) * 16 + address % 16,
           "the swizzle is not that of a 128-byte row");
  }
}

}  // namespace gpu_checks
