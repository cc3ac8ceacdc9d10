# SPDX-License-Identifier: BSD-3-Clause
"""Generated models: replaced once and twice, run, trained a step, restored, each time as the original.

Each seed makes a model of one to three upsampling stages from what real models do with a convolution and its
shuffle, or may do: chains, branches, shared modules, checkpoints, hand-written functions of autograd, hooks,
patches, scripted parts, in-place consumers. A failure names the seed and describes the model:
``python -c "from test_surgery_random import *; check(SEED)"`` repeats it.
"""

from __future__ import annotations

import contextlib
import random
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surgery_models import OwnConv2d, Squared, norm
from tiers import tiered
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fused_subpixel as fs

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

MODELS, BATCHES = 520, 20
CHANNELS, SIZE = 4, (2, 4, 3, 5)
Run = Callable[[Tensor], Tensor]


# ---- what stands around a convolution, or a whole stage ----------------------------------------------------


class Recomputing(torch.autograd.Function):
    """A hand-written checkpoint: runs without gradients, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: Run, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.parameters = run, parameters
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.run(x)
        return None, *torch.autograd.grad(output, (x, *ctx.parameters), grad, allow_unused=True)


class Coupling(torch.autograd.Function):
    """A reversible block, y1 = x1 + f(x2), y2 = x2 + f(y1), which keeps its outputs only."""

    @staticmethod
    def forward(ctx: Any, run: Run, x: Tensor, *parameters: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, 1)
        y1 = x1 + run(x2)
        y2 = x2 + run(y1)
        ctx.run, ctx.parameters = run, parameters
        ctx.save_for_backward(y1, y2)
        return torch.cat((y1, y2), 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y1, y2 = (y.detach() for y in ctx.saved_tensors)
        grad1, grad2 = grad.chunk(2, 1)
        wanted = ctx.parameters
        with torch.enable_grad():
            y1.requires_grad_()
            second = ctx.run(y1)
            through, *first_ones = torch.autograd.grad(second, (y1, *wanted), grad2)
        grad1 = grad1 + through
        x2 = (y2 - second).detach()
        with torch.enable_grad():
            x2.requires_grad_()
            through, *second_ones = torch.autograd.grad(ctx.run(x2), (x2, *wanted), grad1)
        parameter_gradients = (a + b for a, b in zip(first_ones, second_ones, strict=True))
        return None, torch.cat((grad1, grad2 + through), 1), *parameter_gradients


class Same(torch.autograd.Function):
    """Returns its input; twice the gradient, to be seen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def parameters_of(run: Any) -> list[Tensor]:
    modules = run.modules_of if hasattr(run, "modules_of") else [run]
    return [p for module in modules for p in module.parameters()]


def plainly(run: Run, x: Tensor) -> Tensor:
    return run(x)


def reentrant(run: Run, x: Tensor) -> Tensor:
    return checkpoint(run, x, use_reentrant=True, preserve_rng_state=False)


def reentrant_twice(run: Run, x: Tensor) -> Tensor:
    return checkpoint(lambda t: checkpoint(run, t, use_reentrant=True), x, use_reentrant=True)


def not_reentrant(run: Run, x: Tensor) -> Tensor:
    return checkpoint(run, x, use_reentrant=False)


def in_segments(run: Run, x: Tensor) -> Tensor:
    return checkpoint_sequential([nn.Identity(), run], 2, x, use_reentrant=True)


def recomputing(run: Run, x: Tensor) -> Tensor:
    return Recomputing.apply(run, x, *parameters_of(run))


