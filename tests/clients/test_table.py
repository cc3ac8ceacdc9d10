# SPDX-License-Identifier: BSD-3-Clause
"""The table says what the models do, by a tracer that can tell a pair from what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from clients import CLIENTS, Client
from conftest import build
from torch import Tensor, nn
from tracing import Pair, trace

# what one pass may contain besides convolution and shuffle
ACTIVATIONS = {"relu", "leaky_relu", "prelu", "silu", "gelu", "tanh", "sigmoid"}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_sites_and_what_only_looks_like_them(client: Client) -> None:
    found = trace(build(client), client.inputs().to(client.dtype))
    sites = [pair.convolution for pair in found.pairs if set(pair.between) <= ACTIVATIONS and pair.factor > 1]
    others = {pair.convolution: pair.between for pair in found.pairs if pair.convolution not in sites}
    assert tuple(sites) == client.sites
    assert others == client.between
    assert tuple(found.transposed) == client.transposed


class Toy(nn.Module):
    def __init__(self, forward: Callable[[Toy, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 1)
        self.shuffle = nn.PixelShuffle(2)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


TOYS = {
    "modules": (lambda m, x: m.shuffle(m.conv(x)), [Pair("conv", (), 2)]),
    "forward called directly": (lambda m, x: m.shuffle.forward(m.conv.forward(x)), [Pair("conv", (), 2)]),
    "functions": (
        lambda m, x: F.pixel_shuffle(input=F.conv2d(x, weight=m.other.weight), upscale_factor=2),
        [Pair("other", (), 2)],
    ),
    "activation": (lambda m, x: torch.pixel_shuffle(m.conv(x).relu(), 2), [Pair("conv", ("relu",), 2)]),
    "slice": (lambda m, x: m.shuffle(m.conv(x)[:, :4]), [Pair("conv", ("__getitem__",), 2)]),
    "in place": (lambda m, x: m.shuffle(m.conv(x).add_(1)), [Pair("conv", ("add_",), 2)]),
    "in place, other name": (lambda m, x: changed(m, m.conv(x)), [Pair("conv", ("mul_",), 2)]),
    "two": (
        lambda m, x: m.shuffle(m.other(x)) + m.shuffle(m.conv(x)),
        [Pair("other", (), 2), Pair("conv", (), 2)],
    ),
    "a product of both": (lambda m, x: m.shuffle(m.conv(x) * m.other(x)), [Pair("conv", ("mul",), 2)]),
    "the input": (lambda m, x: m.shuffle(torch.cat([x, x, x, x], 1)), []),
    "shuffled twice": (lambda m, x: F.pixel_unshuffle(m.shuffle(m.conv(x)), 2), [Pair("conv", (), 2)]),
}


def changed(model: Toy, between: Tensor) -> Tensor:
    between.mul_(2)
    return model.shuffle(between)


@pytest.mark.parametrize("name", TOYS)
def test_the_tracer(name: str) -> None:
    forward, expected = TOYS[name]
    assert trace(Toy(forward), torch.randn(2, 3, 5, 6)).pairs == expected


def test_the_tracer_knows_weights_that_hooks_compute() -> None:
    model = Toy(TOYS["modules"][0])
    nn.utils.weight_norm(model.conv)
    assert trace(model, torch.randn(2, 3, 5, 6)).pairs == [Pair("conv", (), 2)]
