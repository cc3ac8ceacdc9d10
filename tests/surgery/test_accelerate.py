# SPDX-License-Identifier: BSD-3-Clause
"""fs.accelerate on convolutions of every kind: same numbers, same keys, same everything else.

Times decide nothing here: the comparison is replaced by one that calls the fused kernels faster.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS
from surgery_checks import accelerate, image, outcomes, replace, types
from surgery_models import OwnConv2d, Shared, Wide, conv, norm, pair
from tiers import tiered
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm
from torch.nn.utils import spectral_norm as old_spectral_norm

import fused_subpixel as fs
from fused_subpixel.surgery.fused_modules import FusedConv1d, FusedConv2d

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fused_is_faster"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
]


def signal(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, 17, dtype=dtype)


def assert_same(found: nn.Module, model: nn.Module, x: Tensor, gradients: bool = True) -> None:
    """Outputs, with their strides, and gradients, each from the same state and random numbers."""
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad)[: 3 if gradients else 1]:
        results = []
        for each in (found, model):
            state = {key: value.clone() for key, value in each.state_dict().items()}
            torch.default_generator.manual_seed(3)
            with context():
                results.append(each(x))
            each.load_state_dict(state)
        assert type(results[0]) is type(results[1])
        assert results[0].stride() == results[1].stride()
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)
    if not gradients:
        return
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.testing.assert_close(outcomes(found, x), outcomes(model, x), rtol=1e-9, atol=1e-11)
    for each in (found, model):
        each.load_state_dict(state)


# ---- what is replaced --------------------------------------------------------------------------------------

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": conv,
    "no bias": lambda: conv(bias=False),
    "1x1": lambda: nn.Conv2d(4, 8, 1),
    "unequal": lambda: nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "same": lambda: nn.Conv2d(4, 8, (4, 3), padding="same"),
    "valid": lambda: nn.Conv2d(4, 8, 3, padding="valid"),
    "reflect": lambda: conv(padding_mode="reflect"),
    "replicate": lambda: conv(padding_mode="replicate", padding=2),
    "circular, same": lambda: nn.Conv2d(4, 8, 4, padding="same", padding_mode="circular"),
    "one channel": lambda: conv(1),
    "own class": lambda: OwnConv2d(8),
    "weight_norm": lambda: parametrizations.weight_norm(conv()),
    "spectral_norm": lambda: parametrizations.spectral_norm(conv()),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(4, 8, 1)),
    "transposed": lambda: nn.ConvTranspose2d(4, 8, 4, 2, 1),
    "shuffled": lambda: pair(nn.ReLU()),
}
LAYERS_1D: dict[str, Callable[[], nn.Module]] = {
    "1-D": lambda: nn.Conv1d(4, 8, 3),
    "1-D, padded": lambda: nn.Conv1d(4, 8, 5, padding=2, stride=2, bias=False),
    "1-D, dilated": lambda: nn.Conv1d(4, 8, 3, padding=4, dilation=4),
    "1-D, grouped": lambda: nn.Conv1d(4, 8, 3, groups=2),
    "1-D, depthwise": lambda: nn.Conv1d(4, 4, 3, groups=4),
    "1-D, same": lambda: nn.Conv1d(4, 8, 4, padding="same", dilation=2),
    "1-D, reflect": lambda: nn.Conv1d(4, 8, 3, padding=1, padding_mode="reflect"),
    "1-D, circular, same": lambda: nn.Conv1d(4, 8, 4, padding="same", padding_mode="circular"),
    "1-D, weight_norm": lambda: parametrizations.weight_norm(nn.Conv1d(4, 8, 3)),
    "1-D, spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv1d(4, 8, 3)),
}
BEHIND: dict[str, Callable[[int], nn.Module]] = {
    "nothing": lambda c: nn.Identity(),
    "relu": lambda c: nn.ReLU(),
    "relu_": lambda c: nn.ReLU(inplace=True),
    "leaky_relu": lambda c: nn.LeakyReLU(-0.2),
    "leaky_relu_": lambda c: nn.LeakyReLU(0.2, inplace=True),
    "prelu": lambda c: nn.PReLU(),
    "prelu of many": lambda c: nn.PReLU(c),
    "silu_": lambda c: nn.SiLU(inplace=True),
    "gelu": lambda c: nn.GELU(),
    "tanh": lambda c: nn.Tanh(),
    "sigmoid": lambda c: nn.Sigmoid(),
    "norm": lambda c: norm(c),
    "norm, relu_": lambda c: nn.Sequential(norm(c), nn.ReLU(inplace=True)),
    "norm without parameters, silu": lambda c: nn.Sequential(norm(c, affine=False), nn.SiLU()),
    "norm, prelu of many": lambda c: nn.Sequential(norm(c, eps=0.1), nn.PReLU(c)),
    "norm without statistics": lambda c: nn.Sequential(norm(c, track_running_stats=False), nn.ReLU()),
    "approximate gelu": lambda c: nn.GELU(approximate="tanh"),
}
FUSED = "the fused kernels"
HOW = {
    "nothing": FUSED,
    "relu_": f"{FUSED}, with relu",
    "norm": f"{FUSED}, with batch norm",
    "norm, relu_": f"{FUSED}, with batch norm and relu",
    "norm, prelu of many": f"{FUSED}, with batch norm and prelu",
    "norm without statistics": FUSED,
    "approximate gelu": f"{FUSED}, with gelu_tanh",
}


ONCE = ("conv", "depthwise", "one channel", "own class", "spectral_norm")
EVERY = [(name, layout) for layout in LAYOUTS for name in (*LAYERS, *LAYERS_1D)]


@tiered(("name", "layout"), EVERY, fast=[e for e in EVERY if (e[1] == "contiguous") == (e[0] not in ONCE)])
def test_layers(name: str, layout: str) -> None:
    layer, x = ({**LAYERS, **LAYERS_1D})[name](), signal() if name in LAYERS_1D else image(layout=layout)
    model = nn.Sequential(layer, nn.Hardtanh(inplace=True)).double().eval()
    model = copy.deepcopy(model)  # a parametrization's buffers may be views of each other
    found, report = accelerate(model, x)
    assert len(report.replaced) == 1, str(report)
    for training in (False, True):
        found.train(training), model.train(training)
        assert_same(found, model, x)
        assert_same(found, model, x[1:], gradients=False)
        if name not in ("circular, same", "reflect", "replicate", "shuffled"):  # which PyTorch refuses
            assert_same(found, model, x[:0], gradients=False)
        if training is False:
            assert_same(found, model, x[0])
    restored = fs.restore(found)
    assert [kind.__name__ for kind in types(restored)] == [kind.__name__ for kind in types(model)]


FOLLOWED = [(name, layout) for layout in LAYOUTS for name in BEHIND]


def check_what_follows(
    name: str, first: nn.Module, last: nn.Module, x: Tensor
) -> tuple[nn.Module, nn.Module]:
    """The model that was accelerated, and the original."""
    model = nn.Sequential(first, BEHIND[name](8), last, nn.Hardtanh(inplace=True)).double().eval()
    found, report = accelerate(model, x)
    assert [site.path for site in report.replaced] == ["0", "2"], str(report)
    assert name not in HOW or report[0].reason == HOW[name]
    for training in (True, False):
        found.train(training), model.train(training)
        assert_same(found, model, x)
        assert_same(found, model, x[1:], gradients=False)
    assert_same(found, model, x[:0], gradients=False)
    torch.testing.assert_close(fs.restore(found).state_dict(), model.state_dict(), rtol=0, atol=0)
    return found, model


@tiered(("name", "layout"), FOLLOWED, fast=[e for e in FOLLOWED if (e[1] == "contiguous") == (e[0] < "norm")])
def test_what_follows(name: str, layout: str) -> None:
    check_what_follows(name, conv(8), nn.Conv2d(8, 3, 1), image(layout=layout))


@pytest.mark.parametrize("name", [name for name in BEHIND if "norm" not in name])
def test_what_follows_in_signals(name: str) -> None:
    x = signal()
    found, model = check_what_follows(name, nn.Conv1d(4, 8, 3), nn.Conv1d(8, 3, 1), x)
    if name != "prelu of many":  # which takes the rows of a signal alone for channels
        assert_same(found, model, x[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Moved after the surgery, and before it."""
    layers = conv(8), norm(8), nn.SiLU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 3, 3)
    exact, x = nn.Sequential(*layers).double().eval(), image()
    expected = exact(x)
    for found in (
        accelerate(exact, x)[0].to(dtype),
        accelerate(copy.deepcopy(exact).to(dtype), x.to(dtype))[0],
    ):
        with torch.no_grad():
            output = found(x.to(dtype))
        assert output.dtype == dtype
        bound = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
        assert (output.double() - expected).abs().max() < bound * expected.abs().max()


