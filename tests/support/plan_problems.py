# SPDX-License-Identifier: BSD-3-Clause
"""Random problems and processors for the tests of the CPU library's plans."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

host: Any = pytest.importorskip("fused_subpixel_host", reason="not built: python setup.py build_host_tests")


def make(Class: Any, **fields: Any) -> Any:
    made = Class()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


SHAPE = (
    "batch", "groups", "ic", "oc", "lr_h", "lr_w",
    "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w",
)  # fmt: skip


def with_shape(fields: dict[str, Any]) -> Any:
    """A problem from fields of its own and of its shape."""
    shape = make(host.ConvShape, **{name: fields.pop(name) for name in SHAPE})
    return make(host.ConvProblem, shape=shape, **fields)


def make_problem(oc: int, share: float, **fields: Any) -> Any:
    """Phases of equal size, where they do not mix; an average one has so large a share of all taps."""
    taps = fields["kernel_h"] * fields["kernel_w"] * share
    oc = fields["phase_oc"] * fields["phase_interleave"] * (1 + oc % 3) or oc
    interleave = fields["ic"] if fields["ic_contiguous"] else fields.pop("ic_interleave", 1)
    return with_shape({"oc": oc, "mean_taps": taps, **fields, "ic_interleave": interleave})


SIZES = st.integers(1, 70) | st.integers(1, 3000)
problems = st.builds(
    make_problem,
    batch=st.integers(0, 40),
    groups=st.integers(1, 8),
    ic=SIZES,
    oc=SIZES,
    lr_h=SIZES,
    lr_w=SIZES,
    kernel_h=st.just(3) | st.integers(1, 7),
    kernel_w=st.just(3) | st.integers(1, 7),
    stride_h=st.just(1) | st.integers(1, 4),
    stride_w=st.just(1) | st.integers(1, 4),
    dilation_h=st.just(1) | st.integers(1, 9),
    dilation_w=st.just(1) | st.integers(1, 9),
    interleave=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 48]),
    oc_contiguous=st.booleans(),
    spared_h=st.integers(0, 1),
    spared_w=st.integers(0, 1),
    phase_oc=st.sampled_from([0, 1, 3, 10, 16, 32, 64, 192]),
    phase_interleave=st.integers(1, 9),
    unused_h=st.sampled_from([0.0, 0.5, 1.0]),
    unused_w=st.sampled_from([0.0, 0.5, 1.0]),
    share=st.sampled_from([1.0, 0.75, 0.6, 0.25]),
    ic_interleave=st.sampled_from([1, 2, 3, 12]),
    ic_contiguous=st.booleans(),
    planar_input=st.booleans(),
    inexact=st.booleans(),
)


def make_streamed(channels: int, of_output: bool, **fields: Any) -> Any:
    """Few pixels, and weights that are read where they lie."""
    phases, taps = fields["phases"], fields["kernel_h"] * fields["kernel_w"]
    oc, row = channels * phases, host.WeightRow.OF_OUTPUT if of_output else host.WeightRow.OF_INPUT
    return with_shape({
        "oc": oc, "mean_taps": taps, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1,
        "weight_row": row, "row_length": taps * (fields["ic"] if of_output else oc), **fields,
    })  # fmt: skip


streamed_problems = st.builds(
    make_streamed,
    channels=SIZES,
    of_output=st.booleans(),
    batch=st.integers(1, 16),
    groups=st.integers(1, 4),
    ic=SIZES,
    lr_h=st.integers(1, 8),
    lr_w=st.integers(1, 8),
    kernel_h=st.integers(1, 4),
    kernel_w=st.integers(1, 4),
    phases=st.sampled_from([1, 2, 4, 9]),
    read_pixels=st.integers(1, 64),
    row_by_tap=st.booleans(),
    oc_contiguous=st.booleans(),
    ic_contiguous=st.booleans(),
    interleave=st.sampled_from([0, 1, 2, 3, 16, 48]),
)
targets = st.builds(
    lambda bytes_and_lanes, **fields: make(
        host.Target, element_bytes=bytes_and_lanes[0], lanes=bytes_and_lanes[1], **fields
    ),
    bytes_and_lanes=st.sampled_from([(4, 4), (4, 8), (4, 16), (8, 2), (8, 4), (8, 8)]),
    registers=st.sampled_from([16, 32]),
    l2_bytes=st.sampled_from([1 << 17, 1 << 18, 1 << 20, 5 << 18, 1 << 21, 1 << 24]),
    threads=st.sampled_from([1, 2, 3, 16, 64]),
    half_rate=st.booleans(),
)
# With matrix tiles, of the processor or in software.
matrix_targets = st.builds(
    lambda lanes, **fields: make(host.Target, element_bytes=4, lanes=lanes, **fields),
    lanes=st.sampled_from([4, 16]),
    matrix_tiles=st.sampled_from([host.MatrixTiles.VECTORS, host.MatrixTiles.REGISTERS]),
    registers=st.sampled_from([16, 32]),
    l2_bytes=st.sampled_from([1 << 18, 5 << 18, 1 << 21, 1 << 22]),
    threads=st.sampled_from([1, 2, 3, 16, 64]),
)
EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True)


def weight_grad_problem(problem: Any) -> Any:
    """The weight gradient of a problem."""
    return make(
        host.WeightGradProblem, shape=problem.shape, planar_input=not problem.ic_contiguous,
        planar_gradient=not problem.oc_contiguous, no_winograd=problem.no_winograd,
    )  # fmt: skip


def plan_weight_grad(problem: Any, target: Any) -> Any:
    return host.plan_weight_grad(weight_grad_problem(problem), target)


AVX512 = make(host.Target, lanes=16, registers=32, l2_bytes=1 << 21, threads=2, element_bytes=4)
AMX = make(
    host.Target, lanes=16, registers=32, l2_bytes=1 << 21, threads=2, element_bytes=4,
    matrix_tiles=host.MatrixTiles.REGISTERS,
)  # fmt: skip
AVX512_BF16 = make(
    host.Target, lanes=16, registers=32, l2_bytes=1 << 20, threads=2, element_bytes=4,
    matrix_tiles=host.MatrixTiles.VECTORS,
)  # fmt: skip


def image_problem(**fields: Any) -> Any:
    """A 3x3 head on a small image, but for ``fields``."""
    default = {
        "batch": 1, "groups": 1, "ic": 64, "oc": 12, "lr_h": 64, "lr_w": 64, "kernel_h": 3,
        "kernel_w": 3, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1, "interleave": 2,
        "oc_contiguous": False, "spared_h": 0, "spared_w": 0, "phase_oc": 0, "phase_interleave": 1,
        "ic_interleave": 1, "ic_contiguous": False, "planar_input": False,
    }  # fmt: skip
    fields = {**default, **fields}
    return with_shape({"mean_taps": fields["kernel_h"] * fields["kernel_w"], **fields})
