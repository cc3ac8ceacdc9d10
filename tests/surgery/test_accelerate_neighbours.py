# SPDX-License-Identifier: BSD-3-Clause
"""Models that fs.accelerate has replaced, in autograd, among hooks, patches, transforms and compilers."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_cpu_library
from surgery_checks import accelerate, compare_in_all_modes, image, outcomes
from surgery_models import BETWEEN, Functions, conv, known_step, norm
from tiers import tiered
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fused_subpixel as fs

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fused_is_faster"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # torch.onnx's own
]


# ---- autograd ----------------------------------------------------------------------------------------------


def test_gradients() -> None:
    """Of frozen parameters, of the input alone, second ones, through checkpoints."""
    for between in BETWEEN:
        model = (
            Functions(lambda m, x: m.second(m.between(m.first(x))), between=known_step(between))
            .double()
            .eval()
        )
        found = accelerate(model, image())[0]
        for each in (found, model):
            each.first.requires_grad_(False)
        x = image().requires_grad_()
        for leaf in (x, x.detach()):
            results = []
            for each in (found, model):
                wanted = [p for p in (*each.parameters(), leaf) if p.requires_grad]
                first = torch.autograd.grad(each(leaf).square().sum(), wanted, create_graph=True)
                results.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)])
            torch.testing.assert_close(*results)
        for reentrant in (False, True):
            results = [
                torch.autograd.grad(
                    checkpoint(each, x, use_reentrant=reentrant, preserve_rng_state=False).sum(),
                    x,
                    allow_unused=True,
                )
                if not reentrant
                else [checkpoint(each, x, use_reentrant=True).detach()]
                for each in (found, model)
            ]
            torch.testing.assert_close(*results)
        for each in (found, model):
            each.requires_grad_(False)
        torch.testing.assert_close(found(x.detach()), model(x.detach()))
        compare_in_all_modes(found, model, image())


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and warns of every size
@tiered("between", BETWEEN, fast=("norm, tanh",))
def test_traced_transformed_and_faked(between: str) -> None:
    """What knows PyTorch's own modules only finds these."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd import forward_ad

    line = nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3, padding=1), nn.Unflatten(2, (10, 8)))
    model = nn.Sequential(conv(4), known_step(between), line, nn.ConvTranspose2d(4, 2, 2, 2)).eval()
    x = image(torch.float32)
    found, report = accelerate(model, x)
    assert len(report.replaced) == 3
    close: Any = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            expected = model(x)
            close(torch.jit.trace(found, x)(x), expected)
            close(torch.fx.symbolic_trace(found)(x), expected)
            close(torch.vmap(found)(x[:, None])[:, 0], expected)
            close(torch.func.jvp(found, (x,), (x,)), torch.func.jvp(model, (x,), (x,)))
            with forward_ad.dual_level():
                duals = [forward_ad.unpack_dual(each(forward_ad.make_dual(x, x))) for each in (found, model)]
            close(*duals)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                assert found(mode.from_tensor(x)).shape == expected.shape
            logged = found(x.as_subclass(type("Logged", (Tensor,), {})))
            assert type(logged).__name__ == "Logged"
            close(logged.as_subclass(Tensor), expected)
    gradient = torch.func.grad(lambda p: functional_call(found, p, (x,)).square().sum())
    expected = torch.func.grad(lambda p: functional_call(model, p, (x,)).square().sum())
    close(gradient(dict(found.named_parameters())), expected(dict(model.named_parameters())))


# ---- hooks and patches -------------------------------------------------------------------------------------

HOOKS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


HOOKED = [(kind, of) for of in range(4) for kind in HOOKS]