def test_autocast_around_and_in_the_model() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.line = conv(4), conv(4), nn.Conv1d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = self.second(torch.relu(self.first(x)))  # which gets bfloat16
                return self.line(x.flatten(2))

    x = image(torch.float32)
    found, report = accelerate(model := Inside(), x)
    assert len(report.replaced) == 3
    with torch.no_grad():
        output = found(x)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output, model(x), rtol=0.05, atol=0.05)
    model = nn.Sequential(conv(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, report = accelerate(model, x)
        assert len(report.replaced) == 2
        torch.testing.assert_close(found(x), model(x), rtol=0.05, atol=0.05)


def test_dtypes_in_one_model() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = conv(4).half(), conv(4), norm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.norm(self.first(x.half()))).float())

    model, x = Mixed().eval(), image(torch.float32)
    found, report = accelerate(model, x)
    assert len(report.replaced) == 2 and report[0].reason.endswith("with batch norm and relu")
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_input_later() -> None:
    for layer, x in (
        (conv(), image()),
        (nn.Conv1d(4, 8, 3), signal()),
        (nn.ConvTranspose2d(4, 8, 2), image()),
    ):
        model = nn.Sequential(layer).double()
        found = accelerate(model, x)[0].to(torch.complex128)
        model.to(torch.complex128)
        torch.testing.assert_close(found(x.to(torch.complex128)), model(x.to(torch.complex128)))
        _, report = accelerate(model, x.to(torch.complex128))
        assert report[0].reason == "no kernel computes torch.complex128"
    model = Shared().to(torch.complex128)
    model.lrelu = nn.Identity()
    _, report = accelerate(model, image().to(torch.complex128))
    assert [site.reason for site in report] == ["no kernel computes torch.complex128"] * 2


