# SPDX-License-Identifier: BSD-3-Clause
"""Who is measured: a table of contenders, ours and others. A further one is a function and a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_subpixel as fs

from . import runtimes
from .workloads import GROWING, Operands, Transposed, Workload, memory_format


class Prepared(NamedTuple):
    """A contender with a workload's tensors in its hands. All that may be done once has been done."""

    forward: Callable[[], Tensor]  # [N, C, H*r, W*r]
    leaves: tuple[Tensor, ...]  # input, weight, bias if there is one: what gets gradients
    gradient: Tensor  # of the output

    def forward_backward(self) -> tuple[Tensor, ...]:
        """The gradients of the leaves, from scratch."""
        return torch.autograd.grad(self.forward(), self.leaves, self.gradient)

    def run(self, backward: bool) -> Callable[[], object]:
        """What is timed."""
        return self.forward_backward if backward else self.forward

    def results_bytes(self, backward: bool) -> int:
        """Of the output and the gradients."""
        return self.gradient.nbytes + backward * sum(leaf.nbytes for leaf in self.leaves)


class Parameters(NamedTuple):
    """How a contender keeps weight and bias, where not as the convolution does."""

    weight: Callable[[Workload, Tensor], Tensor]  # from [C*r*r, Ci, k, k]
    weight_back: Callable[[Workload, Tensor], Tensor] | None  # of a gradient; None: it cannot be compared
    bias: Callable[[Workload, Tensor], Tensor] = lambda workload, bias: bias[:: workload.r**2]  # [C]


@dataclass(frozen=True)
class Peer:
    """One way to compute every workload."""

    name: str
    fused: bool  # ours; the ratios are of the fastest other to the fastest of these
    channels_last: bool  # layout of input, weight, output and gradients
    build: Callable[[Workload, Operands], Callable[[], Tensor]]
    parameters: Parameters | None = None
    group: str = ""  # by which --peers asks for it; without one it is always there
    runtime: str = ""  # the package that computes it: forward, on the CPU, in float32
    build_name: str = ""  # ours, but of another build: it runs elsewhere, see against.py

    @property
    def comparable(self) -> bool:
        """Whether it computes the same numbers, not only as many."""
        return self.parameters is None or self.parameters.weight_back is not None

    def prepare(self, workload: Workload, operands: Operands) -> Prepared:
        """Bring the operands, of any layout, into this contender's."""
        if own := self.parameters:
            bias = None if operands.bias is None else own.bias(workload, operands.bias)
            operands = operands._replace(weight=own.weight(workload, operands.weight), bias=bias)
        input, weight, bias, gradient = operands.to_layout(self.channels_last)
        leaves = [t.detach().requires_grad_() for t in (input, weight, bias) if t is not None]
        held = Operands(leaves[0], leaves[1], leaves[2] if workload.bias else None, gradient)
        return Prepared(self.build(workload, held), tuple(leaves), gradient)


