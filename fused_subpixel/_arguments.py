# SPDX-License-Identifier: BSD-3-Clause
"""One place that checks the arguments and turns them into the plain numbers the operators take.

Every check runs before anything is computed and is the same on all backends. Messages name the argument, what
was expected and what was found; wrong types and dtypes raise TypeError, wrong values ValueError.

Nothing here looks at tensor data: a tensor is described by its (shape, dtype, device), which is hashable, so
that callers can cache the outcome.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

TensorInfo = tuple[Sequence[int], torch.dtype, torch.device]

CHANNEL_ORDERS = {"crd": 0, "dcr": 1}
ACTIVATIONS = {
    None: 0, "relu": 1, "leaky_relu": 2, "prelu": 3, "silu": 4, "gelu": 5, "tanh": 6, "sigmoid": 7,
}  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BACKENDS = ("auto", "cuda", "cpu", "reference")

# Of any stride, padding, ...; and of the output's height and width. The kernels index with 64 bits, within an
# image row with 32.
_LARGEST = 2**30 - 1
_LARGEST_SIZE = 2**31 - 1
# Of the values of any tensor that is to be made. As float32 they would fill the address space of a processor.
_LARGEST_COUNT_LOG2 = 45


class Geometry(NamedTuple):
    """Where the taps and the pixels are; the names and order of the operators' arguments."""

    upscale_h: int = 1
    upscale_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    crop_top: int = 0  # in high-resolution pixels, taken off the shuffled output
    crop_left: int = 0
    crop_bottom: int = 0
    crop_right: int = 0
    channel_order: int = 0
    tf32: int = 0  # whether float32 may be computed as tf32, on GPUs that can
    # Rows and columns of zeros that extend a transposed convolution's kernel, below and to the right, to a
    # multiple of its stride, the upscale factor: so many phases, the last ones, lack the first row (column)
    # of taps. Kernels need not read them.
    extension_h: int = 0
    extension_w: int = 0


class Epilogue(NamedTuple):
    """What happens to an accumulated value before it is stored: bias, activation, residual, clamp."""

    activation: int = 0
    negative_slope: float = 0.01
    clamp_min: float = -math.inf
    clamp_max: float = math.inf

    @property
    def numbers(self) -> tuple[int, float, float | None, float | None]:
        """As the operators take it: None where there is no bound, for AOTInductor cannot write infinity."""
        activation, slope, low, high = self
        return activation, slope, None if low == -math.inf else low, None if high == math.inf else high

    @classmethod
    def of(cls, activation: int, slope: float, low: float | None, high: float | None) -> Epilogue:
        """From what an operator was given."""
        return cls(activation, slope, -math.inf if low is None else low, math.inf if high is None else high)

    @property
    def clamps(self) -> bool:
        return self.clamp_min != -math.inf or self.clamp_max != math.inf


class Transposed(NamedTuple):
    """What a transposed convolution says that :class:`Geometry`, its sub-pixel convolution, does not."""

    input_shape: tuple[int, ...]  # [N, Ci, H, W]
    weight_shape: tuple[int, ...]  # [Ci, C/groups, K_h, K_w]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]
    # Input pixels that reach no output pixel, as negative paddings of F.pad: (left, right, top, bottom).
    unused: tuple[int, int, int, int]


class Problem(NamedTuple):
    """A checked call, without its tensors."""

    geometry: Geometry
    epilogue: Epilogue
    input_shape: tuple[int, ...]  # [N, Ci, H, W]
    weight_shape: tuple[int, ...]  # [C*r_h*r_w, Ci/groups, k_h, k_w]
    output_shape: tuple[int, ...]  # [N, C, P*r_h - crops, Q*r_w - crops]
    dtype: torch.dtype
    device: torch.device
    # Set where the caller's weight, bias and input are those of a transposed convolution. The shapes above
    # are the sub-pixel convolution's all the same.
    transposed: Transposed | None = None


def low_size(geometry: Geometry, height: int, width: int, kernel_h: int, kernel_w: int) -> tuple[int, int]:
    """(P, Q): the size of the convolution's output before the shuffle."""
    g = geometry
    padded_h, padded_w = height + g.pad_top + g.pad_bottom, width + g.pad_left + g.pad_right
    return (
        (padded_h - g.dilation_h * (kernel_h - 1) - 1) // g.stride_h + 1,
        (padded_w - g.dilation_w * (kernel_w - 1) - 1) // g.stride_w + 1,
    )


