# SPDX-License-Identifier: BSD-3-Clause
"""Problems for the kernels, data to run them on, and ways to run them.

Two kinds of data. Small integers, whose sums are exact in every dtype's arithmetic type: results must have
the oracle's bits, and no misplaced pixel can hide in a tolerance. Random numbers, where our error is compared
with the error that PyTorch makes in the same dtype.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import oracle
import torch
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel import reference
from fused_subpixel.ops import library
from fused_subpixel.ops.geometry import ACTIVATIONS, CHANNEL_ORDERS, Epilogue, Geometry, lr_size, output_size

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FORWARD, INPUT_GRAD, WEIGHT_GRAD = range(3)  # passes, as cpu_plan numbers them
# Kernels, as in csrc/cpu/plan.h.
OW_VECTORISED, OC_VECTORISED, WINOGRAD, WINOGRAD_ROW, WINOGRAD4, MATRIX, STREAMED = range(7)
AVX512_BF16, AMX, NEON_BF16, AVX512_BF16_STAND_IN, AMX_STAND_IN = 3, 4, 5, 6, 7  # enum Isa of csrc/cpu/isa.h

SLOPE = 0.25  # of leaky_relu

operators = torch.ops.fused_subpixel


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem."""

    name: str
    input: tuple[int, int, int, int]  # [N, Ci, H, W]
    weight: tuple[int, int, int, int]  # [C*r_h*r_w, Ci/groups, k_h, k_w]
    upscale: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    order: str = "crd"
    activation: str | None = None
    slopes: int = 0  # of prelu
    extension: tuple[int, int] = (0, 0)  # of a transposed convolution's kernel
    residual: str | None = None  # "high", "nearest" or "low"
    clamp: tuple[float | None, float | None] | None = None
    inexact: bool = False  # whether float32 may be less than exact

    def __str__(self) -> str:
        return self.name

    @property
    def geometry(self) -> Geometry:
        order = CHANNEL_ORDERS[self.order]
        kernel_pad_h, kernel_pad_w = self.extension
        return Geometry(
            *self.upscale, *self.stride, *self.padding, *self.dilation, self.groups, *self.crop, order,
            tf32=int(self.inexact), kernel_pad_h=kernel_pad_h, kernel_pad_w=kernel_pad_w,
        )  # fmt: skip

    @property
    def epilogue(self) -> Epilogue:
        low, high = self.clamp or (None, None)
        least, most = -math.inf if low is None else low, math.inf if high is None else high
        return Epilogue(ACTIVATIONS[self.activation], SLOPE, least, most)

    @property
    def channels(self) -> int:
        return self.weight[0] // math.prod(self.upscale)

    @property
    def output(self) -> tuple[int, int, int, int]:
        size = output_size(self.geometry, *self.input[2:], *self.weight[2:])
        return self.input[0], self.channels, *size

    @property
    def low(self) -> tuple[int, int]:
        """(P, Q), the size before the shuffle."""
        return lr_size(self.geometry, *self.input[2:], *self.weight[2:])

    @property
    def residual_shape(self) -> tuple[int, ...] | None:
        if self.residual is None:
            return None
        if self.residual == "high":
            return self.output
        return self.input[0], self.channels if self.residual == "nearest" else self.weight[0], *self.low

    def options(self) -> dict[str, Any]:
        """Of the public function and the oracle, but for the names that differ."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "channel_order": self.order,
            "activation": self.activation,
            "negative_slope": SLOPE,
            "clamp": self.clamp,
        }


class Tensors(NamedTuple):
    """The operator's tensors."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    activation_weight: Tensor | None = None
    residual: Tensor | None = None

    def to(self, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensors:
        """All in ``dtype``, the images in ``layout``."""
        cast = Tensors(*(None if t is None else t.to(dtype) for t in self))
        image, residual = (
            None if t is None else t.contiguous(memory_format=layout) for t in (cast.input, cast.residual)
        )
        return cast._replace(input=image, residual=residual)

    def double(self) -> Tensors:
        """All in float64, strides kept."""
        return Tensors(*(None if t is None else t.double() for t in self))


# ---- data --------------------------------------------------------------------------------------------------


def _tensors(case: Case, draw: Any, slope: Any) -> Tensors:
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    fan_in = math.prod(case.weight[1:])
    return Tensors(
        draw(case.input, 1.0, generator),
        draw(case.weight, fan_in**-0.5, generator),
        draw(case.weight[:1], 1.0, generator),
        slope(case.slopes, generator) if case.slopes else None,
        draw(case.residual_shape, 1.0, generator) if case.residual else None,
    )


def _integers(shape: Any, _scale: float, generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, shape, generator=generator).double()


def integers(case: Case) -> Tensors:
    """Small integers (slopes: powers of two) in float64."""
    return _tensors(case, _integers, lambda n, g: 2.0 ** -torch.randint(-1, 3, (n,), generator=g).double())


def randoms(case: Case, dtype: torch.dtype) -> Tensors:
    """Normal numbers, exact in ``dtype``, for outputs of about one; in float64."""

    def draw(shape: Any, scale: float, generator: torch.Generator) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).double()

    return _tensors(case, draw, lambda n, g: draw((n,), 0.5, g))