@tiered(("kind", "of"), HOOKED, fast=HOOKED[::5])
def test_hooks(kind: str, of: int) -> None:
    """On the convolution, batch norm, activation, 1-D convolution; before the surgery and after."""
    parts = conv(8), norm(8), nn.ReLU(), nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 4, 3))
    model = nn.Sequential(*parts).double().eval()

    def hook(each: Any, seen: list[Any]) -> None:
        module = each[3][1] if of == 3 else each[of]
        getattr(module, f"register_{kind}")(
            lambda *a: seen.append([t for t in a[-1] if t is not None] if isinstance(a[-1], tuple) else a[-1])
        )

    early = copy.deepcopy(model)
    hook(early, [])
    x = image()
    found, report = accelerate(early, x)
    if of == 0:
        assert report[0].reason == "Conv2d has hooks" and report[0].status == "left alone"
    compare_in_all_modes(found, early, x)
    found = accelerate(model, x)[0]
    seen: list[list[Any]] = [[], []]
    for each, record in zip((found, model), seen, strict=True):
        hook(each, record)
    compare_in_all_modes(found, model, x)
    assert len(seen[0]) == len(seen[1]) > 0
    torch.testing.assert_close(
        *([[t * 1 for t in a] if isinstance(a, list) else a * 1 for a in each] for each in seen)
    )


def test_global_hooks_see_every_module() -> None:
    model, x = nn.Sequential(conv(4), nn.ReLU(), nn.Flatten(2), nn.Conv1d(4, 2, 3)).double(), image()
    found, counts = accelerate(model, x)[0], []
    for each in (found, model):
        names: list[str] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda m, i, o, names=names: names.append((type(m).__name__.removeprefix("Fused"), type(o)))
        )
        try:
            with torch.no_grad():
                each(x)
        finally:
            handle.remove()
        counts.append(names)
    assert counts[0] == counts[1]


class Own(nn.Conv2d):
    """A class of somebody's own, to be patched."""


class OwnLine(nn.Conv1d):
    """As above."""


PATCHES: list[tuple[Any, str]] = [
    *((kind, name) for kind in (nn.Conv1d, nn.Conv2d, Own, OwnLine) for name in ("_conv_forward", "forward")),
    *((kind, name) for kind in (Own, OwnLine) for name in ("__call__", "_call_impl")),
    *((kind, "forward") for kind in (nn.ReLU, nn.BatchNorm2d, nn.Sequential, nn.ConvTranspose2d)),
    (nn.Module, "__call__"),
    (nn.Module, "_call_impl"),
    *((F, name) for name in ("conv1d", "conv2d", "conv_transpose2d", "relu", "batch_norm", "pad")),
    *((place, name) for place in (0, 4) for name in ("_conv_forward", "forward", "_call_impl")),
    (1, "forward"),
    (2, "forward"),
]


PATCHED = [(owner, name, early) for early in (False, True) for owner, name in PATCHES]


