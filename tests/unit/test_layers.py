# SPDX-License-Identifier: BSD-3-Clause
"""The layers for ``kernelize()``: pure, as it demands, and right for whatever layer they are given to."""

from __future__ import annotations

import copy
import inspect
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from fused_subpixel import layers
from fused_subpixel.ops.library import libraries

LAYERS = {
    name: layer
    for name, layer in vars(layers).items()
    if isinstance(layer, type) and issubclass(layer, nn.Module)
}
MODELS = {
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 3, 4, 2, 1), (2, 4, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 4, 2, 1), (2, 4, 9, 8)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 3, 2, 2), (2, 4, 3, 5, 6)),
    "Sequential": (lambda: nn.Sequential(nn.Conv2d(4, 12, 3), nn.PixelShuffle(2), nn.ReLU()), (2, 4, 9, 8)),
}


def given(layer: type[nn.Module], module: nn.Module) -> nn.Module:
    """``module`` as kernelize() leaves it."""
    module = copy.deepcopy(module)
    module.forward = MethodType(layer.forward, module)
    return module


def test_there_is_a_model_for_each() -> None:
    assert LAYERS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_has_no_state_and_the_signature_of_pytorchs(name: str) -> None:
    layer, pytorchs = LAYERS[name], getattr(nn, name)
    assert layer.__init__ is nn.Module.__init__
    assert {name for name in dir(layer) if name not in dir(nn.Module)} == {"can_torch_compile"}
    ours, theirs = (inspect.signature(kind.forward).parameters.values() for kind in (layer, pytorchs))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("name", LAYERS)
def test_computes_the_layer(name: str) -> None:
    make, shape = MODELS[name]
    module, input = make(), torch.randn(shape)
    layer, expected = given(LAYERS[name], module), module(input)
    with torch.profiler.profile() as profile:
        found = layer(input)
    torch.testing.assert_close(found, expected)
    if libraries["cpu"].loaded:
        assert "fused_subpixel::_subpixel_conv2d" in {event.name for event in profile.events()}


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "Sequential"])
def test_takes_an_output_size(name: str) -> None:
    make, shape = MODELS[name]
    module, input = make(), torch.randn(shape)
    size = [length + 1 for length in module(input).shape[2:]]
    torch.testing.assert_close(given(LAYERS[name], module)(input, size), module(input, size))


@pytest.mark.parametrize("name", LAYERS)
def test_a_subclass_keeps_its_own_forward(name: str) -> None:
    make, shape = MODELS[name]
    pytorchs = getattr(nn, name)

    class Doubled(pytorchs):
        def forward(self, input: Tensor, *rest: object) -> Tensor:
            return 2 * super().forward(input, *rest)

    module, input = make(), torch.randn(shape)
    expected = 2 * module(input)
    module.__class__ = Doubled
    torch.testing.assert_close(given(LAYERS[name], module)(input), expected)
