# SPDX-License-Identifier: BSD-3-Clause
"""Models that look like a sub-pixel convolution and are none, or become none after the surgery.

Each must be left alone, or stay right whatever path it takes afterwards.
"""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surgery_checks import fused_calls, image, outcomes, replace, types
from surgery_models import Chained, Functional, Shared, Squared, conv, norm, pair
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fused_subpixel as fs
from fused_subpixel.surgery import chain, originals
from fused_subpixel.surgery.low_resolution import LowResolution

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]


class Free(nn.Module):
    """Two convolutions, two shuffles, a gate, and any function for a forward."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.first, self.second = conv(16), conv(16)
        self.shuffle, self.other = nn.PixelShuffle(2), nn.PixelShuffle(2)
        for name, module in modules.items():
            setattr(self, name, module)
        self.function, self.flag = function, False

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def check(
    model: nn.Module, replaced: int, *reasons: str, x: Tensor | None = None, **options: Any
) -> nn.Module:
    """Replace with example inputs, and compare outputs, gradients, and those in training mode."""
    model = model.double().eval()
    x = image() if x is None else x
    found, report = replace(model, x, **options)
    assert len(report.replaced) == replaced, str(report)
    left = [site.reason for site in report.left_alone]
    assert len(left) == len(reasons) and all(
        part in text for part, text in zip(reasons, left, strict=True)
    ), left
    for training in (False, True):
        found.train(training), model.train(training)
        compare(found, model, x)
    return found.eval()


def compare(found: nn.Module, model: nn.Module, x: Tensor) -> None:
    """To rounding. Where the original has no gradient, because something was overwritten, none is asked."""
    try:
        expected = outcomes(model, x)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        with torch.no_grad():
            torch.testing.assert_close(found(x), model(x), rtol=1e-9, atol=1e-11)
        return
    torch.testing.assert_close(outcomes(found, x), expected, rtol=1e-9, atol=1e-11)


# ---- no pair: left alone -----------------------------------------------------------------------------------

USED = "the convolution's output is also used by"


@pytest.mark.parametrize(
    ("function", "replaced", "reasons"),
    [
        pytest.param(
            lambda m, x: m.shuffle(m.first(x)[:, :, 1:-1, 1:]),
            0,
            ["fed by torch.Tensor.__getitem__"],
            id="crop",
        ),
        pytest.param(
            lambda m, x: m.shuffle(m.first(x)[:, :8]),
            0,
            ["fed by torch.Tensor.__getitem__"],
            id="channel slice",
        ),
        pytest.param(lambda m, x: m.shuffle(m.first(x).chunk(2, 1)[1]), 0, ["fed by"], id="chunk"),
        pytest.param(
            lambda m, x: m.shuffle(m.first(x) * torch.sigmoid(m.second(x))),
            0,
            ["fed by torch.Tensor.mul"],
            id="gate",
        ),
        pytest.param(
            lambda m, x: m.shuffle(m.first(x) + m.second(x)), 0, ["fed by torch.Tensor.add"], id="sum"
        ),
        pytest.param(lambda m, x: m.shuffle(m.first(x) * 2), 0, ["fed by torch.Tensor.mul"], id="scale"),
        pytest.param(lambda m, x: m.shuffle(m.first(x).flip(3)), 0, ["fed by torch.Tensor.flip"], id="flip"),
        pytest.param(
            lambda m, x: m.shuffle(torch.softmax(m.first(x), 1)), 0, ["fed by torch.softmax"], id="softmax"
        ),
        pytest.param(
            lambda m, x: m.shuffle(F.dropout2d(m.first(x), 0.0)),
            0,
            [USED],
            id="dropout",
        ),
        pytest.param(lambda m, x: m.shuffle(m.first(x).mul_(2)), 0, [USED], id="scale in place"),
        pytest.param(
            lambda m, x: m.shuffle(F.relu(F.relu(m.first(x)))), 0, ["more than"], id="two activations"
        ),
        pytest.param(
            lambda m, x: (lambda y: m.shuffle(y) + y.mean())(m.first(x)), 0, [USED], id="used after"
        ),
        pytest.param(
            lambda m, x: (lambda y: y.mean() + m.shuffle(y))(m.first(x)), 0, [USED], id="used before"
        ),
        pytest.param(
            lambda m, x: (lambda y: m.shuffle(y) + m.other(y))(m.first(x)), 0, [USED], id="shuffled twice"
        ),
        pytest.param(
            lambda m, x: (lambda y: m.shuffle(F.relu(y)) + m.other(y))(m.first(x)), 0, [USED], id="branches"
        ),
        pytest.param(lambda m, x: F.pixel_shuffle(m.first(x), 1), 0, ["a shuffle by 1"], id="r = 1"),
        pytest.param(
            lambda m, x: m.shuffle(m.first(x)) + m.first(x).mean(),
            0,
            [USED],
            id="called twice, once shuffled",
        ),
        pytest.param(
            lambda m, x: F.pixel_shuffle(m.first(x), 4).mean() + m.shuffle(m.first(x)),
            0,
            ["different factors"],
            id="two factors",
        ),
        pytest.param(
            lambda m, x: m.shuffle(F.relu(m.first(x))) + m.shuffle(m.first(x)),
            0,
            ["different activations"],
            id="two activations, two calls",
        ),
        pytest.param(
            lambda m, x: m.shuffle(F.conv2d(x, m.first.weight, padding=1)),
            0,
            ["fed by torch.nn.functional.conv2d"],
            id="function",
        ),
        pytest.param(
            lambda m, x: m.shuffle(x) + m.first(x).mean(), 0, ["fed by the model's input"], id="input"
        ),
        # pairs all the same
        pytest.param(
            lambda m, x: m.shuffle(m.shuffle(m.first(x))),
            1,
            ["also fed by torch.nn.functional.pixel_shuffle"],
            id="twice in a row",
        ),
        pytest.param(
            lambda m, x: m.shuffle(m.first(x)) + m.shuffle(m.first(x * 2)), 1, [], id="called twice"
        ),
        pytest.param(
            lambda m, x: m.shuffle(m.first(x)) + m.shuffle(x.repeat(1, 4, 1, 1)),
            1,
            ["also fed by torch.Tensor.repeat"],
            id="foreign user",
        ),
        pytest.param(lambda m, x: m.shuffle(m.first(x)) + m.other(m.second(x)), 2, [], id="two pairs"),
        pytest.param(lambda m, x: m.shuffle(m.first(x)).mul_(2).relu_(), 1, [], id="in place after"),
        pytest.param(
            lambda m, x: m.shuffle(F.relu(m.first(x))).mul_(2).relu_(), 1, [], id="in place after relu"
        ),
        pytest.param(
            lambda m, x: (lambda y: m.shuffle(y) * y.shape[1] + y.dim())(m.first(x)),
            1,
            [],
            id="asked its shape",
        ),
    ],
)
def test_forwards(function: Any, replaced: int, reasons: list[str]) -> None:
    model = Free(function)
    idle = [
        "did not run on the example inputs"
        for module in (model.shuffle, model.other)
        if not ran(model, module)
    ]
    check(model, replaced, *reasons, *idle)


def ran(model: nn.Module, module: nn.Module) -> bool:
    """Whether ``module`` is called in the model's forward."""
    calls: list[Any] = []
    handle = module.register_forward_hook(lambda *a: calls.append(a))
    model.double()(image())
    handle.remove()
    return bool(calls)


