# SPDX-License-Identifier: BSD-3-Clause
"""Runs every case on tensors that end, or begin, where the readable memory does.

A program of its own, for a stray read ends the process. Under glibc's MALLOC_CHECK_=3 so does a write next to
an output; see test_memory.py.

    python guarded.py all           all cases with all dtypes, in all layouts, at both ends of the memory
    python guarded.py some          all cases, each with one of these combinations, which rotates
    python guarded.py read | write  do what the kernels must not, to show that it would be noticed
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys

import cases
import rotation
import torch
from torch import Tensor

libc = ctypes.CDLL(None, use_errno=True)


def guarded(tensor: Tensor, at_end: bool) -> Tensor:
    """A copy of a dense tensor right before, or right after, a page that must not be touched."""
    page, size = mmap.PAGESIZE, tensor.untyped_storage().nbytes()
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for address in (start, start + page + room):
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0  # PROT_NONE
    offset = page + (room - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=size // tensor.element_size(), offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def with_gaps(tensor: Tensor) -> Tensor:
    """A copy of [N, C, H, W] in NCHW, with a gap behind each row but the last."""
    _, channels, height, width = tensor.shape
    row = width + 1
    strides = (channels * height * row, height * row, row, 1)
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def run(case: cases.Case, dtype: torch.dtype, layout: torch.memory_format, at_end: bool) -> None:
    tensors = cases.integers(case).to(dtype, layout)
    tensors = cases.Tensors(*(None if t is None else guarded(t, at_end) for t in tensors))
    output = cases.run(case, tensors)
    if case.residual == "high":  # which lies otherwise than the output
        assert tensors.residual is not None
        spread = guarded(with_gaps(tensors.residual), at_end)
        assert cases.run(case, tensors._replace(residual=spread)).equal(output)
    grad = guarded(output, at_end)
    cases.operators.subpixel_conv2d_weight_grad(grad, tensors.input, *case.weight[2:], case.geometry)
    if case.stride == (1, 1):
        channels_last = layout == torch.channels_last
        cases.operators.subpixel_conv2d_input_grad(
            grad, tensors.weight, *case.input[2:], case.geometry, channels_last
        )


# Whose last strip of 16 pixels is not whole.
IN_PLACE = cases.Case("read in place", (2, 64, 3, 7), (200, 64, 1, 1))
# Whose rows of weights, 1170 elements of an output channel and 810 of an input channel, fill no last vector.
STREAMED = cases.Case("streamed", (1, 130, 3, 3), (90, 130, 3, 3), (1, 1), padding=cases.SAME3)


def run_all(turns: int) -> None:
    for isa in cases.usable_matrix_isas():
        with cases.instruction_set(isa):
            for at_end in (False, True):
                run(IN_PLACE, torch.bfloat16, torch.channels_last, at_end)
    for isa in cases.usable_isas():
        with cases.instruction_set(isa):
            for layout, at_end in itertools.product(cases.LAYOUTS.values(), (False, True)):
                run(STREAMED, torch.float32, layout, at_end)
    every = (*cases.GEOMETRIES, *cases.EPILOGUES, *cases.INEXACT)
    choices = list(itertools.product(cases.DTYPES, cases.LAYOUTS.values(), (False, True)))
    of_matrix = [choice for choice in choices if torch.bfloat16 in choice]
    for turn in range(min(turns, len(choices))):
        met = list(rotation.rotation(len(every), cases.usable_isas(), choices, turn))
        met += rotation.rotation(len(every), cases.usable_matrix_isas(), of_matrix, turn)
        for index, isa, choice in met:
            with cases.instruction_set(isa):
                run(every[index], *choice)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "read" in sys.argv:
        ctypes.string_at(guarded(torch.zeros(3), at_end=True).data_ptr() + 12, 1)
    elif "write" in sys.argv:
        output = torch.zeros(30)
        ctypes.memset(output.data_ptr() + 120, 1, 1)
        del output
    else:
        run_all(1 if "some" in sys.argv else 10**6)
    print("done")
