# SPDX-License-Identifier: BSD-3-Clause
"""replace_conv_transpose on networks built as their papers say, and on what it must leave alone."""

from __future__ import annotations

import copy
import io
import itertools
import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fused_subpixel as fs

X = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def dcgan() -> tuple[nn.Module, Tensor]:
    """The generator of Radford et al. 2015 (arXiv 1511.06434), a quarter as wide."""
    layers: list[nn.Module] = []
    widths = (100, 256, 128, 64, 32)
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1, bias=False), nn.Tanh()), torch.randn(
        2, 100, 1, 1
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015 (arXiv 1505.04597), two levels deep and narrow, padded."""

    def __init__(self) -> None:
        super().__init__()

        def twice(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.ReLU(),
            )

        self.down = nn.ModuleList([twice(1, 16), twice(16, 32), twice(32, 64)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.join = nn.ModuleList([twice(64, 32), twice(32, 16)])
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down[:-1]:
            skips.append(level(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.down[-1](x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((skips.pop(), up(x)), 1))
        return self.head(x)


def fsrcnn(factor: int = 3) -> tuple[nn.Module, Tensor]:
    """Dong et al. 2016 (arXiv 1608.00367): FSRCNN(56, 12, 4), whose last layer is a 9x9 deconvolution."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, 56, 5, padding=2),
        nn.PReLU(56),
        nn.Conv2d(56, 12, 1),
        nn.PReLU(12),
    ]
    for _ in range(4):
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)]
    layers += [nn.Conv2d(12, 56, 1), nn.PReLU(56)]
    last = nn.ConvTranspose2d(56, 1, 9, factor, 4, output_padding=factor - 1)
    return nn.Sequential(*layers, last), torch.rand(1, 1, 17, 23)


MODELS: dict[str, Any] = {
    "DCGAN": dcgan,
    "U-Net": lambda: (UNet(), torch.rand(1, 1, 24, 36)),
    "FSRCNN x3": fsrcnn,
    "FSRCNN x2": lambda: fsrcnn(2),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_networks_of_papers(name: str, channels_last: bool, backend: str) -> None:
    """Outputs and gradients equal to rounding, checkpoints load both ways, nothing else changes."""
    plain, x = MODELS[name]()
    plain, x = plain.double(), x.double().requires_grad_()
    if channels_last:
        plain = plain.to(memory_format=torch.channels_last)
    fused, report = fs.replace_conv_transpose(plain, return_report=True)
    transposed = [path for path, m in plain.named_modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [site.path for site in report.replaced] == transposed
    assert all(type(plain.get_submodule(path)) is nn.ConvTranspose2d for path in transposed)
    assert list(fused.state_dict()) == list(plain.state_dict())
    fused.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(fused.state_dict(), strict=True)
    outputs, gradients = [], []
    for model in (plain, fused):
        output = model(x)
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad(output.square().mean(), [x, *model.parameters()]))
    torch.testing.assert_close(outputs[1], outputs[0])
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs)
    again, second = fs.replace_conv_transpose(fused, inplace=True, return_report=True)
    assert again is fused
    assert not second.replaced
    assert len(second.already_replaced) == len(transposed)


def test_copies_and_pickles() -> None:
    plain, x = fsrcnn()
    fused = fs.replace_conv_transpose(plain)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (copy.deepcopy(fused), torch.load(file, weights_only=False)):
        assert type(other[-1]) is fs.ConvTranspose2d
        torch.testing.assert_close(other(x), plain(x), rtol=1e-4, atol=1e-5)


def test_shared_modules_hooks_and_weight_norm() -> None:
    up = nn.ConvTranspose2d(4, 4, 4, 2, 1)
    shared = nn.Sequential(up, nn.ReLU(), up)
    calls = []
    up.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 4, 5, 6)
    expected = shared(x)
    fs.replace_conv_transpose(shared, inplace=True)
    assert shared[0] is up is shared[2]
    torch.testing.assert_close(shared(x), expected)
    assert len(calls) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.Sequential(torch.nn.utils.weight_norm(nn.ConvTranspose2d(4, 3, 4, 2, 1)))
    expected = normed(x)
    fs.replace_conv_transpose(normed, inplace=True)
    torch.testing.assert_close(normed(x), expected)
    with torch.no_grad():
        normed[0].weight_g.mul_(2)  # a stale weight would not notice
    bias = normed[0].bias.view(1, -1, 1, 1)
    torch.testing.assert_close(normed(x) - bias, 2 * (expected - bias))


