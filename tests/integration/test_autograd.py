# SPDX-License-Identifier: BSD-3-Clause
"""Gradients, and gradients of gradients, for every epilogue and geometry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import conv_tensors, needs_cpu_library
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel import reference
from fused_subpixel.dispatch.backward import plan_backward
from fused_subpixel.ops.geometry import ACTIVATIONS, Epilogue, Geometry

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL_INPUT, SMALL_WEIGHT = (2, 2, 3, 4), (4, 2, 3, 2)  # [N, Ci, H, W], [C*4, Ci, k_h, k_w]
PADDING = (1, 0, 1, 1)  # keeps the size under a 3x2 kernel

GEOMETRIES: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    ({}, SMALL_INPUT, SMALL_WEIGHT),
    ({"padding": PADDING, "channel_order": "dcr"}, SMALL_INPUT, (8, 2, 3, 2)),
    ({"stride": (2, 1), "padding": (1, 2)}, SMALL_INPUT, SMALL_WEIGHT),
    ({"upscale_factor": (1, 3), "dilation": (1, 2)}, (1, 2, 3, 5), (6, 2, 2, 2)),
    ({"groups": 2, "upscale_factor": (2, 1), "padding": "same"}, (1, 4, 3, 2), (8, 2, 2, 3)),
    ({"upscale_factor": 1, "padding": (2, 1, 0, 0)}, SMALL_INPUT, (2, 2, 3, 2)),
]


def check_gradients(function: Any, tensors: Any, *, twice: bool = True) -> None:
    """First and second derivatives against finite differences; the second along a random direction."""
    assert torch.autograd.gradcheck(function, tensors)
    assert not twice or torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def run_crop(*tensors: Any, crop: tuple[int, int, int, int]) -> Tensor:
    """The operator with a crop, which the public function does not offer."""
    geometry = Geometry(2, 2, 1, 1, 1, 1, 1, 1)._replace(
        crop_top=crop[0], crop_left=crop[1], crop_bottom=crop[2], crop_right=crop[3]
    )
    return torch.ops.fused_subpixel.subpixel_conv2d(*tensors, None, None, tuple(geometry), *Epilogue())


@pytest.mark.parametrize(("options", "input_shape", "weight_shape"), GEOMETRIES)
def test_geometry(
    backend: str, options: dict[str, Any], input_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> None:
    tensors = conv_tensors(input_shape, weight_shape, requires_grad=True)
    check_gradients(lambda *t: fs.subpixel_conv2d(*t, **options), tensors)


@pytest.mark.parametrize("crop", [(1, 0, 0, 1), (2, 3, 1, 0)])
def test_crop(crop: tuple[int, int, int, int]) -> None:
    tensors = conv_tensors(SMALL_INPUT, SMALL_WEIGHT, requires_grad=True)
    check_gradients(lambda *t: run_crop(*t, crop=crop), tensors)


EPILOGUES: list[tuple[dict[str, Any], int, tuple[int, ...] | None]] = [  # options, prelu weights, residual
    *(({"activation": name}, 0, None) for name in ACTIVATIONS if name != "prelu"),
    ({"activation": "leaky_relu", "negative_slope": -0.5}, 0, None),
    *(({"activation": "prelu"}, size, None) for size in (1, 2, 8)),
    *(({}, 0, residual) for residual in ((2, 2, 6, 8), (2, 2, 3, 4), (2, 8, 3, 4))),
    ({"channel_order": "dcr"}, 0, (2, 2, 3, 4)),
    ({"channel_order": "dcr"}, 0, (2, 8, 3, 4)),
    ({"activation": "relu"}, 0, (2, 2, 6, 8)),
    ({"activation": "prelu", "clamp": (-0.5, None), "channel_order": "dcr"}, 8, (2, 8, 3, 4)),
    ({"clamp": (-0.5, 0.75)}, 0, None),
]


@pytest.mark.parametrize(
    ("options", "prelu", "residual_shape"),
    [pytest.param(*one, marks=[pytest.mark.full] if i % 3 else []) for i, one in enumerate(EPILOGUES)],
)
def test_epilogue(
    backend: str, options: dict[str, Any], prelu: int, residual_shape: tuple[int, ...] | None
) -> None:
    """Eager autograd, and the autograd of the raw operator, against finite differences."""
    tensors: list[Tensor | None] = [*conv_tensors(SMALL_INPUT, (8, 2, 3, 2), requires_grad=True)]
    tensors.append(torch.randn(prelu, dtype=torch.float64, requires_grad=True) if prelu else None)
    tensors.append(
        torch.randn(residual_shape, dtype=torch.float64, requires_grad=True) if residual_shape else None
    )

    def eager(input: Tensor, weight: Tensor, bias: Tensor, slopes: Any, residual: Any) -> Tensor:
        return fs.subpixel_conv2d(
            input, weight, bias, activation_weight=slopes, residual=residual, padding=PADDING, **options
        )

    twice = options.get("activation") != "hardsigmoid"  # PyTorch has no second derivative of it
    check_gradients(eager, tensors, twice=twice)
    if backend == "cpu":
        geometry = Geometry(2, 2, 1, 1, *PADDING, channel_order=int(options.get("channel_order") == "dcr"))
        lowest, highest = options.get("clamp") or (None, None)
        epilogue = Epilogue(
            ACTIVATIONS[options.get("activation")],
            options.get("negative_slope", 0.01),
            -float("inf") if lowest is None else lowest,
            float("inf") if highest is None else highest,
        )
        operator = torch.ops.fused_subpixel.subpixel_conv2d
        check_gradients(lambda *t: operator(*t, tuple(geometry), *epilogue), tensors, twice=twice)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_batched_gradients(backend: str, transposed: bool, channels_last: bool, stride: int) -> None:
    """Several gradients at once (vmap of the backward, as in vectorized jacobians) are those one by one."""
    function: Any = fs.conv_transpose2d if transposed else fs.subpixel_conv2d
    weight_shape, channels = ((3, 4, 3, 2), 4) if transposed else ((8, 3, 3, 2), 8)
    x, weight, _ = conv_tensors(weight_shape=weight_shape, requires_grad=True, channels_last=channels_last)
    bias = torch.randn(channels, dtype=torch.float64, requires_grad=True)
    tensors = [x, weight, bias]
    for options in ({}, {"activation": "relu"}, {"padding": 1, "activation": "gelu"}):
        output = function(*tensors, stride=stride, **options)
        grads = torch.randn(3, *output.shape, dtype=torch.float64)
        if channels_last:
            grads = grads.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        batched = torch.autograd.grad(output, tensors, grads, retain_graph=True, is_grads_batched=True)
        alone = [torch.autograd.grad(output, tensors, grad, retain_graph=True) for grad in grads]
        for found, expected in zip(batched, zip(*alone, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("frozen", ["input", "weight", "bias", "input weight", "weight bias", "input bias"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_only_what_is_needed(backend: str, frozen: str, stride: int, channels_last: bool) -> None:
    """Gradients of the rest do not depend on what is frozen, and channels_last stays channels_last."""
    tensors = conv_tensors(dtype=torch.float32, channels_last=channels_last, requires_grad=True)
    output = fs.subpixel_conv2d(*tensors, stride=stride, activation="tanh")
    direction = torch.randn_like(output)
    complete = dict(
        zip(("input", "weight", "bias"), torch.autograd.grad(output, tensors, direction), strict=True)
    )
    if channels_last:
        assert complete["input"].is_contiguous(memory_format=torch.channels_last)

    leaves = dict(zip(("input", "weight", "bias"), tensors, strict=True))
    for name in frozen.split():
        leaves[name] = leaves[name].detach()
    output = fs.subpixel_conv2d(*leaves.values(), stride=stride, activation="tanh")
    wanted = [name for name in leaves if name not in frozen.split()]
    found = torch.autograd.grad(output, [leaves[name] for name in wanted], direction)
    for name, gradient in zip(wanted, found, strict=True):
        torch.testing.assert_close(gradient, complete[name])


@needs_cpu_library
def test_saves_no_more_than_needed() -> None:
    tensors = conv_tensors(dtype=torch.float32)
    for needs, expected in (((0,), {1}), ((1,), {0}), ((2,), set()), ((0, 1), {0, 1})):
        leaves = [t.detach().requires_grad_(i in needs) for i, t in enumerate(tensors)]
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t) or t, lambda t: t
        ):
            fs.subpixel_conv2d(*leaves)
        assert {
            i for i, t in enumerate(leaves) if any(s.data_ptr() == t.data_ptr() for s in saved)
        } == expected
        assert len(saved) == len(expected)


@needs_cpu_library
@pytest.mark.parametrize(
    ("options", "residual", "expected"),
    [
        ({}, True, 2),
        ({"activation": "relu"}, False, 3),
        ({"clamp": (0, 1)}, False, 3),
        ({"activation": "silu"}, True, 3),
    ],
)
def test_one_high_resolution_tensor_at_most_is_kept(
    options: dict[str, Any], residual: bool, expected: int
) -> None:
    tensors = conv_tensors(dtype=torch.float32, requires_grad=True)
    extra = torch.randn(2, 2, 6, 10) if residual else None
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fs.subpixel_conv2d(*tensors, residual=extra, **options)
    assert len([t for t in saved if t.numel() > 1]) == expected


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_empty_batch(backend: str, activation: str | None, channels_last: bool) -> None:
    tensors = conv_tensors((0, 3, 5, 6), dtype=torch.float32, requires_grad=True, channels_last=channels_last)
    residual = torch.randn(0, 8, 3, 5, requires_grad=True)
    output = fs.subpixel_conv2d(*tensors, activation=activation, residual=residual)
    assert output.shape == (0, 2, 6, 10)
    gradients = torch.autograd.grad(output.sum(), (*tensors, residual))
    for tensor, gradient in zip((*tensors, residual), gradients, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_expanded_gradient(backend: str) -> None:
    """sum() hands the backward a gradient whose strides are all zero."""
    tensors = conv_tensors(requires_grad=True)
    output = fs.subpixel_conv2d(*tensors)
    expected = torch.autograd.grad(output, tensors, torch.ones_like(output))
    found = torch.autograd.grad(fs.subpixel_conv2d(*tensors).sum(), tensors)
    torch.testing.assert_close(found, expected)


def test_residual_gradient_is_fused_conv_independent() -> None:
    """A residual alone can need a gradient."""
    input, weight, bias = conv_tensors()
    residual = torch.randn(2, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        fs.subpixel_conv2d(input, weight, bias, residual=residual).sum(), residual
    )
    assert gradient.eq(4).all()


def test_third_order(backend: str) -> None:
    input, weight, bias = conv_tensors(SMALL_INPUT, SMALL_WEIGHT, requires_grad=True)
    function, expected = [], []
    for run, results in ((fs.subpixel_conv2d, function), (reference.subpixel_conv2d, expected)):
        result = run(input, weight, bias, activation="tanh")
        for _ in range(3):
            (result,) = torch.autograd.grad(result.square().sum(), weight, create_graph=True)
            results.append(result)
    torch.testing.assert_close(function, expected)


@pytest.mark.parametrize("factor", [1, 2, (3, 2)])
@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("leading", [(), (2,), (0,), (2, 3)])
def test_shuffles(factor: Any, order: str, leading: tuple[int, ...]) -> None:
    input = torch.randn(*leading, 12, 2, 3, dtype=torch.float64, requires_grad=True)
    shuffled = fs.pixel_shuffle(input, factor, order)
    (gradient,) = torch.autograd.grad(shuffled, input, shuffled.detach())
    assert gradient.equal(input)
    leaf = shuffled.detach().requires_grad_()
    unshuffled = fs.pixel_unshuffle(leaf, factor, order)
    assert unshuffled.equal(input)
    (gradient,) = torch.autograd.grad(unshuffled, leaf, unshuffled.detach())
    assert gradient.equal(leaf)


def test_gradients_from_the_output() -> None:
    names = {name for name, number in ACTIVATIONS.items() if Epilogue(number).has_grad_from_output(False)}
    assert names == {None, "relu", "leaky_relu", "relu6", "tanh", "sigmoid"}
    assert Epilogue().has_grad_from_output(has_residual=True)
    assert not Epilogue(ACTIVATIONS["relu"]).has_grad_from_output(has_residual=True)
    assert not Epilogue(ACTIVATIONS["leaky_relu"], -0.1).has_grad_from_output(has_residual=False)
    assert not Epilogue(clamp_max=1.0).has_grad_from_output(has_residual=False)


# ---- where PyTorch's own gradients are wrong ---------------------------------------------------------------
# On some processors only. There these tests fail if its gradients are taken; elsewhere they hold anyway.


def integer_gradients(
    function: Any,
    tensors: list[Tensor],
    layouts: list[torch.memory_format],
    dtype: torch.dtype,
    **options: Any,
) -> list[Tensor]:
    """Of an output that is weighted by small integers, for tensors of these layouts."""
    leaves = [
        t.to(dtype).contiguous(memory_format=layout).requires_grad_()
        for t, layout in zip(tensors, layouts, strict=True)
    ]
    output = function(*leaves, **options)
    direction = torch.arange(output.numel()).remainder(3).sub(1).view(output.shape).to(dtype)
    return [gradient.double() for gradient in torch.autograd.grad(output, leaves, direction)]


@needs_cpu_library
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_with_taps_apart(layout: torch.memory_format, groups: int) -> None:
    """PyTorch's own weight gradients are garbage there, of one channel in a group on some processors."""
    torch.manual_seed(0)
    tensors = [
        torch.randint(-4, 5, (2, groups, 17, 41)).double(),
        torch.randint(-2, 3, (groups, 1, 2, 3)).double(),
    ]
    options = {"upscale_factor": 1, "dilation": 2, "groups": groups}
    found = integer_gradients(fs.subpixel_conv2d, tensors, [layout] * 2, torch.bfloat16, **options)
    expected = integer_gradients(reference.subpixel_conv2d, tensors, [layout] * 2, torch.float64, **options)
    assert found[1].equal(expected[1].bfloat16().double())


