# SPDX-License-Identifier: BSD-3-Clause
"""The op among its neighbours: compile, export, ONNX, autocast, torch.func, fake tensors, opcheck."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_tensors, needs_cpu_library
from tiers import tiered
from torch import Tensor, nn

import fused_subpixel as fs
from fused_subpixel.ops.geometry import ACTIVATIONS, Epilogue, Geometry

pytestmark = pytest.mark.usefixtures("one_thread")

ops = torch.ops.fused_subpixel

# One of each way through the gradient: linear, read from the output, kept pre-activation, everything at once.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "relu", "stride": (2, 1), "padding": (1, 0, 2, 1)},
    {"activation": "silu", "channel_order": "dcr"},
    {"activation": "prelu", "clamp": (-0.5, 1), "residual": True},
]


class Head(nn.Module):
    """A convolution before, to have an inner gradient, and the op with its residual."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.with_residual = options.pop("residual", False)
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = fs.SubpixelConv2d(4, 3, (3, 2), **options)

    def forward(self, x: Tensor) -> Tensor:
        residual = x[:, :, 1:-1, 1:] if self.with_residual else None
        return self.head(self.body(x), residual)


def outcomes(function: Any, x: Tensor, module: nn.Module) -> list[Tensor]:
    output = function(x)
    return [output, *torch.autograd.grad(output.square().mean(), [x, *module.parameters()])]


@pytest.fixture
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- torch.compile -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_dynamo")
@tiered("options", OPTIONS, fast=OPTIONS[2:3])
@needs_cpu_library
def test_compile(options: dict[str, Any]) -> None:
    check_compiled(options, dynamic=True)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.full
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_on_each_backend(backend: str, dynamic: bool) -> None:
    check_compiled(OPTIONS[-1], dynamic=dynamic)


def check_compiled(options: dict[str, Any], *, dynamic: bool) -> None:
    """Without graph breaks, for two sizes; outputs, gradients, and no_grad."""
    module = Head(**options)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 3, 6, 7), (3, 3, 9, 5)):
        x = torch.randn(shape, requires_grad=True)
        torch.testing.assert_close(outcomes(compiled, x, module), outcomes(module, x, module))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.full
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_by_inductor() -> None:
    module = Head(activation="silu").to(memory_format=torch.channels_last)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(2, 3, 6, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    found, expected = outcomes(compiled, x, module), outcomes(module, x, module)
    torch.testing.assert_close(found, expected)
    assert found[0].stride() == expected[0].stride()


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_under_autocast() -> None:
    module = Head(activation="relu")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = outcomes(compiled, x, module), outcomes(module, x, module)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3)


@pytest.mark.usefixtures("fresh_dynamo")
@needs_cpu_library
def test_compiled_graph_holds_the_operator_and_follows_use_backend() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    def inner(x: Tensor, weight: Tensor) -> Tensor:
        with fs.use_backend("reference"):
            return fs.subpixel_conv2d(x, weight)

    def holds_operator(graph: torch.fx.GraphModule) -> bool:
        return any(node.target is ops.subpixel_conv2d.default for node in graph.graph.nodes)

    x, weight, _ = conv_tensors(dtype=torch.float32)
    compiled = torch.compile(fs.subpixel_conv2d, fullgraph=True, backend=keep)
    expected = compiled(x, weight)
    with fs.use_backend("reference"):
        torch.testing.assert_close(compiled(x, weight), expected)
    torch.testing.assert_close(torch.compile(inner, fullgraph=True, backend=keep)(x, weight), expected)
    assert [holds_operator(graph) for graph in graphs] == [True, False, False]


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_with_vmap_inside() -> None:
    x, weight, bias = conv_tensors((4, 2, 3, 5, 6), dtype=torch.float32)

    def function(x: Tensor) -> Tensor:
        return torch.vmap(lambda image: fs.subpixel_conv2d(image, weight, bias))(x)

    expected = fs.subpixel_conv2d(x.flatten(0, 1), weight, bias).unflatten(0, (4, 2))
    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), expected)


