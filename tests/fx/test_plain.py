# SPDX-License-Identifier: BSD-3-Clause
"""Graph passes that are asked for plain convolutions, and batch norms: what is one call, and the numbers."""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import pytest
import torch
import torch.nn.functional as F
from tiers import tiered
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import fused_subpixel as fs
from fused_subpixel.ops.geometry import ACTIVATIONS, Epilogue
from fused_subpixel.surgery.report import Report

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # PyTorch's own, of export and Dynamo
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

OPERATOR = torch.ops.fused_subpixel.subpixel_conv2d.default
Function = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    """Convolutions of images or signals, with whole numbers in them, and one output per function."""

    def __init__(self, *functions: Function, signals: bool = False) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if signals else (nn.Conv2d, nn.BatchNorm2d)
        self.conv: Any = conv(3, 5, 3 if signals else (3, 2), padding="same")  # type: ignore[arg-type]
        self.thin = conv(3, 3, 1, bias=False)
        self.strided: Any = conv(3, 5, 3, stride=2, padding=1) if signals else nn.Conv2d(
            3, 5, (2, 3), stride=(2, 1), padding=(2, 1), dilation=(1, 2)
        )  # fmt: skip
        self.depthwise = conv(3, 6, 3, padding=1, groups=3)
        self.slopes = nn.PReLU(5)
        self.norm, self.bare_norm = norm(5), norm(3, affine=False)
        self.functions = functions
        for parameter in self.parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape).float()
        for module in (self.norm, self.bare_norm):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(self, x) for function in self.functions)


def five(x: Tensor) -> Tensor:
    """An image of the five channels that the convolution has."""
    return torch.cat([x, x[:, :2]], 1)


# name: function, and what is in the one call: activation, residual, clamp
PATTERNS: dict[str, tuple[Function, str | None, bool, tuple[float, float] | None]] = {
    "alone": (lambda m, x: m.conv(x), None, False, None),
    "strided": (lambda m, x: m.strided(x), None, False, None),
    "depthwise": (lambda m, x: F.relu(m.depthwise(x)), "relu", False, None),
    "batch norm": (lambda m, x: m.norm(m.conv(x)), None, False, None),
    "batch norm of no parameters": (lambda m, x: m.bare_norm(m.thin(x)), None, False, None),
    "relu": (lambda m, x: m.conv(x).relu(), "relu", False, None),
    "relu in place": (lambda m, x: F.relu(m.conv(x), inplace=True), "relu", False, None),
    "prelu": (lambda m, x: m.slopes(m.conv(x)), "prelu", False, None),
    "silu": (lambda m, x: F.silu(m.strided(x)), "silu", False, None),
    "residual": (lambda m, x: m.conv(x) + five(x), None, True, None),
    "residual first": (lambda m, x: five(x) + m.conv(x), None, True, None),
    "its own input added": (lambda m, x: F.relu(m.thin(x)) + x, "relu", True, None),
    "its own input added in place": (lambda m, x: m.thin(x).add_(x), None, True, None),
    "clamp": (lambda m, x: m.conv(x).clamp(-2, 3), None, False, (-2, 3)),
    "relu6": (lambda m, x: F.relu6(m.conv(x)), None, False, (0, 6)),
    "a block": (lambda m, x: F.relu(m.norm(m.conv(x)) + five(x)), None, True, (0, math.inf)),
    "all": (
        lambda m, x: (F.leaky_relu_(m.norm(m.conv(x)), 0.5) + five(x)).clamp_(max=3),
        "leaky_relu", True, (-math.inf, 3),
    ),
}  # fmt: skip

SHAPES = ((2, 3, 6, 7), (1, 3, 9, 4), (3, 3, 4, 5))


def image(*shape: int, channels_last: bool = False) -> Tensor:
    torch.manual_seed(sum(shape))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randint(-3, 4, shape).double().contiguous(memory_format=layout)


