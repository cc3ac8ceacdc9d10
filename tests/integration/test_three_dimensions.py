# SPDX-License-Identifier: BSD-3-Clause
"""conv_transpose3d and its module against PyTorch's."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from conftest import needs_cpu_library
from torch import Tensor, nn
from torch.autograd import forward_ad

import fused_subpixel as fs
from fused_subpixel import functional_3d
from fused_subpixel.ops.library import libraries


@pytest.fixture(params=["auto", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Not "cpu", which refuses what it cannot compute slice by slice."""
    with fs.use_backend(request.param):
        yield request.param


def integers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).double()


class Options(dict[str, Any]):
    """Options of a call, short in the name of a test."""

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.items())


def random_call(draw: random.Random) -> tuple[list[Tensor | None], Options]:
    """Input, weight and bias of small integers, and options; most can be computed slice by slice."""
    while True:
        groups, depth = draw.choice((1, 1, 1, 2, 3)), draw.choice((1, 2, 2, 3))
        kernel = depth, draw.randint(1, 5), draw.randint(1, 4)
        stride = depth if draw.random() < 0.85 else draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 3)
        padding = int(draw.random() < 0.1), draw.randint(0, 2), draw.randint(0, 2)
        extra = int(draw.random() < 0.1), draw.randint(0, stride[1] - 1), draw.randint(0, stride[2] - 1)
        dilation = draw.choice((1, 1, 1, 1, 1, 1, 1, 2))
        size = [draw.randint(1, 9) for _ in range(3)]
        output = [
            (n - 1) * s - 2 * p + dilation * (k - 1) + e + 1
            for n, s, p, k, e in zip(size, stride, padding, kernel, extra, strict=True)
        ]
        if min(output) < 1 or extra[0] >= max(stride[0], dilation):
            continue
        ci, c = groups * draw.choice((1, 2, 19)), groups * draw.choice((1, 3, 16))
        tensors = [integers(draw.choice((1, 2)), ci, *size), integers(ci, c // groups, *kernel)]
        bias = integers(c) if draw.random() < 0.7 else None
        options = Options(stride=stride, padding=padding, output_padding=extra, groups=groups)
        return [*tensors, bias], Options(options, dilation=dilation)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in other places of memory."""
    if layout == "transposed":
        return tensor.transpose(1, 3).contiguous().transpose(1, 3)
    if layout == "strided":
        view = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)[..., ::2]
        return view.copy_(tensor)
    last = layout == "channels_last_3d"
    return tensor.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)


LAYOUTS = ("contiguous", "channels_last_3d", "transposed", "strided")


@pytest.mark.usefixtures("poisoned_outputs", "one_thread")
def test_exact_on_integers(backend: str) -> None:
    """Outputs, their strides, and all gradients."""
    draw = random.Random(5)
    torch.manual_seed(5)
    by_slices = 0
    for number in range(60):
        tensors, options = random_call(draw)
        layouts = LAYOUTS[number % 4], LAYOUTS[number // 4 % 2]
        given = [
            laid_out(t.float(), name) for t, name in zip(tensors[:2], layouts, strict=True) if t is not None
        ]
        bias = None if tensors[2] is None else tensors[2].float()
        expected = F.conv_transpose3d(*given, bias, **options)
        exact = F.conv_transpose3d(*tensors, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            found = fs.conv_transpose3d(*given, bias, **options)
        by_slices += "cpu library" in fs.explain(fs.conv_transpose3d, *given, bias, **options).forward
        assert found.double().equal(exact), (layouts, options)
        assert found.stride() == expected.stride(), (layouts, options)
        assert fs.conv_transpose3d(given[0][0], given[1], bias, **options).equal(found[0])
        leaves = [[t.clone().requires_grad_() for t in (*given, bias) if t is not None] for _ in range(2)]
        grad = torch.randint(-2, 3, exact.shape).float()
        results = []
        for function, mine in zip((fs.conv_transpose3d, F.conv_transpose3d), leaves, strict=True):
            output = function(mine[0], mine[1], mine[2] if bias is not None else None, **options)
            results.append([output.detach(), *torch.autograd.grad(output, mine, grad)])
        assert all(a.equal(b) for a, b in zip(*results, strict=True)), (layouts, options)
    assert by_slices > 15 if backend == "auto" and libraries["cpu"].loaded else by_slices == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, layout: str, backend: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 20, 5, 6, 7), (20, 6, 2, 4, 2), (6,)))
    found = fs.conv_transpose3d(laid_out(x, layout), weight, bias, 2, (0, 1, 0))
    exact = F.conv_transpose3d(x.double(), weight.double(), bias.double(), 2, (0, 1, 0))
    assert found.dtype == dtype
    bound = 8 * torch.finfo(dtype).eps * exact.abs().max().item()
    assert (found.double() - exact).abs().max() <= bound


@pytest.mark.parametrize("bytes_of_group", [1, 1 << 12, 1 << 40])
def test_groups_of_slices(bytes_of_group: int, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """However many are computed at a time."""
    monkeypatch.setattr(functional_3d, "_GROUP_BYTES", bytes_of_group)
    monkeypatch.setattr(functional_3d, "_GROUP_VOXELS", 1)
    x, weight, bias = integers(2, 4, 7, 3, 5), integers(4, 3, 3, 2, 4), integers(3)
    with torch.no_grad():
        found = fs.conv_transpose3d(x, weight, bias, (3, 2, 2), (0, 0, 1))
    assert found.equal(F.conv_transpose3d(x, weight, bias, (3, 2, 2), (0, 0, 1)))


@needs_cpu_library
def test_demanded_kernels_take_any_layout() -> None:
    x, weight = integers(2, 6, 3, 4, 5).float(), integers(6, 5, 2, 2, 2).float()
    expected = F.conv_transpose3d(x, weight, None, 2)
    for layout, requires_grad in itertools.product(LAYOUTS, (False, True)):
        given = laid_out(x, layout).detach().requires_grad_(requires_grad)
        found = fs.conv_transpose3d(given, weight, None, 2, backend="cpu")
        assert found.equal(expected)
        plain = F.conv_transpose3d(given, weight, None, 2)
        assert found.stride() == plain.stride()
    with pytest.raises(ValueError, match="backend 'cpu' cannot run here: in depth the kernel has 2 taps"):
        fs.conv_transpose3d(x, weight, None, 1, backend="cpu")


def test_every_instruction_set(isa: int) -> None:
    x, weight, bias = (t.float() for t in (integers(1, 24, 4, 5, 9), integers(24, 18, 2, 2, 2), integers(18)))
    assert fs.conv_transpose3d(x, weight, bias, 2).equal(F.conv_transpose3d(x, weight, bias, 2))


def test_no_volumes(backend: str) -> None:
    weight = torch.randn(4, 3, 2, 2, 2)
    for shape in ((0, 4, 3, 3, 3), (0, 4, 0, 3, 3)):
        x = torch.randn(shape, requires_grad=True)
        found = fs.conv_transpose3d(x, weight, None, 2)
        assert found.shape == (0, 3, 2 * shape[2], 6, 6)
        found.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape


def test_gradients_of_gradients(backend: str) -> None:
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((1, 2, 2, 2, 3), (2, 2, 2, 2, 3), (2,))
    )
    run: Callable[..., Tensor] = lambda *t: fs.conv_transpose3d(*t, 2, (0, 0, 1))  # noqa: E731
    torch.autograd.gradcheck(run, (x, weight, bias), check_batched_grad=True, fast_mode=True)
    torch.autograd.gradgradcheck(run, (x, weight, bias), fast_mode=True)


# ---- in PyTorch --------------------------------------------------------------------------------------------


def operands() -> list[Tensor]:
    return [torch.randn(s, dtype=torch.float64) for s in ((2, 4, 3, 4, 5), (4, 3, 2, 2, 2), (3,))]


def test_transforms_and_autocast() -> None:
    tensors = operands()
    expected = F.conv_transpose3d(*tensors, 2)
    mapped = torch.vmap(lambda x: fs.conv_transpose3d(x, *tensors[1:], 2))
    torch.testing.assert_close(mapped(tensors[0]), expected)
    torch.testing.assert_close(
        torch.func.grad(lambda t: fs.conv_transpose3d(t, *tensors[1:], 2).square().sum())(tensors[0]),
        torch.func.grad(lambda t: F.conv_transpose3d(t, *tensors[1:], 2).square().sum())(tensors[0]),
    )
    x, weight, bias = (t.float() for t in tensors)
    with torch.autocast("cpu", torch.bfloat16):
        for given in ((x, weight, bias), (x, weight.bfloat16(), None)):
            found, plain = fs.conv_transpose3d(*given, 2), F.conv_transpose3d(*given, 2)
            assert found.dtype == plain.dtype == torch.bfloat16
            torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_devices_without_kernels(dtype: torch.dtype) -> None:
    x, weight, _ = (t.to(device="meta", dtype=dtype) for t in operands())
    assert fs.conv_transpose3d(x, weight, None, 2).shape == (2, 3, 6, 8, 10)
    told = fs.explain(fs.conv_transpose3d, x, weight, None, 2)
    assert (told.backend, told.forward) == ("reference", "PyTorch's conv_transpose3d")


def test_forward_mode() -> None:
    x, weight, bias = operands()
    tangents = []
    for function in (fs.conv_transpose3d, F.conv_transpose3d):
        with torch.no_grad(), forward_ad.dual_level():
            output = function(forward_ad.make_dual(x, x.sin()), weight, bias, 2)
            tangents.append(forward_ad.unpack_dual(output).tangent)
    torch.testing.assert_close(*tangents)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.flat = nn.ConvTranspose3d(4, 4, 2, 2), nn.ConvTranspose3d(4, 4, (1, 2, 2), (1, 2, 2))
        self.smooth, self.deep = nn.ConvTranspose3d(4, 2, 3, 1, 1), nn.ConvTranspose3d(2, 2, 2, 2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(self.smooth(self.flat(self.up(x)).relu()))


@pytest.mark.parametrize("engine", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compiled_and_exported(engine: str) -> None:
    plain = Decoder().double().eval()
    model, x = fs.replace_conv_transpose(plain), torch.randn(1, 4, 3, 4, 5, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=engine, fullgraph=True)
    for depth in (3, 5, 6):
        leaves = [torch.randn(1, 4, depth, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(1)]
        torch.testing.assert_close(compiled(*leaves), plain(*leaves))
        torch.testing.assert_close(
            torch.autograd.grad(compiled(*leaves).square().sum(), leaves),
            torch.autograd.grad(plain(*leaves).square().sum(), leaves),
        )
    program = torch.export.export(model, (x,), dynamic_shapes=({2: torch.export.Dim.AUTO},))
    torch.testing.assert_close(program.module()(x[:, :, :2]), plain(x[:, :, :2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.trace(model, (x,))(x), plain(x))


class Tagged(Tensor):
    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_handlers_get_the_function_itself(backend: str) -> None:
    x, weight, bias = operands()
    found = fs.conv_transpose3d(x.as_subclass(Tagged), weight, bias, 2)
    assert Tagged.seen[0] is fs.conv_transpose3d
    assert type(found) is Tagged
    with torch._C.DisableTorchFunctionSubclass():
        torch.testing.assert_close(found.as_subclass(Tensor), F.conv_transpose3d(x, weight, bias, 2))


@needs_cpu_library
def test_explain() -> None:
    x, weight, bias = operands()
    told = fs.explain(fs.conv_transpose3d, x, weight, bias, 2)
    assert told.backend == "cpu"
    assert "cpu library" in told.forward
    last = x.contiguous(memory_format=torch.channels_last_3d)
    for arguments, backend, words in (
        ((x, weight, bias), None, "in depth the kernel has 2 taps and a stride of 1"),
        ((x, weight, bias, 2, 1), None, "there is padding in depth"),
        ((x, weight, bias, 2, 0, (1, 0, 0)), None, "there is padding in depth"),
        ((x, weight, bias, 2, 0, 0, 1, 2), None, "dilation (2, 2, 2): no sub-pixel convolution"),
        ((last, weight, bias, 2), None, "PyTorch is faster in channels_last_3d"),
        ((x, weight, bias, 2), "reference", "the reference runs"),
    ):
        told = fs.explain(fs.conv_transpose3d, *arguments, backend=backend)
        assert told.backend == "reference"
        assert told.forward == "PyTorch's conv_transpose3d"
        assert words in told.candidates[1].reason
        with fs.use_backend(backend or "auto"):
            found = fs.conv_transpose3d(*arguments)
        torch.testing.assert_close(found, F.conv_transpose3d(*arguments))
    with pytest.raises(TypeError, match=r"or fused_subpixel\.conv_transpose3d, got .*conv_transpose3d"):
        fs.explain(F.conv_transpose3d, x, weight)


# ---- wrong arguments ---------------------------------------------------------------------------------------

X, UP = torch.zeros(2, 4, 3, 5, 6), torch.zeros(4, 3, 2, 2, 2)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": X[0, 0]}, ValueError, "input: expected [N, Ci, D, H, W] or [Ci, D, H, W], got [3, 5, 6]"),
    ({"input": X[None]}, ValueError, "input: expected [N, Ci, D, H, W] or [Ci, D, H, W], got [1, 2, 4, 3"),
    ({"input": [1.0]}, TypeError, "input: expected a torch.Tensor, got [1.0] of type list"),
    ({"input": np.zeros((2, 4))}, TypeError, "input: expected a torch.Tensor, got values of shape [2, 4]"),
    ({"input": X.to_sparse()}, TypeError, "input: expected a dense tensor, of layout torch.strided"),
    ({"input": X.int()}, TypeError, "input: expected dtype"),
    ({"input": X[:, :3]}, ValueError, "input: expected 4 channels (weight [4, 3, 2, 2, 2]), got [2, 3"),
    ({"input": X.movedim(1, 4)}, ValueError, "channels come before depth, height and width: permute"),
    ({"input": X[..., :0]}, ValueError, "input: expected a depth, a height and a width of at least 1"),
    ({"input": X[:, :, :0]}, ValueError, "input: expected a depth, a height and a width of at least 1"),
    ({"weight": UP[0]}, ValueError, "weight: expected [Ci, C/groups, K_d, K_h, K_w], got [3, 2, 2, 2]"),
    ({"weight": UP[..., :0]}, ValueError, "weight: expected sizes of at least 1, got [4, 3, 2, 2, 0]"),
    ({"weight": UP.double()}, TypeError, "weight: expected dtype torch.float32 as input has"),
    ({"weight": 3}, TypeError, "weight: expected a torch.Tensor, got 3"),
    ({"bias": torch.zeros(4)}, ValueError, "bias: expected [3], one value per channel of the output"),
    ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor, got 1.0"),
    ({"stride": (2, 2)}, ValueError, "stride: expected an int or three of them (depth, vert"),
    ({"stride": 2.0}, TypeError, "stride: expected an int, got 2.0 of type float"),
    ({"stride": (0, 1, 1)}, ValueError, "stride: expected at least 1"),
    ({"padding": -1}, ValueError, "padding: expected at least 0"),
    (
        {"padding": (0, 9, 0)},
        ValueError,
        "padding: expected what leaves an output of at least one voxel, got (0, 9, 0), an output of 6x-8x12",
    ),
    (
        {"output_padding": (0, 2, 0)},
        ValueError,
        "output_padding: expected less than stride (2, 2, 2) or dilation (1, 1, 1), got (0, 2, 0)",
    ),
    ({"dilation": ()}, ValueError, "dilation: expected an int or three of them"),
    ({"groups": 3}, ValueError, "weight: expected a first size divisible by groups=3, got [4, 3, 2, 2, 2]"),
    ({"backend": "fastest"}, ValueError, "backend: expected one of"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), WRONG, ids=str)
def test_refuses(changes: Any, error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fs.conv_transpose3d(**{"input": X, "weight": UP, "stride": 2, **changes})


# ---- the module --------------------------------------------------------------------------------------------


def test_module_is_a_drop_in(backend: str) -> None:
    arguments: Any = (6, 4, (2, 3, 4), (2, 2, 3), (0, 1, 1))
    torch.manual_seed(1)
    plain = nn.ConvTranspose3d(*arguments, output_padding=(0, 1, 0), groups=2)
    torch.manual_seed(1)
    fused = fs.ConvTranspose3d(*arguments, output_padding=(0, 1, 0), groups=2)
    assert isinstance(fused, nn.ConvTranspose3d)
    assert fused.weight.equal(plain.weight)
    plain.load_state_dict(copy.deepcopy(fused).state_dict(), strict=True)
    x = torch.randn(2, 6, 3, 4, 5)
    for module in (fused, pickle.loads(pickle.dumps(fused)), fs.replace_conv_transpose(plain)):
        assert type(module) is fs.ConvTranspose3d
        torch.testing.assert_close(module(x), plain(x))
        torch.testing.assert_close(module(x[0]), plain(x[0]))
        for size in ([6, 7, 14], [6, 8, 15], [2, 4, 6, 7, 16]):
            torch.testing.assert_close(module(x, size), plain(x, size))
    with pytest.raises(ValueError, match="requested an output size"):
        fused(x, [90, 1, 1])
    assert repr(fused) == repr(plain)


def test_where_pytorchs_forward_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.ConvTranspose3d(3, 2, 2, 2)
    fused = fs.replace_conv_transpose(plain)
    x = torch.randn(2, 3, 2, 3, 4)
    expected = plain(x)
    for owner, name in ((nn.ConvTranspose3d, "forward"), (F, "conv_transpose3d")):
        function = getattr(owner, name)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, function=function: 2 * function(*args))
            assert fused(x).equal(2 * expected)
        torch.testing.assert_close(fused(x), expected)
    graph = torch.fx.symbolic_trace(nn.Sequential(fused))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(graph(x), expected)
    fused.qconfig = "any"  # type: ignore[assignment]
    assert type(fused) is nn.ConvTranspose3d


def test_replace_and_restore() -> None:
    plain = Decoder().eval()
    x = torch.randn(1, 4, 3, 4, 5)
    fused, report = fs.replace_conv_transpose(plain, return_report=True)
    assert [(site.path, site.layers, site.status) for site in report] == [
        ("up", "ConvTranspose3d(4, 4, 2x2x2, stride 2)", "replaced"),
        ("flat", "ConvTranspose3d(4, 4, 1x2x2, stride (1, 2, 2))", "replaced"),
        ("smooth", "ConvTranspose3d(4, 2, 3x3x3, stride 1)", "left alone"),
        ("deep", "ConvTranspose3d(2, 2, 2x2x2, stride 2)", "left alone"),
    ]
    assert report[0].reason == "runs as conv_transpose3d of this package"
    assert report[2].reason == "in depth the kernel has 3 taps and a stride of 1"
    assert report[3].reason == "dilation (2, 2, 2): no sub-pixel convolution"
    torch.testing.assert_close(fused(x), plain(x))
    restored = fs.restore(fused)
    assert [type(m) for m in restored.modules()] == [type(m) for m in plain.modules()]
    assert restored(x).equal(plain(x))


@pytest.mark.usefixtures("one_thread", "fused_is_faster")
def test_accelerate() -> None:
    plain = Decoder().eval()
    x = torch.randn(1, 4, 3, 4, 5)
    fused, report = fs.accelerate(plain, (x,), seconds=0.5, progress=False, return_report=True)
    assert [site.path for site in report.replaced] == ["up", "flat"]
    assert type(fused.up) is fs.ConvTranspose3d
    torch.testing.assert_close(fused(x), plain(x))