def build_fused(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
    input, weight, bias, _ = operands
    r, padding, activation = workload.r, workload.padding, workload.activation
    if activation is None:
        return lambda: fs.subpixel_conv2d(input, weight, bias, r, padding=padding)
    return lambda: fs.subpixel_conv2d(input, weight, bias, r, padding=padding, activation=activation)


def build_eager(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
    input, weight, bias, _ = operands
    r, padding = workload.r, workload.padding
    if workload.activation is None:
        return lambda: F.pixel_shuffle(F.conv2d(input, weight, bias, padding=padding), r)
    # in place, the cheaper way
    return lambda: F.relu(F.pixel_shuffle(F.conv2d(input, weight, bias, padding=padding), r), inplace=True)


def build_compiled(mode: str) -> Callable[[Workload, Operands], Callable[[], Tensor]]:
    """torch.compile of the eager one."""

    def build(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
        input, weight, bias, _ = operands
        r, padding, relu = workload.r, workload.padding, workload.activation == "relu"

        def head(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            output = F.pixel_shuffle(F.conv2d(input, weight, bias, padding=padding), r)
            return F.relu(output) if relu else output

        # all workloads share this code, and past its limits torch.compile goes on without compiling
        torch._dynamo.config.recompile_limit = 10_000
        torch._dynamo.config.accumulated_recompile_limit = 10_000
        compiled = torch.compile(head, mode=mode, dynamic=False)
        return lambda: compiled(input, weight, bias)

    return build


def build_transpose(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
    """One transposed convolution. For even kernels its output begins r pixels early."""
    input, weight, bias, _ = operands
    r, padding = workload.r, (workload.kernel - 1) // 2 * workload.r
    channels_last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    layout = memory_format(channels_last)

    def head() -> Tensor:
        output = F.conv_transpose2d(input, weight, bias, stride=r, padding=padding)
        if workload.kernel % 2 == 0:
            output = output[:, :, r:, r:].contiguous(memory_format=layout)
        return F.relu(output, inplace=True) if workload.activation else output

    return head


def transposed(workload: Workload, weight: Tensor) -> Tensor:
    """[C*r*r, Ci, k, k] to [Ci, C, k*r, k*r]: the taps turned by 180 degrees, r*r phases within each."""
    c, r, k = workload.c, workload.r, workload.kernel
    turned = weight.view(c, r, r, -1, k, k).flip(4, 5)
    return turned.permute(3, 0, 4, 1, 5, 2).reshape(-1, c, k * r, k * r)


def transposed_back(workload: Workload, weight: Tensor) -> Tensor:
    c, r, k = workload.c, workload.r, workload.kernel
    phases = weight.reshape(-1, c, k, r, k, r).permute(1, 3, 5, 0, 2, 4)  # [C, r, r, Ci, k, k]
    return phases.flip(4, 5).reshape(workload.weight_shape)


def build_nearest(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
    """What also enlarges, by as many operations: repeat the pixels, then convolve. The numbers are others."""
    input, weight, bias, _ = operands
    r, padding = float(workload.r), workload.padding

    def head() -> Tensor:
        large = F.interpolate(input, scale_factor=r, mode="nearest")
        output = F.conv2d(large, weight, bias, padding=padding)
        return F.relu(output, inplace=True) if workload.activation else output

    return head


def build_fused_transposed(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
    return _transposed_by(fs.conv_transpose2d, workload, operands)


def build_plain_transposed(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
    return _transposed_by(F.conv_transpose2d, workload, operands)


def _transposed_by(
    function: Callable[..., Tensor], workload: Workload, operands: Operands
) -> Callable[[], Tensor]:
    assert isinstance(workload, Transposed)
    input, weight, bias, _ = operands
    return lambda: function(input, weight, bias, stride=workload.r, padding=workload.cut)


def build_runtime(name: str) -> Callable[[Workload, Operands], Callable[[], Tensor]]:
    """Another program's session on the same model. Input and output are PyTorch's memory seen by NumPy."""

    def build(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
        model = runtimes.onnx_model(workload, operands)
        session = runtimes.SESSIONS[name](model, torch.get_num_threads())
        image = operands.input.detach().numpy()
        return lambda: torch.from_numpy(session(image))

    return build


AS_TRANSPOSED = Parameters(transposed, transposed_back)
AS_NEAREST = Parameters(lambda workload, weight: weight[:: workload.r**2], None)

# Each round goes through these lists. Neighbours differ in layout, hence in tensors: nobody finds them in the
# cache because the one before has just used them. The first that is not ours is the yardstick for errors.
PEERS = (
    Peer("fused NCHW", True, False, build_fused),
    Peer("fused channels_last", True, True, build_fused),
    Peer("eager NCHW", False, False, build_eager),
    Peer("eager channels_last", False, True, build_eager),
)
TRANSPOSED_PEERS = (
    Peer("fused NCHW", True, False, build_fused_transposed),
    Peer("fused channels_last", True, True, build_fused_transposed),
    Peer("conv_transpose2d NCHW", False, False, build_plain_transposed),
    Peer("conv_transpose2d channels_last", False, True, build_plain_transposed),
)
FURTHER_PEERS = (
    *(
        Peer(f"{group} {'channels_last' if layout else 'NCHW'}", False, layout, build, parameters, group)
        for group, build, parameters in (
            ("compile", build_compiled("default"), None),
            # CUDA graphs are --graph's business, for all contenders alike
            ("max-autotune", build_compiled("max-autotune-no-cudagraphs"), None),
            ("conv_transpose2d", build_transpose, AS_TRANSPOSED),
            ("nearest", build_nearest, AS_NEAREST),
        )
        for layout in (False, True)
    ),
    *(
        Peer(f"{name} NCHW", False, False, build_runtime(name), group=name, runtime=name)
        for name in runtimes.SESSIONS
    ),
)
GROUPS = tuple(dict.fromkeys(peer.group for peer in FURTHER_PEERS))
CHEAP = ("conv_transpose2d", "nearest")  # nothing to compile: what grows is measured against these only
# what --peers all means; by name, max-autotune can be had on a CPU as well
ALL = {
    "cpu": ("compile", *CHEAP, *runtimes.SESSIONS),
    "cuda": ("compile", "max-autotune", *CHEAP),
}


def contenders(workload: Workload, peers: Sequence[Peer]) -> tuple[Peer, ...]:
    """Those of ``peers`` that this workload is measured with."""
    if isinstance(workload, Transposed):
        return TRANSPOSED_PEERS
    return tuple(peer for peer in peers if workload not in GROWING or peer.group in ("", *CHEAP))
