# SPDX-License-Identifier: BSD-3-Clause
"""SubpixelConv2d as a drop-in for nn.Conv2d and nn.PixelShuffle; ICNR; explain; the command line."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fused_subpixel as fs
from fused_subpixel import __main__ as command_line
from fused_subpixel import verification
from fused_subpixel.ops import library

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))


def pair_of(**options: Any) -> tuple[nn.Sequential, fs.SubpixelConv2d]:
    """conv + shuffle, and our module, from the same seed."""
    torch.manual_seed(7)
    conv = nn.Conv2d(4, 12, (3, 2), **options)
    torch.manual_seed(7)
    return nn.Sequential(conv, nn.PixelShuffle(2)), fs.SubpixelConv2d(4, 3, (3, 2), 2, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "stride": (2, 1)},
        {"padding": "same", "groups": 2},
        {"padding": (1, 2), "dilation": (1, 2), "dtype": torch.float64},
        {"padding": (2, 1), "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "replicate"},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_as_conv2d_from_the_same_seed(backend: str, options: dict[str, Any]) -> None:
    theirs, ours = pair_of(**options)
    after_theirs = torch.get_rng_state()
    assert list(ours.state_dict()) == list(theirs[0].state_dict())
    for name, value in theirs[0].state_dict().items():
        assert ours.state_dict()[name].equal(value)
    x = X.to(options.get("dtype", torch.float32))
    torch.testing.assert_close(ours(x), theirs(x))
    pair_of(**options)
    assert torch.get_rng_state().equal(after_theirs)


def test_strict_loading_and_from_conv2d() -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 12, 3, padding=1)
    expected = F.relu(F.pixel_shuffle(conv(X), 2))
    loaded = fs.SubpixelConv2d(4, 3, 3, padding=1, activation="relu")
    loaded.load_state_dict(conv.state_dict(), strict=True)
    torch.testing.assert_close(loaded(X), expected)

    state = torch.get_rng_state()
    shared = fs.SubpixelConv2d.from_conv2d(conv.eval(), 2, activation="relu")
    assert torch.get_rng_state().equal(state)
    assert shared.weight is conv.weight
    assert shared.bias is conv.bias
    assert not shared.training
    torch.testing.assert_close(shared(X), expected)

    prelu = nn.PReLU(12)
    shared = fs.SubpixelConv2d.from_conv2d(conv, 2, activation="prelu", activation_weight=prelu.weight)
    assert shared.activation_weight is prelu.weight
    torch.testing.assert_close(shared(X), F.pixel_shuffle(prelu(conv(X)), 2))


def test_from_conv2d_refuses() -> None:
    with pytest.raises(
        TypeError, match=r"conv: expected an nn\.Conv2d whose weight is a Parameter, got Linear"
    ):
        fs.SubpixelConv2d.from_conv2d(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whose weight is a Parameter"):
        fs.SubpixelConv2d.from_conv2d(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 1)))
    with pytest.raises(ValueError, match=r"conv: expected out_channels divisible by 3\*3, got 12"):
        fs.SubpixelConv2d.from_conv2d(nn.Conv2d(4, 12, 3), 3)
    with pytest.raises(
        ValueError, match="activation_weight: expected a Parameter where activation is 'prelu', els"
    ):
        fs.SubpixelConv2d.from_conv2d(nn.Conv2d(4, 12, 3), activation="prelu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, "kernel_size: expected at least 1"),
        ({"out_channels": -1}, "out_channels: expected at least 1"),
        ({"groups": 3}, "groups: expected a divisor of in_channels=4 and of out_channels*r_h*r_w=8, got 3"),
        (
            {"padding_mode": "zero"},
            "padding_mode: expected one of 'zeros', 'reflect', 'replicate', 'circular'",
        ),
        ({"padding": "same", "stride": 2}, "padding: expected ints or 'valid' where stride is not 1"),
        ({"activation": "swish"}, "activation: expected one of None, 'relu'"),
        ({"activation": "prelu", "prelu_parameters": 3}, "prelu_parameters: expected 1, 2 or 8, got 3"),
        ({"clamp": (1, 0)}, "clamp: expected lowest <= highest"),
    ],
)
def test_constructor_refuses(options: dict[str, Any], message: str) -> None:
    import re

    arguments: dict[str, Any] = {"in_channels": 4, "out_channels": 2, "kernel_size": 3, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        fs.SubpixelConv2d(**arguments)


def test_options_reach_the_function() -> None:
    module = fs.SubpixelConv2d(
        4, 3, 3, (1, 2), 2, 1, activation="leaky_relu", negative_slope=0.3, clamp=(-1, 1), channel_order="dcr"
    )
    residual = torch.randn(2, 3, 3, 6)
    expected = fs.pixel_shuffle(F.conv2d(X, module.weight, module.bias, 2, 1), (1, 2), "dcr")
    expected = (F.leaky_relu(expected, 0.3) + residual).clamp(-1, 1)
    torch.testing.assert_close(module(X, residual), expected)
    assert repr(module) == (
        "SubpixelConv2d(4, 3, kernel_size=(3, 3), upscale_factor=(1, 2), stride=(2, 2), "
        "padding=(1, 1, 1, 1), activation='leaky_relu', negative_slope=0.3, clamp=(-1.0, 1.0), "
        "channel_order='dcr')"
    )


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(duplicate: Any) -> None:
    module = fs.SubpixelConv2d(4, 3, 3, activation="prelu", prelu_parameters=3)
    other = duplicate(module)
    assert other(X).equal(module(X))
    assert other.weight is not module.weight
    assert repr(other) == repr(module)


@pytest.mark.parametrize(
    "parametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        pytest.param(
            nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore")
        ),  # deprecated, and in use
    ],
)
def test_weight_parametrizations(backend: str, parametrize: Any) -> None:
    theirs, ours = pair_of()
    torch.manual_seed(0)
    parametrize(theirs[0])
    torch.manual_seed(0)
    parametrize(ours)
    found, expected = ours(X), theirs(X)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), list(ours.parameters()))
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected.square().sum(), list(theirs.parameters()))
    )


def test_memory_format_and_dtype(backend: str) -> None:
    module = fs.SubpixelConv2d(4, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    x = X.to(torch.bfloat16, memory_format=torch.channels_last)
    output = module(x)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_trains_as_conv2d_does(backend: str) -> None:
    theirs, ours = pair_of()
    target = torch.randn_like(theirs(X))
    for module in (theirs, ours):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(module(X), target).backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs[0].weight)
    torch.testing.assert_close(ours.bias, theirs[0].bias)


# ---- ICNR --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("factor", [2, (1, 3)])
def test_icnr_starts_as_nearest_neighbour(order: str, factor: Any) -> None:
    r_h, r_w = factor if isinstance(factor, tuple) else (factor, factor)
    weight = torch.empty(3 * r_h * r_w, 4, 3, 3)
    assert fs.icnr_(weight, factor, channel_order=order) is weight
    output = fs.subpixel_conv2d(X, weight, None, factor, channel_order=order)
    small = output[:, :, ::r_h, ::r_w]
    assert output.equal(small.repeat_interleave(r_h, 2).repeat_interleave(r_w, 3))
    assert weight.std() > 0.1
    assert fs.SubpixelConv2d(4, 3, 3, factor, icnr=True, channel_order=order)(X).shape == output.shape


def test_icnr_of_a_transposed_convolution_is_the_convolution_that_the_initializer_filled() -> None:
    """Upsampled to the nearest neighbour; a transposed convolution turns the taps of its kernel around."""
    shared = torch.randn(3, 4, 2, 3)
    weight = fs.icnr_(torch.empty(4, 3, 4, 9), (2, 3), lambda _: shared, transposed=True)
    found = torch.nn.functional.conv_transpose2d(X, weight, stride=(2, 3))
    small = torch.conv2d(torch.nn.functional.pad(X, (2, 2, 1, 1)), shared)
    expected = small.repeat_interleave(2, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(found, expected)


def test_icnr_takes_an_initializer_and_refuses_what_does_not_divide() -> None:
    weight = nn.Parameter(torch.zeros(4, 1, 1, 1))
    fs.icnr_(weight, 2, nn.init.ones_)
    assert weight.eq(1).all()
    with pytest.raises(
        ValueError, match=r"weight: expected a first size divisible by 3\*3=9, got \[4, 1, 1, 1\]"
    ):
        fs.icnr_(weight, 3)


# ---- explain and the command line --------------------------------------------------------------------------


def test_explain_names_the_backend_and_the_reasons(backend: str) -> None:
    module = fs.SubpixelConv2d(4, 3, 3)
    explanation = fs.explain(fs.subpixel_conv2d, X, module.weight, module.bias, activation="silu")
    assert explanation.backend == backend
    refused = {c.name: c.reason for c in explanation.candidates if not c.accepted}
    assert refused["cuda"] == "the tensors are on cpu"
    if backend == "reference":
        assert refused["cpu"]
    else:
        assert "pre-activation" in explanation.epilogue_gradient
    text = str(explanation)
    assert text.startswith(f"backend {backend}\n")
    for line in ("forward: ", "input gradient: ", "weight gradient: ", "epilogue gradient: "):
        assert line in text


def test_explain_refuses_as_the_function_does() -> None:
    with pytest.raises(ValueError, match="input: expected 4 channels"):
        fs.explain(fs.subpixel_conv2d, X[:, :3], torch.zeros(4, 4, 1, 1))


def test_explain_tells_of_transforms() -> None:
    reasons: list[str] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        explanation = fs.explain(fs.subpixel_conv2d, x, torch.zeros(4, 4, 1, 1))
        reasons.extend(c.reason for c in explanation.candidates)
        return x

    torch.vmap(function)(X[None])
    assert "under torch.func transforms only the reference runs" in reasons or "not built" in str(reasons)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["info"]) == 0
    text = capsys.readouterr().out
    for word in (fs.__version__, torch.__version__, "cpu ", "cuda ", "reference"):
        assert word in text


def test_info_says_that_amx_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library.libraries["cpu"].loaded:
        pytest.skip("no CPU library")
    monkeypatch.setattr(torch.ops.fused_subpixel, "_cpu_capability", lambda: [2, 7, 2 << 20, 1])
    assert command_line.main(["info"]) == 0
    assert (
        "kernels for AVX-512 (usable too: portable, AVX2); the operating system refuses AMX; L2"
        in capsys.readouterr().out
    )


def test_verify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "CASES", verification.CASES[3:5])
    texts = []
    for options in ([], ["--all"]):
        assert command_line.main(["verify", *options]) == 0
        texts.append(capsys.readouterr().out)
    numbers = r"(?:cpu|cuda|reference) .*e[-+]\d\d$"
    summary, every = (re.findall(numbers, text, re.M) for text in texts)
    assert len(summary) % 8 == 0  # four dtypes, two layouts
    passed = [re.search(r" (\d+) of \1 ", line) for line in summary]
    assert sum(int(found[1]) for found in passed if found) == len(every)
    assert f"{len(every)} of {len(every)} checks passed" in texts[0]


def test_verify_finds_a_wrong_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "CASES", verification.CASES[:1])
    monkeypatch.setattr(verification, "subpixel_conv2d", lambda *t, **o: fs.subpixel_conv2d(*t, **o) * 1.1)
    assert command_line.main(["verify"]) == 1
    assert re.search(r"float64 +contiguous +0 of 4 .*FAILED\n", text := capsys.readouterr().out)
    assert re.search(r"float64 +contiguous +3x3, weight gradient .*FAILED\n", text)


class Head(nn.Module):
    """A convolution and a shuffle that only a run shows to be a pair."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.shuffle = conv, nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.conv(x))