@needs_cpu_library
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("options", [{"stride": 2, "padding": (3, 1)}, {"groups": 2, "padding": (3, 1)}])
@pytest.mark.usefixtures("poisoned_outputs")
def test_bfloat16_on_images_of_few_columns(width: int, options: dict[str, Any]) -> None:
    """The weight's gradient is ours: PyTorch's may hold memory that nobody wrote."""
    groups = options.get("groups", 1)
    tensors = [
        torch.randint(-2, 3, (2, 16, 9, width)).double(),
        torch.randint(-2, 3, (16, 16 // groups, 7, 3)).double(),
    ]
    contiguous = [torch.contiguous_format] * 2
    found = integer_gradients(fs.subpixel_conv2d, tensors, contiguous, torch.bfloat16, **options)
    expected = integer_gradients(reference.subpixel_conv2d, tensors, contiguous, torch.float64, **options)
    assert found[1].equal(expected[1].bfloat16().double())
    padding = options["padding"] * 2
    stride = (options.get("stride", 1),) * 2
    geometry = Geometry(2, 2, *stride, *padding, groups=groups)
    plan = plan_backward("cpu", geometry, tensors[0].shape, tensors[1].shape, torch.bfloat16)
    assert plan == (stride == (1, 1), True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("input_layout", [torch.contiguous_format, torch.channels_last])
def test_grouped_weight_in_channels_last(
    backend: str, transposed: bool, input_layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch is given it contiguous, in every pass: otherwise its gradient may be wrong."""
    shape = (8, 6, 3, 3) if transposed else (16, 4, 3, 3)
    function: Any = fs.conv_transpose2d if transposed else fs.subpixel_conv2d
    plain: Any = torch.nn.functional.conv_transpose2d if transposed else reference.subpixel_conv2d
    options = {"groups": 2, "stride": 2, "padding": 1}
    tensors = [torch.randint(-2, 3, (2, 8, 7, 9)).double(), torch.randint(-2, 3, shape).double()]
    expected = integer_gradients(plain, tensors, [torch.contiguous_format] * 2, torch.float64, **options)

    given = []
    grouped_weight = reference.grouped_weight
    monkeypatch.setattr(reference, "grouped_weight", lambda *a: given.append(grouped_weight(*a)) or given[-1])
    layouts = [input_layout, torch.channels_last]
    found = integer_gradients(function, tensors, layouts, torch.float32, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.equal(theirs)
    assert given
    assert all(weight.is_contiguous() for weight in given)