def output_size(geometry: Geometry, height: int, width: int, kernel_h: int, kernel_w: int) -> tuple[int, int]:
    """The size of the shuffled and cropped output."""
    g = geometry
    low_h, low_w = low_size(g, height, width, kernel_h, kernel_w)
    return (
        low_h * g.upscale_h - g.crop_top - g.crop_bottom,
        low_w * g.upscale_w - g.crop_left - g.crop_right,
    )


def describe(tensor: Tensor | None) -> TensorInfo | None:
    """The (shape, dtype, device) of a tensor."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, and tensors without a value for each index in memory."""
    if not isinstance(value, Tensor):
        hint = "; torch.from_numpy() makes one" if type(value).__module__ == "numpy" else ""
        _fail(name, "a torch.Tensor", _kind(value) + hint, TypeError)
    if value.is_nested or value.layout is not torch.strided:
        layout = "a nested tensor" if value.is_nested else f"one of layout {value.layout}"
        _fail(name, "a dense tensor, of layout torch.strided", layout, TypeError)


def check_dense(
    input: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
) -> None:
    """:func:`check_tensor` of a call's tensors."""
    for name, tensor in (
        ("input", input), ("weight", weight), ("bias", bias), ("activation_weight", activation_weight),
        ("residual", residual),
    ):  # fmt: skip
        if tensor is not None:
            check_tensor(name, tensor)


def check_count(name: str, sizes: Sequence[int]) -> None:
    """Refuse to make a tensor that no machine can hold."""
    if math.prod(sizes) >= 2**_LARGEST_COUNT_LOG2:
        _fail(name, f"a result of less than 2**{_LARGEST_COUNT_LOG2} values", _shape(sizes))


def resolve(
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    activation_weight: TensorInfo | None,
    residual: TensorInfo | None,
    upscale_factor: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    activation: object,
    negative_slope: object,
    clamp: object,
    channel_order: object,
    crop: object = (0, 0, 0, 0),
) -> Problem:
    """Check all arguments of a batched call and return them as plain numbers.

    The arguments are those of :func:`fused_subpixel.subpixel_conv2d` with tensors replaced by their
    :func:`describe`; ``crop`` is (top, left, bottom, right) in high-resolution pixels.
    """
    shape, dtype, device = input
    weight_shape = weight[0]
    _check_ranks(shape, weight_shape)
    _check_dtypes_and_devices(input, weight, bias, activation_weight, residual)

    upscale_h, upscale_w = pair("upscale_factor", upscale_factor, minimum=1)
    stride_h, stride_w = pair("stride", stride, minimum=1)
    dilation_h, dilation_w = pair("dilation", dilation, minimum=1)
    kernel_h, kernel_w = weight_shape[2], weight_shape[3]
    top, left, bottom, right = four_paddings(
        padding, (stride_h, stride_w), (dilation_h, dilation_w), (kernel_h, kernel_w)
    )
    if not torch.compiler.is_compiling():  # no compiled graph should depend on whether a stride is so large
        stride_h = _effective_stride(stride_h, shape[2] + top + bottom, dilation_h * (kernel_h - 1))
        stride_w = _effective_stride(stride_w, shape[3] + left + right, dilation_w * (kernel_w - 1))
    geometry = Geometry(
        upscale_h, upscale_w, stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w,
        integer("groups", groups, minimum=1),
        *four_sides("crop", crop),
        lookup("channel_order", channel_order, CHANNEL_ORDERS),
    )  # fmt: skip
    _check_channels(geometry, shape, weight_shape, bias)
    _check_not_empty(shape)
    output_shape = _checked_output_shape(geometry, shape, weight_shape)
    epilogue = Epilogue(
        lookup("activation", activation, ACTIVATIONS),
        number("negative_slope", negative_slope),
        *clamp_bounds(clamp),
    )
    _check_activation_weight(activation, activation_weight, output_shape[1], weight_shape[0])
    if residual is not None:
        low = low_size(geometry, shape[2], shape[3], kernel_h, kernel_w)
        _check_residual(residual[0], output_shape, weight_shape[0], low)
    return Problem(geometry, epilogue, tuple(shape), tuple(weight_shape), output_shape, dtype, device)


