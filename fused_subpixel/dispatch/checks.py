# SPDX-License-Identifier: BSD-3-Clause
"""Checks of single arguments: tensors and plain values.

Messages name the argument, what was expected and what was found. Wrong types and dtypes raise TypeError,
wrong values ValueError.
"""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor

from ..ops.geometry import DTYPES

TensorInfo = tuple[Sequence[int], torch.dtype, torch.device]
Backend = Literal["auto", "cuda", "cpu", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
# Of any stride, padding, ...; and of the output's height and width. The kernels index with 64 bits, within an
# image row with 32.
LARGEST = 2**30 - 1
LARGEST_SIZE = 2**31 - 1
# Of the values of any tensor that is to be made. As float32 they would fill the address space of a processor.
LARGEST_COUNT_LOG2 = 45


def describe(tensor: Tensor | None) -> TensorInfo | None:
    """The (shape, dtype, device) of a tensor."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, and tensors without a value for each index in memory."""
    if not isinstance(value, Tensor):
        hint = "; torch.from_numpy() makes one" if type(value).__module__ == "numpy" else ""
        fail(name, "a torch.Tensor", kind_of(value) + hint, TypeError)
    if value.is_nested or value.layout is not torch.strided:
        layout = "a nested tensor" if value.is_nested else f"one of layout {value.layout}"
        fail(name, "a dense tensor, of layout torch.strided", layout, TypeError)


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
    if math.prod(sizes) >= 2**LARGEST_COUNT_LOG2:
        fail(name, f"a result of less than 2**{LARGEST_COUNT_LOG2} values", shape_of(sizes))


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Refuse a dtype that no backend computes."""
    if dtype not in DTYPES:
        hint = "; of an image take .float() / 255" if dtype == torch.uint8 else ""
        fail(name, "dtype " + ", ".join(map(str, DTYPES)), f"{dtype}{hint}", TypeError)


def integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as an int that is at least ``minimum``; bools and floats are mistakes, NumPy ints are not."""
    if type(value) is not int:
        if isinstance(value, (bool, torch.Tensor)) or not hasattr(value, "__index__"):
            fail(name, "an int", kind_of(value), TypeError)
        if getattr(value, "shape", ()) != ():
            fail(name, "an int", kind_of(value), TypeError)
        value = operator.index(value)
    if not minimum <= value <= LARGEST:
        fail(name, f"at least {minimum} and at most {LARGEST}", value)
    return int(value)


def pair(name: str, value: Any, minimum: int) -> tuple[int, int]:
    """``value``, an int or two, as (vertical, horizontal)."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            fail(name, "an int or a pair (vertical, horizontal)", value)
        return integer(name, value[0], minimum), integer(name, value[1], minimum)
    result = integer(name, value, minimum)
    return result, result


def triple(name: str, value: Any, minimum: int) -> tuple[int, int, int]:
    """``value``, an int or three, as (depth, vertical, horizontal)."""
    if isinstance(value, (tuple, list)):
        if len(value) != 3:
            fail(name, "an int or three of them (depth, vertical, horizontal)", value)
        depth, height, width = (integer(name, each, minimum) for each in value)
        return depth, height, width
    result = integer(name, value, minimum)
    return result, result, result


def single(name: str, value: Any, minimum: int) -> int:
    """``value``, an int or a sequence of one, as PyTorch's functions of one dimension take it."""
    if isinstance(value, (tuple, list)):
        if len(value) != 1:
            fail(name, "an int", value)
        value = value[0]
    return integer(name, value, minimum)


def four_sides(name: str, value: Any) -> tuple[int, int, int, int]:
    """``value``, an int, (vertical, horizontal) or four ints, as (top, left, bottom, right)."""
    if isinstance(value, (tuple, list)) and len(value) == 4:
        top, left, bottom, right = (integer(name, side, 0) for side in value)
        return top, left, bottom, right
    if isinstance(value, (tuple, list)) and len(value) != 2:
        fail(name, "an int, a pair (vertical, horizontal) or (top, left, bottom, right)", value)
    vertical, horizontal = pair(name, value, 0)
    return vertical, horizontal, vertical, horizontal


def two_sides(name: str, value: Any) -> tuple[int, int]:
    """``value``, an int, a sequence of one or two ints, as (left, right)."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return integer(name, value[0], 0), integer(name, value[1], 0)
    if isinstance(value, (tuple, list)) and len(value) != 1:
        fail(name, "an int or a pair (left, right)", value)
    both = single(name, value, 0)
    return both, both


def four_paddings(
    padding: Any, stride: tuple[int, int], dilation: tuple[int, int], kernel: Sequence[int]
) -> tuple[int, int, int, int]:
    """``padding`` as (top, left, bottom, right)."""
    if not isinstance(padding, str):
        return four_sides("padding", padding)
    (top, bottom), (left, right) = _named_padding(padding, stride, dilation, kernel)
    return top, left, bottom, right


def two_paddings(padding: Any, stride: int, dilation: int, kernel: int) -> tuple[int, int]:
    """``padding`` of a signal as (left, right)."""
    if not isinstance(padding, str):
        return two_sides("padding", padding)
    (sides,) = _named_padding(padding, (stride,), (dilation,), (kernel,))
    return sides


def _named_padding(
    padding: str, stride: tuple[int, ...], dilation: tuple[int, ...], kernel: Sequence[int]
) -> list[tuple[int, int]]:
    """``"valid"`` or ``"same"`` as (before, after) of each direction."""
    if padding == "valid":
        return [(0, 0)] * len(stride)
    if padding != "same":
        fail("padding", "ints, 'same' or 'valid'", repr(padding))
    if max(stride) != 1:
        fail("padding", "ints or 'valid' where stride is not 1", f"'same' with stride {max(stride)}")
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]  # the odd one comes after, as in F.conv2d


def number(name: str, value: Any) -> float:
    """``value`` as a float that is not NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fail(name, "a number", kind_of(value), TypeError)
    if value != value:
        fail(name, "a number", "nan")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        fail(name, "a number within float64", "a larger integer")
    return float(value)


def clamp_bounds(clamp: Any) -> tuple[float, float]:
    """``clamp`` as (lowest, highest), infinite where there is no bound."""
    if clamp is None:
        return -math.inf, math.inf
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        fail("clamp", "None or a pair (lowest, highest)", clamp)
    lowest = -math.inf if clamp[0] is None else number("clamp", clamp[0])
    highest = math.inf if clamp[1] is None else number("clamp", clamp[1])
    if lowest > highest:
        fail("clamp", "lowest <= highest", clamp)
    return lowest, highest


def lookup(name: str, value: Any, known: dict[Any, int]) -> int:
    """The number of a named choice."""
    if not (value is None or isinstance(value, str)):
        fail(name, "a name", kind_of(value) + _name_of(value, known), TypeError)
    if value not in known:
        fail(name, "one of " + ", ".join(repr(choice) for choice in known), _shown(value))
    return known[value]


def _name_of(value: Any, known: dict[Any, int]) -> str:
    """What to write instead of an activation that is a module, its class or a function."""
    if not callable(value):
        return ""
    spelled = getattr(value, "__name__", type(value).__name__).lower()
    for name in filter(None, known):
        if spelled.strip("_").replace("_", "") == name.replace("_", ""):
            return f"; write {name!r}"
    return "; apply it to the output instead"


def shape_of(shape: Sequence[int]) -> str:
    """A shape for a message: [1, 2, 3]."""
    return str(list(shape))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def _shown(value: object) -> str:
    """A wrong value for an error message, however large it is."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        shape = tuple(getattr(value, "shape", ()))
        if shape:
            return f"values of shape {shape_of(shape)}"
    return _short.repr(value)


def kind_of(value: object) -> str:
    """A value and its type for a message."""
    return f"{_shown(value)} of type {type(value).__name__}"


def fail(name: str, expected: str, found: object, error: type[Exception] = ValueError) -> NoReturn:
    """Raise ``error``, which names the argument, what was expected and what was found."""
    raise error(f"{name}: expected {expected}, got {found if isinstance(found, str) else _shown(found)}")
