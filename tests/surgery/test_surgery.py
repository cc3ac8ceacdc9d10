# SPDX-License-Identifier: BSD-3-Clause
"""replace_pixel_shuffle on every spelling of real models: same numbers, same keys, same everything else."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import needs_cpu_library
from surgery_checks import SHAPE, fused_calls, image, outcomes, replace, types
from surgery_models import IN_PLACE_PATTERNS, PATTERNS, Chained, Compact, Pattern, Shared, conv, norm, pair
from tiers import tiered
from torch import Tensor, nn
from torch.nn.utils import parametrize, weight_norm
from torch.utils.checkpoint import checkpoint

import fused_subpixel as fs

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # torch.onnx's own
]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())


MAKES_FRACTIONS = (
    "norm", "duc", "LU before", "lu, chained", "lu after", "lu in place", "lu of", "srresnet", "compact",
    "basicvsr", "compressai", "fastai", "tanh", "Tanh", "igmoid", "espcn", "parametrized", "elu", "ish",
    "oftplus",
)  # fmt: skip


def build(pattern: Pattern, dtype: torch.dtype = torch.float64) -> nn.Module:
    return pattern.make().to(dtype).eval()


def assert_same(found: nn.Module, expected: nn.Module, x: Tensor, **tolerances: float) -> None:
    """To rounding. The second run is on its own copy of the state, for spectral_norm iterates in training."""
    state = {key: value.clone() for key, value in expected.state_dict().items()}
    mine = outcomes(found, x)
    theirs = outcomes(expected, x)
    torch.testing.assert_close(mine, theirs, **tolerances)
    for model in (found, expected):
        model.load_state_dict(state)


# ---- the same numbers --------------------------------------------------------------------------------------


@every_pattern
@pytest.mark.parametrize("traced", [True, False], ids=["example", "static"])
def test_numbers_and_sites(
    pattern: Pattern, traced: bool, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = build(pattern), image(layout=layout)
    replaced, report = replace(model, *([x] if traced else []), **pattern.options)
    assert len(report.replaced) == (pattern.replaced if traced else pattern.static), str(report)
    calls = fused_calls(monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(replaced(x), model(x), rtol=1e-10, atol=1e-12)
        assert replaced(x).stride() == model(x).stride()
    assert len(calls) == 2 * len(report.replaced)
    assert_same(replaced, model, x, rtol=1e-9, atol=1e-11)
    with torch.inference_mode():
        torch.testing.assert_close(replaced(x), model(x), rtol=1e-10, atol=1e-12)
    replaced.train(), model.train()
    assert_same(replaced, model, x, rtol=1e-9, atol=1e-11)


@every_pattern
def test_without_a_batch_dimension(pattern: Pattern) -> None:
    """Also where a model rejects that, or takes rows for channels."""
    model = build(pattern)
    replaced = replace(model, image(), **pattern.options)[0]
    for x in (image()[0], image()[0, :, :3]):
        try:
            expected = model(x)
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error)):
                replaced(x)
        else:
            torch.testing.assert_close(replaced(x), expected, rtol=1e-10, atol=1e-12)


INTEGERS = {
    name: pattern
    for name, pattern in PATTERNS.items()
    if pattern.replaced and not any(word in name for word in MAKES_FRACTIONS)
}


@pytest.mark.parametrize("pattern", INTEGERS.values(), ids=INTEGERS.keys())
def test_integers_exactly(pattern: Pattern) -> None:
    """A wrong permutation cannot hide."""
    model = build(pattern)
    for parameter in model.parameters():
        parameter.data.normal_(std=3).round_()
    x = torch.randint(-4, 5, SHAPE).double()
    replaced, _ = replace(model, x, **pattern.options)
    with torch.no_grad():
        expected = model(x)
        assert expected.equal(expected.round()) and expected.abs().max() > 0
        assert replaced(x).equal(expected)
    assert replaced(x).equal(expected)


@every_pattern
def test_keys_copies_restoring(pattern: Pattern) -> None:
    model, x = build(pattern), image()
    kinds, state = types(model), {key: value.clone() for key, value in model.state_dict().items()}
    before = model(x)
    replaced, report = replace(model, x, **pattern.options)

    # the original is untouched
    assert types(model) == kinds
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model(x).equal(before)
    # keys, shapes, strict loading both ways
    assert [(k, v.shape) for k, v in replaced.state_dict().items()] == [
        (k, v.shape) for k, v in state.items()
    ]
    torch.testing.assert_close(replaced.state_dict(), state, rtol=0, atol=0)
    other, other_replaced = build(pattern), replace(build(pattern), x, **pattern.options)[0]
    replaced.load_state_dict(other.state_dict(), strict=True)
    other.load_state_dict(other_replaced.state_dict(), strict=True)
    torch.testing.assert_close(other_replaced(x), other(x))
    replaced.load_state_dict(state, strict=True)
    # all names and base classes are there
    assert [name for name, _ in replaced.named_modules()] == [name for name, _ in model.named_modules()]
    for mine, kind in zip(replaced.modules(), kinds, strict=True):
        if not parametrize.is_parametrized(mine):
            assert isinstance(mine, kind)
    # a second call changes nothing
    again, second = replace(replaced, x, **pattern.options)
    assert not second.replaced and len(second.already_replaced) == len(report.replaced)
    assert [t.__name__ for t in types(again)] == [t.__name__ for t in types(replaced)]
    assert {s.path for s in second.already_replaced} == {s.path for s in report.replaced}
    # copies
    copies = [copy.deepcopy(replaced)]
    if not any(parametrize.is_parametrized(module) for module in model.modules()):
        copies.append(pickle.loads(pickle.dumps(replaced)))
    for twin in copies:
        assert torch.equal(twin(x), replaced(x))
        assert [t.__name__ for t in types(twin)] == [t.__name__ for t in types(replaced)]
    # and back
    restored = fs.restore_pixel_shuffle(replaced)
    assert [t.__name__ for t in types(restored)] == [t.__name__ for t in kinds]
    assert restored(x).equal(before)
    for mine, theirs in zip(restored.modules(), model.modules(), strict=True):
        assert sorted(vars(mine)) == sorted(vars(theirs))
    assert fs.restore_pixel_shuffle(replaced, inplace=True) is replaced
    assert replaced(x).equal(before)


@pytest.mark.parametrize("pattern", IN_PLACE_PATTERNS.values(), ids=IN_PLACE_PATTERNS.keys())
@pytest.mark.parametrize("traced", [True, False])
def test_old_weight_norm(pattern: Pattern, traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks set the weight in each call: a step of an optimizer must be seen."""
    state = pattern.make().double().state_dict()
    model, other = pattern.make().double(), pattern.make().double()
    for each in (model, other):
        each.load_state_dict(state)
        each.eval()
    x = image()
    _, report = replace(model, *([x] if traced else []), inplace=True)
    assert len(report.replaced) == (pattern.replaced if traced else pattern.static), str(report)
    calls = fused_calls(monkeypatch)
    for _ in range(2):
        torch.testing.assert_close(outcomes(model, x), outcomes(other, x))
        for each in (model, other):
            parameter = next(p for name, p in each.named_parameters() if name.endswith(("_g", "_orig")))
            parameter.data.mul_(2)
    assert len(calls) == 4 * len(report.replaced)
    assert list(model.state_dict()) == list(state)
    for again in ([], [x], []) if report.replaced else ():
        _, second = replace(model, *again, inplace=True)
        assert {site.path for site in second.already_replaced} == {site.path for site in report.replaced}
        assert not second.replaced
    fs.restore_pixel_shuffle(model, inplace=True)
    torch.testing.assert_close(outcomes(model, x), outcomes(other, x), rtol=0, atol=0)