def test_memory_formats_of_weights() -> None:
    """PyTorch's convolution gives channels_last where the input or the weight is in that."""
    for layer in (conv(8), nn.Conv2d(4, 8, 1), nn.Conv2d(1, 8, 3), nn.Conv2d(4, 4, 3, groups=4), pair()):
        for behind in (nn.Identity(), nn.ReLU(), norm(8), nn.PReLU(8)):
            if isinstance(layer, nn.Sequential) or layer.out_channels != 8:
                behind = nn.ReLU()
            model = nn.Sequential(layer, behind).double().eval().to(memory_format=torch.channels_last)
            x = image()[:, : getattr(layer, "in_channels", 4)]
            found = accelerate(model, x)[0]
            assert_same(found, model, x)
            assert_same(found, model, x.to(memory_format=torch.channels_last))
            assert_same(found, model, x[..., :1, :3] if layer.kernel_size == (1, 1) else x) if isinstance(
                layer, nn.Conv2d
            ) else None
            if not isinstance(behind, (nn.BatchNorm2d, nn.PReLU)):
                assert_same(found, model, x[0])
    lines = signal().transpose(1, 2).contiguous().transpose(1, 2)
    model = nn.Sequential(nn.Conv1d(4, 8, 3)).double()
    assert_same(accelerate(model, lines)[0], model, lines)
    model[0].weight.data = model[0].weight.data.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same(accelerate(model, lines)[0], model, lines)


def test_inputs_whose_elements_share_memory() -> None:
    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.line, self.up = conv(), nn.Conv1d(4, 8, 3), nn.ConvTranspose2d(4, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.as_strided((2, 4, 5, 5), (0, 2, 3, 1))
            rows = x[0, :, :1, :].expand(4, 2, 8).transpose(0, 1)
            return (
                self.conv(x[:, :1].expand(-1, 4, -1, -1)).sum()
                + self.line(rows).sum()
                + self.up(windows).sum()
            )

    model, x = Widened().double(), image()
    found, report = accelerate(model, x)
    assert len(report.replaced) == 3, str(report)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x))


# ---- everything else stays ---------------------------------------------------------------------------------