# ---- torch.export ------------------------------------------------------------------------------------------


@needs_cpu_library
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("strict", [False, True])
def test_export(options: dict[str, Any], strict: bool) -> None:
    """Exported with parameters that require gradients, saved, loaded; the graph holds one whole operator."""
    module = Head(**options)
    sizes = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height", min=6),
        3: torch.export.Dim("width", min=5),
    }
    program = torch.export.export(
        module, (torch.randn(2, 3, 8, 9),), dynamic_shapes=({**sizes},), strict=strict
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    targets = [str(node.target) for node in loaded.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if "conv" in target or "subpixel" in target] == [
        "aten.conv2d.default",
        "fused_subpixel.subpixel_conv2d.default",
    ]
    assert not [target for target in targets if any(name in target for name in ("relu", "silu", "clamp"))]
    for shape in ((2, 3, 8, 9), (1, 3, 17, 6)):
        x = torch.randn(shape, requires_grad=True)
        loaded_module = loaded.module()
        torch.testing.assert_close(outcomes(loaded_module, x, loaded_module), outcomes(module, x, module))


# ---- ONNX --------------------------------------------------------------------------------------------------


ONNX_OPTIONS: list[tuple[dict[str, Any], bytes | None]] = [
    ({}, b"CRD"),
    ({"channel_order": "dcr", "activation": "silu"}, b"DCR"),
    ({"activation": "prelu", "clamp": (-0.5, 1), "residual": True, "channel_order": "dcr"}, b"DCR"),
    ({"upscale_factor": (2, 1)}, None),
]


@tiered(("options", "mode"), ONNX_OPTIONS, fast=ONNX_OPTIONS[1:2])
def test_onnx(tmp_path: Path, options: dict[str, Any], mode: bytes | None) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = Head(**options).eval()
    sizes = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height", min=6),
        3: torch.export.Dim("width", min=5),
    }
    path = tmp_path / "head.onnx"
    torch.onnx.export(
        module, (torch.randn(2, 3, 8, 9),), path, dynamo=True, dynamic_shapes=({**sizes},), verbose=False
    )
    nodes = onnx.load(path).graph.node
    modes = {
        a.s for node in nodes if node.op_type == "DepthToSpace" for a in node.attribute if a.name == "mode"
    }
    assert [node.op_type for node in nodes].count("Conv") == 2
    assert modes >= ({mode} if mode else set())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 8, 9), (1, 3, 17, 6)):
        x = torch.randn(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(x).detach(), rtol=1e-4, atol=1e-5)


class Functions(nn.Module):
    """All functions and modules in one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 3, 3))
        self.slopes = nn.Parameter(torch.rand(2))
        self.head = fs.SubpixelConv2d(2, 2, 3, padding=1, activation="silu", clamp=(-0.5, 0.5))
        self.up = fs.ConvTranspose2d(2, 2, 4, 2, 1)

    def forward(self, x):  # type: ignore[no-untyped-def]  # torch.fx cannot pickle annotations that are strings
        y = fs.conv_transpose2d(x, self.weight, None, 1, 1, activation="prelu", activation_weight=self.slopes)
        return self.up(self.head(fs.pixel_unshuffle(fs.pixel_shuffle(self.head(y, y), 1), 2)[:, :2], y))


class NearestResidual(fs.SubpixelConv2d):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, residual=x)


TORCHSCRIPT_ONNX: dict[str, Any] = {
    "plain": lambda: fs.SubpixelConv2d(3, 2, 3, padding=1),
    "dcr": lambda: fs.SubpixelConv2d(3, 2, 3, padding=1, channel_order="dcr", activation="silu"),
    "prelu": lambda: fs.SubpixelConv2d(
        3, 2, 3, (2, 3), padding="same", activation="prelu", prelu_parameters=12
    ),
    "residual": lambda: Head(residual=True, activation="gelu", clamp=(-0.5, 0.5)),
    "nearest residual": lambda: NearestResidual(3, 3, 3, (3, 2), padding=1, activation="silu"),
    "four paddings": lambda: fs.SubpixelConv2d(3, 2, 3, padding=(1, 0, 2, 1), activation="prelu"),
    "replaced unshuffle": lambda: fs.replace_pixel_shuffle(
        nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, padding=1), fs.SubpixelConv2d(8, 3, 3)),
        unshuffle=True,
    ),
    "transposed": lambda: fs.ConvTranspose2d(3, 2, 4, 2, 1),
    "functions": Functions,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", TORCHSCRIPT_ONNX)
def test_onnx_by_torchscript(name: str, dynamic: bool) -> None:
    """The exporter that many still use, with another size at run time."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    module, file = TORCHSCRIPT_ONNX[name]().eval(), io.BytesIO()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}} if dynamic else None
    torch.onnx.export(
        module, (torch.randn(2, 3, 8, 10),), file, dynamo=False, input_names=["x"], dynamic_axes=axes
    )
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    without = ("dcr", "prelu", "nearest residual", "transposed")
    assert ("DepthToSpace" in {node.op_type for node in nodes}) == (name not in without)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 8, 10), (1, 3, 16, 6))[: 1 + dynamic]:
        x = torch.randn(shape)
        (found,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(x).detach(), rtol=1e-4, atol=1e-5)


