// SPDX-License-Identifier: BSD-3-Clause
// The CPU implementations of the operators: allocations and launches.
#include <atomic>
#include <exception>
#include <new>

#include "cpu/launch.h"
#include "torch/operators.h"

namespace fused_subpixel {

// By the dispatcher: what skips it ignores torch.utils.deterministic.fill_uninitialized_memory.
Tensor new_tensor(const std::array<int64_t, 4>& size, const Tensor& like, bool channels_last) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}
Tensor new_vector(int64_t size, const Tensor& like, bool arithmetic) {
  const std::array<int64_t, 1> sizes{size};
  const bool widens = arithmetic && element_bytes(dtype_of(like)) == 2;
  return torch::stable::empty(sizes, widens ? ScalarType::Float : like.scalar_type(), std::nullopt,
                              like.device());
}
Tensor new_bytes(int64_t size, const Tensor& like) {
  const std::array<int64_t, 1> sizes{size};
  return torch::stable::empty(sizes, ScalarType::Byte, std::nullopt, like.device());
}

}  // namespace fused_subpixel

namespace fused_subpixel::cpu {
namespace {

Pool torch_pool() {
  const auto share = [](int64_t n, const std::function<void(int64_t, int64_t)>& run) {
    // Nothing may be thrown inside the pool: the first error is thrown after it.
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr error;
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      try {
        run(begin, end);
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  };
  return {static_cast<int>(torch::stable::get_num_threads()), share};
}

// The kernels' scratch comes from the system; the message says what std::bad_alloc does not.
template <class Launch>
void launched(Launch launch) {
  try {
    launch(torch_pool());
  } catch (const std::bad_alloc&) {
    check(false, "out of memory for scratch");
  }
}

struct Cpu {
  static constexpr bool kTransposedGradients = true;
  explicit Cpu(const Tensor&) {}

  void launch(const ForwardCall& call) const {
    if (call.output.numel() > 0) launched([&](const Pool& pool) { conv_forward(call.arguments, pool); });
  }
  void launch(const InputGradCall* of_input, const WeightGradCall* of_weight) const {
    if (of_input) launch(*of_input);
    if (of_weight) launch(*of_weight);
  }

 private:
  void launch(const InputGradCall& call) const {
    const Geometry& g = call.arguments.geometry;
    check(g.stride_h == 1 && g.stride_w == 1, "the input gradient kernel needs stride 1");
    if (call.grad_input.numel() > 0)
      launched([&](const Pool& pool) { conv_input_grad(call.arguments, pool); });
  }
  void launch(const WeightGradCall& call) const {
    launched([&](const Pool& pool) {
      Tensor sums;
      const auto allocate = [&](int64_t bytes) {
        sums = new_bytes(bytes, call.grad_weight);
        return sums.mutable_data_ptr();
      };
      conv_weight_grad(call.arguments, allocate, pool);
    });
  }
};

// An estimate, with the threads that wait.
int64_t of_all_threads(double cycles, bool parallel, int threads) {
  return static_cast<int64_t>(parallel ? cycles : cycles * threads);
}

// Takes a problem (op_calls.h); returns fields of ConvPlan or WeightGradPlan, last the estimated
// cycles of all threads together, and the plan in words.
std::tuple<std::vector<int64_t>, std::string> cpu_plan(std::vector<int64_t> problem) {
  const Geometry g = problem_geometry(problem);
  const auto dtype = static_cast<DType>(problem[1]);
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  if (static_cast<Pass>(problem[0]) == Pass::kWeightGrad) {
    const WeightGradPlan p =
        plan_weight_grad_pass(g, dtype, (problem[2] & kProblemChannelsLast) != 0, threads);
    return {{p.winograd, p.input_in_lanes, p.tile_vectors, p.tile_columns, p.block_oc, p.block_ic, p.block_n,
             p.block_h, p.block_w, p.blocks_oc, p.blocks_ic, p.blocks(), p.slots, p.items, p.parallel,
             of_all_threads(estimate(p), p.parallel, threads)},
            describe(p)};
  }
  const ConvPlan p =
      plan_pass(static_cast<Pass>(problem[0]), g, dtype, (problem[2] & kProblemChannelsLast) != 0,
                (problem[2] & kProblemTransposed) != 0, threads);
  const std::vector<int64_t> numbers{
      static_cast<int64_t>(p.kernel),
      p.tile_oc,
      p.tile_pixels,
      p.panel_tiles,
      p.block_n,
      p.block_h,
      p.block_w,
      p.blocks_n,
      p.blocks_h,
      p.blocks_w,
      p.items,
      p.weights_resident,
      p.parallel,
      of_all_threads(p.cycles[static_cast<int>(p.kernel)], p.parallel, threads)};
  return {numbers, describe(p)};
}

// Current instruction set, bit mask of the usable ones, bytes of the L2 cache, TileRegisters.
std::vector<int64_t> cpu_capability() {
  return {static_cast<int64_t>(current_isa()), usable_isas(), l2_bytes(),
          static_cast<int64_t>(tile_registers())};
}

void cpu_select_isa(int64_t isa) {
  check(isa >= 0 && isa < kIsas && select_isa(static_cast<Isa>(isa)),
        "this processor or build lacks instruction set ", isa);
}

}  // namespace
}  // namespace fused_subpixel::cpu

STABLE_TORCH_LIBRARY_IMPL(FS_NAMESPACE, CPU, m) {
  fused_subpixel::register_operators<fused_subpixel::cpu::Cpu>(m);
}

STABLE_TORCH_LIBRARY_IMPL(FS_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("_cpu_plan", TORCH_BOX(&fused_subpixel::cpu::cpu_plan));
  m.impl("_cpu_capability", TORCH_BOX(&fused_subpixel::cpu::cpu_capability));
  m.impl("_cpu_select_isa", TORCH_BOX(&fused_subpixel::cpu::cpu_select_isa));
}
