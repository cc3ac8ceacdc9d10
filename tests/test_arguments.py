# SPDX-License-Identifier: BSD-3-Clause
"""Wrong arguments are refused before anything is computed, with the same words on every backend."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import fused_subpixel as fs
from fused_subpixel import _arguments

X = torch.zeros(2, 3, 5, 6)
W = torch.zeros(8, 3, 3, 2)
B = torch.zeros(8)


def call(**changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"input": X, "weight": W, "bias": B, **changes}
    return fs.subpixel_conv2d(**arguments)


WRONG_TYPES = [
    ({"input": [1, 2]}, "input: expected a torch.Tensor, got [1, 2] of type list"),
    ({"input": None}, "input: expected a torch.Tensor, got None of type NoneType"),
    ({"weight": np.zeros(3)}, "weight: expected a torch.Tensor"),
    ({"bias": 1.0}, "bias: expected a torch.Tensor, got 1.0 of type float"),
    ({"input": X.int(), "weight": W.int(), "bias": B.int()}, "input: expected dtype torch.float32, "),
    ({"input": X.cfloat()}, "got torch.complex64"),
    ({"weight": W.double()}, "weight: expected dtype torch.float32 as input has, got torch.float64"),
    ({"bias": B.half()}, "bias: expected dtype torch.float32 as input has, got torch.float16"),
    ({"upscale_factor": 2.0}, "upscale_factor: expected an int, got 2.0 of type float"),
    ({"upscale_factor": True}, "upscale_factor: expected an int, got True of type bool"),
    ({"stride": (1, 1.0)}, "stride: expected an int, got 1.0 of type float"),
    ({"groups": "1"}, "groups: expected an int, got '1' of type str"),
    ({"dilation": None}, "dilation: expected an int, got None"),
    ({"padding": torch.tensor(1)}, "padding: expected an int, got tensor(1)"),
    ({"negative_slope": None}, "negative_slope: expected a number, got None"),
    ({"clamp": ("0", 1)}, "clamp: expected a number, got '0' of type str"),
    ({"activation": torch.relu}, "activation: expected a name"),
    ({"channel_order": 1}, "channel_order: expected a name"),
]

WRONG_VALUES = [
    ({"input": X[0, 0]}, "input: expected [N, Ci, H, W] or [Ci, H, W], got [5, 6]"),
    ({"input": X[None]}, "input: expected [N, Ci, H, W] or [Ci, H, W], got [1, 2, 3, 5, 6]"),
    ({"weight": W[0]}, "weight: expected [C*r_h*r_w, Ci/groups, k_h, k_w], got [3, 3, 2]"),
    ({"weight": W[:, :2]}, "input: expected 2 channels (weight [8, 2, 3, 2], groups=1), got [2, 3, 5, 6]"),
    ({"groups": 2}, "input: expected 6 channels (weight [8, 3, 3, 2], groups=2), got [2, 3, 5, 6]"),
    ({"groups": 3}, "weight: expected a first size divisible by groups=3, got [8, 3, 3, 2]"),
    ({"upscale_factor": 3}, "divisible by r_h*r_w = 3*3 = 9, got [8, 3, 3, 2]"),
    ({"upscale_factor": (2, 3)}, "divisible by r_h*r_w = 2*3 = 6, got [8, 3, 3, 2]"),
    ({"upscale_factor": 0}, "upscale_factor: expected at least 1 and at most 1073741823, got 0"),
    (
        {"upscale_factor": 2**40},
        "upscale_factor: expected at least 1 and at most 1073741823, got 1099511627776",
    ),
    (
        {"upscale_factor": (2, 2, 2)},
        "upscale_factor: expected an int or a pair (vertical, horizontal), got (2, 2, 2)",
    ),
    ({"bias": B[:4]}, "bias: expected [8], one value per row of weight, got [4]"),
    ({"bias": B[None]}, "bias: expected [8], one value per row of weight, got [1, 8]"),
    ({"stride": 0}, "stride: expected at least 1"),
    ({"padding": -1}, "padding: expected at least 0"),
    (
        {"padding": (1, 2, 3)},
        "padding: expected an int, a pair (vertical, horizontal) or (top, left, bottom, right)",
    ),
    ({"padding": "full"}, "padding: expected ints, 'same' or 'valid', got 'full'"),
    ({"padding": "same", "stride": 2}, "padding: expected ints or 'valid' where stride is not 1, got 'same'"),
    (
        {"dilation": (3, 1)},
        "weight: expected a kernel that fits the padded input of 5x6 pixels, got 3x2 with dil",
    ),
    ({"weight": W[:, :, :0]}, "weight: expected sizes of at least 1, got [8, 3, 0, 2]"),
    (
        {"padding": 2**30 - 1},
        "input: expected an output at most 2147483647 pixels high and wide, of less than 2**45 values, got ",
    ),
    (
        {"activation": "swish"},
        "activation: expected one of None, 'relu', 'leaky_relu', 'prelu', 'silu', 'gelu', ",
    ),
    ({"channel_order": "CRD"}, "channel_order: expected one of 'crd', 'dcr', got 'CRD'"),
    ({"channel_order": None}, "channel_order: expected one of 'crd', 'dcr', got None"),
    ({"backend": "gpu"}, "backend: expected one of 'auto', 'cuda', 'cpu', 'reference', got 'gpu'"),
    ({"negative_slope": float("nan")}, "negative_slope: expected a number, got nan"),
    ({"clamp": 1.0}, "clamp: expected None or a pair (lowest, highest), got 1.0"),
    ({"clamp": (1, 0)}, "clamp: expected lowest <= highest, got (1, 0)"),
    ({"clamp": (float("nan"), 0)}, "clamp: expected a number, got nan"),
    ({"activation": "prelu"}, "activation_weight: expected a tensor where activation is 'prelu', got None"),
    (
        {"activation": "prelu", "activation_weight": torch.zeros(3)},
        "activation_weight: expected 1, C=2 (after the shuffle) or C*r_h*r_w=8 (before it) values in one dim",
    ),
    ({"activation_weight": B}, "activation_weight: expected None where activation is None, got [8]"),
    (
        {"residual": torch.zeros(2, 3, 5, 6)},
        "residual: expected [2, 2, 6, 10] (added), [2, 2, 3, 5] (upsampled) or [2, 8, 3, 5] (shuffled), "
        "got [2, 3, 5, 6]",
    ),
    ({"weight": W.to("meta")}, "weight: expected device cpu as input has, got meta"),
]


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [(TypeError, *case) for case in WRONG_TYPES] + [(ValueError, *case) for case in WRONG_VALUES],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_refused(backend: str, error: type[Exception], changes: dict[str, Any], message: str) -> None:
    for _ in range(2):  # the second time through the cache
        with pytest.raises(error, match=re.escape(message)) as caught:
            call(**changes)
    assert caught.value.__context__ is None  # one traceback, not two


def test_equal_but_of_wrong_type_is_refused_after_the_right_one() -> None:
    call(stride=1)
    for wrong in (True, 1.0):
        with pytest.raises(TypeError, match="stride"):
            call(stride=wrong)


@pytest.mark.parametrize("changes", [{"stride": [2, 1]}, {"padding": [1, 1]}, {"clamp": [0, 1]}])
def test_lists_are_as_good_as_tuples(changes: dict[str, Any]) -> None:
    as_tuples = {name: tuple(value) for name, value in changes.items()}
    assert call(**changes).shape == call(**as_tuples).shape


def test_numpy_integers_are_integers() -> None:
    assert call(upscale_factor=np.int64(2), padding=(np.int32(1), 1)).shape == (2, 2, 10, 14)


@pytest.mark.parametrize("kernel", [(1, 2), (3, 4), (5, 2)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_same_padding_is_conv2ds(kernel: tuple[int, int], dilation: Any) -> None:
    weight = torch.randn(4, 3, *kernel)
    x = torch.randn_like(X)
    expected = torch.nn.functional.conv2d(x, weight, padding="same", dilation=dilation)
    found = fs.subpixel_conv2d(x, weight, None, 1, padding="same", dilation=dilation)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("clamp", [None, (None, None), (None, 0.5), (-0.25, None), (0, 0)])
def test_clamp_bounds(clamp: Any) -> None:
    lowest, highest = _arguments.clamp_bounds(clamp)
    assert lowest == (-float("inf") if clamp is None or clamp[0] is None else clamp[0])
    assert highest == (float("inf") if clamp is None or clamp[1] is None else clamp[1])


def test_use_backend_refuses_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="use_backend: expected one of 'auto', 'cuda', 'cpu', 'reference', got 'mps'"
    ):
        fs.use_backend("mps")


def test_demanded_backend_that_cannot_run() -> None:
    with pytest.raises(ValueError, match="backend 'cuda' cannot run here: the tensors are on cpu"):
        call(backend="cuda")
    with fs.use_backend("cuda"), pytest.raises(ValueError, match="backend 'cuda' cannot run here"):
        call()


@pytest.mark.parametrize(
    ("shape", "factor", "message"),
    [
        ((4, 4), 2, "input: expected [..., C, H, W], got [4, 4]"),
        ((6, 4, 4), 2, "input: expected channels divisible by 2*2=4, got [6, 4, 4]"),
        ((6, 4, 4), 2**30 - 1, "input: expected channels divisible by "),
        ((6, 4, 4), -1, "upscale_factor: expected at least 1"),
    ],
)
def test_pixel_shuffle_refuses(shape: tuple[int, ...], factor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fs.pixel_shuffle(torch.zeros(shape), factor)


def test_pixel_unshuffle_refuses() -> None:
    with pytest.raises(ValueError, match="input: expected a size divisible by 2 and 3"):
        fs.pixel_unshuffle(torch.zeros(1, 4, 5), (2, 3))
    with pytest.raises(TypeError, match=r"input: expected a torch\.Tensor"):
        fs.pixel_unshuffle([1], 2)  # type: ignore[arg-type]