class Subclass(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        return super().forward(input, output_size) * 2


def test_left_alone() -> None:
    exchanged = nn.ConvTranspose2d(2, 2, 2, 2)
    exchanged.forward = exchanged._conv_forward = lambda x: x  # type: ignore[assignment,method-assign]
    model = nn.ModuleDict(
        {
            "subclass": Subclass(2, 2, 2, 2),
            "parametrized": torch.nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(2, 2, 2, 2)),
            "dilated": nn.ConvTranspose2d(2, 2, 2, 2, dilation=2),
            "exchanged": exchanged,
            "lazy": nn.LazyConvTranspose2d(2, 2, 2),
        }
    )
    types = [type(m) for m in model.modules()]
    with pytest.warns(UserWarning, match="replace_conv_transpose changed nothing: 5 sites: 5 left alone"):
        _, report = fs.replace_conv_transpose(model, inplace=True, return_report=True)
    assert [type(m) for m in model.modules()] == types
    words = ("subclass", "parametrized", "dilation", "exchanged", "run the model once")
    for site, word in zip(report, words, strict=True):
        assert word in site.reason


def test_nothing_to_do_and_wrong_argument() -> None:
    with pytest.warns(UserWarning, match="no site found"):
        fs.replace_conv_transpose(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module"):
        fs.replace_conv_transpose(3)  # type: ignore[arg-type]
    alone = fs.replace_conv_transpose(nn.ConvTranspose2d(2, 2, 2))
    assert type(alone) is fs.ConvTranspose2d


class Quantisable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.body(self.quant(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("mode", ["eager", "fx"])
def test_quantised_as_before(mode: str, qat: bool) -> None:
    """The int8 model is the one that the original gives."""
    from torch.ao import quantization
    from torch.ao.quantization import quantize_fx

    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("no kernels for quantised tensors")
    x = torch.randn(2, 3, 6, 7)
    plain: nn.Module = Quantisable() if mode == "eager" else Quantisable().body
    qconfig = quantization.default_qat_qconfig if qat else quantization.default_qconfig

    def quantised(model: nn.Module) -> nn.Module:
        model = copy.deepcopy(model).train(qat)
        if mode == "eager":
            model.qconfig = qconfig  # type: ignore[assignment]
            prepared = (quantization.prepare_qat if qat else quantization.prepare)(model)
        else:
            mapping = quantization.QConfigMapping().set_global(qconfig)
            prepare = quantize_fx.prepare_qat_fx if qat else quantize_fx.prepare_fx
            prepared = prepare(model, mapping, (x,))
        prepared(x)
        convert = quantization.convert if mode == "eager" else quantize_fx.convert_fx
        return convert(prepared.eval())

    ours, theirs = quantised(fs.replace_conv_transpose(plain)), quantised(plain)
    if mode == "eager":
        assert type(ours.body[1]) is type(theirs.body[1])  # type: ignore[index]
    else:
        assert str(ours) == str(theirs)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0.02)  # one step of the output's scale


# ---- models without values, and with scripted modules ------------------------------------------------------


class Chained(nn.Module):
    """A pair in a Sequential, one that only a run shows, and a transposed convolution."""

    def __init__(self, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or nn.Identity()
        self.pair = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.PixelShuffle(2))
        self.conv, self.shuffle = nn.Conv2d(3, 12, 1), nn.PixelShuffle(2)
        self.transposed = nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(self.first(x)) * torch.ones(1)
        return self.transposed(self.shuffle(self.conv(x)))


def gradients(model: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(model(X).square().sum(), tuple(model.parameters()))


@pytest.mark.parametrize("script", [torch.jit.script, lambda module: torch.jit.trace(module, X)])
def test_models_with_scripted_modules(script: Any) -> None:
    model = Chained(script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval())).eval()
    expected = model(X)
    fused, report = fs.replace_pixel_shuffle(model, X, fold_batch_norm=True, return_report=True)
    assert [site.path for site in report.replaced] == ["pair.0 -> pair.2", "conv -> shuffle"]
    fused = fs.replace_conv_transpose(fused)
    torch.testing.assert_close(fused(X), expected)
    for ours, theirs in zip(gradients(fused), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_source_of_a_scripted_tensor() -> None:
    model = nn.Sequential(torch.jit.script(nn.Conv2d(3, 12, 1)), nn.PixelShuffle(2))
    with pytest.warns(UserWarning, match="1 left alone"):
        _, report = fs.replace_pixel_shuffle(model, X, return_report=True)
    assert report[0].reason == "fed by the model's input or a scripted module"


@pytest.mark.parametrize("under", ["model", "inputs", "all"])
def test_the_meta_device(under: str) -> None:
    """Nothing is run without values; what needs no run is found."""
    plain = Chained().eval()
    model = copy.deepcopy(plain) if under == "inputs" else copy.deepcopy(plain).to("meta")
    with torch.device("cpu" if under == "model" else "meta"):
        x = torch.randn(X.shape)
        fused, report = fs.replace_pixel_shuffle(model, x, fold_batch_norm=True, return_report=True)
        fused = fs.replace_conv_transpose(fused)
    assert [site.status for site in report] == ["replaced", "left alone"]
    assert "meta device" in report[1].reason
    assert "the model was not run" in str(report)
    fused.to_empty(device="cpu").load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused(X), plain(X))


def test_models_replaced_under_the_meta_device() -> None:
    """A model with values is run with values, whatever device new tensors would be made on."""
    plain = Chained().eval()
    with torch.device("meta"):
        fused, report = fs.replace_pixel_shuffle(plain, X, fold_batch_norm=True, return_report=True)
        fused = fs.replace_conv_transpose(fused)
    assert len(report.replaced) == 2
    torch.testing.assert_close(fused(X), plain(X))


def offload(model: nn.Module) -> None:
    """Keep the parameters of each module on the meta device between its calls, as accelerate does."""
    for module in model.modules():
        tables = (module._parameters, module._buffers)
        values: list[dict[str, Any]] = [dict(table) for table in tables]
        away = [{k: None if v is None else v.detach().to("meta") for k, v in d.items()} for d in values]
        forward = module.forward

        def hooked(
            *args: Any, forward: Any = forward, tables: Any = tables, values: Any = values, away: Any = away
        ) -> Any:
            for table, present in zip(tables, values, strict=True):
                table.update(present)
            try:
                return forward(*args)
            finally:
                for table, absent in zip(tables, away, strict=True):
                    table.update(absent)

        for table, absent in zip(tables, away, strict=True):
            table.update(absent)
        module.forward = hooked  # type: ignore[method-assign]


@pytest.mark.parametrize("between", [nn.BatchNorm2d(12), nn.PReLU(12)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("in_sequential", [False, True])
def test_offloaded_parameters(between: nn.Module, in_sequential: bool) -> None:
    """Those of another module are there only while that one is called."""
    model = Chained().eval()
    model.shuffle = nn.Sequential(between.eval(), model.shuffle)  # type: ignore[assignment]
    if in_sequential:
        model = nn.Sequential(model.conv, *model.shuffle).eval()  # type: ignore[assignment]
    expected = model(X)
    fused, report = fs.replace_pixel_shuffle(model, X, fold_batch_norm=True, return_report=True)
    assert report.replaced[-1].path == ("0 -> 2" if in_sequential else "conv -> shuffle.1")
    offload(fused)
    torch.testing.assert_close(fused(X), expected)


# ---- the way back, and words -------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_restore_undoes_everything(inplace: bool) -> None:
    plain = Chained().eval()
    types = [type(module) for module in plain.modules()]
    replaced = fs.replace_pixel_shuffle(fs.replace_conv_transpose(plain), X, fold_batch_norm=True)
    fused = [type(module) for module in replaced.modules()]
    restored = fs.restore(replaced, inplace=inplace)
    assert (restored is replaced) == inplace
    assert [type(module) for module in restored.modules()] == types
    assert [type(module) for module in replaced.modules()] == (types if inplace else fused)
    assert [vars(module).keys() for module in restored.modules()] == [vars(m).keys() for m in plain.modules()]
    assert restored(X).equal(plain(X))
    own = fs.restore(nn.Sequential(fs.ConvTranspose2d(2, 2, 2), fs.SubpixelConv2d(2, 1, 1)))
    assert [type(module) for module in own] == [nn.ConvTranspose2d, fs.SubpixelConv2d]


REPLACERS = [fs.replace_pixel_shuffle, fs.replace_conv_transpose, fs.restore]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("replace", REPLACERS)
@pytest.mark.parametrize(
    "reparametrise",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_model_that_cannot_be_copied(replace: Any, reparametrise: Any) -> None:
    """Its way out is told, and is one."""
    model = nn.Sequential(
        reparametrise(nn.Conv2d(3, 12, 1)), nn.PixelShuffle(2), reparametrise(nn.ConvTranspose2d(3, 3, 2, 2))
    )
    model(X)
    with pytest.raises(
        ValueError, match=r"model: cannot be copied, inplace=True may help.* in 0, 2;.*no_grad"
    ):
        replace(model)
    with torch.no_grad():
        model(X)
    torch.testing.assert_close(replace(model)(X), model(X))


@pytest.mark.parametrize("replace", REPLACERS)
def test_what_is_no_model(replace: Any) -> None:
    class Descriptor:
        model = nn.Conv2d(1, 1, 1)

    for wrong, words in (
        (Descriptor(), "got Descriptor; its attribute .model is one"),
        ({"net": nn.Conv2d(1, 1, 1)}, "got dict; its entry 'net' is one"),
        (
            nn.Conv2d(1, 1, 1).state_dict(),
            "got OrderedDict of tensors; load it into a model with load_state_d",
        ),
        ("model", "got str"),
    ):
        with pytest.raises(TypeError, match=re.escape(f"model: expected an nn.Module, {words}")):
            replace(wrong)
    with pytest.raises(ValueError, match="model: is scripted"):
        replace(torch.jit.script(nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), [3, 8, 8], torch.Size((1, 3, 8, 8))])
def test_a_shape_is_no_input(shape: Any) -> None:
    with pytest.raises(
        TypeError, match=r"example_inputs: expected tensors, got the shape \(.*; torch\.randn"
    ):
        fs.replace_pixel_shuffle(nn.Conv2d(3, 3, 1), shape)


def test_lazy_convolutions() -> None:
    model = nn.Sequential(nn.LazyConv2d(12, 1), nn.PixelShuffle(2))
    with pytest.warns(UserWarning, match="1 left alone"):
        _, report = fs.replace_pixel_shuffle(model, return_report=True)
    assert report[0].reason == "LazyConv2d is not initialised yet; run the model once first"


def test_no_site_found_says_which_call_finds_one() -> None:
    up, conv = nn.ConvTranspose2d(2, 2, 2), nn.Conv2d(2, 2, 1)
    for replace, layers, words in (
        (fs.replace_pixel_shuffle, [up], ["replaced by replace_conv_transpose"]),
        (fs.replace_conv_transpose, [conv, nn.PixelShuffle(2)], ["replaced by replace_pixel_shuffle"]),
        (fs.replace_pixel_shuffle, [conv], ["Without example_inputs", "view, permute, reshape", "fuse("]),
        (fs.replace_conv_transpose, [conv], ["fusing_backend()"]),
        (fs.replace_pixel_shuffle, [nn.ConvTranspose1d(2, 2, 2)], ["replaced by replace_conv_transpose"]),
        (fs.replace_conv_transpose, [nn.Conv1d(2, 2, 2)], ["1-D convolutions are replaced by accelerate"]),
        (fs.replace_conv_transpose, [nn.Conv3d(2, 2, 2)], ["3-D convolutions cannot be replaced"]),
    ):
        with pytest.warns(UserWarning, match="no site found") as warned:
            replace(nn.Sequential(*layers))  # type: ignore[operator]
        assert all(word in str(warned[0].message) for word in words)
