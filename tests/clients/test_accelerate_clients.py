# SPDX-License-Identifier: BSD-3-Clause
"""Real models before and after accelerate, all layers replaced that can be: same outputs and gradients."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from clients import CLIENTS, Client
from conftest import build
from test_clients import BOUNDS, assert_close, gradients, largest, run

import fused_subpixel as fs
from fused_subpixel.surgery import timing
from fused_subpixel.surgery.timing import Comparison

# Of each kind of network one; those with batch norms, transposed convolutions and hooks among them.
NAMES = (
    "animevideo-x4", "compact", "dc-ae", "ddcolor", "drunet",
    "esrgan-x4", "factorized-prior", "fbcnn", "kbnet-s", "mix-dehaze", "nafnet", "plksr", "rcan-x3",
    "real-cugan-x3", "safmn", "span", "swift-srgan", "swin2sr-pixelshuffle-x2",
    "swinir-x4", "vitpose",
)  # fmt: skip
CHOSEN = [client for client in CLIENTS if client.name in NAMES]
assert len(CHOSEN) == len(NAMES)


def both_once(before: timing.Run, after: timing.Run, *_: Any) -> Comparison:
    """Computes, but does not let a clock decide."""
    before()
    after()
    return Comparison(1.0, 0.5)


@pytest.mark.parametrize("client", CHOSEN, ids=lambda client: client.name)
def test_outputs_and_gradients(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "compare", both_once)
    original = build(client)
    inputs = client.inputs().to(client.dtype)
    run(original, inputs)
    state = copy.deepcopy(original.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # something is replaced in each of them
        fast, report = fs.accelerate(original, (inputs,), return_report=True, progress=False)
    assert len(report.replaced) > 3 and report.whole is not None, str(report)
    torch.testing.assert_close(fast.state_dict(), state, rtol=0, atol=0)

    for found, expected in zip(run(fast, inputs), run(original, inputs), strict=True):
        assert_close(found, expected, "an output")
    found_gradients, expected_gradients = gradients(fast, inputs), gradients(original, inputs)
    scale = max(map(largest, expected_gradients.values()))
    for name, expected in expected_gradients.items():
        found = found_gradients[name]
        assert (found is None) == (expected is None), name
        if found is not None and expected is not None:
            assert_close(found, expected, name, slack=BOUNDS[client.dtype] * scale)