def saved_on_the_side(run: Run, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        return run(x)


REENTRANT = (reentrant, reentrant_twice, in_segments)
AROUND = (plainly, *REENTRANT, not_reentrant, recomputing, saved_on_the_side)


# ---- what stands between convolution and shuffle, and behind it --------------------------------------------


def hooked(y: Tensor) -> Tensor:
    if y.requires_grad:
        y.register_hook(lambda grad: grad * 3)
    return y


def detached_part(y: Tensor) -> Tensor:
    return y + y.detach()


def written_to(y: Tensor) -> Tensor:
    y[:, 0] = 0.5
    return y


def added_in_place(y: Tensor) -> Tensor:
    y += 0.25
    return y


def of_its_view(y: Tensor) -> Tensor:
    y.view(-1)[::3].mul_(2)
    return Same.apply(y)


BETWEEN: dict[str, Callable[[int], Any]] = {
    "nothing": lambda c: nn.Identity(),
    "relu": lambda c: nn.ReLU(),
    "relu_": lambda c: nn.ReLU(inplace=True),
    "leaky_relu_": lambda c: nn.LeakyReLU(0.2, inplace=True),
    "prelu": lambda c: nn.PReLU(),
    "prelu of many": lambda c: nn.PReLU(c),
    "silu": lambda c: nn.SiLU(),
    "silu_": lambda c: nn.SiLU(inplace=True),
    "gelu": lambda c: nn.GELU(),
    "tanh": lambda c: nn.Tanh(),
    "sigmoid": lambda c: nn.Sigmoid(),
    "batch norm": lambda c: norm(c),
    "batch norm, relu": lambda c: nn.Sequential(norm(c), nn.ReLU()),
    "dropout": lambda c: nn.Dropout(0.25),
}
FUNCTIONS_BETWEEN: tuple[Callable[[Tensor], Tensor], ...] = (
    Same.apply, Squared.apply, hooked, detached_part, written_to, added_in_place, of_its_view, torch.abs,
    Tensor.contiguous, torch.tanh, F.silu,
)  # fmt: skip


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.tanh(x) * 2


AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "mul_": lambda x: x.mul_(2),
    "relu_, mul_": lambda x: x.relu_().mul_(1.5),
    "scripted": scripted,
    "tanh": torch.tanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "Same": Same.apply,
}


# ---- models ------------------------------------------------------------------------------------------------


class Stage(nn.Module):
    """[N, 4, H, W] -> [N, 4, 2 H, 2 W], in one of many ways. The choices are drawn here, once."""

    def __init__(self, draw: random.Random, shuffle: nn.Module | None, conv: nn.Module | None) -> None:
        super().__init__()
        kind = draw.choice(
            ("plain", "own", "own", "groups", "reflect", "weight_norm", "old weight_norm", "no bias")
        )
        if conv is not None:
            kind = "shared"
        options = {
            "groups": {"groups": 2},
            "reflect": {"padding_mode": "reflect"},
            "no bias": {"bias": False},
        }
        self.conv = conv or (
            OwnConv2d(16) if kind == "own" else nn.Conv2d(4, 16, 3, padding=1, **options.get(kind, {}))  # type: ignore[arg-type]
        )
        if kind == "weight_norm":
            parametrizations.weight_norm(self.conv)
        elif kind == "old weight_norm":
            weight_norm(self.conv)
        self.shuffle = shuffle or nn.PixelShuffle(2)
        between = draw.choice(list(BETWEEN)) if draw.random() < 0.6 else "nothing"
        self.between = BETWEEN[between](16)
        self.spelling = draw.choice(("chained", "chained", "sequential", "function", "sequential of two"))
        self.sequential = nn.Sequential(self.conv, self.between, self.shuffle)
        self.body = nn.Sequential(nn.Identity(), self.conv)
        self.around_conv = draw.choice(AROUND) if draw.random() < 0.6 else plainly
        self.around_all = draw.choice(AROUND) if draw.random() < 0.3 else plainly
        if self.around_all is recomputing and self.around_conv in REENTRANT:
            self.around_conv = not_reentrant  # autograd.grad refuses the others
        self.function = draw.choice(FUNCTIONS_BETWEEN) if draw.random() < 0.25 else None
        self.branch = draw.choice(("", "", "", "", "mean", "second shuffle", "second use", "coupled"))
        self.after = draw.choice(list(AFTER))
        function = getattr(self.function, "__qualname__", self.function)
        self.words = (
            f"{kind} conv, then {between}, {self.spelling}; around the conv: {self.around_conv.__name__}; "
            f"around all: {self.around_all.__name__}; function between: {function}; "
            f"branch: {self.branch or None}; after: {self.after}"
        )

    def up(self, x: Tensor) -> Tensor:
        if self.spelling == "sequential":
            return self.sequential(x)
        y = self.around_conv(self.body if self.spelling == "sequential of two" else self.conv, x)
        extra: Any = 0
        if self.branch == "mean":
            extra = y.mean()
        y = self.between(y)
        if self.function is not None:
            y = self.function(y)
        output = F.pixel_shuffle(y, 2) if self.spelling == "function" else self.shuffle(y)
        if self.branch == "second shuffle":
            extra = self.shuffle(y)
        elif self.branch == "second use":
            extra = F.pixel_shuffle(y * 2, 2)
        return output + extra if self.branch else output

    def forward(self, x: Tensor) -> Tensor:
        run: Any = self.up
        if self.branch == "coupled":  # x twice, through a block that needs no intermediate values
            coupled = Coupled(self)
            doubled = Coupling.apply(coupled, torch.cat((x, x * 0.5), 1), *coupled.parameters())
            x = doubled[:, :4] + doubled[:, 4:]
        if self.around_all is recomputing:
            run = Whole(self)
        return AFTER[self.after](self.around_all(run, x) * 1)


