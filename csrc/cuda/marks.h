// SPDX-License-Identifier: BSD-3-Clause
// Marks where sections of the forward kernels begin, for the speed model (tools/speed_model). FS_MARK(Mark::kTap) is
// nothing in the product. With FS_MARKS it is an instruction without effect, which is found again in the machine code; in
// the emulator it counts.
#pragma once

namespace fused_subpixel::cuda {

// Of a loop: each iteration. The instruction has room for 16.
enum class Mark : int {
  kStart,       // of the kernel, and its end; without a mark
  kPixelTable,  // finds a pixel of the input tile
  kPixels,      // loads 16 bytes of the input tile
  kPixelParts,  // the same in copies of 4 or 8 bytes
  kWeights,     // loads 16 bytes of the weight
  kStep,        // of the pipeline: waits for a stage, fetches another one
  kTap,         // multiplies one tap of a block of k
  kOcTable,     // the store's tables
  kPlaceTable,
  kLineTable,
  kRound,      // rounds 16 bytes of pixels to tf32
  kStage,      // stages the accumulators of a tile
  kStore,      // stores 16 bytes, if they are in the image
  kPlace,      // finds the place of the next 16 bytes, where it is another one in its line
  kAligned,    // reads what it stores as vectors
  kUnaligned,  // or one by one
};
constexpr int kMarks = 16;

}  // namespace fused_subpixel::cuda
