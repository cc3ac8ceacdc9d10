# SPDX-License-Identifier: BSD-3-Clause
"""Generated models: accelerated, run, trained a step, restored, each time as the original.

Each seed makes a network of one to three layers with random options, followers, consumers, spellings, and
paths that only appear later.
``python -c "from test_accelerate_random import *; check(SEED)"`` repeats a failure.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surgery_checks import saying
from surgery_models import OwnConv2d, norm
from tiers import tiered
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

import fused_subpixel as fs
from fused_subpixel.surgery import timing

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

MODELS, BATCHES = 400, 40
CHANNELS = 4


def drawn_conv(draw: random.Random) -> tuple[nn.Module, str]:
    """A layer [N, 4, H, W] -> [N, 4, P, Q], and what it is."""
    options: dict[str, Any] = {"bias": draw.random() < 0.7, "groups": draw.choice((1, 1, 1, 2, 4))}
    kind = draw.choice(("conv", "conv", "conv", "1-D", "transposed", "own"))
    size = draw.choice((1, 2, 3, 3, 3, 5))
    if kind == "own":
        return OwnConv2d(CHANNELS), kind
    if kind == "transposed":
        stride = draw.choice((1, 2))
        return nn.ConvTranspose2d(
            4, 4, max(size, stride), stride, **options
        ), f"transposed, kernel {size}, {options}"
    options["padding"] = draw.choice((size // 2, size // 2, "same", size))
    options["padding_mode"] = draw.choice(("zeros", "zeros", "zeros", "replicate", "circular"))
    options["dilation"] = draw.choice((1, 1, 2))
    if options["padding_mode"] == "circular" and options["padding"] != "same":
        options["padding"] = min(size // 2, 2)
    if options["padding"] != "same":
        options["stride"] = draw.choice((1, 1, 2))
        if options["dilation"] == 2 and options["padding"] == 0 and size > 1:
            options["dilation"] = 1
    made: nn.Module = (nn.Conv1d if kind == "1-D" else nn.Conv2d)(4, 4, size, **options)
    wrap = draw.choice(("", "", "", "weight_norm", "old weight_norm", "spectral_norm"))
    if wrap:
        wraps: dict[str, Callable[[Any], Any]] = {
            "weight_norm": parametrizations.weight_norm, "old weight_norm": weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
        }  # fmt: skip
        made = wraps[wrap](made)
    return made, f"{kind}, kernel {size}, {options} {wrap}"


FOLLOWERS: dict[str, Callable[[], Any]] = {
    "nothing": nn.Identity,
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "F.relu": lambda: F.relu,
    "torch.relu_": lambda: torch.relu_,
    "leaky_relu_": lambda: nn.LeakyReLU(0.2, inplace=True),
    "prelu": nn.PReLU,
    "prelu of 4": lambda: nn.PReLU(4),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": lambda: torch.tanh,
    "sigmoid_": lambda: Tensor.sigmoid_,
    "norm": lambda: norm(4),
    "norm, relu_": lambda: nn.Sequential(norm(4), nn.ReLU(inplace=True)),
    "norm, prelu": lambda: nn.Sequential(norm(4), nn.PReLU(4)),
    "dropout": lambda: nn.Dropout(0.2),
    "hardswish_": lambda: nn.Hardswish(inplace=True),
}
USES: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]] = {
    "follow": lambda y, follow: follow(y),
    "follow and use": lambda y, follow: follow(y) + y * 0.5,
    "use and follow": lambda y, follow: y * 0.5 + follow(y),
    "result ignored": lambda y, follow: (follow(y), y * 1)[1],
    "follow twice": lambda y, follow: follow(y) + follow(y),
    "overwritten before": lambda y, follow: follow(y.mul_(0.5)),
    "overwritten after": lambda y, follow: follow(y).mul_(0.5),
    "added to": lambda y, follow: (lambda z: (z.add_(y), z)[1])(follow(y) * 1),
    "a part": lambda y, follow: follow(y)[:, :, 1:],
    "checkpointed": lambda y, follow: checkpoint(follow, y, use_reentrant=False),
    "other": lambda y, follow: F.silu(y),
    "none": lambda y, follow: y,
}


class Stage(nn.Module):
    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.conv, words = drawn_conv(draw)
        follower = draw.choice(list(FOLLOWERS))
        self.follow, self.normalises = FOLLOWERS[follower](), "norm" in follower  # which wants images
        self.shown = draw.choice(("follow", "follow", "follow", *USES))
        self.later = draw.choice((self.shown, self.shown, *USES))
        self.skip, self.twice = draw.choice(("", "", "add", "add_")), draw.random() < 0.2
        self.sequential = (
            nn.Sequential(self.conv, self.follow) if isinstance(self.follow, nn.Module) else None
        )
        self.spelling = draw.choice(("chained", "sequential"))
        self.words = (
            f"{words}; {follower}, {self.shown}, later {self.later}, {self.spelling}, "
            f"skip {self.skip!r}, twice {self.twice}"
        )

    def run_rows(self, x: Tensor, use: str) -> Tensor:
        """A 1-D convolution along the rows, and what follows it."""
        y = self.conv(x.transpose(1, 2).flatten(0, 1))
        if not self.normalises:
            y = USES[use](y, self.follow)
        y = y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        return USES[use](y, self.follow) if self.normalises else y

    def run(self, x: Tensor, use: str) -> Tensor:
        if isinstance(self.conv, nn.Conv1d):
            y = self.run_rows(x, use)
        elif use == "follow" and self.spelling == "sequential" and self.sequential:
            y = self.sequential(x)
        else:
            y = USES[use](self.conv(x), self.follow)
        if self.skip and y.shape == x.shape:
            if self.skip == "add":
                return y + x
            x = x * 1
            x += y
            return x
        return y * 1

    def forward(self, x: Tensor, later: bool) -> Tensor:
        use = self.later if later else self.shown
        y = self.run(x, use)
        return y + self.run(x * 0.5, use) if self.twice else y


class Generated(nn.Module):
    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(draw) for _ in range(draw.choice((1, 2, 2, 3))))
        if draw.random() < 0.2:
            self.stages.append(self.stages[0])
        self.later = False

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            if min(x.shape[-2:]) < 6:
                x = x.repeat(1, 1, 2, 2)
            x = stage(x, self.later)
            if x.numel() > 2 * CHANNELS * 150:
                x = x[..., :6]
        return x


def strides(tensor: Tensor) -> list[int]:
    """Those that matter."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def outcomes(model: nn.Module, x: Tensor) -> list[Any]:
    """Outputs in each mode, gradients, and the state; what the original refuses is refused by None."""
    results: list[Any] = []
    for context in (torch.no_grad(), torch.inference_mode()):
        torch.default_generator.manual_seed(1)
        with context:
            output = model(x.clone())
            results += [output.clone(), strides(output)]
    leaf = x.clone().requires_grad_()
    torch.default_generator.manual_seed(2)
    output = model(leaf)
    results += [output.detach().clone(), strides(output)]
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weights).mean().backward()
    results.append([leaf.grad, *(p.grad for p in model.parameters())])
    results.append({key: value.clone() for key, value in model.state_dict().items()})
    return results