@pytest.mark.parametrize(
    ("owner", "name", "early"),
    [
        pytest.param(
            *patch,
            id="-".join(str(getattr(part, "__name__", part)) for part in patch),
            marks=[] if number % 6 == 0 else [pytest.mark.full],
        )
        for number, patch in enumerate(PATCHED)
    ],
)
def test_patches(owner: Any, name: str, early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before or after the surgery: what is not PyTorch's own when it is called runs as it is."""
    model = nn.Sequential(
        Own(4, 8, 3, padding=1, padding_mode="reflect"),
        norm(8),
        nn.ReLU(),
        nn.Flatten(2),
        OwnLine(8, 4, 3, padding=1, padding_mode="circular"),
        nn.Unflatten(2, (10, 8)),
        nn.ConvTranspose2d(4, 2, 2, 2),
    )
    model, x = model.double().eval(), image()
    found = copy.deepcopy(model)

    def patch() -> None:
        for place in (found[owner], model[owner]) if isinstance(owner, int) else (owner,):
            function = getattr(place, name)
            monkeypatch.setattr(
                place, name, lambda *a, f=function, **options: f(*a, **options) / 2, raising=False
            )

    if early:
        patch()
    accelerate(found, x, inplace=True)
    if not early:
        patch()
    compare_in_all_modes(found, model, x)
    monkeypatch.undo()
    if not (early and isinstance(owner, int)):  # the former forward was that of the former class
        compare_in_all_modes(found, model, x)


# ---- compilers ---------------------------------------------------------------------------------------------


class Head(nn.Module):
    """Each way that a replaced convolution runs."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.first, self.between, self.line = conv(4), known_step(between), nn.Conv1d(4, 4, 3, padding=1)
        self.last, self.up, self.flag = nn.Conv2d(4, 3, 1), nn.ConvTranspose2d(3, 2, 2, 2), ""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.flag == "other":
            y = y * torch.sigmoid(y)
        elif self.flag == "in place":
            self.between(y)
            y = y + 1
        else:
            y = self.between(y)
        y = y + self.line(y.mean(2))[:, :, None]
        return self.up(self.last(y))


FLAGS = ("", "other", "in place")
COMPILED = [(between, flag) for between in BETWEEN for flag in FLAGS]


@tiered("between", BETWEEN, fast=("norm, tanh",))
@needs_cpu_library
def test_compiled_convolutions_stay_fused(between: str) -> None:
    """Alone: what follows them is a step of its own, which another compiler may join with others."""
    x, graphs = image(torch.float32), []
    found, report = accelerate(Head(between).eval(), x)

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(found, fullgraph=True, backend=keep)(x)
    (graph,) = graphs
    targets = [str(node.target) for node in graph.graph.nodes]
    assert targets.count("fused_subpixel.subpixel_conv2d.default") == len(report.replaced) == 4
    torch._dynamo.reset()


@tiered(("between", "flag"), COMPILED, fast=())
@needs_cpu_library
def test_compile(between: str, flag: str) -> None:
    model, x = Head(between).eval(), image(torch.float32)
    found, report = accelerate(model, x)
    assert len(report.replaced) == 4
    found.flag = model.flag = flag
    torch._dynamo.reset()
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(x[:1, :, 3:]), model(x[:1, :, 3:]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outcomes(compiled, x), outcomes(model, x), rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.full
def test_a_compiled_model() -> None:
    """Accelerated after it was compiled: what is compiled notices."""
    torch._dynamo.reset()
    model, x = Head("relu").eval(), image(torch.float32)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = compiled(x)
        found, report = accelerate(compiled, x, inplace=True)
        assert found is compiled and len(report.replaced) == 4
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        fs.restore(compiled, inplace=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


EXPORTED = [(between, flag, strict) for between in BETWEEN for flag in FLAGS for strict in (False, True)]


@tiered(("between", "flag", "strict"), EXPORTED, fast=[("norm, relu_", flag, False) for flag in FLAGS[:2]])
@needs_cpu_library
def test_export(between: str, flag: str, strict: bool) -> None:
    model, x = Head(between).eval(), image(torch.float32)
    found, _ = accelerate(model, x)
    found.flag = model.flag = flag
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            program = torch.export.export(found, (x,), strict=strict, dynamic_shapes=(sizes,))
        for other in (x, torch.randn(3, 4, 7, 9)):
            torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


@needs_cpu_library
def test_export_of_a_path_that_overwrites() -> None:
    """As in eager mode, an error: the graph would compute with what was written."""

    def forward(m: Functions, x: Tensor) -> Tensor:
        x = x.clone()
        y = m.first(x)
        if m.flag:
            x.mul_(2)
            return y * 2 + x
        return F.relu(y)

    model = Functions(forward).eval()
    found = accelerate(model, image(torch.float32))[0]
    found.flag = "other"
    with torch.no_grad(), pytest.raises(RuntimeError, match="changed in place"):
        torch.export.export(found, (image(torch.float32),), strict=False)


@tiered("between", BETWEEN, fast=())
def test_onnx_is_that_of_the_original(between: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, x = Head(between).eval(), image(torch.float32)
    operators = []
    for each in (accelerate(model, x)[0], model):
        torch.onnx.export(each, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
        operators.append([node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node])
    assert operators[0] == operators[1]
