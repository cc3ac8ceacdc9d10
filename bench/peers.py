# SPDX-License-Identifier: BSD-3-Clause
"""Who is measured: a table of contenders, ours and others. A further one is a function and a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_subpixel as fs

from .workloads import Operands, Workload


class Prepared(NamedTuple):
    """A contender with a workload's tensors in its hands. All that may be done once has been done."""

    forward: Callable[[], Tensor]  # [N, C, H*r, W*r]
    leaves: tuple[Tensor, ...]  # input, weight, bias if there is one: what gets gradients
    gradient: Tensor  # of the output

    def forward_backward(self) -> tuple[Tensor, ...]:
        """The gradients of the leaves, from scratch."""
        return torch.autograd.grad(self.forward(), self.leaves, self.gradient)


@dataclass(frozen=True)
class Peer:
    """One way to compute every workload."""

    name: str
    fused: bool  # ours; the ratios are of the fastest other to the fastest of these
    channels_last: bool  # layout of input, weight, output and gradients
    build: Callable[[Workload, Operands], Callable[[], Tensor]]

    def prepare(self, workload: Workload, operands: Operands) -> Prepared:
        """Bring the operands, of any layout, into this contender's."""
        input, weight, bias, gradient = operands.to_layout(self.channels_last)
        leaves = [t.detach().requires_grad_() for t in (input, weight, bias) if t is not None]
        own = Operands(leaves[0], leaves[1], leaves[2] if workload.bias else None, gradient)
        return Prepared(self.build(workload, own), tuple(leaves), gradient)


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


# Each round goes through this list. Neighbours differ in layout, hence in tensors: nobody finds them in the
# cache because the one before has just used them.
PEERS = (
    Peer("fused NCHW", True, False, build_fused),
    Peer("fused channels_last", True, True, build_fused),
    Peer("eager NCHW", False, False, build_eager),
    Peer("eager channels_last", False, True, build_eager),
)
YARDSTICK = "eager NCHW"  # whose error the others' are compared with