def check(seed: int) -> bool:
    """Whether something of model ``seed`` was replaced; raises where it is not as the original."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = Generated(draw).double()
    x = torch.randn(2, CHANNELS, draw.choice((7, 8)), 9, dtype=torch.float64)
    if draw.random() < 0.3:
        x, model = x.to(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    elif draw.random() < 0.3:
        x = x.to(memory_format=torch.channels_last)
    model.train(draw.random() < 0.3)
    words = "\n  ".join((f"seed {seed}, training {model.training}", *(stage.words for stage in model.stages)))
    try:
        with torch.no_grad():
            model(x)  # so that what old weight_norm keeps can be copied
        state = {key: value.clone() for key, value in model.state_dict().items()}
        found, report = fs.accelerate(model, x, progress=False, return_report=True)
        assert "undone" not in str(report), str(report)
        torch.testing.assert_close(found.state_dict(), state, rtol=0, atol=0)
        original = copy.deepcopy(model)
        for later in (False, True):
            for training in (model.training, not model.training):
                for each in (found, original):
                    each.load_state_dict(state)
                    each.train(training).zero_grad()
                    each.later = later
                try:
                    expected = outcomes(original, x)
                except RuntimeError as error:
                    if "inplace" not in str(error) and "in-place" not in str(error):
                        raise
                    for each in (found, original):
                        each.load_state_dict(state)
                    with torch.no_grad():
                        results = []
                        for each in (found, original):
                            torch.default_generator.manual_seed(1)
                            results.append(each(x))
                        torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)
                    continue
                try:
                    results = outcomes(found, x)
                except RuntimeError as error:
                    # in inference mode, where tensors have no versions: see test_tensors_of_inference_mode
                    assert later and "may have been, changed in place" in str(error)
                    continue
                torch.testing.assert_close(results, expected, rtol=1e-8, atol=1e-10)
        with torch.no_grad():
            found(x)
        _, second = fs.accelerate(found, x, progress=False, return_report=True)
        assert not second.replaced or found.later, str(second)
        restored = fs.restore(found)
        assert [type(m).__name__ for m in restored.modules()] == [type(m).__name__ for m in model.modules()]
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n\n  {words}") from error
    return bool(report.replaced)


@tiered("batch", range(BATCHES), fast=range(1))
def test_generated_models(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "compare", saying(2.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        replaced = [check(seed) for seed in range(batch, MODELS, BATCHES)]
    assert sum(replaced) > 0.9 * len(replaced)
