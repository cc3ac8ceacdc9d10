# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions that fs.accelerate has replaced, on paths that the example inputs did not show."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surgery_checks import accelerate, compare_in_all_modes, image
from surgery_models import BETWEEN, Functions, Squared, conv, known_step, norm
from tiers import tiered
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fused_subpixel as fs

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fused_is_faster"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # torch.onnx's own
]


def check(model: nn.Module, how: str, x: Tensor | None = None) -> nn.Module:
    """Accelerate, and compare; ``how`` the convolution named first runs."""
    model, x = model.double().eval(), image() if x is None else x
    found, report = accelerate(model, x)
    assert report[0].reason.removeprefix("the fused kernels") == how, str(report)
    for training in (False, True):
        found.train(training), model.train(training)
        compare_in_all_modes(found, model, x)
    return found.eval()


# ---- what the example inputs show --------------------------------------------------------------------------

RELU = ", with relu"


@pytest.mark.parametrize(
    ("function", "how"),
    [
        pytest.param(lambda m, x: F.relu(m.first(x)), RELU, id="relu"),
        pytest.param(lambda m, x: torch.relu_(m.first(x)) + 1, RELU, id="in place"),
        pytest.param(
            lambda m, x: (lambda y: (F.relu_(y), y)[1])(m.first(x)), RELU, id="in place, result ignored"
        ),
        pytest.param(
            lambda m, x: (lambda y: (F.leaky_relu(y, 0.3, True), y * 2)[1])(m.first(x)),
            ", with leaky_relu",
            id="in place, used again",
        ),
        pytest.param(lambda m, x: (lambda y: y.relu() + y)(m.first(x)), "", id="used after"),
        pytest.param(lambda m, x: (lambda y: y.mean() + y.relu())(m.first(x)), "", id="used before"),
        pytest.param(
            lambda m, x: (lambda y: y.relu() + y.tanh())(m.first(x)), "", id="two activations of one"
        ),
        pytest.param(lambda m, x: (lambda y: y.relu() + m.second(y))(m.first(x)), "", id="two consumers"),
        pytest.param(lambda m, x: (lambda y: y[:, :2].relu_().mean() + y)(m.first(x)), "", id="of a view"),
        pytest.param(
            lambda m, x: (lambda y: (y.view(-1).relu_(), y)[1])(m.first(x)), "", id="of all as a view"
        ),
        pytest.param(lambda m, x: (lambda y: (y.add_(x), y.relu())[1])(m.first(x)), "", id="added in place"),
        pytest.param(lambda m, x: m.first(x).relu() + m.first(x * 2).relu(), RELU, id="called twice"),
        pytest.param(lambda m, x: m.first(x).relu() + m.first(x), "", id="called twice, once followed"),
        pytest.param(
            lambda m, x: m.first(x).relu() + m.first(x).sigmoid(), "", id="called twice, two followers"
        ),
        pytest.param(
            lambda m, x: F.leaky_relu(m.first(x)) + F.leaky_relu(m.first(x), 0.3), "", id="two slopes"
        ),
        pytest.param(lambda m, x: F.relu(m.first(F.relu(m.first(x)))), RELU, id="its own consumer"),
        pytest.param(
            lambda m, x: functools.reduce(lambda y, c: F.silu(c(y)), [m.first, m.second], x),
            ", with silu",
            id="loop",
        ),
        pytest.param(lambda m, x: (lambda y: y.add_(m.first(x)))(x.clone()), "", id="residual in place"),
        pytest.param(
            lambda m, x: (lambda y: y.add_(F.relu(m.first(y))))(x.clone()), RELU, id="residual of its input"
        ),
        pytest.param(lambda m, x: F.relu(m.first(x).clone()), "", id="cloned"),
        pytest.param(
            lambda m, x: F.gelu(m.first(x), approximate="tanh"), ", with gelu_tanh", id="another gelu"
        ),
        pytest.param(lambda m, x: F.relu(input=m.first(x)), RELU, id="by keyword"),
        pytest.param(
            lambda m, x: (lambda y: F.relu(y) * y.shape[1] + y.dim())(m.first(x)), RELU, id="asked its shape"
        ),
        pytest.param(
            lambda m, x: F.prelu(m.first(x), torch.full((4,), 0.3).double()), "", id="foreign slopes"
        ),
        pytest.param(
            lambda m, x: F.relu(F.batch_norm(m.first(x), torch.zeros(4).double(), torch.ones(4).double())),
            "",
            id="foreign batch norm",
        ),
        pytest.param(lambda m, x: m.first.forward(x).relu(), RELU, id="forward called"),
        pytest.param(lambda m, x: m.first(input=x).relu(), RELU, id="input by keyword"),
        pytest.param(lambda m, x: F.pixel_shuffle(m.first(x), 2).relu() + 1, "one call", id="shuffled"),
        pytest.param(
            lambda m, x: F.pixel_shuffle(m.first(x), 2).sum() + m.first(x).relu(), "", id="shuffled once"
        ),
        pytest.param(lambda m, x: F.pixel_shuffle(m.first(x), 1).relu(), "", id="shuffled by one"),
        pytest.param(lambda m, x: Squared.apply(m.first(x)), "", id="function of autograd"),
        pytest.param(lambda m, x: F.conv2d(x, m.first.weight) + m.first(x).mean(), "", id="weight used"),
        pytest.param(lambda m, x: m.first(x), "", id="returned"),
    ],
)
def test_forwards(function: Any, how: str) -> None:
    check(Functions(function), how)