def by_oracle(case: Case, tensors: Tensors, precision: Any = np.float64) -> np.ndarray:
    """The oracle's result for a case."""
    arrays = [None if t is None else t.double().numpy().astype(precision) for t in tensors]
    return oracle.subpixel_conv2d(
        *arrays[:3],
        case.upscale,
        crop=case.crop,
        activation_weight=arrays[3],
        residual=arrays[4],
        **case.options(),
    )


@functools.cache
def exact(case: Case) -> Tensor:
    """What :func:`integers` must give, in float64."""
    return torch.from_numpy(by_oracle(case, integers(case)))


# ---- running -----------------------------------------------------------------------------------------------


def run(case: Case, tensors: Tensors) -> Tensor:
    """Run the compiled forward: through the public function, or, for what it does not offer, the operator."""
    if any(case.crop) or case.inexact:
        return operators.subpixel_conv2d(*tensors, case.geometry, *case.epilogue)
    return fs.subpixel_conv2d(
        *tensors[:3], case.upscale, activation_weight=tensors.activation_weight, residual=tensors.residual,
        backend="cpu", **case.options(),
    )  # fmt: skip


def plain(case: Case, tensors: Tensors) -> Tensor:
    """Run conv2d, pixel_shuffle and the rest by PyTorch, one after another."""
    return reference.run(*tensors, case.geometry, case.epilogue)


class Plan(NamedTuple):
    """Fields of csrc/cpu/plan.h's ConvPlan."""

    kernel: int
    tile_oc: int
    tile_pixels: int
    panel_tiles: int
    block_n: int
    block_h: int
    block_w: int
    blocks_n: int
    blocks_h: int
    blocks_w: int
    items: int
    weights_resident: int
    parallel: int


def plan_of(case: Case, dtype: torch.dtype, layout: str, which: int = FORWARD) -> Plan:
    """The plan for a case with the current instruction set and number of threads."""
    return Plan(*_cpu_plan(case, dtype, layout, which)[0][: len(Plan._fields)])


def plan_in_words(case: Case, dtype: torch.dtype, layout: str, which: int) -> str:
    return _cpu_plan(case, dtype, layout, which)[1]


def _cpu_plan(case: Case, dtype: torch.dtype, layout: str, which: int) -> tuple[list[int], str]:
    sizes = (*case.input, case.weight[0], *case.weight[2:])
    found: tuple[list[int], str] = operators._cpu_plan(
        [which, DTYPES.index(dtype), layout == "channels_last", *sizes, *case.geometry]
    )
    return found


class WeightGradPlan(NamedTuple):
    """Fields of csrc/cpu/plan_weight_grad.h's plan; ``blocks`` are those of pixels."""

    winograd: int
    input_in_lanes: int
    tile_vectors: int
    tile_columns: int
    block_oc: int
    block_ic: int
    block_n: int
    block_h: int
    block_w: int
    blocks_oc: int
    blocks_ic: int
    blocks: int
    slots: int
    items: int
    parallel: int