class Whole:
    """The stage as a callable that tells its parameters."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.modules_of = stage, [stage]

    def __call__(self, x: Tensor) -> Tensor:
        return self.stage.up(x)


class Coupled:
    """Convolution, shuffle, and down again: a function from [N, 4, H, W] to the same shape."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def parameters(self) -> list[Tensor]:
        return list(self.stage.conv.parameters())

    def __call__(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.stage.shuffle(self.stage.conv(x)), 2)


class Generated(nn.Module):
    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        count = draw.choice((1, 1, 2, 2, 3))
        shuffle = nn.PixelShuffle(2) if draw.random() < 0.4 else None
        self.stages = nn.ModuleList()
        for _ in range(count):
            shared = self.stages[0].conv if len(self.stages) and draw.random() < 0.2 else None
            self.stages.append(Stage(draw, shuffle, shared))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
            if x.shape[-1] > 12:
                x = x[..., 1:-1:2, 1:-1:2]
        return x

    def words(self) -> list[str]:
        return [stage.words for stage in self.stages]


# ---- patches and hooks -------------------------------------------------------------------------------------


def seamless(conv: Any) -> None:
    """The patch that makes textures tile."""

    def convolve(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), weight, bias, groups=self.groups)

    conv._conv_forward = types.MethodType(convolve, conv)


def _wrapped(owner: Any, name: str) -> Any:
    original = getattr(owner, name)

    def patched(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, **options) * 1.5

    return original, patched


PATCHED_GLOBALLY = {
    "nn.Conv2d._conv_forward": (nn.Conv2d, "_conv_forward"),
    "nn.Conv2d.forward": (nn.Conv2d, "forward"),
    "OwnConv2d.forward": (OwnConv2d, "forward"),
    "OwnConv2d._conv_forward": (OwnConv2d, "_conv_forward"),
    "nn.PixelShuffle.forward": (nn.PixelShuffle, "forward"),
    "nn.Sequential.forward": (nn.Sequential, "forward"),
    "nn.ReLU.forward": (nn.ReLU, "forward"),
    "nn.SiLU.forward": (nn.SiLU, "forward"),
    "F.conv2d": (F, "conv2d"),
    "F.pixel_shuffle": (F, "pixel_shuffle"),
    "F.relu": (F, "relu"),
}


@contextlib.contextmanager
def patched_globally(name: str) -> Iterator[None]:
    """A part of PyTorch that gives one and a half times its result."""
    owner, attribute = PATCHED_GLOBALLY[name]
    own = attribute in vars(owner)
    original, patched = _wrapped(owner, attribute)
    setattr(owner, attribute, patched)
    try:
        yield
    finally:
        if own:
            setattr(owner, attribute, original)
        else:
            delattr(owner, attribute)