class Keeping(Functions):
    """What the convolution returns stays somewhere."""

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        if self.flag == "attribute":
            self.kept = y
        elif self.flag == "list":
            self.kept = [[y]]
        elif self.flag == "closure":
            self.kept = lambda: y
        elif self.flag == "both":
            return {"out": F.relu(y), "features": [y]}
        return F.relu(y)


@pytest.mark.parametrize("flag", ["attribute", "list", "closure", "both"])
def test_outputs_that_are_kept(flag: str) -> None:
    """They stay what they were, whatever becomes of the input; and the shuffle's twin."""
    for shown in (True, False):
        model = Keeping(None).double()  # type: ignore[arg-type]
        model.flag = flag if shown else ""
        x = image()
        found, report = accelerate(model, x)
        assert report[0].reason == "the fused kernels" + ("" if shown else RELU)
        assert found.kept is None
        found.flag = model.flag = flag
        with torch.no_grad():
            results = [found(x), model(x)]
            kept = [
                each.kept() if flag == "closure" else each.kept[0][0] if flag == "list" else each.kept
                for each in (found, model)
            ]
            if flag == "both":
                kept = [result["features"][0] for result in results]
                results = [result["out"] for result in results]
            if shown:
                x.mul_(2)
                assert type(kept[0]) is Tensor
            torch.testing.assert_close(*results)
            torch.testing.assert_close(kept[0] * 1, kept[1])
            for twin in (copy.deepcopy(kept[0]), kept[0].clone(), torch.as_tensor(kept[0].numpy())):
                torch.testing.assert_close(twin, kept[1])


def test_a_shuffled_output_that_is_kept() -> None:
    def forward(m: Functions, x: Tensor) -> Tensor:
        m.kept = m.first(x)
        return F.pixel_shuffle(m.kept, 2)

    _, report = accelerate(Functions(forward).double(), image())
    assert report[0].reason == "the fused kernels"
    with pytest.warns(UserWarning, match="also used by something that keeps it|left alone"):
        _, report = fs.replace_pixel_shuffle(Functions(forward).double(), image(), return_report=True)
    assert report[0].reason == "the convolution's output is also used by something that keeps it"


def test_modules_that_are_shared() -> None:
    """One PReLU, one batch norm, one weight, for several convolutions."""
    prelu, shared = nn.PReLU(4), norm(4)
    model = Functions(lambda m, x: m.act(m.norm(m.second(m.act(m.norm(m.first(x)))))), act=prelu, norm=shared)
    found = check(model, ", with batch norm and prelu")
    assert len(list(found.parameters())) == 4 + 1 + 2
    model = Functions(lambda m, x: m.second(F.relu(m.first(x))))
    model.second.weight = model.first.weight
    found = check(model, RELU)
    assert found.first.weight is found.second.weight

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([conv(4), nn.PReLU(), norm(4), conv(4), norm(4), nn.PReLU(4)])
            self.layers.append(self.layers[0])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    check(Loop(), "")  # its first is called twice
    layers = Loop().layers[:-1]
    check(nn.Sequential(*layers), ", with prelu")