# ---- torch.fx ----------------------------------------------------------------------------------------------


def test_fx() -> None:
    """Traced, traced again, copied, pickled; the functions are calls in the graph, and the module is one."""
    module, x = Functions(), torch.randn(2, 3, 6, 8)
    expected = module(x)
    graph = torch.fx.symbolic_trace(module)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    for function in (fs.subpixel_conv2d, fs.conv_transpose2d, fs.pixel_shuffle, fs.pixel_unshuffle):
        assert function in called
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["up"]
    for again in (
        graph,
        torch.fx.symbolic_trace(graph),
        copy.deepcopy(graph),
        pickle.loads(pickle.dumps(graph)),
    ):
        assert "fused_subpixel.functional" in again.code.replace("_functional", ".functional")
        assert again(x).equal(expected)
    torch.testing.assert_close(
        outcomes(graph, x.requires_grad_(), module), outcomes(module, x, module), rtol=0, atol=0
    )


def test_fx_of_a_transposed_convolution() -> None:
    """In a model it is a call, whatever its output size comes from; alone it is looked into."""

    class Doubled(nn.Module):
        def __init__(self, up: nn.Module) -> None:
            super().__init__()
            self.up = up

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=(x.shape[2] * 2, x.shape[3] * 2))

    up, x = fs.ConvTranspose2d(3, 2, 3, 2, 1), torch.randn(2, 3, 5, 6)
    for module in (Doubled(up), nn.Sequential(up)):
        traced = torch.fx.symbolic_trace(module)
        assert "call_module" in {node.op for node in traced.graph.nodes}
        assert traced(x).equal(module(x))
    alone = torch.fx.symbolic_trace(up, concrete_args={"output_size": None})
    assert "conv_transpose2d" in {getattr(node.target, "__name__", "") for node in alone.graph.nodes}
    torch.testing.assert_close(alone(x), up(x))


def test_fx_of_a_replaced_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.ConvTranspose2d(3, 2, 3, 2, 1))
    replaced, x = fs.replace_conv_transpose(fs.replace_pixel_shuffle(model)), torch.randn(2, 3, 5, 6)
    traced = torch.fx.symbolic_trace(replaced)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    torch.testing.assert_close(traced(x), model(x))


