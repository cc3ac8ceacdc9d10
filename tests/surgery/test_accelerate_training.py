# SPDX-License-Identifier: BSD-3-Clause
"""fs.accelerate in training mode: what is measured is a training step, of which nothing is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surgery_checks import accelerate, image
from surgery_models import Three, conv
from torch import Tensor, nn

import fused_subpixel as fs
from fused_subpixel.surgery import timing
from fused_subpixel.torch_compat import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("one_thread")

INPUT, WEIGHT, BOTH = (True, False), (False, True), (True, True)  # which gradients


class Backwards(TorchDispatchMode):
    """Which gradients PyTorch's convolutions compute."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[bool, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            assert not torch.is_autocast_enabled("cpu")
            self.found.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[bool, ...]]]:
    """For each measurement, which gradients PyTorch's way computes. The fused way is said to be faster."""
    found = []

    def compare(before: Any, after: Any, *_: Any) -> timing.Comparison:
        with Backwards() as backwards:
            before()
        found.append(backwards.found)
        after()
        return timing.Comparison(2.0, 1.0)

    monkeypatch.setattr(timing, "compare", compare)
    return found


def test_a_step_is_measured(measured: list[Any]) -> None:
    model = Three().train()
    faster, report = accelerate(model, image(torch.float32))
    assert measured == [[WEIGHT], [BOTH], [BOTH], [BOTH, BOTH, WEIGHT]]
    assert len(report.replaced) == 3 and report.whole is not None and report.whole.training
    assert str(report.whole).startswith("whole model, a training step: ")
    assert all(p.grad is None for p in (*model.parameters(), *faster.parameters()))
    faster(image(torch.float32)).sum().backward()
    assert all(p.grad is not None for p in faster.parameters())


@pytest.mark.parametrize("way", ["eval", "no_grad", "frozen", "hook"])
def test_a_run_alone_is_measured(way: str, measured: list[Any]) -> None:
    """In eval mode, without gradients or parameters to train, and where a module's hook would be called."""
    model = Three().train(way != "eval").requires_grad_(way != "frozen")
    called = []
    if way == "hook":
        model.register_full_backward_hook(lambda *_: called.append(1))
    with torch.set_grad_enabled(way != "no_grad"):
        _, report = accelerate(model, image(torch.float32))
    assert measured == [[]] * 4 and not called
    assert report.whole is not None and not report.whole.training
    assert str(report.whole).startswith("whole model: ")


def test_frozen_layers_before_those_that_are_trained(measured: list[Any]) -> None:
    model = Three().train()
    for frozen in (model.body, model.norm, model.head):
        frozen.requires_grad_(False)
    accelerate(model, image(torch.float32))
    assert measured == [[], [WEIGHT], [INPUT], [INPUT, WEIGHT]]


def test_hooks_of_parameters_are_not_called(measured: list[Any]) -> None:
    model, called = Three().train(), []
    model.mid.weight.register_hook(lambda grad: called.append(grad))
    accelerate(model, image(torch.float32), inplace=True)
    assert not called
    model(image(torch.float32)).sum().backward()
    assert len(called) == 1


@pytest.mark.parametrize("kind", [nn.ConvTranspose2d, nn.Conv1d])
def test_other_layers(kind: Any, measured: list[Any]) -> None:
    layers = [kind(4, 4, 3), kind(4, 4, 3), nn.Tanh()]
    x = torch.rand(2, 4, 16) if kind is nn.Conv1d else image(torch.float32)
    _, report = accelerate(nn.Sequential(*layers).train(), x)
    assert measured == [[WEIGHT], [BOTH], [BOTH, WEIGHT]]
    assert len(report.replaced) == 2


def test_under_autocast(measured: list[Any]) -> None:
    """The backward pass is outside of it, as PyTorch recommends; parameters stay float32."""
    model = nn.Sequential(conv(4), nn.ReLU(), conv(8)).train()
    with torch.autocast("cpu", torch.bfloat16):
        _, report = accelerate(model, image(torch.float32))
    assert measured == [[WEIGHT], [BOTH], [BOTH, WEIGHT]]
    assert len(report.replaced) == 2


def test_gradients_in_the_same_region_of_autocast() -> None:
    """It keeps the cast weights, of which torch 2.10 computes no gradient where they were cast without."""
    model, x = nn.Sequential(conv(4), nn.PixelShuffle(2), nn.Conv2d(1, 4, 1)), image(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        changed = fs.replace_pixel_shuffle(model, x)
        changed(x).sum().backward()
        assert all(parameter.grad is not None for parameter in changed.parameters())
        accelerate(model, x, inplace=True)
        model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_batch_norms_and_random_numbers_stay(measured: list[Any]) -> None:
    model = nn.Sequential(conv(4), nn.BatchNorm2d(4), nn.Dropout(0.5), conv(6)).train()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    x, random = image(torch.float32), torch.get_rng_state()
    accelerate(model, x, inplace=True)
    torch.testing.assert_close(model.state_dict(), kept, rtol=0, atol=0)
    assert torch.get_rng_state().equal(random)


def test_a_model_that_cannot_be_trained(measured: list[Any]) -> None:
    class Overwriting(Three):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sigmoid(super().forward(x))
            y.detach().mul_(2)
            return y

    _, report = accelerate(Overwriting().train(), image(torch.float32))
    assert measured == [[]] * 4 and len(report.replaced) == 3


def test_outputs_that_need_no_gradient(measured: list[Any]) -> None:
    class Labels(Three):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {"label": y.argmax(), "detached": y.detach()}

    model = Labels().train()
    _, report = accelerate(model, image(torch.float32))
    assert measured[-1] == [] and len(report.replaced) == 3