def test_convolutions_of_another_kind() -> None:
    class OwnForward(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    class OwnConvolution(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight * 2, bias)

    class OwnCall(nn.Conv2d):
        def __call__(self, *arguments: Any) -> Any:
            return super().__call__(*arguments) * 2

    class Patched(nn.Conv2d):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.forward = lambda x: nn.Conv2d.forward(self, x) * 3

    class OwnLine(nn.Conv1d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight * 2, bias)

    class OwnUp(nn.ConvTranspose2d): ...

    for kind in (OwnForward, OwnConvolution, OwnCall, Patched, OwnLine, OwnUp):
        x = image()[0] if kind is OwnLine else image()
        model = nn.Sequential(
            kind(x.shape[-3 if x.dim() == 4 else -2] if kind is not OwnLine else 10, 4, 3), nn.ReLU()
        ).double()
        with pytest.warns(UserWarning, match="changed nothing"):
            found, report = fs.accelerate(model, x, return_report=True)
        assert "of its own" in report[0].reason or "is a subclass of" in report[0].reason
        with torch.no_grad():
            torch.testing.assert_close(found(x), model(x), rtol=0, atol=0)


# ---- paths that the example inputs did not show ------------------------------------------------------------

PATHS = [
    lambda m, y: y,
    lambda m, y: y * 2,
    lambda m, y: m.between(y).add_(1) + m.between(y),
    lambda m, y: m.between(y) + y,
    lambda m, y: y + m.between(y),
    lambda m, y: (y.add_(1), m.between(y))[1],
    lambda m, y: (m.between(y), m.between(y).mul_(2), m.between(y))[2],
    lambda m, y: (lambda z: (z.mul_(3), m.between(y) + z)[1])(m.between(y)),
    lambda m, y: (lambda z: (y.mul_(3), m.between(y) + z)[1])(m.between(y)),
    lambda m, y: (F.relu_(y), y.add_(1), y)[2],
    lambda m, y: (F.relu(y, inplace=True), F.relu(y) + y)[1],
    lambda m, y: (lambda z: (F.relu_(y), z + y)[1])(F.relu(y)),
    lambda m, y: (torch.tanh_(y), y)[1],
    lambda m, y: torch.tanh(m.between(y)),
    lambda m, y: F.leaky_relu(m.between(y), 0.3),
    lambda m, y: (y.__setitem__((0, 0), 1), m.between(y))[1],
    lambda m, y: (y[:, :2].mul_(2), m.between(y), y)[2],
    lambda m, y: m.second(y),
    lambda m, y: m.second(m.between(y)) + m.second(y),
    lambda m, y: torch.cat([y, m.between(y)], 1),
    lambda m, y: torch.stack(list(y)),
    lambda m, y: m.between(y.to(torch.float32).double()),
    lambda m, y: m.between(y.contiguous(memory_format=torch.channels_last)) + len(y) + y.stride(0),
    lambda m, y: torch.add(y, y, out=y),
    lambda m, y: F.pixel_shuffle(y, 2),
    lambda m, y: F.pixel_shuffle(y, 1),
    lambda m, y: Squared.apply(m.between(y)) + Squared.apply(y),
    lambda m, y: scripted(y),
    lambda m, y: checkpoint(m.between, y, use_reentrant=False),
    lambda m, y: F.prelu(y, torch.full((4,), 0.3, dtype=y.dtype)),
    lambda m, y: F.batch_norm(y, torch.zeros(4).double(), torch.ones(4).double()),
    lambda m, y: torch.relu(input=y),
    lambda m, y: torch.from_numpy(y.detach().numpy() + 0) * 1,
    lambda m, y: torch.ops.aten.relu(y) + torch.ops.aten.mul.Tensor(y, 2),
    lambda m, y: y.detach() + y.data + y,
]


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.tanh(x) * 2


LATER = [(number, between) for number in range(len(PATHS)) for between in BETWEEN]


@tiered(("number", "between"), LATER, fast=[e for e in LATER if e[1] == BETWEEN[e[0] % len(BETWEEN)]])
def test_another_path_later(number: int, between: str) -> None:
    """Instead of what the surgery knows, behind the half of it, and behind it."""

    def forward(m: Functions, x: Tensor) -> Tensor:
        y = m.first(x)
        if m.flag == "early":
            return PATHS[number](m, y)
        if m.flag == "half" and isinstance(m.between, nn.Sequential):
            return PATHS[number](m, m.between[0](y))
        y = m.between(y)
        return PATHS[number](m, y) if m.flag == "late" else y

    model = Functions(forward, between=known_step(between)).double().eval()
    found, report = accelerate(model, image())
    assert len(report.replaced) == 1 and report[0].reason != "the fused kernels"
    compare_in_all_modes(found, model, image())
    for flag in ("early", "half", "late"):
        found.flag = model.flag = flag
        compare_in_all_modes(found, model, image(), knowable=number not in (2, 7))


def test_overwriting_is_never_missed() -> None:
    """What can no longer be known is an error, not a wrong number; what can be computed again is no error."""

    def forward(m: Functions, x: Tensor) -> Tensor:
        x = x.clone()
        y = m.first(x)
        z = F.relu(y) if m.flag != "input" else x
        if m.flag == "weight":
            m.first.weight.data = m.first.weight.data  # another tensor
            torch.relu_(m.first.weight)
        if m.flag:
            z.mul_(2)
            return y * 2 + z
        return z

    model = Functions(forward).double().requires_grad_(False)
    found, report = accelerate(model, image())
    assert report[0].reason.endswith(RELU)
    found.flag = model.flag = "result"
    compare_in_all_modes(found, model, image(), knowable=False)
    for found.flag in ("input", "weight"):
        for context in (torch.no_grad(), torch.inference_mode()):
            with context, pytest.raises(RuntimeError, match=r"changed in place.*restore_pixel_shuffle"):
                found(image())
    assert fs.restore(found)(image()).shape == (2, 4, 10, 8)


def test_tensors_of_inference_mode() -> None:
    """They have no version that shows whether they were overwritten."""

    def forward(m: Functions, x: Tensor) -> Tensor:
        x = x * 2
        y = m.first(x)
        if m.flag == "overwritten":
            x.mul_(2)
        elif m.flag == "result overwritten":
            z = F.silu(y).mul_(2)
            return y + z
        return y + 1 if m.flag else F.silu(y)

    model = Functions(forward).double()
    x = image()
    found = accelerate(model, x)[0]
    with torch.inference_mode():
        for model.flag in ("", "plain"):
            found.flag = model.flag
            torch.testing.assert_close(found(x), model(x))
            made = copy.deepcopy(found)  # of parameters that are made here
            torch.testing.assert_close(made(x), model(x))
        for found.flag in ("overwritten", "result overwritten"):
            with pytest.raises(RuntimeError, match="changed in place"):
                found(x)
        model.flag = ""
        again, report = accelerate(model, x)
        assert len(report.replaced) == 1
    torch.testing.assert_close(again(x), model(x))


def test_input_overwritten_on_the_known_path() -> None:
    def forward(m: Functions, x: Tensor) -> Tensor:
        x = x.clone()
        y = m.first(x)
        x.mul_(2)
        return F.silu(y) + x.mean()

    check(Functions(forward), ", with silu")


def test_other_parameters_for_one_call() -> None:
    """The convolution has its own again when the output is asked for."""

    def forward(m: Functions, x: Tensor) -> Tensor:
        y = functional_call(m.first, {"weight": m.second.weight * 2}, (x,))
        return y * 2 if m.flag else F.relu(y)

    model = Functions(forward).double()
    found, report = accelerate(model, image())
    assert len(report.replaced) == 1, str(report)
    compare_in_all_modes(found, model, image())
    found.flag = model.flag = "other"
    compare_in_all_modes(found, model, image())
    parameters = {name: p * 2 for name, p in model.named_parameters()}
    with torch.no_grad():
        x = image()
        torch.testing.assert_close(
            functional_call(found, parameters, (x,)), functional_call(model, parameters, (x,))
        )


def test_autocast_that_ends_in_between() -> None:
    """Or begins: what is computed again has the precision of the call."""

    def forward(m: Functions, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, m.flag != "begins"):
            y = m.first(x)
        with torch.autocast("cpu", torch.bfloat16, m.flag == "begins"):
            if not m.flag:
                return m.between(y)
            return m.between(y).mul_(2), m.between(y), y * 2

    for between in (name for name in BETWEEN if name != "prelu"):  # which refuses two dtypes
        model, x = Functions(forward, between=known_step(between)).eval(), image(torch.float32)
        found, report = accelerate(model, x)
        assert report[0].reason != "the fused kernels"
        for flag, tolerance in (("", 0.1), ("ends", 0.1), ("begins", 1e-4)):
            found.flag = model.flag = flag
            with torch.no_grad():
                torch.testing.assert_close(found(x), model(x), rtol=tolerance, atol=tolerance)


def test_a_weight_that_is_set_in_each_call() -> None:
    def forward(m: Functions, x: Tensor) -> Tensor:
        m.first.weight = m.second.weight * 2
        y = F.relu(m.first(x))
        del m.first.weight
        return y

    model = Functions(forward).double()
    del model.first.weight
    with pytest.warns(UserWarning, match="changed nothing"):
        found, report = fs.accelerate(model, image(), return_report=True)
    assert report[0].reason == "the model sets its weight in each call"
    compare_in_all_modes(found, model, image())


def test_gradients_of_what_follows_a_frozen_convolution() -> None:
    """The convolution runs without gradients, the steps behind it with."""

    def forward(m: Functions, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.first(x)
        if m.flag:
            y.requires_grad_()
        return m.between(y)

    for between in BETWEEN:
        model = Functions(forward, between=known_step(between)).double().eval()
        found = accelerate(model, image())[0]
        for found.flag in ("", "leaf"):
            model.flag, x = found.flag, image()
            if "relu_" in between and found.flag == "leaf" and between != "norm, relu_":
                continue  # autograd refuses to overwrite a leaf
            outputs = [each(x) for each in (found, model)]
            assert outputs[0].requires_grad == outputs[1].requires_grad
            torch.testing.assert_close(*outputs)
            if outputs[1].requires_grad:
                gradients = []
                for each, output in zip((found, model), outputs, strict=True):
                    output.square().sum().backward()
                    gradients.append([p.grad for p in each.between.parameters()])
                torch.testing.assert_close(*gradients)