# ---- autocast ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_conv2d(backend: str, dtype: torch.dtype) -> None:
    x, weight, bias = conv_tensors(dtype=torch.float32, requires_grad=True)
    residual = torch.randn(2, 2, 6, 10, dtype=dtype)
    with torch.autocast("cpu", dtype):
        output = fs.subpixel_conv2d(x, weight, bias, residual=residual)
        assert output.dtype == F.conv2d(x, weight, bias).dtype == dtype
    expected = fs.subpixel_conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), residual=residual.to(dtype))
    assert output.equal(expected)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(output.sum(), (x, weight, bias)))
    with torch.autocast("cpu", dtype):
        doubles = [tensor.detach().double() for tensor in (x, weight, bias)]
        assert fs.subpixel_conv2d(*doubles).dtype == F.conv2d(*doubles).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert fs.subpixel_conv2d(x, weight, bias).dtype == torch.float32


@pytest.mark.usefixtures("fresh_dynamo")
@tiered("activation", [None, "silu", "prelu"], fast=[None])
@tiered("residual_dtype", [torch.float32, torch.bfloat16, torch.float64], fast=[torch.float32])
@pytest.mark.parametrize("transposed", [False, True])
def test_autocast_with_a_residual_as_pytorchs_chain(
    backend: str, activation: str | None, residual_dtype: torch.dtype, transposed: bool
) -> None:
    """A wider residual makes a wider sum, which the clamp then gets."""
    x, weight, bias = conv_tensors(dtype=torch.float32)
    bias = bias[:3] if transposed else bias
    weight = torch.randn(3, 3, 2, 2) if transposed else weight
    slopes = torch.rand(1) if activation == "prelu" else None
    options = {"activation": activation, "activation_weight": slopes, "clamp": (-1.0, 0.7001)}

    def chain(residual: Tensor) -> Tensor:
        low = F.conv_transpose2d(x, weight, bias, 2) if transposed else F.conv2d(x, weight, bias)
        high = low if transposed else F.pixel_shuffle(low, 2)
        if activation is not None:
            high = F.silu(high) if slopes is None else F.prelu(high, slopes.to(high.dtype))
        return (high + residual).clamp(-1.0, 0.7001)

    def fused(residual: Tensor) -> Tensor:
        if transposed:
            return fs.conv_transpose2d(x, weight, bias, 2, residual=residual, **options)
        return fs.subpixel_conv2d(x, weight, bias, residual=residual, **options)

    shape = (2, 3, 10, 12) if transposed else (2, 2, 6, 10)
    leaf = torch.randn(shape, dtype=residual_dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = chain(leaf), fused(leaf)
        outputs = [found, fused(leaf.detach())]
        if residual_dtype == torch.float32:
            outputs.append(torch.compile(fused, fullgraph=True, backend="eager")(leaf))
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)  # of the dtype, too
    assert torch.autograd.grad(found.sum(), leaf)[0].dtype == residual_dtype


def test_autocast_exports_the_wider_sum() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = fs.SubpixelConv2d(3, 3, 3, padding=1, activation="prelu", clamp=(0, 1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(x, x)

    module, x = Residual(), torch.randn(2, 3, 6, 7)
    program = torch.export.export(module, (x,)).module()
    assert program(x).dtype == module(x).dtype == torch.float32
    torch.testing.assert_close(program(x), module(x), rtol=0.02, atol=0.02)


def test_refuses_a_residual_of_another_dtype_without_autocast(backend: str) -> None:
    x, weight, bias = conv_tensors(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"residual: expected dtype torch\.float32 as input has"):
        fs.subpixel_conv2d(x, weight, bias, residual=torch.zeros(2, 2, 6, 10, dtype=torch.float64))


# ---- torch.func and forward mode ---------------------------------------------------------------------------


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (0, 0, 0), (1, None, 0)])
def test_vmap(in_dims: tuple[int | None, ...]) -> None:
    arguments = [
        tensor
        if dim is None
        else torch.randn(*tensor.shape[:dim], 3, *tensor.shape[dim:], dtype=tensor.dtype)
        for tensor, dim in zip(conv_tensors(), in_dims, strict=True)
    ]
    found = torch.vmap(fs.subpixel_conv2d, in_dims)(*arguments)
    for i in range(3):
        one = [a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)]
        torch.testing.assert_close(found[i], fs.subpixel_conv2d(*one))