def test_keys_copies_restoring() -> None:
    model, x = Wide().double().eval(), image()
    kinds, state = types(model), {key: value.clone() for key, value in model.state_dict().items()}
    attributes = [dict(vars(module)) for module in model.modules()]
    before = model(x)
    found, report = accelerate(model, x)
    assert len(report.replaced) == 5, str(report)
    # the original is untouched
    assert types(model) == kinds and [dict(vars(module)) for module in model.modules()] == attributes
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    # keys, strict loading, names, base classes
    assert list(found.state_dict()) == list(state)
    found.load_state_dict(state, strict=True), model.load_state_dict(found.state_dict(), strict=True)
    assert [name for name, _ in found.named_modules()] == [name for name, _ in model.named_modules()]
    assert [len(list(module.children())) for module in found.modules()] == [
        len(list(module.children())) for module in model.modules()
    ]
    assert all(isinstance(module, kind) for module, kind in zip(found.modules(), kinds, strict=True))
    # copies, also of a part, and of a class that cannot be imported by its new name
    saved = io.BytesIO()
    torch.save(found, saved)
    saved.seek(0)
    copies = (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), torch.load(saved, weights_only=False))
    for other in copies:
        assert_same(other, model, x)
        assert types(other) == types(found)
    part = copy.deepcopy(found.three.body)
    with torch.no_grad():
        torch.testing.assert_close(found.three.norm(part(x)), model.three.norm(model.three.body(x)))
        torch.testing.assert_close(
            copy.copy(found.three.mid)(x.repeat(1, 2, 1, 1)[:, :6]).sum(),
            model.three.mid(x.repeat(1, 2, 1, 1)[:, :6]).sum(),
        )
    # a second call changes nothing
    again, second = accelerate(found, x)
    assert not second.replaced and len(second.already_replaced) == 5, str(second)
    assert types(again) == types(found)
    # and back
    assert fs.restore(found, inplace=True) is found
    assert types(found) == kinds
    for mine, theirs in zip(found.modules(), model.modules(), strict=True):
        assert sorted(vars(mine)) == sorted(vars(theirs))
    torch.testing.assert_close(found(x), before, rtol=0, atol=0)


def test_classes_made_at_run_time() -> None:
    class Line(nn.Conv1d): ...

    for layer, x in ((OwnConv2d(8), image()), (nn.Conv1d(4, 8, 3), signal())):
        model = nn.Sequential(layer).double()
        found = accelerate(model, x)[0]
        for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
            torch.testing.assert_close(other(x), model(x))
            assert types(other) == types(found)
    found = accelerate(nn.Sequential(Line(4, 8, 3)).double(), signal())[0]
    assert isinstance(found[0], FusedConv1d) and isinstance(found[0], Line)
    assert type(copy.deepcopy(found)[0]) is type(found[0])
    for layer in (found[0], accelerate(nn.Sequential(conv()), image(torch.float32))[0][0]):
        made = type(layer)(4, 3, 1)  # as LoRA libraries make another layer like it
        assert not isinstance(made, (FusedConv1d, FusedConv2d))
        assert made.weight.shape[:2] == (3, 4)
        layer.qconfig = torch.ao.quantization.default_qconfig
        assert not isinstance(layer, (FusedConv1d, FusedConv2d)) and "subpixel" not in vars(layer)


def test_reparametrised_by_hooks() -> None:
    """PyTorch copies old ones after a run without gradients; a step of an optimizer must be seen."""
    pruned = lambda layer: prune.l1_unstructured(layer, "weight", 0.5)  # noqa: E731
    for wrap in (weight_norm, old_spectral_norm, pruned):
        for layer, x in ((conv(8), image()), (nn.Conv1d(4, 8, 3), signal())):
            model = nn.Sequential(wrap(layer), nn.ReLU()).double().eval()
            other = nn.Sequential(
                wrap(copy.deepcopy(LAYERS["conv"]() if x.dim() == 4 else nn.Conv1d(4, 8, 3))), nn.ReLU()
            )
            with torch.no_grad():
                model(x)
            other = copy.deepcopy(model)
            found, report = accelerate(model, x, inplace=True)
            assert len(report.replaced) == 1
            for training in (False, True):
                found.train(training), other.train(training)
                torch.testing.assert_close(outcomes(found, x), outcomes(other, x))
                for each in (found, other):
                    next(
                        p for name, p in each.named_parameters() if name.endswith(("_g", "_orig"))
                    ).data.mul_(2)


def test_parametrizations_come_and_go() -> None:
    for layer, x in ((conv(8), image()), (OwnConv2d(8), image()), (nn.Conv1d(4, 8, 3), signal())):
        model = nn.Sequential(layer, nn.ReLU()).double()
        found = accelerate(model, x)[0]
        for each in (found, model):
            parametrizations.weight_norm(each[0])
        torch.testing.assert_close(outcomes(found, x), outcomes(model, x))
        found = accelerate(found, x)[0]
        restored = fs.restore(found)
        assert type(restored[0]).__name__ == type(model[0]).__name__
        for each in (found, model, restored):
            parametrize.remove_parametrizations(each[0], "weight")
        assert type(restored[0]) is type(model[0]) and type(found[0]) is not type(model[0])
        torch.testing.assert_close(outcomes(found, x), outcomes(model, x))


