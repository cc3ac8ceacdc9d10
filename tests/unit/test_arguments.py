# SPDX-License-Identifier: BSD-3-Clause
"""Wrong arguments are refused before anything is computed, with the same words on every backend."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import fused_subpixel as fs
from fused_subpixel.dispatch import checks
from fused_subpixel.ops.geometry import Geometry

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

WRONG_TYPES += [
    # values that equal right ones, which the cache knows
    ({"upscale_factor": (2.0, 2.0)}, "upscale_factor: expected an int, got 2.0 of type float"),
    ({"stride": (True, True)}, "stride: expected an int, got True of type bool"),
    ({"padding": [0.0, 0]}, "padding: expected an int, got 0.0 of type float"),
    ({"padding": (False, 0, 0, 0)}, "padding: expected an int, got False of type bool"),
    ({"clamp": (False, True)}, "clamp: expected a number, got False of type bool"),
    # large values are shortened, and common mistakes named
    ({"input": np.zeros((40, 30))}, "got values of shape [40, 30] of type ndarray; torch.from_numpy() makes"),
    ({"weight": list(range(10**5))}, "weight: expected a torch.Tensor, got [0, 1, 2, 3, 4, 5, ...] of type"),
    ({"padding": np.arange(4)}, "padding: expected an int, got values of shape [4] of type ndarray"),
    (
        {"upscale_factor": torch.zeros(99)},
        "upscale_factor: expected an int, got values of shape [99] of type",
    ),
    ({"activation": torch.nn.ReLU()}, "activation: expected a name, got ReLU() of type ReLU; write 'relu'"),
    ({"activation": torch.nn.LeakyReLU}, "of type type; write 'leaky_relu'"),
    ({"activation": torch.nn.functional.silu}, "of type function; write 'silu'"),
    ({"activation": torch.nn.Hardswish()}, "of type Hardswish; write 'hardswish'"),
    ({"activation": torch.nn.Hardshrink()}, "of type Hardshrink; apply it to the output instead"),
    ({"input": X.byte()}, "got torch.uint8; of an image take .float() / 255"),
    ({"input": X.half()}, "got torch.float32; convert one of them, or call under torch.autocast"),
    ({"bias": B.to_mkldnn()}, "bias: expected a dense tensor, of layout torch.strided, got one of layout"),
]

WRONG_VALUES = [
    ({"input": X.movedim(1, 3)}, "got [2, 5, 6, 3]; channels come before height and width: permute the axes"),
    ({"weight": W.transpose(0, 1)}, "got [3, 8, 3, 2]; a weight [Ci, C, K_h, K_w] of nn.ConvTranspose2d is"),
    (
        {"input": X[:, :, :0], "padding": 3},
        "input: expected a height and a width of at least 1, got [2, 3, 0",
    ),
    ({"channel_order": "x" * 1000}, "channel_order: expected one of 'crd', 'dcr', got 'xxxxx"),
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
    ({"negative_slope": 10**400}, "negative_slope: expected a number within float64, got a larger integer"),
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
    call(upscale_factor=(2, 2), stride=(1, 1), padding=(0, 0), clamp=(0, 1))  # into the cache
    call(padding=(0, 0, 0, 0))
    for _ in range(2):  # the second time through the cache
        with pytest.raises(error, match=re.escape(message)) as caught:
            call(**changes)
    assert caught.value.__context__ is None  # one traceback, not two
    assert len(str(caught.value)) < 300


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
    lowest, highest = checks.clamp_bounds(clamp)
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


UNREADABLE = {
    "mkldnn": lambda t: t.to_mkldnn(),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("function", [fs.subpixel_conv2d, fs.conv_transpose2d])
def test_tensors_that_are_not_dense(backend: str, kind: str, training: bool, function: Any) -> None:
    transposed = function is fs.conv_transpose2d
    shapes = {
        "input": (2, 3, 4, 4),
        "weight": (3, 2, 3, 3) if transposed else (8, 3, 3, 3),
        "bias": (2,) if transposed else (8,),
        "activation_weight": (2,),
        "residual": (2, 2, 6, 6) if transposed else (2, 2, 4, 4),
    }
    for name in shapes if kind != "jagged" else ("input", "weight", "residual"):
        tensors = {other: torch.ones(shape, requires_grad=training) for other, shape in shapes.items()}
        tensors[name] = UNREADABLE[kind](torch.ones(shapes[name]))
        with pytest.raises(
            TypeError, match=f"^{name}: expected a dense tensor, of layout torch.strided, got"
        ):
            function(**tensors, activation="prelu")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_helpers_refuse_tensors_that_are_not_dense(kind: str) -> None:
    tensor = UNREADABLE[kind](torch.ones(4, 4, 4, 4))
    for function in (
        fs.pixel_shuffle, fs.pixel_unshuffle, fs.icnr_, fs.conv_transpose_weight_to_subpixel,
        fs.subpixel_weight_to_conv_transpose, fs.conv_transpose_bias_to_subpixel,
        fs.subpixel_bias_to_conv_transpose,
    ):  # fmt: skip
        with pytest.raises(TypeError, match="expected a dense tensor"):
            function(tensor, 2)


def test_raw_operator_refuses_a_sparse_residual() -> None:
    """PyTorch would add it."""
    arguments = (X, W, B, None, torch.ones(2, 2, 6, 10).to_sparse(), tuple(Geometry(2, 2)))
    with pytest.raises(TypeError, match="residual: expected a dense tensor"):
        torch.ops.fused_subpixel.subpixel_conv2d(*arguments, 0, 0.01, None, None)


@pytest.mark.parametrize("stride", [2**14, pytest.param(2**29, marks=pytest.mark.full)])
def test_strides_far_larger_than_the_image(backend: str, stride: int) -> None:
    x, weight = torch.randn(2, 3, 1, 1), torch.randn(3, 4, 2, 3)
    expected = torch.nn.functional.conv_transpose2d(x, weight, None, stride, 0, (1, 0))
    torch.testing.assert_close(fs.conv_transpose2d(x, weight, None, stride, 0, (1, 0)), expected)
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 2, 3)
    expected = torch.pixel_shuffle(torch.conv2d(x, weight, None, stride, 1), 2)
    torch.testing.assert_close(fs.subpixel_conv2d(x, weight, None, stride=stride, padding=1), expected)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 1, 1), (2, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_images_without_pixels_as_in_pytorch(
    chosen: str, size: tuple[int, int], batch: int, kernel: int, stride: int, padding: int
) -> None:
    """Refused, but for what PyTorch computes of an empty batch."""
    x = torch.randn(batch, 3, *size)
    weight, turned = torch.randn(4, 3, kernel, kernel), torch.randn(3, 4, kernel, kernel)
    for ours, theirs in (
        (
            lambda: fs.subpixel_conv2d(x, weight, None, 1, stride=stride, padding=padding, backend=chosen),
            lambda: torch.conv2d(x, weight, None, stride, padding),
        ),
        (
            lambda: fs.conv_transpose2d(x, turned, None, stride, padding, backend=chosen),
            lambda: torch.conv_transpose2d(x, turned, None, stride, padding),
        ),
    ):
        try:
            expected = theirs()
        except RuntimeError:
            with pytest.raises(ValueError, match="expected"):
                ours()
        else:
            torch.testing.assert_close(ours(), expected)


@pytest.mark.parametrize(
    "convert",
    [
        lambda: fs.conv_transpose_weight_to_subpixel(torch.ones(3, 4, 2, 2), 2**29),
        lambda: fs.conv_transpose_bias_to_subpixel(torch.ones(4), 2**29),
        lambda: fs.subpixel_weight_to_conv_transpose(torch.ones(1).expand(2**58, 1, 1, 1), 2**29),
    ],
)
def test_converters_refuse_what_no_machine_can_hold(convert: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a result of less than 2\*\*45 values, got \["):
        convert()


# ---- icnr_ -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "initializer",
    [
        lambda t: t.fill_(3),
        lambda t: (t.fill_(3), None)[1],
        lambda t: torch.full_like(t, 3),
    ],
)
def test_icnr_takes_initializers_that_fill_or_return(initializer: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 3, 2, 2))
    assert fs.icnr_(weight, 2, initializer) is weight
    assert weight.eq(3).all()


@pytest.mark.parametrize(
    ("weight", "initializer", "error", "message"),
    [
        (W.int(), None, TypeError, "weight: expected a floating-point dtype, got torch.int32"),
        (W[:1].expand(8, 3, 3, 2), None, ValueError, "weight: expected a place in memory for every value"),
        (W, lambda t: None, ValueError, "initializer: expected to fill its tensor or return one, got und"),
        (W, lambda t: t[0], ValueError, "initializer: expected to return [2, 3, 3, 2], as it gets, got ["),
        (W, lambda t: 1.0, TypeError, "initializer: expected to fill its tensor or return one, got one"),
        (W, "kaiming", TypeError, "initializer: expected a function, got one of type str"),
        (W[:6], None, ValueError, "got [6, 3, 3, 2]; transposed=True takes a transposed convolution's"),
        (torch.nn.LazyConv2d(4, 3).weight, None, ValueError, "weight: expected one that has a shape, got"),
    ],
)
def test_icnr_refuses(weight: Any, initializer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fs.icnr_(weight.clone() if weight is W else weight, 2, initializer or torch.nn.init.kaiming_normal_)


def test_icnr_of_a_transposed_weight() -> None:
    """Its phases are equal, and it is what icnr_ makes of the sub-pixel convolution's weight."""
    weight = fs.icnr_(torch.empty(6, 5, 4, 9), (2, 3), torch.nn.init.normal_, transposed=True)
    rows = fs.conv_transpose_weight_to_subpixel(weight, (2, 3)).view(5, 6, 6, 2, 3)
    assert rows.eq(rows[:, :1]).all()
    assert rows[:, 0].unique().numel() == rows[:, 0].numel()
    with pytest.raises(ValueError, match="with a kernel divisible by the stride 2x2, got"):
        fs.icnr_(torch.empty(6, 5, 3, 3), 2, transposed=True)