def test_functional_gradients() -> None:
    x, weight, bias = conv_tensors()

    def loss(weight: Tensor) -> Tensor:
        return fs.subpixel_conv2d(x, weight, bias, activation="tanh").square().sum()

    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(weight), expected)
    torch.testing.assert_close(torch.func.jacrev(loss)(weight), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss)(weight), expected)
    per_sample = torch.vmap(torch.func.grad(lambda w, x: fs.subpixel_conv2d(x, w, bias).sum()), (None, 0))(
        weight, x
    )
    assert per_sample.shape == (2, *weight.shape)


def test_forward_mode() -> None:
    x, weight, bias = conv_tensors()
    tangent = torch.randn_like(weight)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, tangent)
        output = torch.autograd.forward_ad.unpack_dual(fs.subpixel_conv2d(x, dual, bias)).tangent
    torch.testing.assert_close(output, fs.subpixel_conv2d(x, tangent))


@needs_cpu_library
def test_demanded_backend_is_refused_under_transforms() -> None:
    x, weight, bias = conv_tensors()
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot run here: under torch\.func transforms"):
        torch.vmap(lambda x: fs.subpixel_conv2d(x, weight, bias, backend="cpu"))(x[None])


# ---- fake tensors, subclasses, tracing, threads ------------------------------------------------------------


def test_meta_and_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, weight, bias = conv_tensors(channels_last=True)
    expected = fs.subpixel_conv2d(x, weight, bias)
    on_meta = fs.subpixel_conv2d(x.to("meta"), weight.to("meta"), bias.to("meta"))
    with FakeTensorMode() as mode:
        fake = fs.subpixel_conv2d(*map(mode.from_tensor, (x, weight, bias)))
    for found in (on_meta, fake):
        assert (found.shape, found.stride(), found.dtype) == (
            expected.shape,
            expected.stride(),
            expected.dtype,
        )


class Plain(Tensor):
    """As PyTorch makes it."""


class Described(Tensor):
    """With an attribute that results inherit, as the images of medical and other libraries."""

    note: str | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Described):
            result.note = next((a.note for a in args if isinstance(a, Described)), None)
        return result


class Undecorated(Tensor):
    """Whose results are plain tensors, as in computer vision's libraries."""

    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that gets an entry for each call of the operator, with its tensors' types."""
    from fused_subpixel.ops import autograd

    calls: list[Any] = []
    operator = autograd._eager_operator

    def count(*arguments: Any) -> Any:
        calls.append({type(a) for a in arguments if isinstance(a, Tensor)})
        return operator(*arguments)

    monkeypatch.setattr(autograd, "_eager_operator", count)
    return calls


@needs_cpu_library
@pytest.mark.parametrize("kind", [Plain, Described, Undecorated])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_tensor_subclasses_run_on_the_kernels(
    kind: type[Tensor], activation: str | None, kernel_calls: list[Any]
) -> None:
    x, weight, bias = conv_tensors(requires_grad=True)
    residual = torch.randn(2, 2, 6, 10, dtype=torch.float64)
    turned = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    for function, operands in (
        (fs.subpixel_conv2d, (x, weight, bias)),
        (fs.conv_transpose2d, (x, turned, None)),
        (lambda *t, **options: fs.subpixel_conv2d(t[0][0], *t[1:], **options), (x, weight, bias)),
        (lambda *t, **options: fs.subpixel_conv2d(*t, residual=residual, **options), (x, weight, bias)),
    ):
        expected = function(*operands, activation=activation)
        (gradient,) = torch.autograd.grad(expected.square().sum(), x)
        kernel_calls.clear()
        leaf = x.detach().clone().as_subclass(kind).requires_grad_()
        if kind is Described:
            leaf.note = "axial"
        found = function(leaf, *operands[1:], activation=activation)
        assert kernel_calls
        assert all(types <= {Tensor, nn.Parameter} for types in kernel_calls)
        assert type(found) is type(F.relu(leaf)) is (Tensor if kind is Undecorated else kind)
        assert getattr(found, "note", None) == ("axial" if kind is Described else None)
        assert found.as_subclass(Tensor).equal(expected)
        (its_gradient,) = torch.autograd.grad(found.square().sum(), leaf)
        assert its_gradient.as_subclass(Tensor).equal(gradient)