def test_spectral_norm_iterates_once_in_a_call() -> None:
    """In training mode each look at the weight is a step of its iteration."""
    for layer, x in ((conv(8), image()), (nn.Conv1d(4, 8, 3), signal())):
        model = nn.Sequential(parametrizations.spectral_norm(layer), nn.SiLU()).double().train()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        found, report = accelerate(model, x)
        assert len(report.replaced) == 1
        torch.testing.assert_close(found.state_dict(), state, rtol=0, atol=0)
        for context in (torch.enable_grad, torch.no_grad):
            for behind in (found[1], torch.tanh):
                with context():
                    torch.testing.assert_close(behind(found[0](x)), behind(model[0](x)))
                torch.testing.assert_close(found.state_dict(), model.state_dict())


def test_the_fold_follows_the_batch_norm() -> None:
    model, x = nn.Sequential(conv(8), norm(8), nn.ReLU()).double().eval(), image()
    found = accelerate(model, x)[0]
    for each in (found, model):
        each.train()
        each(x), each[1].eval()(each[0](x))
        each[1].train()
        with torch.no_grad():
            each(x)  # moves the statistics
        each.eval()
        each[1].weight.data.mul_(2)
    assert_same(found, model, x)
    trained = accelerate(model.train(), x)[0]
    assert_same(trained.eval(), model.eval(), x)


def test_a_training_step_is_the_same() -> None:
    model, x = Wide().double().train(), image()
    other = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(each.parameters(), 0.01) for each in (model, other)]
    assert accelerate(model, x, inplace=True)[0] is model
    for _ in range(3):
        for each, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict())


def test_replicas_of_data_parallel() -> None:
    """A replica has its own parameters; modules that stand in a plan are those of the original."""
    for behind in (nn.PReLU(8), norm(8)):
        model, x = nn.Sequential(conv(8), behind).double().eval(), image()
        found = accelerate(model, x)[0]
        replica = found[0]._replicate_for_data_parallel()
        replica.weight, replica.bias = found[0].weight.detach() * 2, found[0].bias.detach() * 2
        with torch.no_grad():
            torch.testing.assert_close(found[1](replica(x)), model[1](model[0](x) * 2))


def test_threads() -> None:
    model, inputs = Wide().eval(), [image(torch.float32) for _ in range(8)]
    found = accelerate(model, inputs[0])[0]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for output, x in zip(pool.map(torch.no_grad()(found), inputs), inputs, strict=True):
            torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)


# ---- with the other replacements ---------------------------------------------------------------------------


def test_beside_the_other_replacements() -> None:
    """Each finds what the others have done, and leaves it."""
    model = nn.Sequential(
        conv(8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.PixelShuffle(2), nn.ConvTranspose2d(4, 4, 2, 2), Shared()
    )
    model, x = model.double().eval(), image()
    shuffled, _ = replace(fs.replace_conv_transpose(model), x)
    found, report = accelerate(shuffled, x)
    assert [site.path for site in report.replaced] == ["0"], str(report)
    assert [site.path for site in report.already_replaced] == ["2", "4", "5.first", "5.second"], str(report)
    assert_same(found, model, x)
    accelerated, first = accelerate(model, x)
    assert len(first.replaced) == 5
    found, report = replace(accelerated, x)
    assert not any(site.path.startswith("0") for site in report), str(report)
    assert len(report.replaced) + len(report.already_replaced) >= 3
    assert_same(found, model, x)
    found = fs.replace_conv_transpose(found)
    assert_same(found, model, x)
    assert types(fs.restore(found)) == types(model)


# ---- training ----------------------------------------------------------------------------------------------


def operators(model: nn.Module, x: Tensor) -> list[int]:
    """How often the fused operator runs in a training step, forward and backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x).sum().backward()
    names = [event.name for event in profile.events()]
    return [names.count(f"fused_subpixel::_subpixel_conv2d{way}") for way in ("", "_backward")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_runs_the_convolutions_alone(layout: str) -> None:
    """Norms in training mode, in-place activations and those with parameters follow as they are."""
    layers = [conv(8), nn.BatchNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 6, 3), nn.PReLU(6)]
    model = nn.Sequential(*layers, nn.Conv2d(6, 5, 1), nn.Tanh()).double().train()
    x = image(layout=layout)
    found, _ = accelerate(model, x)
    assert types(found).count(FusedConv2d) == 3
    assert_same(found, model, x)
    assert operators(found, x) == [3, 3]
    assert operators(model, x) == [0, 0]
    model.load_state_dict(found.state_dict())
    assert_same(found.eval(), model.eval(), x)