def test_old_weight_norm_that_a_run_shows_to_be_no_pair() -> None:
    """Planned because it stands before a shuffle in two Sequentials; left alone, and reported so, in both."""

    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = weight_norm(conv(16))
            self.first = nn.Sequential(self.conv, nn.PixelShuffle(2))
            self.second = nn.Sequential(self.conv, nn.PixelShuffle(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(x) + self.conv(x).mean()

    model = Tapped().double()
    for inputs in ([image()], [image()]):
        _, report = replace(model, *inputs, inplace=True)
        assert not report.replaced and len(report.left_alone) >= 2, str(report)
    assert not any("Fused" in kind.__name__ for kind in types(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["edsr x4", "compact", "duc", "duc, chained", "prelu, chained"])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    pattern = PATTERNS[name]
    model, x = build(pattern), image()
    replaced = replace(model, x, **pattern.options)[0].to(dtype)
    found = replaced(x.to(dtype))
    assert found.dtype == dtype
    rtol = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    expected = build(pattern)
    expected.load_state_dict(model.state_dict())
    bound = rtol * expected(x).abs().max()
    assert (found.double() - expected(x)).abs().max() < bound
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model.float()(x.float()), replace(model.float(), **pattern.options)[0](x.float())
    assert autocast[0].dtype == autocast[1].dtype


def test_a_training_step_is_the_same() -> None:
    """Same parameters in the optimizer, same step, same loss afterwards; replaced in place meanwhile."""
    pattern = PATTERNS["compact"]
    model, other = build(pattern).train(), build(pattern).train()
    other.load_state_dict(model.state_dict())
    optimizers = [torch.optim.Adam(each.parameters(), 0.01) for each in (model, other)]
    assert fs.replace_pixel_shuffle(model, image(), inplace=True) is model
    x = image()
    for _ in range(3):
        for each, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict())


# ---- among the neighbours ----------------------------------------------------------------------------------

NEIGHBOURS = [
    "edsr x4", "srresnet", "basicvsr", "compact", "dc-ae", "duc", "duc, chained", "relu, chained", "wrapped",
    "ReLU before", "prelu, chained", "unshuffle", "own conv, chained",
]  # fmt: skip


def replaced_pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Tensor]:
    pattern, x = PATTERNS[name], image(dtype)
    model = build(pattern, dtype)
    return replace(model, x, **pattern.options)[0], model, x


@tiered("name", NEIGHBOURS, fast=["ReLU before"])
@needs_cpu_library
def test_compile(name: str) -> None:
    """In one graph, which holds the fused operator; gradients too; with dynamic sizes.

    Without what cannot be done ahead there, see FusedConv2d.
    """
    replaced, model, x = replaced_pair(name)
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep)  # without what nothing uses, as compilers get it
    compiled = torch.compile(replaced, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    names = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not any("unshuffle" in target for target in names)
    if name not in ("unshuffle", "duc, chained", "prelu, chained"):
        assert "fused_subpixel.subpixel_conv2d.default" in names
    compiled = torch.compile(replaced, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcomes(compiled, x), outcomes(model, x), rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


class Interrupted(Chained):
    """Something between convolution and shuffle that breaks a graph in two."""

    interruption = ""

    def forward(self, x: Tensor) -> Tensor:
        reentrant = self.interruption == "checkpoint"
        y = checkpoint(self.conv, x, use_reentrant=True) if reentrant else self.conv(x)
        if self.interruption == "item":
            y = y + y.mean().item()
        elif self.interruption == "break":
            torch._dynamo.graph_break()
        elif self.interruption == "break, overwritten":
            torch._dynamo.graph_break()
            y.mul_(2)
        elif self.interruption == "eager part":
            y = torch.compiler.disable(torch.tanh)(y)
        return self.shuffle(y if self.between is None else self.between(y))


INTERRUPTIONS = (
    "item", "break", "break, overwritten", "eager part", "checkpoint", "only the convolution",
    "only the rest",
)  # fmt: skip


@tiered("interruption", INTERRUPTIONS, fast=("only the convolution", "only the rest"))
@pytest.mark.filterwarnings("ignore:.*requires_grad=True:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # which torch.compile asks for
def test_graph_breaks_between_convolution_and_shuffle(interruption: str) -> None:
    """The tensor in between crosses from one graph to another, or to code that is not compiled."""
    if interruption == "checkpoint" and torch.__version__ < (2, 12):
        pytest.skip(
            "torch 2.10 and 2.11 lose what a compiled checkpoint returns, if it is of a subclass of Tensor"
        )
    model = Interrupted(conv(), nn.ReLU(inplace=True) if interruption == "break" else None)
    backend = "aot_eager" if interruption == "break" else "eager"
    replaced: Any = replace(model, image(torch.float32))[0]
    replaced.interruption = model.interruption = interruption
    torch._dynamo.reset()
    compiled: Any = replaced
    if interruption == "only the convolution":
        replaced.conv.compile(backend=backend)
    elif interruption == "only the rest":
        replaced.shuffle.compile(backend=backend)
    else:
        compiled = torch.compile(replaced, backend=backend)
    for size in (6, 9):  # the second is compiled for any size
        results = []
        x = torch.randn(2, 4, size, size + 1)
        for each, run in ((replaced, compiled), (model, model)):
            each.zero_grad()
            leaf = x.clone().requires_grad_()
            output = run(leaf)
            output.square().sum().backward()
            with torch.no_grad():
                results.append([output.detach(), run(x), leaf.grad, *(p.grad for p in each.parameters())])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


EXPORTS = [(name, strict) for name in NEIGHBOURS for strict in (False, True)]
STRICT = ("relu, chained",)


@tiered(("name", "strict"), EXPORTS, fast=[e for e in EXPORTS if not e[1] or e[0] in STRICT])
@needs_cpu_library
def test_export(name: str, strict: bool) -> None:
    replaced, model, _ = replaced_pair(name)
    x = torch.randn(2, 4, 18, 16)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(replaced, (x,), strict=strict, dynamic_shapes=(sizes,))
    targets = [str(node.target) for node in program.graph.nodes]
    if name != "unshuffle" and not (strict and name in ("duc, chained", "prelu, chained")):
        assert targets.count("fused_subpixel.subpixel_conv2d.default") == PATTERNS[name].replaced
    x = torch.randn(3, 4, 66, 130)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_onnx_is_that_of_the_original(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    replaced, model, x = replaced_pair(name)
    operators = []
    for each in (replaced, model):
        torch.onnx.export(each, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
        nodes = onnx.load(tmp_path / "model.onnx").graph.node
        operators.append([node.op_type for node in nodes])
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-3, atol=1e-4)
    assert operators[0] == operators[1]
    if name != "unshuffle":
        assert "Conv" in operators[0] and "DepthToSpace" in operators[0]


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and warns of every size
def test_traced_transformed_and_faked(name: str) -> None:
    """What knows PyTorch's own modules only finds these."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    replaced, model, x = replaced_pair(name)
    expected = model(x)
    torch.testing.assert_close(torch.jit.trace(replaced, x)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(replaced)(x), expected, rtol=1e-4, atol=1e-5)
    batched = torch.vmap(replaced, randomness="error")(x[:, None])
    torch.testing.assert_close(batched[:, 0], expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert replaced(mode.from_tensor(x)).shape == expected.shape
    logged = replaced(x.as_subclass(type("Logged", (Tensor,), {})))
    torch.testing.assert_close(logged.as_subclass(Tensor), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", world_size=1, rank=0)
    yield
    gc.collect()  # a wrapper that outlives its group would wait for it forever
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(name: str) -> None:
    replaced, model, x = replaced_pair(name)
    wrapped = nn.parallel.DistributedDataParallel(replaced)
    wrapped(x).square().mean().backward()
    model(x).square().mean().backward()
    for mine, theirs in zip(replaced.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_replicas_of_data_parallel() -> None:
    """A replica has its own parameters; modules that stand in a plan are those of the original."""
    replaced, model, x = replaced_pair("prelu, chained")
    conv = replaced.conv._replicate_for_data_parallel()
    conv.weight, conv.bias = replaced.conv.weight.detach() * 2, replaced.conv.bias.detach() * 2
    found = replaced.shuffle(replaced.between(conv(x)))
    torch.testing.assert_close(found, 2 * model.shuffle(model.between(model.conv(x))), rtol=1e-4, atol=1e-5)


def test_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    replaced, model, _ = replaced_pair("basicvsr")
    inputs = [torch.randn(SHAPE) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(replaced, inputs))
    for output, x in zip(found, inputs, strict=True):
        torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)


# ---- the ways to call it -----------------------------------------------------------------------------------


def test_example_inputs_may_be_tensor_tuple_or_dict() -> None:
    class Scaled(Chained):
        def forward(self, x: Tensor, scale: float = 1, *, shift: float = 0) -> Tensor:
            return super().forward(x) * scale + shift

    model, x = Scaled(conv()), image(torch.float32)
    for inputs in (x, (x,), (x, 2.0), {"x": x, "shift": 1.0}):
        _, report = replace(model, inputs)
        assert len(report.replaced) == 1


def test_a_compiled_part_is_seen_through() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(torch.compile(Shared(), backend="eager")).double()
    replaced, report = replace(model, image())
    assert len(report.replaced) == 2
    x = image()
    torch.testing.assert_close(replaced(x), model(x))
    torch._dynamo.reset()


def test_parametrizations_come_and_go_after_the_surgery() -> None:
    from torch.nn.utils import parametrizations

    for name in ("parametrized, chained", "own conv, chained"):
        model, x = build(PATTERNS[name]), image()
        replaced = replace(model, x)[0]
        if name == "parametrized, chained":
            parametrize.remove_parametrizations(replaced.conv, "weight")
            torch.testing.assert_close(replaced(x), model(x))
        parametrizations.weight_norm(replaced.conv)
        torch.testing.assert_close(replaced(x), model(x))
        restored = fs.restore_pixel_shuffle(replaced)
        assert type(restored.conv).__name__ == "ParametrizedOwnConv2d"
        torch.testing.assert_close(restored(x), model(x))
        parametrize.remove_parametrizations(restored.conv, "weight")
        assert type(restored.conv) is type(build(PATTERNS["own conv, chained"]).conv)
        torch.testing.assert_close(restored(x), model(x))


def test_fold_follows_the_batch_norm_and_ends_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("duc", "duc, chained"):
        replaced, model, x = replaced_pair(name, torch.float64)
        calls = fused_calls(monkeypatch)
        for each in (replaced, model):
            each.train()
            torch.manual_seed(1)
            each(torch.randn(SHAPE, dtype=torch.float64))  # moves the statistics
        assert not calls
        for each in (replaced, model):
            each.eval()
        with torch.no_grad():
            torch.testing.assert_close(replaced(x), model(x))
        assert len(calls) == 1


def test_fold_needs_eval_mode() -> None:
    with pytest.raises(ValueError, match="fold_batch_norm: needs the model in eval mode"):
        fs.replace_pixel_shuffle(pair(norm(12)), fold_batch_norm=True)


def test_fold_and_unshuffle_later() -> None:
    """A second call may ask for more."""
    up = nn.Conv2d(4, 16, 1), nn.PixelShuffle(2)
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 4, 1), nn.ReLU(), *up, *pair(norm(12))).eval()
    x = torch.randn(2, 1, 6, 8)
    once, report = replace(model)
    assert [len(report.replaced), len(report.left_alone)] == [1, 1]
    twice, report = replace(once, fold_batch_norm=True, unshuffle=True)
    assert [len(report.replaced), len(report.already_replaced)] == [2, 1], str(report)
    torch.testing.assert_close(twice(x), model(x))
    _, report = replace(twice)
    assert [len(report.replaced), len(report.already_replaced)] == [0, 3], str(report)


# ---- the report --------------------------------------------------------------------------------------------


def test_report() -> None:
    model, x = Shared(), image(torch.float32)
    _, report = replace(model, x)
    first, second = report
    assert first == report[0] and len(report) == 2
    assert (first.path, first.layers) == ("first -> shuffle", "Conv2d(4, 16, 3x3) -> PixelShuffle(2)")
    assert (first.status, first.reason) == ("replaced", "one call")
    assert first.saved_bytes == 2 * 16 * 10 * 8 * 4 and second.saved_bytes == 2 * 8 * 20 * 16 * 4
    assert report.saved_bytes == first.saved_bytes + second.saved_bytes
    lines = str(report).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["path", "layers", "status", "saving", "how,", "or", "why", "not"]
    assert lines[1].startswith("first -> shuffle") and "10.2 kB" in lines[1]
    assert lines[3] == "2 sites: 2 replaced; 30.7 kB less to write and read per run"
    assert "2 replaced" in repr(report)


def test_report_without_example_inputs() -> None:
    _, report = replace(nn.Sequential(pair(), Shared()))
    assert [site.status for site in report] == ["replaced", "left alone"]
    assert report[0].saved_bytes is None and report[0].saved_bytes_per_pixel == 12 * 4
    assert report[1].path == "1.shuffle" and "example_inputs" in report[1].reason
    assert "48 B/pixel" in str(report)


@pytest.mark.parametrize(
    ("channels", "factor", "reason"),
    [(10, 2, "10 channels cannot be shuffled by 2"), (12, 1, "a shuffle by 1 rearranges nothing")],
)
def test_a_factor_that_does_not_fit_is_the_reason(channels: int, factor: int, reason: str) -> None:
    _, report = replace(nn.Sequential(nn.Conv2d(4, channels, 3), nn.PixelShuffle(factor)))
    assert [(site.status, site.reason) for site in report] == [("left alone", reason)]


def test_no_site_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    model = nn.Sequential(nn.Conv2d(4, 12, 3), nn.ReLU())
    replaced, report = fs.replace_pixel_shuffle(model, return_report=True)
    (warning,) = recwarn.list
    assert warning.category is UserWarning and "no site found" in str(warning.message)
    assert warning.filename == __file__
    assert len(report) == 0 and str(report).startswith("no site found")
    assert types(replaced) == types(model)


def test_every_site_of_a_bigger_model() -> None:
    model = nn.ModuleDict({"a": Compact(), "b": pair(nn.Dropout()), "c": Chained(conv(8))})

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["c"](self.parts["a"](x))

    _, report = replace(All(), image(torch.float32))
    assert {site.path: site.status for site in report} == {
        "parts.a.body.2 -> parts.a.upsampler": "replaced",
        "parts.b.0 -> parts.b.2": "left alone",
        "parts.c.conv -> parts.c.shuffle": "replaced",
    }
    assert "Dropout stands in between" in str(report)