def tripled(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *arguments: forward(*arguments) * 3  # type: ignore[method-assign]


LOCAL: dict[str, Callable[[Stage], Any]] = {
    "a seamless convolution": lambda stage: seamless(stage.conv),
    "another forward of the shuffle": lambda stage: tripled(stage.shuffle),
    "a forward hook of the convolution": lambda stage: stage.conv.register_forward_hook(
        lambda m, i, o: o * 2
    ),
    "a forward hook of the shuffle": lambda stage: stage.shuffle.register_forward_hook(lambda m, i, o: o * 2),
    "a hook before the shuffle": lambda stage: stage.shuffle.register_forward_pre_hook(
        lambda m, i: (i[0] * 2,)
    ),
    "a hook behind the body": lambda stage: stage.body.register_full_backward_hook(lambda m, i, o: None),
    "circular padding": lambda stage: setattr(stage.conv, "padding_mode", "circular"),
}


# ---- the test ----------------------------------------------------------------------------------------------


def outcomes(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Outputs without and with gradients, all gradients, and the state after a step; None where refused."""
    results: dict[str, Any] = {}
    for name, context in (("no_grad", torch.no_grad()), ("inference_mode", torch.inference_mode())):
        torch.manual_seed(1)
        with context:
            results[name] = model(x.clone()).clone()
    x = x.clone().requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    for step in range(2):
        optimizer.zero_grad()
        torch.manual_seed(2)
        output = model(x)
        results[f"output {step}"] = output.detach().clone()
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        (output * weights).mean().backward()
        results[f"gradients {step}"] = {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        }
        results[f"gradient of the input {step}"] = None if x.grad is None else x.grad.clone()
        optimizer.step()
    results["state"] = {key: value.clone() for key, value in model.state_dict().items()}
    return results


def check(seed: int) -> bool:
    """Whether model ``seed`` has gradients; raises where a replaced one is not as the original."""
    draw = random.Random(seed)
    plan = draw.getrandbits(64)
    models = []
    for _ in range(2):
        torch.manual_seed(seed)
        models.append(Generated(random.Random(plan)).double())
    original, model = models
    training = draw.random() < 0.5
    fold = not training and draw.random() < 0.5
    original.train(training), model.train(training)
    x = torch.randn(SIZE, dtype=torch.float64)
    local, patched = draw.choice(("a seamless convolution", *LOCAL)), draw.choice(list(PATCHED_GLOBALLY))
    if any(isinstance(stage.conv, OwnConv2d) for stage in original.stages) and draw.random() < 0.5:
        patched = draw.choice(("OwnConv2d.forward", "OwnConv2d._conv_forward"))
    when = draw.choice(("never", "never", "before", "after", "after", "globally", "globally"))
    where = draw.randrange(len(original.stages))
    calls = [draw.choice(((), (x,), (x,))) for _ in range(draw.choice((1, 2, 2)))]
    description = "\n  ".join((
        f"seed {seed}, training: {training}, fold_batch_norm: {fold}, replaced "
        f"{' and '.join('with example inputs' if call else 'without' for call in calls)}",
        *original.words(),
        {
            "never": "no patches", "before": f"{local} of stage {where}, before",
            "after": f"{local} of stage {where}, after", "globally": f"{patched} patched after",
        }[when],
    ))  # fmt: skip

    def alter(each: nn.Module) -> None:
        LOCAL[local](each.stages[where])  # type: ignore[operator, index, arg-type]

    try:
        if when == "before":
            alter(original), alter(model)
        kinds = [type(module).__name__ for module in model.modules()]
        state = {key: value.clone() for key, value in model.state_dict().items()}
        reports = []
        for call in calls:
            model, report = fs.replace_pixel_shuffle(
                model, *call, inplace=True, fold_batch_norm=fold, return_report=True
            )
            reports.append(report)
        if calls == [(x,), (x,)]:
            assert not reports[1].replaced, f"replaced again: {reports[1]}"
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
        if when == "after":
            alter(original), alter(model)
        with patched_globally(patched) if when == "globally" else contextlib.nullcontext():
            try:
                expected = outcomes(original, x)
            except RuntimeError as error:
                if "inplace" not in str(error):
                    raise
                with torch.no_grad():
                    original.load_state_dict(model.state_dict())
                    torch.manual_seed(1)
                    expected = {"output": original(x.clone())}
                    torch.manual_seed(1)
                    found = {"output": model(x.clone())}
            else:
                found = outcomes(model, x)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        fs.restore_pixel_shuffle(model, inplace=True)
        assert [type(module).__name__ for module in model.modules()] == kinds
        with torch.no_grad():
            torch.manual_seed(1)
            found["restored"] = model(x.clone())
            torch.manual_seed(1)
            torch.testing.assert_close(found["restored"], original(x.clone()), rtol=1e-8, atol=1e-10)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n\n  {description}") from error
    return "state" in expected


@tiered("batch", range(BATCHES), fast=range(3))
def test_generated_models(batch: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = [check(seed) for seed in range(batch, MODELS, BATCHES)]
    assert sum(trained) > 0.5 * len(trained)  # the others refuse a gradient, as the originals do