def weight_grad_plan_of(case: Case, dtype: torch.dtype, layout: str) -> WeightGradPlan:
    return WeightGradPlan(*_cpu_plan(case, dtype, layout, WEIGHT_GRAD)[0][: len(WeightGradPlan._fields)])


def usable_isas() -> list[int]:
    """Vector instruction sets (0 portable, 1 AVX2, 2 AVX-512) that can run here; none without the library."""
    return _usable(range(3))


def usable_matrix_isas() -> list[int]:
    """Those that multiply matrix tiles of bfloat16: 3 to 5 if this processor can, 6 and 7 in software."""
    return _usable((AVX512_BF16, AMX, NEON_BF16, AVX512_BF16_STAND_IN, AMX_STAND_IN))


def _usable(isas: Iterable[int]) -> list[int]:
    if not library.libraries["cpu"].loaded:
        return []
    mask = operators._cpu_capability()[1]
    return [isa for isa in isas if mask >> isa & 1]


@contextlib.contextmanager
def instruction_set(isa: int) -> Iterator[int]:
    """Run the kernels of one instruction set inside."""
    before = operators._cpu_capability()[0]
    operators._cpu_select_isa(isa)
    yield isa
    operators._cpu_select_isa(before)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def outputs_start_as_nan() -> Iterator[None]:
    """Memory from torch.empty is filled with NaN: a pixel that is not written shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def untouched(elements: int, dtype: torch.dtype) -> Tensor:
    """Memory that no poison fills, for tensors that lie far apart: its pages are not touched."""
    poisoned = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    room = torch.empty(elements, dtype=dtype)
    torch.utils.deterministic.fill_uninitialized_memory = poisoned
    return room


# ---- views -------------------------------------------------------------------------------------------------


def views(x: Tensor) -> dict[str, Tensor]:
    """The values of ``x`` (where expanded: some of them) in all kinds of memory, with NaN around them."""
    n, c, h, w = x.shape
    around = x.new_full((n + 1, c + 2, h + 3, w + 4), math.nan)
    around[1:, 1:-1, 1:-2, 3:-1] = x
    sparse = x.new_full((n, 2 * c, 2 * h, 3 * w), math.nan)
    sparse[:, 1::2, ::2, 1::3] = x
    last = {"memory_format": torch.channels_last}
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(**last),
        "window": around[1:, 1:-1, 1:-2, 3:-1],
        "channels_last window": around.contiguous(**last)[1:, 1:-1, 1:-2, 3:-1],
        "channels_last image window": around[:, 1:-1].contiguous(**last)[1:, :, 1:-2, 3:-1],
        "every other": sparse[:, 1::2, ::2, 1::3],
        "channels_last every other": sparse.contiguous(**last)[:, 1::2, ::2, 1::3],
        "columns first": x.transpose(2, 3).contiguous().transpose(2, 3),
        "batch last": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "channels before batch": x.transpose(0, 1).contiguous().transpose(0, 1),
        "offset by one": torch.cat([x.new_full((1,), math.nan), x.flatten()])[1:].view(x.shape),
        "one image": x[:1].expand(x.shape),
        "one channel": x[:, :1].expand(x.shape),
        "one row": x[:, :, :1].expand(x.shape),
        "one column": x[..., :1].expand(x.shape),
        "one value": x[:1, :1, :1, :1].expand(x.shape),
    }


# ---- the problems ------------------------------------------------------------------------------------------

SAME3 = (1, 1, 1, 1)
GEOMETRIES = (
    # kernels, factors, both orders; few rows of output channels, so pixels in the lanes
    Case("3x2", (2, 3, 5, 6), (8, 3, 3, 2)),
    Case("3x2 dcr", (2, 3, 5, 6), (8, 3, 3, 2), order="dcr"),
    Case("1x1", (1, 5, 3, 35), (12, 5, 1, 1)),
    Case("2x2 deconvolution", (1, 4, 6, 17), (12, 4, 2, 2), padding=SAME3, crop=SAME3),
    Case("5x3", (1, 2, 7, 20), (16, 2, 5, 3), (4, 4), padding=(2, 1, 2, 1)),
    Case("r=1", (2, 3, 4, 18), (5, 3, 3, 3), (1, 1), padding=SAME3),
    Case("r=3", (1, 4, 5, 34), (9, 4, 3, 3), (3, 3), padding=SAME3),
    Case("r=3 colour", (1, 3, 4, 19), (27, 3, 3, 3), (3, 3), padding=SAME3),
    Case("r=3 colour dcr", (1, 3, 4, 19), (27, 3, 3, 3), (3, 3), padding=SAME3, order="dcr"),
    Case("r=4", (1, 3, 3, 33), (48, 3, 3, 3), (4, 4), padding=SAME3),
    Case("r=5", (1, 3, 3, 7), (100, 3, 1, 3), (5, 5), padding=(0, 1, 0, 1)),
    Case("r=8", (1, 2, 2, 17), (64, 2, 3, 3), (8, 8), padding=SAME3),
    Case("r=(2,3)", (2, 3, 4, 21), (36, 3, 2, 3), (2, 3), padding=(0, 1, 1, 1)),
    Case("r=(3,1) dcr", (2, 3, 4, 21), (6, 3, 2, 3), (3, 1), order="dcr"),
    Case("r=(1,2)", (2, 3, 4, 40), (4, 3, 2, 3), (1, 2)),
    Case("one of everything", (1, 1, 1, 1), (1, 1, 1, 1), (1, 1)),
    Case("one column", (2, 3, 9, 1), (12, 3, 3, 1)),
    # where taps and pixels lie
    Case("stride", (2, 3, 7, 38), (8, 3, 3, 2), stride=(2, 1)),
    Case("stride in columns", (1, 3, 5, 39), (8, 3, 3, 3), stride=(1, 2), padding=SAME3),
    Case("stride past the kernel", (1, 3, 8, 23), (12, 3, 1, 2), stride=(2, 3)),
    Case("dilation", (1, 3, 9, 29), (8, 3, 3, 2), dilation=(2, 3), padding=(1, 2, 3, 0)),
    Case("both", (2, 2, 9, 29), (9, 2, 2, 3), (3, 3), stride=(3, 2), dilation=(1, 3), padding=(0, 2, 1, 5)),
    Case("padding past the kernel", (1, 2, 3, 4), (4, 2, 2, 3), padding=(4, 5, 3, 6)),
    Case("padding only at the end", (1, 2, 3, 17), (8, 2, 2, 2), padding=(0, 0, 1, 1)),
    Case("crop", (2, 3, 4, 36), (12, 3, 3, 3), padding=SAME3, crop=(1, 1, 1, 1)),
    Case("uneven crop", (1, 2, 5, 18), (18, 2, 2, 2), (3, 3), crop=(2, 4, 5, 7), order="dcr"),
    Case("crop, r=1", (1, 4, 6, 9), (5, 4, 3, 3), (1, 1), padding=SAME3, crop=(1, 2, 0, 1)),
    Case("crop of whole vectors", (1, 2, 3, 50), (8, 2, 1, 1), crop=(3, 41, 0, 30)),
    # groups: within a pixel cell, one per channel, wide ones
    Case("groups", (2, 6, 4, 19), (24, 2, 3, 2), groups=3),
    Case("groups that cut a cell", (1, 4, 3, 18), (6, 2, 3, 3), (1, 3), groups=2, padding=SAME3),
    Case("depthwise", (1, 5, 4, 19), (20, 1, 3, 3), groups=5, padding=SAME3),
    Case("groups dcr", (1, 4, 3, 18), (16, 2, 2, 2), groups=2, order="dcr"),
    # many output channels or few pixels, so channels in the lanes
    Case("wide", (2, 8, 5, 6), (64, 8, 3, 3), padding=SAME3),
    Case("wide dcr", (2, 8, 5, 6), (64, 8, 3, 3), padding=SAME3, order="dcr"),
    Case("wide r=3", (1, 20, 4, 7), (144, 20, 3, 2), (3, 3)),
    Case("wide r=5", (1, 6, 3, 5), (100, 6, 3, 3), (5, 5), padding=SAME3),
    Case("wide 1x1", (1, 33, 3, 21), (100, 33, 1, 1)),
    Case("wide 1x1, colliding pixels", (2, 1024, 6, 28), (64, 1024, 1, 1), (1, 1)),
    Case("wide, two columns", (2, 40, 3, 2), (64, 40, 3, 3), padding=SAME3),
    Case("wide r=1", (3, 17, 3, 9), (70, 17, 3, 3), (1, 1), padding=SAME3),
    Case("wide crop", (2, 9, 4, 5), (132, 9, 2, 2), padding=SAME3, crop=(1, 1, 2, 1)),
    # pixels of the first row and column that only some phases need
    Case("late", (2, 9, 4, 5), (128, 9, 2, 2), padding=SAME3, crop=(1, 1, 1, 1)),
    Case("late rows", (1, 20, 3, 18), (64, 20, 2, 1), crop=(1, 0, 1, 0)),
    Case("late columns r=(2,3) dcr", (1, 5, 3, 35), (192, 5, 1, 2), (2, 3), crop=(0, 2, 0, 1), order="dcr"),
    Case("late groups", (1, 10, 3, 9), (256, 5, 2, 2), groups=2, padding=SAME3, crop=(1, 1, 2, 1)),
    Case("late 1x1", (2, 32, 5, 9), (128, 32, 1, 1), padding=(0, 0, 1, 1), crop=(1, 1, 1, 1)),
    Case("late, few rows", (2, 9, 4, 16), (12, 9, 2, 2), padding=SAME3, crop=(1, 1, 1, 1)),
    Case("wide groups", (1, 10, 3, 6), (96, 5, 3, 3), groups=2, padding=SAME3),
    Case("wide stride", (1, 7, 7, 9), (64, 7, 3, 3), stride=(2, 2), dilation=(1, 2), padding=SAME3),
    # 3x3 over many pixels and channels, so Winograd tiles (but for float64)
    Case("large r=3 dcr", (1, 48, 6, 70), (72, 48, 3, 3), (3, 3), padding=SAME3, order="dcr"),
    Case("large r=1", (1, 40, 8, 66), (60, 40, 3, 3), (1, 1), padding=SAME3),
    Case("large r=4 crop", (1, 40, 9, 69), (48, 40, 3, 3), (4, 4), padding=(2, 0, 1, 3), crop=(5, 1, 2, 7)),
    Case("large groups", (1, 96, 6, 67), (128, 48, 3, 3), groups=2),
    Case("large, one row", (3, 40, 3, 130), (80, 40, 3, 3), padding=(0, 1, 0, 1)),
    Case("large blocks", (1, 48, 61, 66), (60, 48, 3, 3), padding=SAME3, order="dcr"),
    Case("large long rows", (1, 40, 4, 620), (64, 40, 3, 3), (4, 4), padding=SAME3),
    # wide kernels over long rows, so pairs or quads of pixels (but for float64)
    Case("wide 3x3", (1, 520, 17, 40), (72, 520, 3, 3), (1, 1), padding=SAME3),
    Case("rows r=1", (1, 48, 7, 195), (60, 48, 1, 3), (1, 1), padding=(0, 1, 0, 1)),
    Case("rows, two taps", (1, 64, 9, 261), (64, 64, 1, 2), padding=(0, 1, 0, 0)),
    Case("rows, four taps", (1, 48, 9, 261), (64, 48, 1, 4), (2, 2), padding=(0, 2, 0, 1), order="dcr"),
    Case("rows, eleven taps", (2, 32, 1, 461), (32, 32, 1, 11), (1, 1), padding=(0, 5, 0, 5)),
    Case("rows dilated", (1, 48, 9, 230), (48, 48, 1, 7), (1, 1), padding=(0, 9, 0, 9), dilation=(1, 3)),
    Case("rows far apart", (1, 48, 6, 330), (48, 48, 1, 7), (1, 1), padding=(0, 7, 0, 0), dilation=(1, 17)),
    Case("rows, six taps", (1, 40, 1, 901), (50, 40, 1, 6), (1, 1), padding=(0, 40, 0, 13), dilation=(1, 20)),
    Case("rows in passes", (1, 64, 1, 1000), (250, 64, 1, 7), (1, 1), padding=(0, 3, 0, 3)),
    Case("rows groups crop", (1, 96, 8, 195), (96, 48, 1, 7), (2, 2), groups=2, crop=(1, 1, 3, 2)),
    Case("rows stride", (1, 32, 17, 200), (48, 32, 3, 5), stride=(2, 1), dilation=(2, 2)),
    Case("tall rows", (1, 32, 40, 131), (24, 32, 2, 5), padding=(1, 2, 0, 2)),
    # more than one block: long rows, many channels, many images, a filter too large to stay packed
    Case("long rows", (1, 3, 2, 600), (12, 3, 1, 3), padding=(0, 1, 0, 1)),
    Case("long rows wide", (1, 3, 2, 700), (64, 3, 1, 2), padding=(0, 1, 0, 1)),
    Case("tall", (1, 64, 61, 66), (4, 64, 5, 3), padding=(2, 1, 2, 1)),
    Case("tall stride", (1, 64, 79, 66), (4, 64, 3, 2), stride=(2, 1), dilation=(3, 1)),
    Case("tall wide", (1, 600, 44, 6), (64, 600, 3, 1), padding=(1, 0, 1, 0)),
    Case("many images", (9, 3, 4, 5), (12, 3, 3, 3), padding=SAME3),
    Case("deep", (1, 1024, 2, 40), (4, 1024, 3, 1), padding=(1, 0, 1, 0)),
    # windows of 3x3 pixels, of which each phase needs a part; tests/integration has those that lack taps
    Case("window late", (1, 40, 12, 37), (256, 40, 2, 2), padding=SAME3, crop=(1, 1, 1, 1)),
    Case("window groups", (2, 100, 9, 35), (256, 50, 2, 3), groups=2, padding=SAME3, crop=(1, 0, 1, 0)),
    Case("window r=3x2", (1, 40, 10, 33), (192, 40, 2, 2), (3, 2), padding=SAME3, crop=(2, 1, 1, 1)),
    Case("many channels", (1, 190, 30, 37), (36, 190, 3, 3), padding=SAME3),
    Case("many channels twice as deep", (2, 520, 13, 70), (40, 520, 3, 3), padding=(0, 1, 2, 1)),
    Case("many channels groups", (1, 400, 18, 37), (36, 200, 3, 3), groups=2, padding=SAME3),
    Case("large filter", (1, 130, 25, 27), (64, 130, 3, 3), stride=(2, 2), padding=SAME3),
    Case("few pixels of a large filter", (1, 260, 1, 3), (72, 260, 3, 3), padding=SAME3),
    Case("few pixels, groups", (2, 256, 2, 2), (96, 128, 3, 2), groups=2, padding=SAME3, crop=(1, 0, 2, 1)),
    Case("few pixels, stride", (1, 128, 5, 6), (66, 128, 3, 3), (1, 1), stride=(2, 3), padding=SAME3),
    Case("few pixels, r=1", (1, 90, 3, 3), (130, 90, 3, 3), (1, 1), padding=SAME3),
    Case("few pixels of padding", (1, 128, 1, 1), (99, 128, 3, 5), (3, 3), padding=(1, 2, 1, 2)),
)  # fmt: skip

# One for each kernel, with rows and columns that do not fill the last tile or vector.
NARROW = Case("narrow", (2, 3, 4, 37), (12, 3, 3, 3), padding=SAME3)
WIDE = Case("wide", (2, 40, 3, 7), (72, 40, 3, 2), padding=(1, 0, 1, 1))
LARGE = Case("large", (1, 44, 7, 61), (60, 44, 3, 3), padding=SAME3)
BASES = (NARROW, WIDE, LARGE)
ROWS = Case("rows", (1, 32, 7, 227), (24, 32, 2, 5), padding=(1, 2, 0, 2))
FEW = Case("few pixels", (2, 130, 2, 3), (72, 130, 3, 3), padding=SAME3)
CPU_BASES = (*BASES, ROWS, FEW)
LATE = Case("late", (1, 6, 4, 19), (128, 6, 2, 2), padding=SAME3, crop=(1, 1, 1, 1))
KERNELS = {
    NARROW: OW_VECTORISED, WIDE: OC_VECTORISED, LARGE: WINOGRAD, ROWS: WINOGRAD_ROW, FEW: STREAMED
}  # float32, in one of the layouts  # fmt: skip


# What F(4x4, 3x3) computes where float32 need not be exact.
INEXACT = (
    Case("inexact", (1, 40, 31, 135), (60, 40, 3, 3), (1, 1), padding=SAME3, inexact=True),
    Case("inexact dcr", (1, 40, 17, 133), (40, 40, 3, 3), padding=(0, 1, 2, 0), order="dcr", inexact=True),
    Case("inexact r=3 crop", (2, 32, 18, 70), (72, 32, 3, 3), (3, 3), padding=SAME3, crop=(2, 1, 0, 4),
         activation="relu", residual="high", inexact=True),
    Case("inexact groups", (1, 64, 30, 66), (72, 32, 3, 3), (2, 2), groups=2, padding=SAME3,
         activation="silu", clamp=(-0.5, 0.5), inexact=True),
    Case("inexact late", (1, 24, 64, 130), (256, 24, 2, 2), padding=SAME3, crop=(1, 1, 1, 1), inexact=True),
    Case("inexact blocks", (1, 48, 130, 130), (48, 48, 3, 3), (1, 1), padding=SAME3, inexact=True),
)  # fmt: skip


def variant(case: Case, **changes: Any) -> Case:
    name = ", ".join(
        [case.name, *(f"{value}" if key != "slopes" else f"{value} slopes" for key, value in changes.items())]
    )
    return dataclasses.replace(case, name=name, **changes)


UNEVEN = Case("uneven factors", (2, 3, 5, 21), (12, 3, 3, 3), (3, 2), padding=SAME3)
KINDS = ("high", "nearest", "low")
CROP = {"crop": (1, 1, 2, 3), "order": "dcr"}
EPILOGUES = tuple(
    case
    for base in BASES
    for case in (
        *(variant(base, activation=name) for name in ("relu", "leaky_relu", "relu6")),
        *(variant(base, activation="prelu", slopes=n) for n in (1, base.channels, base.weight[0])),
        *(variant(base, residual=kind) for kind in KINDS),
        *(variant(base, residual=kind, **CROP) for kind in KINDS),
        variant(base, clamp=(-4, 9)),
        variant(base, clamp=(None, 5)),
        variant(base, activation="prelu", slopes=base.channels, residual="low", clamp=(-2, None)),
        variant(base, activation="prelu", slopes=base.weight[0], residual="nearest", **CROP),
    )
) + tuple(
    variant(LATE, activation="prelu", slopes=slopes, residual=kind)
    for slopes in (LATE.channels, LATE.weight[0])
    for kind in KINDS
)
EPILOGUES += tuple(variant(UNEVEN, residual=kind, **options) for kind in KINDS for options in ({}, CROP))
# Whole vectors of a residual's row, of which the crop takes the last lane.
EPILOGUES += tuple(
    Case(f"r=({r},1), last column cropped", (1, 3, 4, 48), (4 * r, 3, 3, 3), (r, 1), padding=SAME3,
         crop=(0, 0, 0, 1), residual="high")
    for r in (1, 2)
)  # fmt: skip


def shared_rows(case: Case) -> int:
    """Rows of input that a block of output rows shares with the one below it."""
    return max((case.weight[2] - 1) * case.dilation[0] + 1 - case.stride[0], 0)


def products(case: Case) -> int:
    """How many products one output is the sum of."""
    return math.prod(case.weight[1:])


def multiply_adds(case: Case) -> int:
    return case.input[0] * case.weight[0] * math.prod(case.low) * products(case)


# Activations that are not exact on integers.
CURVED = (
    "silu", "gelu", "tanh", "sigmoid", "hardswish", "hardsigmoid", "gelu_tanh", "elu", "mish", "softplus",
)  # fmt: skip