def resolve_transposed(
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    activation_weight: TensorInfo | None,
    residual: TensorInfo | None,
    stride: object,
    padding: object,
    output_padding: object,
    groups: object,
    dilation: object,
    activation: object,
    negative_slope: object,
    clamp: object,
) -> Problem:
    """:func:`resolve` for the arguments of :func:`fused_subpixel.conv_transpose2d`.

    A transposed convolution of stride s is a convolution whose kernel has ceil(K/s) taps a side, a shuffle by
    s and a crop. Rows of the convolution that the crop would take off whole are not computed: they come off
    its padding instead, and off the input where that is not enough. With dilation the geometry means nothing.
    """
    shape, dtype, device = input
    weight_shape = weight[0]
    if len(weight_shape) != 4:
        _fail("weight", "[Ci, C/groups, K_h, K_w]", _shape(weight_shape))
    _check_ranks(shape, weight_shape)
    _check_dtypes_and_devices(input, weight, bias, activation_weight, residual)
    strides, paddings = pair("stride", stride, minimum=1), pair("padding", padding, minimum=0)
    dilations = pair("dilation", dilation, minimum=1)
    extras = pair("output_padding", output_padding, minimum=0)
    for extra, step, spread in zip(extras, strides, dilations, strict=True):
        if extra >= max(step, spread):
            _fail("output_padding", f"less than stride {strides} or dilation {dilations}", extras)
    count = integer("groups", groups, minimum=1)
    channels = _check_transposed_channels(shape, weight_shape, bias, count)
    _check_not_empty(shape)
    if not torch.compiler.is_compiling() and dilations == (1, 1):
        # Over a single pixel nothing strides; kernels take memory for as many phases as the stride has.
        strides = tuple(  # type: ignore[assignment]
            step if size != 1 else min(step, max(kernel, extra + 1))
            for step, size, kernel, extra in zip(strides, shape[2:], weight_shape[2:], extras, strict=True)
        )

    sides = [
        _transposed_side(shape[2 + axis], weight_shape[2 + axis], *numbers)
        for axis, numbers in enumerate(zip(strides, paddings, extras, dilations, strict=True))
    ]
    vertical, horizontal = sides
    least = 0 if shape[0] == 0 else 1  # as PyTorch, which makes an empty image of an empty batch
    if vertical.size < least or horizontal.size < least:
        expected = "what leaves an output of at least one pixel"
        _fail("padding", expected, f"{paddings}, an output of {vertical.size}x{horizontal.size}")
    geometry = Geometry(
        *strides, 1, 1, vertical.before, horizontal.before, vertical.after, horizontal.after, 1, 1, count,
        vertical.crop_before, horizontal.crop_before, vertical.crop_after, horizontal.crop_after,
        extension_h=vertical.extension, extension_w=horizontal.extension,
    )  # fmt: skip
    low_channels = channels * strides[0] * strides[1]
    output_shape = (shape[0], channels, vertical.size, horizontal.size)
    _check_output_size(output_shape, vertical.size, horizontal.size)
    epilogue = Epilogue(
        lookup("activation", activation, ACTIVATIONS),
        number("negative_slope", negative_slope),
        *clamp_bounds(clamp),
    )
    _check_activation_weight(activation, activation_weight, channels, channels)
    if residual is not None and tuple(residual[0]) != output_shape:
        _fail("residual", f"{_shape(output_shape)}, as the output", _shape(residual[0]))
    transposed = Transposed(
        tuple(shape),
        tuple(weight_shape),
        strides,
        paddings,
        extras,
        dilations,
        (*horizontal.unused, *vertical.unused),
    )
    return Problem(
        geometry,
        epilogue,
        (shape[0], shape[1], shape[2] + sum(vertical.unused), shape[3] + sum(horizontal.unused)),
        (low_channels, shape[1] // count, vertical.taps, horizontal.taps),
        output_shape,
        dtype,
        device,
        transposed,
    )


class _Side(NamedTuple):
    """One direction of a transposed convolution as a sub-pixel convolution."""

    size: int  # of the output
    taps: int
    before: int  # padding
    after: int
    crop_before: int
    crop_after: int
    extension: int
    unused: tuple[int, int]


def _transposed_side(
    size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int
) -> _Side:
    output = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    taps = -(-kernel // stride)
    before, crop_before = taps - 1 - padding // stride, padding % stride
    low = -(-(crop_before + output) // stride)  # pixels before the shuffle
    after = low - 1 + taps - size - before
    return _Side(
        output,
        taps,
        max(before, 0),
        max(after, 0),
        crop_before,
        low * stride - crop_before - output,
        taps * stride - kernel,
        (min(before, 0), min(after, 0)),
    )


def _check_transposed_channels(
    shape: Sequence[int], weight_shape: Sequence[int], bias: TensorInfo | None, groups: int
) -> int:
    """C, the channels of the output."""
    if min(weight_shape) < 1:
        _fail("weight", "sizes of at least 1", _shape(weight_shape))
    if weight_shape[0] % groups:
        _fail("weight", f"a first size divisible by groups={groups}", _shape(weight_shape))
    if shape[1] != weight_shape[0]:
        hint = _channels_at_the_end(shape, weight_shape[0])
        _fail("input", f"{weight_shape[0]} channels (weight {_shape(weight_shape)})", _shape(shape) + hint)
    channels = weight_shape[1] * groups
    if bias is not None and (len(bias[0]) != 1 or bias[0][0] != channels):
        _fail("bias", f"[{channels}], one value per channel of the output", _shape(bias[0]))
    return channels


def _effective_stride(stride: int, padded: int, reach: int) -> int:
    """The smallest stride of the same result: one that leaves the image has no second pixel to go to."""
    return min(stride, max(padded - reach, 1))


# ---- single values ---------------------------------------------------------------------------------------


def integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as an int that is at least ``minimum``; bools and floats are mistakes, NumPy ints are not."""
    if type(value) is not int:
        if isinstance(value, (bool, torch.Tensor)) or not hasattr(value, "__index__"):
            _fail(name, "an int", _kind(value), TypeError)
        if getattr(value, "shape", ()) != ():
            _fail(name, "an int", _kind(value), TypeError)
        value = operator.index(value)
    if not minimum <= value <= _LARGEST:
        _fail(name, f"at least {minimum} and at most {_LARGEST}", value)
    return int(value)


def pair(name: str, value: Any, minimum: int) -> tuple[int, int]:
    """``value``, an int or two, as (vertical, horizontal)."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            _fail(name, "an int or a pair (vertical, horizontal)", value)
        return integer(name, value[0], minimum), integer(name, value[1], minimum)
    result = integer(name, value, minimum)
    return result, result


def four_sides(name: str, value: Any) -> tuple[int, int, int, int]:
    """``value``, an int, (vertical, horizontal) or four ints, as (top, left, bottom, right)."""
    if isinstance(value, (tuple, list)) and len(value) == 4:
        top, left, bottom, right = (integer(name, side, 0) for side in value)
        return top, left, bottom, right
    if isinstance(value, (tuple, list)) and len(value) != 2:
        _fail(name, "an int, a pair (vertical, horizontal) or (top, left, bottom, right)", value)
    vertical, horizontal = pair(name, value, 0)
    return vertical, horizontal, vertical, horizontal


def four_paddings(
    padding: Any, stride: tuple[int, int], dilation: tuple[int, int], kernel: Sequence[int]
) -> tuple[int, int, int, int]:
    """``padding`` as (top, left, bottom, right)."""
    if not isinstance(padding, str):
        return four_sides("padding", padding)
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        _fail("padding", "ints, 'same' or 'valid'", repr(padding))
    if stride != (1, 1):
        _fail("padding", "ints or 'valid' where stride is not 1", f"'same' with stride {stride}")
    vertical, horizontal = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
    top, left = vertical // 2, horizontal // 2  # an odd pixel goes to the bottom or right, as in F.conv2d
    return top, left, vertical - top, horizontal - left


def number(name: str, value: Any) -> float:
    """``value`` as a float that is not NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _fail(name, "a number", _kind(value), TypeError)
    if value != value:
        _fail(name, "a number", "nan")
    return float(value)


def clamp_bounds(clamp: Any) -> tuple[float, float]:
    """``clamp`` as (lowest, highest), infinite where there is no bound."""
    if clamp is None:
        return -math.inf, math.inf
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        _fail("clamp", "None or a pair (lowest, highest)", clamp)
    lowest = -math.inf if clamp[0] is None else number("clamp", clamp[0])
    highest = math.inf if clamp[1] is None else number("clamp", clamp[1])
    if lowest > highest:
        _fail("clamp", "lowest <= highest", clamp)
    return lowest, highest


def lookup(name: str, value: Any, known: dict[Any, int]) -> int:
    """The number of a named choice."""
    if not (value is None or isinstance(value, str)):
        _fail(name, "a name", _kind(value) + _name_of(value, known), TypeError)
    if value not in known:
        _fail(name, "one of " + ", ".join(repr(choice) for choice in known), _shown(value))
    return known[value]


def _name_of(value: Any, known: dict[Any, int]) -> str:
    """What to write instead of an activation that is a module, its class or a function; in words."""
    if not callable(value):
        return ""
    spelled = getattr(value, "__name__", type(value).__name__).lower()
    for name in filter(None, known):
        if spelled.strip("_").replace("_", "") == name.replace("_", ""):
            return f"; write {name!r}"
    return "; apply it to the output instead"


# ---- tensors ---------------------------------------------------------------------------------------------


def _check_ranks(shape: Sequence[int], weight_shape: Sequence[int]) -> None:
    if len(shape) != 4:
        _fail("input", "[N, Ci, H, W] or [Ci, H, W]", _shape(shape))
    if len(weight_shape) != 4:
        _fail("weight", "[C*r_h*r_w, Ci/groups, k_h, k_w]", _shape(weight_shape))


def _check_dtypes_and_devices(
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    activation_weight: TensorInfo | None,
    residual: TensorInfo | None,
) -> None:
    _, dtype, device = input
    check_dtype("input", dtype)
    for name, info in (
        ("weight", weight), ("bias", bias), ("activation_weight", activation_weight), ("residual", residual),
    ):  # fmt: skip
        if info is None:
            continue
        if info[1] != dtype:
            if not isinstance(info[1], torch.dtype):
                _fail(name, "a torch.Tensor", f"an array of {info[1]}", TypeError)
            hint = "; convert one of them, or call under torch.autocast" if info[1] in DTYPES else ""
            _fail(name, f"dtype {dtype} as input has", f"{info[1]}{hint}", TypeError)
        if info[2] != device:
            _fail(name, f"device {device} as input has", str(info[2]))


def check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        hint = "; of an image take .float() / 255" if dtype == torch.uint8 else ""
        _fail(name, "dtype " + ", ".join(map(str, DTYPES)), f"{dtype}{hint}", TypeError)


def _channels_at_the_end(shape: Sequence[int], channels: int) -> str:
    return "; channels come before height and width: permute the axes" if shape[3] == channels else ""


def _check_not_empty(shape: Sequence[int]) -> None:
    """As PyTorch's convolutions, which take an image without pixels only in an empty batch."""
    if (shape[2] < 1 or shape[3] < 1) and shape[0] != 0:
        _fail("input", "a height and a width of at least 1", _shape(shape))


def _check_channels(
    geometry: Geometry, shape: Sequence[int], weight_shape: Sequence[int], bias: TensorInfo | None
) -> None:
    low_channels, channels_per_group, kernel_h, kernel_w = weight_shape
    phases = geometry.upscale_h * geometry.upscale_w
    groups = geometry.groups
    if low_channels < 1 or channels_per_group < 1 or kernel_h < 1 or kernel_w < 1:
        _fail("weight", "sizes of at least 1", _shape(weight_shape))
    transposed = ""
    if groups == 1 and shape[1] == low_channels != channels_per_group:
        transposed = "; a weight [Ci, C, K_h, K_w] of nn.ConvTranspose2d is one for conv_transpose2d"
    if low_channels % phases:
        _fail(
            "weight",
            f"a first size divisible by r_h*r_w = {geometry.upscale_h}*{geometry.upscale_w} = {phases}",
            _shape(weight_shape) + transposed,
        )
    if low_channels % groups:
        _fail("weight", f"a first size divisible by groups={groups}", _shape(weight_shape))
    if shape[1] != channels_per_group * groups:
        hint = transposed or _channels_at_the_end(shape, channels_per_group * groups)
        _fail(
            "input",
            f"{channels_per_group * groups} channels (weight {_shape(weight_shape)}, groups={groups})",
            _shape(shape) + hint,
        )
    if bias is not None and (len(bias[0]) != 1 or bias[0][0] != low_channels):
        _fail("bias", f"[{low_channels}], one value per row of weight", _shape(bias[0]))


def _checked_output_shape(
    geometry: Geometry, shape: Sequence[int], weight_shape: Sequence[int]
) -> tuple[int, int, int, int]:
    batch, _, height, width = shape
    low_channels, _, kernel_h, kernel_w = weight_shape
    g = geometry
    low_h, low_w = low_size(g, height, width, kernel_h, kernel_w)
    if low_h < 1 or low_w < 1:
        _fail(
            "weight",
            "a kernel that fits the padded input of "
            f"{height + g.pad_top + g.pad_bottom}x{width + g.pad_left + g.pad_right} pixels",
            f"{kernel_h}x{kernel_w} with dilation {(g.dilation_h, g.dilation_w)}",
        )
    out_h, out_w = output_size(g, height, width, kernel_h, kernel_w)
    if out_h < 1 or out_w < 1:
        _fail("crop", f"less than the output's {low_h * g.upscale_h}x{low_w * g.upscale_w} pixels", g[11:15])
    channels = low_channels // (g.upscale_h * g.upscale_w)
    output_shape = (batch, channels, out_h, out_w)
    _check_output_size(output_shape, low_h * g.upscale_h, low_w * g.upscale_w)
    return output_shape


def _check_output_size(shape: tuple[int, int, int, int], uncropped_h: int, uncropped_w: int) -> None:
    # Not while tracing: no compiled graph should depend on whether its sizes are below these.
    if not torch.compiler.is_compiling() and (
        max(uncropped_h, uncropped_w) > _LARGEST_SIZE
        or shape[0] * shape[1] * uncropped_h * uncropped_w >= 2**_LARGEST_COUNT_LOG2
    ):
        expected = (
            f"an output at most {_LARGEST_SIZE} pixels high and wide, of less than 2**{_LARGEST_COUNT_LOG2} "
            "values"
        )
        _fail("input", expected, _shape(shape))


def _check_activation_weight(
    activation: Any, info: TensorInfo | None, channels: int, low_channels: int
) -> None:
    if activation != "prelu":
        if info is not None:
            _fail("activation_weight", f"None where activation is {activation!r}", _shape(info[0]))
        return
    if info is None:
        _fail("activation_weight", "a tensor where activation is 'prelu'", None)
    shape = info[0]
    if len(shape) > 1 or math.prod(shape) not in (1, channels, low_channels):
        several = f"C={channels} (after the shuffle) or C*r_h*r_w={low_channels} (before it)"
        _fail("activation_weight", f"1, {several} values in one dimension", _shape(shape))


def _check_residual(
    found: Sequence[int], output_shape: Sequence[int], low_channels: int, low: tuple[int, int]
) -> None:
    batch, channels = output_shape[:2]
    expected = (
        tuple(output_shape),  # as the output
        (batch, channels, *low),  # low resolution: nearest-neighbour upsampled
        (batch, low_channels, *low),  # low resolution and channels: shuffled
    )
    if tuple(found) not in expected:
        as_output, upsampled, shuffled = map(_shape, expected)
        _fail(
            "residual",
            f"{as_output} (added), {upsampled} (upsampled) or {shuffled} (shuffled)",
            _shape(found),
        )


def _shape(shape: Sequence[int]) -> str:
    return str(list(shape))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def _shown(value: object) -> str:
    """A wrong value for an error message, however large it is."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        shape = tuple(getattr(value, "shape", ()))
        if shape:
            return f"values of shape {_shape(shape)}"
    return _short.repr(value)


def _kind(value: object) -> str:
    return f"{_shown(value)} of type {type(value).__name__}"


def _fail(name: str, expected: str, found: object, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{name}: expected {expected}, got {found if isinstance(found, str) else _shown(found)}")