class OwnConv2d(nn.Conv2d):
    def __init__(self, channels: int, device: Any = None) -> None:
        super().__init__(channels, 4 * channels, 3, padding=1, device=device)


class OwnSequential(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4, 1), nn.PixelShuffle(2))


@pytest.mark.parametrize(
    ("replaced", "arguments", "original"),
    [
        (lambda: fs.replace_pixel_shuffle(Head(nn.Conv2d(4, 8, 3)), X).conv, (4, 8, 1), nn.Conv2d),
        (lambda: fs.replace_pixel_shuffle(Head(OwnConv2d(4)), X).conv, (4,), OwnConv2d),
        (lambda: fs.replace_pixel_shuffle(OwnSequential(4)), (4,), OwnSequential),
        (
            lambda: fs.replace_pixel_shuffle(nn.Sequential(nn.Conv2d(4, 4, 1), nn.PixelShuffle(2))),
            (nn.Conv2d(4, 8, 1), nn.PixelShuffle(2), nn.ReLU()),
            nn.Sequential,
        ),
        (lambda: fs.replace_conv_transpose(nn.ConvTranspose2d(4, 2, 3)), (4, 8, 1), nn.ConvTranspose2d),
    ],
)
def test_the_class_of_a_replaced_layer_makes_ordinary_layers(
    replaced: Any, arguments: Any, original: Any
) -> None:
    """As LoRA libraries do: ``type(layer)(...)``."""
    layer = replaced()
    torch.manual_seed(5)
    made = type(layer)(*arguments)
    torch.manual_seed(5)
    expected = original(*arguments)
    assert isinstance(made, original)
    assert list(made.state_dict()) == list(expected.state_dict())
    for again in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(again(X), expected(X))
    if issubclass(original, nn.Conv2d):
        assert type(made) is original
        assert nn.utils.skip_init(type(layer), *arguments).weight.shape == expected.weight.shape


@pytest.mark.filterwarnings("ignore")
def test_quantisation_finds_replaced_convolutions() -> None:
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), Head(nn.Conv2d(4, 8, 3)), quantization.DeQuantStub())
    results = []
    for candidate in (model, fs.replace_pixel_shuffle(model, X)):
        candidate.qconfig = quantization.default_qconfig  # type: ignore[assignment]
        prepared = quantization.prepare(candidate.eval())
        prepared(X)
        converted = quantization.convert(prepared)
        assert type(converted[1].conv) is torch.ao.nn.quantized.Conv2d
        results.append(converted(X))
    assert results[0].equal(results[1])