@needs_cpu_library
def test_tensor_subclasses_as_other_arguments(kernel_calls: list[Any]) -> None:
    class Own(nn.Parameter):
        pass

    x, weight, bias = conv_tensors()
    expected = fs.subpixel_conv2d(x, weight, bias)
    own = Own(weight)
    found = fs.subpixel_conv2d(x, own, bias)
    assert type(found) is Tensor
    found.sum().backward()
    assert own.grad is not None
    mixed = fs.subpixel_conv2d(x, own, bias.as_subclass(Plain))
    assert type(mixed) is Plain
    assert mixed.as_subclass(Tensor).equal(expected)
    assert found.equal(expected)
    assert len(kernel_calls) == 3
    with pytest.raises(TypeError, match="no implementation found"):  # as of PyTorch's own functions
        fs.subpixel_conv2d(x.as_subclass(Plain), weight.as_subclass(Described), bias)
    for order in ("crd", "dcr"):
        shuffled = fs.pixel_unshuffle(fs.pixel_shuffle(weight.mT.as_subclass(Plain), 1, order), (1, 3), order)
        assert type(shuffled) is Plain
        assert shuffled.as_subclass(Tensor).equal(fs.pixel_unshuffle(weight.mT, (1, 3), order))


@needs_cpu_library
@pytest.mark.parametrize("kind", [Plain, Described])
def test_tensor_subclasses_in_a_replaced_model(kind: type[Tensor], kernel_calls: list[Any]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = nn.Sequential(nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.ReLU())
            self.conv, self.act, self.shuffle = nn.Conv2d(3, 12, 3), nn.PReLU(), nn.PixelShuffle(2)
            self.up = nn.ConvTranspose2d(3, 2, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.shuffle(self.act(self.conv(self.chain(x)))))

    model, x = Model(), torch.randn(2, 3, 5, 6)
    replaced = fs.replace_conv_transpose(fs.replace_pixel_shuffle(model, x))
    kernel_calls.clear()
    found, expected = replaced(x.as_subclass(kind)), model(x.as_subclass(kind))
    assert len(kernel_calls) == 3
    assert type(found) is type(expected) is kind
    gradients = [
        [g.as_subclass(Tensor) for g in torch.autograd.grad(output.sum(), list(of.parameters()))]
        for output, of in ((found, replaced), (expected, model))
    ]
    torch.testing.assert_close(found.as_subclass(Tensor), expected.as_subclass(Tensor))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@needs_cpu_library
def test_what_cannot_be_unwrapped_warns_once(kernel_calls: list[Any], monkeypatch: Any) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    from fused_subpixel.ops import library

    monkeypatch.setattr(library, "_told", set())
    x, weight, bias = conv_tensors(dtype=torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            found = fs.subpixel_conv2d(TwoTensor(x, x.clone()), weight, bias)
            fs.replace_pixel_shuffle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)))(
                TwoTensor(x, x.clone())
            )
        assert torch.export.export(fs.SubpixelConv2d(3, 2, 3), (x,))  # PyTorch's own are none of the matter
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert len(told) == 1
    assert "runs as plain PyTorch, slower, for tensors of torch.testing._internal.two_tensor." in told[0]
    assert type(found) is TwoTensor
    torch.testing.assert_close(found.a, fs.subpixel_conv2d(x, weight, bias))


def test_torch_function_modes_see_the_functions() -> None:
    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            functions.append(func)
            return func(*args, **(kwargs or {}))

    functions: list[Any] = []
    x, weight, bias = conv_tensors()
    expected = fs.pixel_shuffle(fs.subpixel_conv2d(x, weight, bias, 1), 2)
    with Seen():
        found = fs.pixel_shuffle(fs.subpixel_conv2d(x, weight, bias, 1), 2)
    assert functions == [fs.subpixel_conv2d, fs.pixel_shuffle]
    assert found.equal(expected)