def test_returned_as_well() -> None:
    model = Free(lambda m, x: (lambda y: {"image": m.shuffle(y), "features": [y]})(m.first(x)))
    replaced, report = replace(model.double(), image())
    assert not report.replaced and "the model's caller" in report[0].reason
    assert replaced(image())["features"][0].shape == (2, 16, 10, 8)


def test_weight_tying() -> None:
    model = Free(lambda m, x: m.shuffle(m.first(x)) + m.second(x).mean()).double()
    model.second.weight = model.first.weight
    found = check(model, 1, "did not run")
    assert found.first.weight is found.second.weight
    assert len(list(found.parameters())) == 3


def test_declared_neighbours_that_a_forward_separates() -> None:
    """A Sequential of the pair, of which the forward takes the parts."""

    class Separated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = pair(channels=16)

        def forward(self, x: Tensor) -> Tensor:
            return self.up[1](self.up[0](x) * x.repeat(1, 4, 1, 1))

    for arguments in ((), (image(),)):
        model = Separated().double()
        replaced, _ = replace(model, *arguments)
        compare(replaced, model, image())


def test_a_sequential_with_its_own_forward() -> None:
    class Gated(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).abs())

    class Same(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in self:
                x = module(x)
            return x

    check(
        Gated(conv(), nn.PixelShuffle(2)), 0, "Gated has a forward of its own", "also fed by torch.Tensor.abs"
    )
    check(Same(conv(), nn.PixelShuffle(2)), 1)
    _, report = replace(Same(conv(), nn.PixelShuffle(2)))
    assert report[0].reason == "Same has a forward of its own"


def test_a_class_that_gets_a_forward_after_the_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replaced modules keep the class's forward of that time; no new site is made of them."""

    class Own(nn.Sequential): ...

    model, report = replace(Own(conv(), nn.PixelShuffle(2)))
    assert len(report.replaced) == 1 and chain.why_own_forward(model, nn.Sequential) is None
    monkeypatch.setattr(Own, "forward", lambda self, x: x)
    assert chain.why_own_forward(model, nn.Sequential) == "Own has a forward of its own"


@pytest.mark.parametrize("chained", [False, True])
def test_convolutions_of_another_kind(chained: bool) -> None:
    class OwnForward(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    class OwnConvolution(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight * 2, bias)

    class Patched(nn.Conv2d):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.forward = lambda x: nn.Conv2d.forward(self, x) * 3

    qat = torch.ao.nn.qat.Conv2d
    makers = [OwnForward, OwnConvolution, Patched]
    for kind in makers:
        module = kind(4, 12, 3)
        model = Chained(module) if chained else nn.Sequential(module, nn.PixelShuffle(2))
        replaced, report = replace(model.double(), image())
        assert not report.replaced, kind
        torch.testing.assert_close(replaced(image()).shape, model(image()).shape)
        assert ("fed by" if chained else "of its own") in report[0].reason
    quantised = qat(4, 12, 3, qconfig=torch.ao.quantization.default_qat_qconfig)
    _, report = replace(nn.Sequential(quantised, nn.PixelShuffle(2)))
    assert not report.replaced


def test_a_shuffle_of_another_kind() -> None:
    class Blurred(nn.PixelShuffle):
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(super().forward(x), 2, 1)

    check(nn.Sequential(conv(), Blurred(2)), 1)  # by the run: what its forward calls is the pair
    _, report = replace(nn.Sequential(conv(), Blurred(2)))
    assert not report.replaced and "Blurred has a forward of its own" in report[0].reason


def test_transposed_convolutions_and_3d_are_none() -> None:
    check(Chained(nn.ConvTranspose2d(4, 12, 2, 2)), 0, "fed by")


# ---- hooks -------------------------------------------------------------------------------------------------


def hook_of(kind: str, module: nn.Module, seen: list[Any]) -> Any:
    def keep(*arguments: Any) -> None:
        seen.append(arguments[-1])

    return getattr(module, f"register_{kind}")(keep)


HOOKS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("of", ["conv", "shuffle"])
def test_hooks_before_the_surgery(kind: str, of: str) -> None:
    for make in (lambda: Chained(conv()), pair):
        model = make().double()
        target = model[0 if of == "conv" else 1] if isinstance(model, nn.Sequential) else getattr(model, of)
        hook_of(kind, target, [])
        replaced, report = replace(model, image())
        assert not report.replaced and report[0].reason.endswith("has hooks")
        compare(replaced, model, image())


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_the_convolution_after_the_surgery(kind: str) -> None:
    """They see what they would have seen, and the model computes what it did."""
    for make in (lambda: Chained(conv()), pair):
        model = make().double()
        replaced = replace(model, image())[0]
        seen: list[list[Any]] = [[], []]
        for each, record in zip((replaced, model), seen, strict=True):
            hook_of(kind, each[0] if isinstance(each, nn.Sequential) else each.conv, record)
        compare(replaced, model, image())
        assert len(seen[0]) == len(seen[1]) > 0
        for found, expected in zip(*seen, strict=True):
            assert not isinstance(found, LowResolution)
            found, expected = (a[0] if isinstance(a, tuple) else a for a in (found, expected))
            torch.testing.assert_close(torch.as_tensor(found), expected)


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_the_shuffle_after_the_surgery(kind: str) -> None:
    model = pair().double()
    replaced = replace(model, image())[0]
    seen: list[Any] = []
    hook_of(kind, replaced[1], seen)
    compare(replaced, model, image())
    assert seen
    chained = Chained(conv()).double()
    replaced = replace(chained, image())[0]
    hook_of(kind, replaced.shuffle, [])
    compare(replaced, chained, image())


def test_global_hooks_see_every_module() -> None:
    for model in (Chained(conv()).double(), pair().double()):
        replaced = replace(model, image())[0]
        counts = []
        for each in (replaced, model):
            names: list[str] = []
            handle = nn.modules.module.register_module_forward_hook(
                lambda m, i, o, names=names: names.append(type(m).__name__.removeprefix("Fused"))
            )
            try:
                each(image())
            finally:
                handle.remove()
            counts.append(names)
        assert counts[0] == counts[1]


# ---- patches after the surgery -----------------------------------------------------------------------------


def half(function: Any) -> Any:
    """A patch: what ``function`` gives, halved. Where it is a method it stays one."""

    def patched(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options) / 2

    return patched


class Own(nn.Conv2d):
    """A class of somebody's own, to be patched."""


class OwnCall(nn.PixelShuffle):
    """As above."""


PATCHES: list[tuple[Any, str]] = [
    *((nn.Conv2d, name) for name in ("_conv_forward", "forward")),
    *((Own, name) for name in ("_conv_forward", "forward", "__call__", "_call_impl")),
    *((kind, "forward") for kind in (nn.PixelShuffle, nn.ReLU, nn.LeakyReLU, nn.Sequential, nn.Identity)),
    *((kind, "__call__") for kind in (nn.Module, OwnCall, nn.ReLU)),
    (nn.Module, "_call_impl"),
    *((F, name) for name in ("conv2d", "pixel_shuffle", "relu", "leaky_relu", "pad")),
    *(("conv", name) for name in ("_conv_forward", "forward", "_call_impl")),
    *((name, "forward") for name in ("shuffle", "relu", "leaky_relu")),
]


@pytest.mark.parametrize(
    ("owner", "name"), PATCHES, ids=[f"{getattr(owner, '__name__', owner)}.{name}" for owner, name in PATCHES]
)
@pytest.mark.parametrize("chained", [False, True])
def test_patches_after_the_surgery(
    owner: Any, name: str, chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not PyTorch's own when it is called runs as it is, and afterwards as before."""
    parts = {
        "conv": Own(4, 12, 3, padding=1, padding_mode="reflect"), "identity": nn.Identity(),
        "relu": nn.ReLU(), "shuffle": OwnCall(2), "leaky_relu": nn.LeakyReLU(),
    }  # fmt: skip
    model: Any = nn.Sequential(*parts.values())
    if chained:
        model = Free(lambda m, x: m.leaky_relu(m.shuffle(m.relu(m.identity(m.conv(x))))), **parts)
    model.double()
    replaced, report = replace(model, image())
    assert len(report.replaced) == 1
    compare(replaced, model, image())
    for each in (replaced, model) if isinstance(owner, str) else (model,):
        place = owner
        if isinstance(owner, str):
            place = getattr(each, owner) if chained else each[list(parts).index(owner)]
        patched = half(getattr(place, name))
        monkeypatch.setattr(place, name, patched, raising=False)
    x = image()
    compare(replaced, model, x)
    monkeypatch.undo()
    compare(replaced, model, x)


@pytest.mark.parametrize(("owner", "name"), [(F, "conv2d"), (nn.Conv2d, "forward"), (nn.Module, "__call__")])
def test_patches_before_the_import(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def imported() -> Any:
        """The module as if the package were imported now."""
        spec: Any = importlib.util.spec_from_file_location("imported", originals.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    assert imported().intact()
    monkeypatch.setattr(owner, name, functools.wraps(getattr(owner, name))(half(getattr(owner, name))))
    assert not imported().intact()


# ---- paths that the example inputs did not show ------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        lambda m, y: m.shuffle(y[:, :, 1:-1]),
        lambda m, y: m.shuffle(y * y.sigmoid()),
        lambda m, y: m.shuffle(y.view(2, 4, 4, 10, 8).transpose(1, 2).reshape(2, 16, 10, 8)),
        lambda m, y: m.shuffle(torch.cat([y, y], 1)),
        lambda m, y: y,
        lambda m, y: m.shuffle(y).mean() + y,
        lambda m, y: m.shuffle(y) + m.shuffle(y).mul_(2),
        lambda m, y: m.shuffle(torch.tanh(y)),
        lambda m, y: m.shuffle(F.relu(y, inplace=True)) + y.mean(),
        lambda m, y: (y.add_(1), m.shuffle(y))[1],
        lambda m, y: (y.__setitem__((0, 0), 1), m.shuffle(y))[1],
        lambda m, y: F.pixel_shuffle(y, 4),
        lambda m, y: m.shuffle(y.to(torch.float32)).double(),
        lambda m, y: m.shuffle(y.contiguous()) + y.size(2) + len(y) + y.shape[1] + y.numel(),
        lambda m, y: m.shuffle(y.clone()),
        lambda m, y: torch.stack([t for t in y]),
        lambda m, y: m.shuffle(y + x) if (x := y.detach()) is not None else y,
        lambda m, y: m.shuffle(m.second(y[:, :4])),
        lambda m, y: torch.utils.checkpoint.checkpoint(m.shuffle, y.clone(), use_reentrant=False),
        lambda m, y: F.pixel_shuffle(input=y, upscale_factor=2) + torch.pixel_shuffle(y, upscale_factor=2),
        lambda m, y: m.shuffle(F.prelu(y, torch.full((16,), 0.3, dtype=y.dtype))),
        lambda m, y: m.shuffle(F.batch_norm(y, torch.zeros(16).double(), torch.ones(16).double())),
        lambda m, y: m.shuffle(F.gelu(y, approximate="tanh")),
        lambda m, y: m.shuffle(F.leaky_relu(y, 0.3)),
        lambda m, y: m.shuffle(torch.relu(input=y)),
    ],
)
@pytest.mark.parametrize("between", [None, "relu", "silu", "prelu", "norm"])
def test_another_path_later(other: Any, between: str | None) -> None:
    """All of it after ``between``, which the surgery knows."""
    modules = {"relu": nn.ReLU(inplace=True), "silu": nn.SiLU(), "prelu": nn.PReLU(16), "norm": norm(16)}
    steps = {"between": modules[between]} if between else {}

    def forward(m: Free, x: Tensor) -> Tensor:
        y = m.first(x)
        if m.flag == "early":
            return other(m, y)
        y = m.between(y) if between else y
        return other(m, y) if m.flag == "late" else m.shuffle(y)

    model = Free(forward, **steps).double().eval()
    replaced, report = replace(model, image(), fold_batch_norm=True)
    assert len(report.replaced) == 1
    compare(replaced, model, image())
    for flag in ("early", "late"):
        replaced.flag = model.flag = flag
        compare(replaced, model, image())


def test_overwriting_is_never_missed() -> None:
    """What can no longer be known is an error, not a wrong number."""

    def result_overwritten(m: Free, x: Tensor) -> Tensor:
        y = m.first(x)
        z = m.shuffle(y)
        if m.flag:
            z.mul_(2)
            return m.shuffle(y) + z
        return z

    def input_overwritten(m: Free, x: Tensor) -> Tensor:
        x = x.clone()
        y = m.first(x)
        if m.flag:
            x.mul_(2)
            return m.shuffle(y * 2)
        return m.shuffle(F.silu(y))

    for function in (result_overwritten, input_overwritten):
        model = Free(function).double()
        replaced, report = replace(model, image())
        assert len(report.replaced) == 1
        replaced.flag = True
        for context in (torch.no_grad(), torch.inference_mode()):
            with context, pytest.raises(RuntimeError, match=r"changed in place.*restore_pixel_shuffle"):
                replaced(image())
        assert fs.restore_pixel_shuffle(replaced)(image()).shape == (2, 4, 20, 16)


def test_input_overwritten_on_the_known_path() -> None:
    def forward(m: Free, x: Tensor) -> Tensor:
        x = x.clone()
        y = m.first(x)
        x.mul_(2)
        return m.shuffle(F.silu(y)) + x.mean()

    model = Free(forward).double()
    replaced, report = replace(model, image())
    assert len(report.replaced) == 1
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(replaced(x), model(x))


def test_a_function_of_autograd_that_goes_past_everything() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    model = Free(lambda m, x: m.shuffle(Doubled.apply(m.first(x)) if m.flag else m.first(x))).double()
    replaced = replace(model, image())[0]
    replaced.flag = model.flag = True
    with torch.no_grad():
        x = image()
        torch.testing.assert_close(replaced(x), model(x))
    compare(replaced, model, image())
    activated = Free(
        lambda m, x: m.shuffle(F.silu(Doubled.apply(m.first(x)) if m.flag else m.first(x)))
    ).double()
    late = replace(activated, image())[0]
    late.flag = activated.flag = True
    with torch.no_grad():
        torch.testing.assert_close(late(x), activated(x))
    compare(late, activated, image())
    # and where the example inputs show it, nothing is replaced
    _, report = replace(model, image())
    assert not report.replaced


def test_code_past_torch_function() -> None:
    """It computes with the plain output; a pointer to memory that is not there is refused."""
    model, x = Chained(conv()).double(), image()
    low = replace(model, x)[0].conv(x)
    assert isinstance(low, LowResolution) and isinstance(low, Tensor)
    with torch._C.DisableTorchFunctionSubclass():
        torch.testing.assert_close(low + 1, model.conv(x) + 1)
        with pytest.raises(RuntimeError, match="Cannot access data pointer"):
            torch.utils.dlpack.to_dlpack(replace(model, x)[0].requires_grad_(False).conv(x))
    assert low.shape == (2, 12, 10, 8) and low.dtype == torch.float64 and low.requires_grad
    assert "12, 10, 8" in repr(low.shape)
    assert low.detach().numpy().shape == (2, 12, 10, 8)
    with pytest.raises(RuntimeError, match="cannot be given other memory"):
        low.data = torch.zeros_like(low)


class Returning(torch.autograd.Function):
    """A hand-written checkpoint: its forward returns what the convolution returned."""

    @staticmethod
    def forward(ctx: Any, run: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.x, ctx.parameters = run, x, parameters
        return run(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.x.detach().requires_grad_()
            return None, *torch.autograd.grad(ctx.run(x), (x, *ctx.parameters), grad)


def returned(body: nn.Module, x: Tensor) -> Tensor:
    return Returning.apply(body, x, *body.parameters())


def recomputed(body: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(body, x, use_reentrant=True)


def recomputed_twice(body: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(recomputed, body, x, use_reentrant=True)


def recomputed_by_hooks(body: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(body, x, use_reentrant=False, preserve_rng_state=False)


def in_segments(body: nn.Module, x: Tensor) -> Tensor:
    return checkpoint_sequential(body, 2, x, use_reentrant=True)


def seen_by_a_parent(body: nn.Module, x: Tensor) -> Tensor:
    wrapper = nn.Sequential(body)
    wrapper.register_full_backward_hook(lambda module, inputs, outputs: None)
    return wrapper(x)


@pytest.mark.filterwarnings("ignore:.*requires_grad=True:UserWarning")
@pytest.mark.parametrize(
    "around", [returned, recomputed, recomputed_twice, recomputed_by_hooks, in_segments, seen_by_a_parent]
)
@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.Tanh(), nn.PReLU(16), norm(16)])
def test_gradients_through_functions_of_autograd(around: Any, between: nn.Module) -> None:
    """Each gives the tensor between convolution and shuffle a history that is not the convolution's."""

    def forward(m: Free, x: Tensor) -> Tensor:
        return m.shuffle(m.between(around(m.body, x) if m.training else m.body(x)))

    body = nn.Sequential(conv(4), nn.ReLU(), conv(16))
    model = Free(forward, body=body, between=between).double().eval()
    x = image()
    for example in (False, True):  # whether the example inputs take the path through the function
        replaced, report = replace(model.train(example), x, fold_batch_norm=not example)
        assert len(report.replaced) == (not example or not isinstance(between, nn.BatchNorm2d)), str(report)
        gradients = []
        for each in (replaced.train(), model.train()):
            each.between.eval()  # so that the batch norm is folded
            each.zero_grad()
            leaf = x.clone().requires_grad_()
            each(leaf).square().sum().backward()
            parameters = *each.body.parameters(), *each.between.parameters()
            gradients.append([leaf.grad, *(p.grad for p in parameters)])
        assert all(grad is not None for grad in gradients[1])
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_autograd_knows_the_tensor_in_between() -> None:
    """Questions about its gradient, asked before and after the shuffle; written to behind autograd's back."""

    def retained(m: Free, x: Tensor, y: Tensor) -> list[Tensor]:
        z = m.shuffle(y)
        y.retain_grad()
        y.register_hook(lambda grad: grad * 2)
        z.square().sum().backward()
        return [z, y.grad, x.grad]

    def asked(m: Free, x: Tensor, y: Tensor) -> list[Tensor]:
        (first,) = torch.autograd.grad(m.shuffle(y).pow(3).sum(), y, create_graph=True)
        return [first, *torch.autograd.grad(m.shuffle(first).square().sum(), (y, x))]

    def written(m: Free, x: Tensor, y: Tensor) -> list[Tensor]:
        y.mul_(3)
        y[:, 0].zero_()
        z = Squared.apply(y)
        return [z, *torch.autograd.grad(m.shuffle(z).square().sum(), (x, m.first.weight))]

    def overwritten(m: Free, x: Tensor, y: Tensor) -> list[Tensor]:
        assert F.leaky_relu_(y) is y
        return [*torch.autograd.grad(m.shuffle(Squared.apply(y) + y).square().sum(), (x, m.first.weight))]

    def made_a_leaf(m: Free, x: Tensor, y: Tensor) -> list[Tensor]:
        with torch.no_grad():
            y = m.first(x)
        y.requires_grad_()
        m.shuffle(y).square().sum().backward()
        return [y.grad]

    for function in (retained, asked, written, overwritten, made_a_leaf):
        model = Free(lambda m, x: m.shuffle(m.first(x))).double()
        replaced = replace(model, image())[0]
        x = image()
        results = [
            function(each, leaf, each.first(leaf))
            for each in (replaced, model)
            if (leaf := x.clone().requires_grad_()) is not None
        ]
        torch.testing.assert_close(*results, msg=lambda text, name=function.__name__: f"{name}: {text}")


def test_shuffled_twice_in_inference_mode() -> None:
    """As under no_grad: the output has a version counter, which tells whether it was overwritten."""
    for between in (nn.Identity(), nn.ReLU(), nn.SiLU()):
        model = Free(
            lambda m, x: (lambda y: m.shuffle(y) + (m.shuffle(y) + m.shuffle(y * 2) if m.flag else 0))(
                m.between(m.first(x))
            ),
            between=between,
        ).double()
        replaced = replace(model, image())[0]
        replaced.flag = model.flag = True
        x = image()
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                torch.testing.assert_close(replaced(x), model(x))


@pytest.mark.full
@pytest.mark.parametrize("flag", [False, True])
def test_another_path_compiled(flag: bool) -> None:
    model = Free(lambda m, x: m.shuffle(m.first(x)[:, :, 1:] if m.flag else F.relu(m.first(x)))).double()
    replaced = replace(model, image())[0]
    replaced.flag = model.flag = flag
    torch._dynamo.reset()
    compiled = torch.compile(replaced, fullgraph=True, backend="aot_eager")
    x = image()
    torch.testing.assert_close(outcomes(compiled, x), outcomes(model, x))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "x", [torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6).cfloat(), torch.randn(0, 4, 5, 6)],
    ids=["float", "complex", "empty"],
)  # fmt: skip
def test_other_inputs_later(x: Tensor) -> None:
    for make in (lambda: Chained(conv(), nn.Identity()), pair):
        model = make().to(x.dtype)
        replaced = replace(make())[0] if make is pair else replace(make(), torch.randn(1, 4, 5, 6))[0]
        replaced.to(x.dtype).load_state_dict(model.state_dict())
        torch.testing.assert_close(replaced(x), model(x))


def test_a_model_changed_later() -> None:
    """Exchanged, inserted, sliced and called alone: a Sequential looks anew in each call."""
    model = pair().double()
    replaced = replace(model)[0]
    x = image()
    torch.testing.assert_close(replaced[0](x), model[0](x), rtol=0, atol=0)
    torch.testing.assert_close(replaced[:1](x), model[:1](x), rtol=0, atol=0)
    for each in (replaced, model):
        torch.manual_seed(1)
        each[0] = conv(8).double()
        each.insert(1, nn.Hardswish())
        each.append(nn.Conv2d(2, 4, 1).double()), each.append(nn.PixelShuffle(2))
    compare(replaced, model, x)


# ---- the surgery leaves no trace ---------------------------------------------------------------------------


def test_runs_leave_no_trace() -> None:
    """Statistics, counters, attributes, modes, random numbers of torch and Python, and the inputs."""

    class Stateful(Chained):
        def __init__(self) -> None:
            super().__init__(conv(), after=nn.BatchNorm2d(3))
            self.calls, self.last = 0, None
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            self.calls += 1
            self.last = x
            self.train(not self.training)
            y = super().forward(F.dropout(x, random.random() / 2))
            self.total = self.total + 1
            return y + torch.rand(())

    model = Stateful().train()
    x = image(torch.float32)
    kept, state = x.clone(), {key: value.clone() for key, value in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate()
    replaced, report = replace(model, x, inplace=True)
    assert len(report.replaced) == 1, str(report)
    assert replaced is model
    assert x.equal(kept) and (model.calls, model.last, model.training) == (0, None, True)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.get_rng_state().equal(generators[0]) and random.getstate() == generators[1]


def test_runs_do_not_move_the_statistics_of_batch_norms() -> None:
    model = nn.Sequential(pair(), norm(3), norm(3)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    replaced, report = replace(model, image(torch.float32))
    assert len(report.replaced) == 1
    torch.testing.assert_close(replaced.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_inputs_that_the_model_rejects(inplace: bool) -> None:
    model = nn.Sequential(pair(), Shared())
    kinds, attributes = types(model), [dict(vars(module)) for module in model.modules()]
    with pytest.raises(RuntimeError, match="expected input"):
        fs.replace_pixel_shuffle(model, torch.randn(1, 7, 5, 5), inplace=inplace)
    assert types(model) == kinds
    assert [dict(vars(module)) for module in model.modules()] == attributes


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_second_run(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(conv(16), nn.PixelShuffle(2), Shared()).double()
    kinds, attributes = types(model), [dict(vars(module)) for module in model.modules()]

    def fail(*_: Any) -> None:
        raise error("in the middle")

    monkeypatch.setattr(chain, "run", fail)
    with pytest.raises(error, match="in the middle"):
        fs.replace_pixel_shuffle(model, image(), inplace=True)
    assert types(model) == kinds
    assert [dict(vars(module)) for module in model.modules()] == attributes
    monkeypatch.undo()
    compare(model, model, image())


def test_a_wrong_result_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(conv(16), nn.PixelShuffle(2), Shared()).double()
    run = chain.run
    monkeypatch.setattr(chain, "run", lambda *arguments: run(*arguments) * 1.01)
    with pytest.warns(UserWarning, match="All was undone: outputs differ by"):
        _, report = fs.replace_pixel_shuffle(model, image(), inplace=True, return_report=True)
    assert not report.replaced and len(report) == 3
    assert type(model) is nn.Sequential


def test_a_model_that_never_repeats_itself() -> None:
    generator = torch.Generator()
    model = Free(lambda m, x: m.shuffle(m.first(x)) + torch.rand((), generator=generator))
    with pytest.warns(UserWarning, match="does not give the same output twice"):
        fs.replace_pixel_shuffle(model, image(torch.float32))
    model = Free(lambda m, x: m.shuffle(m.first(x)).tolist())
    with pytest.warns(UserWarning, match="no tensor in the model's output to compare"):
        fs.replace_pixel_shuffle(model, image(torch.float32))


def test_a_model_that_checks_the_class_of_its_modules() -> None:
    model = Free(lambda m, x: m.shuffle(m.first(x)) * (1 if type(m.first) is nn.Conv2d else 2))
    with pytest.warns(UserWarning, match="All was undone"):
        replaced = fs.replace_pixel_shuffle(model, image(torch.float32))
    assert types(replaced) == types(model)


# ---- bad input ---------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got function"):
        fs.replace_pixel_shuffle(F.relu)
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got str"):
        fs.restore_pixel_shuffle("model")
    with pytest.raises(TypeError, match=r"example_inputs: expected a tensor, a tuple .* got list"):
        fs.replace_pixel_shuffle(pair(), [image()])
    with pytest.raises(ValueError, match="model: is scripted"):
        fs.replace_pixel_shuffle(torch.jit.script(pair()))
    lazy = nn.Sequential(nn.LazyConv2d(12, 3), nn.PixelShuffle(2))
    with pytest.raises(ValueError, match="model: has uninitialized lazy modules"):
        fs.replace_pixel_shuffle(lazy, image())
    model = nn.Sequential(nn.utils.weight_norm(conv()), nn.PixelShuffle(2))
    with pytest.raises(ValueError, match="model: cannot be copied, inplace=True may help"):
        fs.replace_pixel_shuffle(model)


def test_lazy_modules_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised ones have hooks; once they are convolutions, a replaced Sequential fuses them too."""
    model = nn.Sequential(conv(16), nn.PixelShuffle(2), nn.LazyConv2d(12, 3), nn.PixelShuffle(2))
    replaced, report = replace(model, inplace=True)
    assert [site.status for site in report] == ["replaced", "left alone"]
    calls = fused_calls(monkeypatch)
    replaced(image(torch.float32))
    assert len(calls) == 1
    replaced(image(torch.float32))
    assert len(calls) == 3


def test_errors_of_a_call_are_errors() -> None:
    for model in (pair(), Functional()):
        replaced = replace(model, image(torch.float32))[0]
        for x in (torch.randn(1, 3, 5, 5), torch.randn(5), torch.ones(1, 4, 5, 5, dtype=torch.int64)):
            for each in (replaced, model):
                with pytest.raises((RuntimeError, ValueError, TypeError)):
                    each(x)