def export(model: nn.Module, x: Tensor, *, dynamic: bool = True) -> ExportedProgram:
    sizes = {0: Dim("batch"), **{dim: Dim(f"size{dim}", min=4) for dim in range(2, x.dim())}}
    return exporting.export(model, (x,), sizes=({**sizes},) if dynamic else None)


def calls(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.target is OPERATOR]


def targets(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op.startswith("call")]


def results(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """The nodes of a graph's outputs; of a signal the call before the view of its result."""
    (output,) = graph.find_nodes(op="output")
    views = torch.ops.aten.squeeze.dim
    return [node.args[0] if node.target is views else node for node in output.args[0]]


FORMS: dict[str, Callable[[ExportedProgram], ExportedProgram]] = {
    "exported": lambda program: program,
    "functional": lambda program: program.run_decompositions({}),
    "decomposed": lambda program: program.run_decompositions(),
}


@functools.cache
def fused_images(form: str = "exported", dynamic: bool = False) -> tuple[Model, ExportedProgram, Report]:
    model = Model(*(function for function, *_ in PATTERNS.values())).double()
    program = FORMS[form](export(model, image(*SHAPES[0]), dynamic=dynamic))
    return model, *fs.fuse(program, plain=True, return_report=True)


def check_call(node: torch.fx.Node, activation: str | None, residual: bool, clamp: Any) -> None:
    """The node is the call, with all of the epilogue: nothing stayed outside."""
    assert node.target is OPERATOR
    numbers = Epilogue.of(*node.args[6:])  # type: ignore[arg-type]
    assert numbers.activation == ACTIVATIONS[activation]
    assert (numbers.clamp_min, numbers.clamp_max) == (clamp or (-math.inf, math.inf))
    assert (node.args[4] is not None) == residual


# ---- what is one call --------------------------------------------------------------------------------------


WAYS = {"names": ("form", "dynamic"), "values": list(itertools.product(FORMS, (False, True)))}


@tiered(**WAYS, fast=[("exported", False)])
def test_patterns(form: str, dynamic: bool) -> None:
    """One call for each; the same numbers for all sizes and both layouts."""
    model, fused, report = fused_images(form, dynamic)
    assert len(report.replaced) == len(calls(fused.graph)) == len(PATTERNS)
    assert not report.left_alone
    assert not any("conv" in name and "subpixel" not in name for name in targets(fused.graph))
    for node, (name, (_, *expected)) in zip(results(fused.graph), PATTERNS.items(), strict=True):
        if form != "decomposed" or name not in ("prelu", "silu"):  # which that spells out
            check_call(node, *expected)
    module = fused.module()
    for shape in SHAPES if dynamic else SHAPES[:1]:
        for channels_last in (False, True):
            x = image(*shape, channels_last=channels_last)
            torch.testing.assert_close(module(x), model(x), rtol=1e-12, atol=1e-12)


def test_any_size() -> None:
    """Of the batch and of the image: a residual is then proven to have the output's shape."""
    model = Model(PATTERNS["all"][0], lambda m, x: F.silu(m.strided(F.relu(m.thin(x)) + x))).double()
    fused, report = fs.fuse(export(model, image(*SHAPES[0])), plain=True, return_report=True)
    assert len(report.replaced) == 3 and "stays" not in str(report)
    for shape in SHAPES:
        for channels_last in (False, True):
            x = image(*shape, channels_last=channels_last)
            torch.testing.assert_close(fused.module()(x), model(x), rtol=1e-12, atol=1e-12)


def test_whole_numbers_stay_exact_and_layouts_as_they_were() -> None:
    for channels_last in (False, True):
        model = Model(lambda m, x: F.relu(m.conv(x)) + five(x), lambda m, x: m.strided(x)).double()
        x = image(2, 3, 6, 7, channels_last=channels_last)
        found, expected = fs.fuse(export(model, x, dynamic=False), plain=True).module()(x), model(x)
        for one, other in zip(found, expected, strict=True):
            assert one.equal(other) and one.stride() == other.stride()


def test_only_where_asked_for() -> None:
    program = export(Model(lambda m, x: m.conv(x)), image(2, 3, 6, 7).float(), dynamic=False)
    with pytest.warns(UserWarning, match=r"^fuse: nothing was replaced: no site found$"):
        assert str(fs.fuse(program).graph) == str(program.graph)
    with fs.use_backend("reference"), pytest.warns(UserWarning, match="asked for is the reference"):
        assert not calls(fs.fuse(program, plain=True).graph)
    assert fs.fusing_backend() == fs.fusing_backend(plain=False) != fs.fusing_backend(plain=True)


def test_report() -> None:
    sites = list(fused_images()[2])
    assert sites[-1].layers == "conv2d(3, 5, 3x2) -> batch_norm -> leaky_relu -> add -> clamp"
    assert sites[0].layers == "conv2d(3, 5, 3x2)" and sites[0].saved_bytes_per_pixel == 0
    assert sites[-1].path == "conv" and sites[-1].saved_bytes_per_pixel == 2 * 5 * 8


def test_shuffles_come_first() -> None:
    """A convolution belongs to one site, and that with the shuffle counts; the other is its residual."""

    def forward(m: Model, x: Tensor) -> Tensor:
        skip = m.depthwise(F.pad(x, (0, x.shape[3], 0, x.shape[2])))[:, :4]
        return skip[:, :1] * F.pixel_shuffle(m.conv(x)[:, :4], 2) + F.pixel_shuffle(m.up(x).relu(), 2)

    model = Model(forward)
    model.up = nn.Conv2d(3, 4, 1)
    x = image(1, 3, 5, 4)
    program = export(model.double(), x, dynamic=False)
    fused, report = fs.fuse(program, plain=True, return_report=True)
    assert [site.layers for site in report.replaced] == [
        "conv2d(3, 4, 1x1) -> relu -> pixel_shuffle(2) -> add", "conv2d(3, 6, 3x3)", "conv2d(3, 5, 3x2)",
    ]  # fmt: skip
    assert [site.layers for site in report.left_alone] == ["pixel_shuffle(2)"]  # of the slice
    torch.testing.assert_close(fused.module()(x), model(x))


@tiered("form", ["exported", "functional"], fast=["functional"])
def test_batch_norms_before_shuffles(form: str) -> None:
    model = Model(
        lambda m, x: F.pixel_shuffle(F.relu(m.up_norm(m.up(x))), 2),
        lambda m, x: m.up_norm(F.pixel_shuffle(m.up(x), 1)),
        lambda m, x: F.batch_norm(F.pixel_shuffle(m.up(x), 2), m.one, m.one),
    )
    model.up, model.up_norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
    model.register_buffer("one", torch.ones(1))
    model.double().eval()
    x = image(1, 3, 5, 4)
    program = FORMS[form](export(model, x, dynamic=False))
    fused, report = fs.fuse(program, return_report=True)
    assert [site.layers for site in report.replaced] == [
        "conv2d(3, 4, 1x1) -> batch_norm -> relu -> pixel_shuffle(2)",
        "conv2d(3, 4, 1x1) -> pixel_shuffle(2)",
    ]
    assert "stays: only a batch norm directly behind the convolution" in report.replaced[1].reason
    torch.testing.assert_close(fused.module()(x), model(x))


# ---- what is not -------------------------------------------------------------------------------------------


def used_twice(m: Model, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.relu(y) * y


def written_between(m: Model, x: Tensor) -> Tensor:
    x = x * 1
    y = m.conv(x)
    x.add_(1)
    return F.relu(y)


def statistics_updated_between(m: Model, x: Tensor) -> Tensor:
    mean, variance = m.norm.running_mean * 1, m.norm.running_var * 1
    y = F.batch_norm(m.conv(x), mean, variance)
    return F.batch_norm(five(x), mean, variance, training=True) * F.relu(y)


def written_residual(m: Model, x: Tensor) -> Tensor:
    x = x * 1
    return x.add_(m.thin(x))


# name: function, reason why the next step stays outside or the convolution is left, calls of the operator
LOOK_ALIKES: dict[str, tuple[Function, str, int]] = {
    "broadcast residual": (lambda m, x: m.conv(x) + x[:, :1], "stays: its operands differ in shape", 1),
    "broadcast row": (
        lambda m, x: m.conv(x) + five(x).mean(2, keepdim=True), "stays: its operands differ in shape", 1,
    ),
    "broadcast the other way": (lambda m, x: m.conv(x) + five(x)[None], "stays: it changes the shape", 1),
    "scaled residual": (
        lambda m, x: torch.add(m.conv(x), five(x), alpha=2), "stays: it scales what it adds", 1,
    ),
    "number added": (lambda m, x: m.conv(x) + 1, "stays: a number is added", 1),
    "promoted": (lambda m, x: m.conv(x) + five(x).float(), "operands differ in dtype", 1),
    "added to itself": (lambda m, x: (y := m.conv(x)) + y, "stays: it adds a value to itself", 1),
    "written into the residual": (written_residual, "stays: it writes into its other operand", 1),
    "second residual": (lambda m, x: m.conv(x) + five(x) + five(2 * x), "the operator has one residual", 1),
    "activation after the residual": (
        lambda m, x: F.silu(m.conv(x) + five(x)), "stays: .* before residual and clamp", 1,
    ),
    "clamp by tensors": (
        lambda m, x: torch.clamp(m.conv(x), x.amin(), x.amax()), r"clamp.* stays: its bounds are not", 1,
    ),
    "used twice": (used_twice, "", 1),
    "dropout": (lambda m, x: F.relu(F.dropout(m.conv(x), 1.0, True)), "", 1),
    "input written between": (written_between, r"relu.* stays: add_.* may change what it reads", 1),
    "batch norm in training": (
        lambda m, x: F.relu(F.batch_norm(m.conv(x), None, None, training=True)),
        "stays: the batch norm is in training mode", 1,
    ),
    "statistics updated between": (
        statistics_updated_between, r"relu.* stays: batch_norm.* may change what it reads", 1,
    ),
    "batch norm behind the activation": (
        lambda m, x: m.norm(F.relu(m.conv(x))), "stays: only a batch norm directly behind", 1,
    ),
    "two batch norms": (
        lambda m, x: m.norm(m.norm(m.conv(x))), "stays: only a batch norm directly behind", 1,
    ),
    "unbatched": (lambda m, x: m.conv(x[0]).relu(), "not a 1-d or 2-d convolution of a batch", 0),
    "complex": (
        lambda m, x: F.conv2d(torch.complex(x, x), torch.complex(m.conv.weight, m.conv.weight)).abs(),
        "no kernel for torch.complex128", 0,
    ),
    "transposed": (lambda m, x: F.relu(F.conv_transpose2d(five(x), m.conv.weight)), "", 0),
    "volume": (lambda m, x: F.conv3d(x[:, :, None], m.conv.weight[:, :, None]).relu(), "", 0),
}  # fmt: skip


@functools.cache
def look_alikes() -> tuple[Model, ExportedProgram, Report]:
    model = Model(*(function for function, *_ in LOOK_ALIKES.values())).double()
    program = export(model, image(2, 3, 6, 7), dynamic=False)
    return model, *fs.fuse(program, plain=True, return_report=True)


def test_look_alikes() -> None:
    """The convolution alone becomes a call, or nothing; the numbers stay in any case."""
    model, fused, report = look_alikes()
    assert len(calls(fused.graph)) == sum(count for _, _, count in LOOK_ALIKES.values())
    reasons = [site.reason for site in report]
    for name, (_, reason, _) in LOOK_ALIKES.items():
        assert any(re.search(reason, given) for given in reasons), f"{name}: {report}"
    for name, node in zip(LOOK_ALIKES, results(fused.graph), strict=True):
        assert node.target is not OPERATOR or "residual" in name or name == "two batch norms", name
    x = image(2, 3, 6, 7)
    torch.testing.assert_close(fused.module()(x.clone()), model(x.clone()), rtol=1e-12, atol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_one_by_one(name: str) -> None:
    """What of each is a call, and why no more, is not another's."""
    function, reason, count = LOOK_ALIKES[name]
    model = Model(function).double()
    program = export(model, image(2, 3, 6, 7), dynamic=False)
    if count == 0:
        with pytest.warns(UserWarning, match="nothing was replaced"):
            fused, report = fs.fuse(program, plain=True, return_report=True)
    else:
        fused, report = fs.fuse(program, plain=True, return_report=True)
    assert len(calls(fused.graph)) == len(report.replaced) == count
    assert not reason or re.search(reason, report[0].reason), str(report)
    x = image(2, 3, 6, 7)
    torch.testing.assert_close(fused.module()(x.clone()), model(x.clone()), rtol=1e-12, atol=1e-12)


# ---- signals -----------------------------------------------------------------------------------------------

SIGNALS: dict[str, tuple[Function, str | None, bool, tuple[float, float] | None]] = {
    "alone": (lambda m, x: m.conv(x), None, False, None),
    "strided": (lambda m, x: F.silu(m.strided(x)), "silu", False, None),
    "depthwise, dilated": (
        lambda m, x: F.conv1d(x, m.depthwise.weight, padding="same", dilation=2, groups=3), None, False, None,
    ),
    "batch norm": (lambda m, x: m.slopes(m.norm(m.conv(x))), "prelu", False, None),
    "rows of pixels": (lambda m, x: m.conv((2 * x.mT).contiguous().mT), None, False, None),
    "all": (
        lambda m, x: (F.relu_(m.norm(m.conv(x))) + five(x)).clamp(-1, 2), "relu", True, (-1, 2),
    ),
}  # fmt: skip


@tiered(**WAYS, fast=[("exported", False)])
def test_signals(form: str, dynamic: bool) -> None:
    """By way of images of one row; and back by unfuse, which finds them again."""
    model = Model(*(function for function, *_ in SIGNALS.values()), signals=True).double()
    program = FORMS[form](export(model, image(2, 3, 11), dynamic=dynamic))
    fused, report = fs.fuse(program, plain=True, return_report=True)
    assert len(report.replaced) == len(SIGNALS) and not report.left_alone
    assert report[0].layers == "conv1d(3, 5, 3)"
    for node, (name, (_, *expected)) in zip(results(fused.graph), SIGNALS.items(), strict=True):
        if form != "decomposed" or name not in ("strided", "batch norm"):
            check_call(node, *expected)
    plain = fs.unfuse(fused)
    assert not any("subpixel" in name or "pixel_shuffle" in name for name in targets(plain.graph))
    assert len(calls(fs.fuse(plain, plain=True).graph)) == len(SIGNALS)
    for size in ((2, 3, 11), (1, 3, 4), (3, 3, 8)) if dynamic else ((2, 3, 11),):
        x = image(*size)
        for module in (fused.module(), plain.module()):
            torch.testing.assert_close(module(x), model(x), rtol=1e-12, atol=1e-12)
            assert [y.stride() for y in module(x)] == [y.stride() for y in model(x)]


def test_a_batch_of_signals_shuffled_as_an_image() -> None:
    """pixel_shuffle takes a batch of signals for the channels of an image: no pair."""
    model = Model(lambda m, x: F.pixel_shuffle(m.conv(x), 2), signals=True).double()
    x = image(4, 3, 6)
    fused, report = fs.fuse(export(model, x, dynamic=False), plain=True, return_report=True)
    assert "not a 2-d convolution of a batch" in report.left_alone[0].reason
    assert len(report.replaced) == 1
    torch.testing.assert_close(fused.module()(x), model(x))


# ---- programs that travel ----------------------------------------------------------------------------------


def test_unfused() -> None:
    names = "alone", "prelu", "depthwise", "all"
    model = Model(*(PATTERNS[name][0] for name in names)).double()
    fused = fs.fuse(export(model, image(2, 3, 6, 7), dynamic=False), plain=True)
    plain = fs.unfuse(fused)
    assert not any("subpixel" in name or "pixel_shuffle" in name for name in targets(plain.graph))
    for channels_last in (False, True):
        x = image(2, 3, 6, 7, channels_last=channels_last)
        torch.testing.assert_close(plain.module()(x), model(x), rtol=1e-12, atol=1e-12)
    assert len(calls(fs.fuse(plain, plain=True).graph)) == len(names)


def test_saved_loaded_and_unflattened() -> None:
    blocks = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(2), nn.Conv1d(4, 2, 2)
    )
    blocks.double().eval()
    x = image(2, 3, 6, 7)
    program = fs.fuse(export(blocks, x, dynamic=False), plain=True)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert len(calls(loaded.graph)) == 2
    for module in (loaded.module(), torch.export.unflatten(program)):
        torch.testing.assert_close(module(x), blocks(x), rtol=1e-12, atol=1e-12)


@pytest.mark.full
def test_loaded_by_a_fresh_process(tmp_path: Path) -> None:
    model, fused, _ = fused_images(dynamic=True)
    x = image(1, 3, 4, 9)
    torch.export.save(fused, tmp_path / "program.pt2")
    torch.save((x, [y.detach() for y in model(x)]), tmp_path / "tensors.pt")
    code = """
import sys, torch, fused_subpixel
x, expected = torch.load(sys.argv[2])
found = torch.export.load(sys.argv[1]).module()(x)
torch.testing.assert_close(list(found), expected, rtol=1e-12, atol=1e-12)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "program.pt2"), str(tmp_path / "tensors.pt")]
    environment = {**os.environ, "PYTHONPATH": str(Path(fs.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_aot_inductor(tmp_path: Path) -> None:
    """Images and signals, batch norms and epilogues, of any size."""

    def forward(m: Model, x: Tensor) -> Tensor:
        y = PATTERNS["all"][0](m, PATTERNS["its own input added"][0](m, x))
        return F.relu(F.conv1d(y.flatten(2), m.line, padding=1))

    model = Model(forward)
    model.register_buffer("line", torch.randn(4, 5, 3))
    fused, report = fs.fuse(export(model, image(2, 3, 6, 7).float()), plain=True, return_report=True)
    assert len(report.replaced) == 3
    package = torch._inductor.aoti_compile_and_package(fused, package_path=str(tmp_path / "model.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    for shape in SHAPES:
        x = image(*shape).float()
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """A folded batch norm is computed in float32 and rounded once."""
    model = Model(PATTERNS["all"][0]).to(dtype)
    x = image(2, 3, 6, 7).to(dtype)
    program = fs.fuse(export(model, x, dynamic=False), plain=True)
    (found,), (expected,) = program.module()(x), model(x)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, expected, rtol=4 * torch.finfo(dtype).eps, atol=32 * torch.finfo(dtype).eps
    )


def gradients(
    function: Any, model: nn.Module, parameters: dict[str, Tensor], x: Tensor
) -> list[Tensor | None]:
    x = x.clone().requires_grad_()
    loss = sum(y.square().sum() for y in function(x))
    wanted = [x, *(parameters[name] for name, _ in model.named_parameters())]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))


def test_gradients_of_a_fused_program() -> None:
    """Those of batch norms flow through the folded weight."""
    model, fused, _ = fused_images()
    module = fused.module()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)  # at 0 relu and a clamp differ
    expected = gradients(model, model, dict(model.named_parameters()), x)
    found = gradients(module, model, dict(module.named_parameters()), x)
    assert all(gradient is not None for gradient in expected)
    torch.testing.assert_close(found, expected)


# ---- torch.compile -----------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Keep:
    """A backend that runs what it gets and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs.append(graph)
        return graph


@pytest.mark.usefixtures("fresh_dynamo")
@tiered(
    ("signals", "dynamic"),
    itertools.product((False, True), (False, True)),
    fast=[(True, False)],
)
def test_compiled(signals: bool, dynamic: bool) -> None:
    """As in exported programs, in Dynamo's spelling."""
    patterns = SIGNALS if signals else PATTERNS
    # With dynamic sizes the numbers of modules and of calls are inputs of the graph.
    names = [name for name in patterns if not dynamic or name not in ("all", "strided", "batch norm")]
    model = Model(*(patterns[name][0] for name in names), signals=signals).double()
    keep = Keep()
    backend = fs.fusing_backend(keep, plain=True)
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for shape in SHAPES[:2]:
            x = image(*shape[: 3 if signals else 4])
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)
    for graph in keep.graphs:
        assert len(calls(graph.graph)) == len(names)
        for name, node in zip(names, results(graph.graph), strict=True):
            check_call(node, *patterns[name][1:])


# What of some patterns is in the call in training.
IN_TRAINING: dict[str, tuple[str | None, bool, Any]] = {
    "alone": (None, False, None),
    "depthwise": ("relu", False, None),
    "batch norm": (None, False, None),
    "relu in place": ("relu", False, None),
    "prelu": (None, False, None),
    "residual": (None, True, None),
    "its own input added in place": (None, True, None),
    "clamp": (None, False, None),
    "all": (None, False, None),
}


@pytest.mark.usefixtures("fresh_dynamo")
@tiered("backend", ["kept", "aot_eager"], fast=["kept"])
def test_compiled_with_gradients(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """Only what has its gradient from the output is in the calls, and no batch norm."""
    caplog.set_level("INFO", "fused_subpixel")
    model = Model(*(PATTERNS[name][0] for name in IN_TRAINING)).double()
    keep = Keep()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    expected = gradients(model, model, parameters, x)
    next_backend = keep if backend == "kept" else backend
    compiled = torch.compile(model, backend=fs.fusing_backend(next_backend, plain=True), fullgraph=True)
    torch.testing.assert_close(gradients(compiled, model, parameters, x), expected)
    assert "a batch norm is folded only where no gradient is wanted" in caplog.text
    for graph in keep.graphs:
        for node, parts in zip(calls(graph.graph), IN_TRAINING.values(), strict=True):
            check_call(node, *parts)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_under_autocast() -> None:
    """Batch norms are folded in float32, and the operands cast as autocast casts a convolution's."""
    model = Model(lambda m, x: F.relu(m.norm(m.conv(x))))
    keep = Keep()

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)[0]

    compiled = torch.compile(run, backend=fs.fusing_backend(keep, plain=True), fullgraph=True)
    x = image(2, 3, 6, 7).float()
    with torch.no_grad():
        found, expected = compiled(x), run(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    check_call(*calls(keep.graphs[0].graph), "relu", False, None)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)


@pytest.mark.full
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_by_inductor() -> None:
    model = Model(*(function for function, *_ in PATTERNS.values())).to(memory_format=torch.channels_last)
    compiled = torch.compile(model, backend=fs.fusing_backend(plain=True), fullgraph=True)
    x = image(2, 3, 6, 7, channels_last=True).float()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    parameters = dict(model.named_parameters())
    expected = gradients(model, model, parameters, x)
    torch.testing.assert_close(gradients(compiled, model, parameters, x), expected, rtol=1e-3, atol=1e-2)
