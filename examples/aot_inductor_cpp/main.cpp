// SPDX-License-Identifier: BSD-3-Clause
// Runs an AOTInductor package that holds fused_subpixel's operator, without Python.
//
//     ./upscale model.pt2 fused_subpixel_schemas.so fused_subpixel_cpu.so [fused_subpixel_cuda.so]
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <exception>
#include <vector>

namespace {

// As in export.py.
at::Tensor picture(int64_t batch, int64_t height, int64_t width) {
  return at::arange(batch * 3 * height * width).remainder(17).div(16).view({batch, 3, height, width});
}

// As in export.py.
double checksum(const at::Tensor& y) {
  return (y.to(at::kDouble).flatten() * at::arange(y.numel()).remainder(13)).sum().item<double>();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s model.pt2 fused_subpixel_schemas.so fused_subpixel_cpu.so ...\n",
                 argv[0]);
    return 2;
  }
  // Loading is all: schemas and kernels register themselves with torch, in any order, before the package is opened.
  for (int i = 2; i < argc; ++i) {
    if (dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
  }
  try {
    const c10::InferenceMode inference;
    torch::inductor::AOTIModelPackageLoader model(argv[1]);
    for (const at::Tensor& x : {picture(1, 24, 32), picture(2, 17, 40)}) {
      const std::vector<at::Tensor> outputs = model.run({x});
      std::printf("checksum %.3f\n", checksum(outputs.at(0)));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