@pytest.mark.filterwarnings(
    "ignore"
)  # torch.jit is deprecated, and warns of every size that becomes constant
def test_jit_trace() -> None:
    x, weight, bias = conv_tensors(dtype=torch.float32)
    traced = torch.jit.trace(lambda x: fs.subpixel_conv2d(x, weight, bias, padding=1), x)
    other = torch.randn(3, 3, 7, 9)
    torch.testing.assert_close(traced(other), fs.subpixel_conv2d(other, weight, bias, padding=1))


def test_use_backend_holds_for_its_thread() -> None:
    import threading

    from fused_subpixel.dispatch import backends

    seen: list[str] = []
    with fs.use_backend("reference"):
        with fs.use_backend("auto"):
            assert backends.requested() == "auto"
        assert backends.requested() == "reference"
        thread = threading.Thread(target=lambda: seen.append(backends.requested()))
        thread.start()
        thread.join()
    assert seen == [backends.requested()] == ["auto"]


@pytest.mark.parametrize("options", [{}, {"groups": 2, "padding": 1}])
def test_flop_counter(options: dict[str, Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    theirs = nn.Conv2d(4, 12, (3, 2), **options)
    ours = fs.SubpixelConv2d.from_conv2d(theirs)
    counts = []
    for module in (theirs, ours):
        with FlopCounterMode(display=False) as counter:
            module(torch.randn(2, 4, 5, 6, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@tiered("dtype", [torch.float32, torch.bfloat16], fast=[torch.float32])
@tiered("size", [(1, 1), (5, 6), (40, 30)], fast=[(5, 6)])
@pytest.mark.parametrize(
    "options",
    [
        (4, 2, 1),  # cropped
        (3, 2, 1, 1),  # extended
        (4, 1, 0),
        (4, 2, 0, 0, 2),  # groups, which nothing in the operands tells from a convolution's
        (1, 1, 0),
        (2, 3, 0, 2),
        (5, 2, 3, 1),
    ],
)
def test_flops_of_a_transposed_convolution(
    backend: str, dtype: torch.dtype, size: tuple[int, int], options: tuple[int, ...]
) -> None:
    """Those of PyTorch's, forward and of each gradient, whoever computes them."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = nn.ConvTranspose2d(4, 6, *options).to(dtype)
    try:
        layer(torch.randn(2, 4, *size, dtype=dtype))
        fs.conv_transpose2d(torch.randn(2, 4, *size, dtype=dtype), layer.weight, None, *options[1:])
    except (RuntimeError, ValueError):
        pytest.skip("no output")
    replaced = fs.replace_conv_transpose(layer)
    for needs_gradient in (True, False):
        counts = []
        for module in (layer, replaced):
            x = torch.randn(2, 4, *size, dtype=dtype, requires_grad=needs_gradient)
            with FlopCounterMode(display=False) as counter:
                output = module(x)
                forward = counter.get_total_flops()
                output.sum().backward()
            counts.append((forward, counter.get_total_flops()))
        assert counts[0] == counts[1] > (0, 0)


@pytest.mark.parametrize("padding", [1, 2])
def test_flops_where_input_pixels_are_left_out(padding: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.randn(2, 4, 5, 6), torch.randn(4, 3, 1, 1)
    counts = []
    for function in (F.conv_transpose2d, fs.conv_transpose2d):
        with FlopCounterMode(display=False) as counter:
            function(x, weight, None, 1, padding)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# ---- opcheck -----------------------------------------------------------------------------------------------

PLAIN = Geometry(2, 2)
UNEVEN = Geometry(2, 1, 1, 1, 1, 0, 2, 1, 1, 2, 2, 1, 0, 0, 1, 1)  # every number somewhere unlike its default
STRIDED = Geometry(1, 3, 2, 1, pad_left=1)


def operator_tensors(geometry: Geometry, channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (2, 2 * geometry.groups, 5, 6), (12, 2, 3, 2)
    return conv_tensors(*shapes, dtype=torch.float32, channels_last=channels_last)  # type: ignore[return-value]


@tiered(
    ("geometry", "channels_last", "activation", "clamp_max"),
    [
        (PLAIN, False, None, 1.0),
        (UNEVEN, False, "gelu", 0.5),
        (UNEVEN, True, None, float("inf")),
        (STRIDED, True, "relu", float("inf")),
    ],
    fast=[(UNEVEN, True, None, float("inf"))],
)
def test_opcheck_forward(
    geometry: Geometry, channels_last: bool, activation: str | None, clamp_max: float
) -> None:
    tensors = [tensor.requires_grad_() for tensor in operator_tensors(geometry, channels_last)]
    epilogue = Epilogue(ACTIVATIONS[activation], clamp_max=clamp_max)
    torch.library.opcheck(ops.subpixel_conv2d, (*tensors, None, None, tuple(geometry), *epilogue))


# Of a weight of 4x3 taps and stride (3, 2): the kernel is padded to two taps of 3x2 phases.
TRANSPOSED = Geometry(3, 2, pad_top=1, pad_left=1, kernel_pad_h=2, kernel_pad_w=1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_forward_of_a_transposed_weight(channels_last: bool) -> None:
    x, weight, bias = operator_tensors(PLAIN, channels_last)[0], torch.randn(2, 5, 4, 3), torch.randn(5)
    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    arguments = (*tensors, None, None, tuple(TRANSPOSED), *Epilogue(), True)
    # Not with symbolic sizes: traced calls split the weight themselves.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static")
    torch.library.opcheck(ops.subpixel_conv2d, arguments, test_utils=checks)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_gradients_of_a_transposed_weight(activation: str | None) -> None:
    """Of the raw operator, first and second ones; silu's are not read from the output."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 2, 5, 4), (2, 5, 4, 3), (5,))
    ]
    function = getattr(torch.nn.functional, activation) if activation else torch.clone
    epilogue = Epilogue(ACTIVATIONS[activation])
    x, weight, bias = leaves
    expected = function(torch.nn.functional.conv_transpose2d(x, weight, bias, (3, 2))[:, :, :15, :8])
    found = ops.subpixel_conv2d(x, weight, bias, None, None, tuple(TRANSPOSED), *epilogue, True)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=generator, dtype=torch.float64).requires_grad_()
    first, truth = (torch.autograd.grad(y, leaves, grad, create_graph=True) for y in (found, expected))
    torch.testing.assert_close(first, truth)
    again, true_again = (
        torch.autograd.grad(sum(g.square().sum() for g in gradients), [*leaves, grad], allow_unused=True)
        for gradients in (first, truth)
    )
    torch.testing.assert_close(again, true_again)


@pytest.mark.parametrize(("geometry", "channels_last"), [(PLAIN, False), (UNEVEN, True)])
def test_opcheck_gradients(geometry: Geometry, channels_last: bool) -> None:
    x, weight, _ = operator_tensors(geometry, channels_last)
    output = ops.subpixel_conv2d(x, weight, None, None, None, tuple(geometry), *Epilogue())
    torch.library.opcheck(
        ops.subpixel_conv2d_input_grad,
        (output, weight, x.shape[2], x.shape[3], tuple(geometry), channels_last),
    )
    torch.library.opcheck(ops.subpixel_conv2d_weight_grad, (output, x, 3, 2, tuple(geometry)))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("order", "channels_last"), [(0, False), (1, True), (0, True)])
def test_opcheck_shuffle(order: int, channels_last: bool, inverse: bool) -> None:
    x, _, _ = conv_tensors((2, 12, 4, 9), dtype=torch.float32, channels_last=channels_last)
    torch.library.opcheck(ops.shuffle, (x.requires_grad_(), 2, 3, order, inverse))
