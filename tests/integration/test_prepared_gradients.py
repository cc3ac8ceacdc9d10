# SPDX-License-Identifier: BSD-3-Clause
"""PyTorch's convolution backward on what ``unshuffle_reduce`` prepares: the path of CUDA, run on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import pytest
import torch
from cases import Case, variant
from gradients import RECOVERABLE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fused_subpixel as fs
from fused_subpixel import reference
from fused_subpixel.dispatch.call import BackwardPlan
from fused_subpixel.ops import autograd, fallback, gradients
from fused_subpixel.ops.geometry import Geometry

OPERATOR = torch.ops.fused_subpixel.unshuffle_reduce.default
NOT_OURS = BackwardPlan(False, False)
SUBSETS = [subset for subset in itertools.product((False, True), repeat=3) if any(subset)]
CASES = (
    Case("one channel", (2, 3, 4, 5), (4, 3, 3, 3), padding=(1, 1, 1, 1)),
    Case("ragged", (2, 5, 6, 5), (12, 5, 3, 3), padding=(1, 1, 1, 1)),
    Case(
        "ragged dcr, cropped", (1, 4, 5, 5), (30, 4, 3, 3), (3, 2), padding=(1, 1, 1, 1), crop=(1, 0, 2, 1),
        order="dcr",
    ),
    Case("cropped crd", (2, 4, 5, 6), (30, 4, 2, 3), (2, 3), padding=(1, 1, 1, 1), crop=(2, 1, 0, 3)),
    Case("strided", (1, 8, 9, 8), (32, 8, 3, 3), stride=(2, 3), padding=(1, 1, 1, 1)),
    Case("asymmetric padding", (2, 6, 7, 6), (20, 6, 3, 2), padding=(2, 0, 1, 1), order="dcr"),
    Case(
        "strided, dilated, asymmetric", (1, 3, 9, 9), (16, 3, 2, 3), (4, 1), stride=(1, 2), dilation=(2, 1),
        padding=(0, 1, 2, 0),
    ),
    Case("no shuffle", (1, 3, 6, 6), (5, 3, 3, 3), (1, 1), padding=(1, 1, 1, 1)),
)  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[Any, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func] = self.counts.get(func, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["ragged", "cropped crd"])
def test_rows_go_back_where_they_came_from(name: str) -> None:
    """PyTorch's backward, which sorts the rows of the weight by phases in channels_last, or not."""
    case = next(case for case in CASES if case.name == name)
    tensors = cases.randoms(case, torch.float64)
    grad = torch.randn(case.output, dtype=torch.float64)
    shapes, needed = (torch.Size(case.input), torch.Size(case.weight)), (True, True, True)
    found = [
        gradients.pytorch_convolution_gradients(
            grad.contiguous(memory_format=layout),
            gradients.Operands(
                tensors.input.contiguous(memory_format=layout),
                tensors.weight.contiguous(memory_format=layout),
                case.geometry, *shapes, needed,
            ),
        )
        for layout in (torch.channels_last, torch.contiguous_format)
    ]  # fmt: skip
    for channels_last, contiguous in zip(*found, strict=True):
        assert channels_last is not None
        torch.testing.assert_close(channels_last, contiguous)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors take the path, by the operator's plain implementation."""

    def has_reducing_unshuffle(grad: Tensor, output: Tensor | None, geometry: Geometry) -> bool:
        fits = gradients.fits_reducing_unshuffle(grad.shape, geometry)
        return fits and not torch.is_grad_enabled() and geometry.groups == 1

    monkeypatch.setattr(gradients, "has_reducing_unshuffle", has_reducing_unshuffle)


def tensors_of(case: Case, channels_last: bool) -> tuple[cases.Tensors, Tensor, Tensor | None]:
    """Those of the forward pass, the gradient of the output, and the output where an activation needs it."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensors = cases.randoms(case, torch.float64).to(torch.float64, layout)
    output = cases.plain(case, tensors).contiguous(memory_format=layout)
    grad = torch.randn(case.output, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tensors, grad.contiguous(memory_format=layout), output if case.activation else None


def gradients_of(
    case: Case, channels_last: bool, needed: tuple[bool, bool, bool], plan: BackwardPlan
) -> tuple[Tensor | None, ...]:
    tensors, grad, output = tensors_of(case, channels_last)
    with torch.no_grad():
        operands = gradients.Operands(
            tensors.input if needed[1] else None, tensors.weight if needed[0] else None,
            case.geometry, case.input, case.weight, needed,
        )  # fmt: skip
        return gradients.convolution_gradients(grad, output, case.epilogue, operands, channels_last, plan)


@pytest.mark.parametrize("needed", SUBSETS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_subset_of_gradients(
    case: Case, needed: tuple[bool, bool, bool], request: pytest.FixtureRequest
) -> None:
    for activation, channels_last in itertools.product((None, "leaky_relu"), (False, True)):
        changed = variant(case, activation=activation)
        arguments = changed, channels_last, needed, NOT_OURS
        expected = gradients_of(*arguments)
        request.getfixturevalue("as_on_cuda")
        with Counter() as counter:
            found = gradients_of(*arguments)
        assert counter.counts[OPERATOR] == 1
        assert [g is not None for g in found] == list(needed)
        torch.testing.assert_close(found, expected)
        shapes = case.input, case.weight, case.weight[:1]
        assert all(g is None or g.shape == shape for g, shape in zip(found, shapes, strict=True))


@pytest.mark.parametrize("plan", [BackwardPlan(*ours) for ours in itertools.product((False, True), repeat=2)])
@pytest.mark.parametrize("activation", (None, *RECOVERABLE))
@pytest.mark.parametrize("case", CASES[1:4], ids=str)
def test_beside_our_operators(
    case: Case, activation: str | None, plan: BackwardPlan, request: pytest.FixtureRequest
) -> None:
    """One of the gradients, or both, may be an operator's: each applies the activation's gradient once."""
    changed = variant(case, activation=activation)
    arguments = changed, True, (True, True, True), plan
    expected = gradients_of(*arguments)
    request.getfixturevalue("as_on_cuda")
    with Counter() as counter:
        found = gradients_of(*arguments)
    assert counter.counts.get(OPERATOR, 0) == (0 if plan.input_grad and plan.weight_grad else 1)
    torch.testing.assert_close(found, expected)


def run(case: Case, leaves: list[Tensor]) -> Tensor:
    options = case.options()
    del options["clamp"]
    x, weight, bias = leaves
    return fs.subpixel_conv2d(
        x,
        weight,
        bias,
        case.upscale,
        padding=1,
        **{k: options[k] for k in ("channel_order", "activation", "negative_slope")},
    )


@pytest.fixture
def never_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "plan_backward", lambda *_: NOT_OURS)
    chosen = gradients.convolution_gradients
    monkeypatch.setattr(
        autograd, "convolution_gradients", lambda *arguments: chosen(*arguments[:5], NOT_OURS)
    )


@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize("activation", (None, "tanh"))
@pytest.mark.parametrize("order", ("crd", "dcr"))
@pytest.mark.usefixtures("as_on_cuda", "never_ours")
def test_through_autograd(order: str, activation: str | None, compiled: bool) -> None:
    case = variant(CASES[1], order=order, activation=activation)
    tensors, grad, _ = tensors_of(case, True)
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    truth = torch.autograd.grad(cases.plain(case, cases.Tensors(*leaves)), leaves, grad)
    function = torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run
    output = function(case, leaves)
    with Counter() as counter:
        found = torch.autograd.grad(output, leaves, grad)
    assert counter.counts[OPERATOR] == 1
    torch.testing.assert_close(found, truth)


@pytest.mark.full
@pytest.mark.usefixtures("as_on_cuda", "never_ours")
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiled_for_all_sizes() -> None:
    """One graph serves several: no size is written into it."""
    case = variant(CASES[1], activation="tanh")
    torch.compiler.reset()  # what was compiled for other tests
    function = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((2, 5, 6, 7), (4, 5, 9, 8)):  # no two alike, which would be taken for one
        changed = variant(case, input=size)
        tensors, grad, _ = tensors_of(changed, True)
        leaves = [t.detach().requires_grad_() for t in tensors[:3]]
        truth = torch.autograd.grad(cases.plain(changed, cases.Tensors(*leaves)), leaves, grad)
        output = function(case, leaves)
        with Counter() as operators:
            found = torch.autograd.grad(output, leaves, grad)
        assert operators.counts[OPERATOR] == 1
        torch.testing.assert_close(found, truth)


@pytest.mark.usefixtures("as_on_cuda", "never_ours")
def test_gradients_of_gradients_are_pytorchs() -> None:
    case = variant(CASES[1], activation="tanh")
    tensors, grad, _ = tensors_of(case, True)
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    grad.requires_grad_()
    with Counter() as counter:
        first = torch.autograd.grad(run(case, leaves), leaves, grad, create_graph=True)
    assert OPERATOR not in counter.counts
    truth = torch.autograd.grad(cases.plain(case, cases.Tensors(*leaves)), leaves, grad, create_graph=True)
    both = [
        torch.autograd.grad(sum(g.square().sum() for g in some), [*leaves, grad]) for some in (first, truth)
    ]
    torch.testing.assert_close(*both)


@pytest.mark.usefixtures("as_on_cuda", "never_ours")
def test_batched_gradients() -> None:
    case = variant(CASES[1], activation="relu")
    tensors, grad, _ = tensors_of(case, True)
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    output = run(case, leaves)
    grads = torch.stack([grad, 2 * grad, grad.flip(3)])
    found = torch.autograd.grad(output, leaves, grads, is_grads_batched=True, retain_graph=True)
    for index, one in enumerate(grads):
        torch.testing.assert_close(
            tuple(g[index] for g in found), torch.autograd.grad(output, leaves, one, retain_graph=True)
        )


def test_cpu_tensors_and_groups_do_not_take_the_path() -> None:
    grad = torch.zeros(1, 3, 4, 4)
    with torch.no_grad():
        assert not gradients.has_reducing_unshuffle(grad, None, Geometry())


class _OnCuda:
    """What the predicate asks of a gradient."""

    is_cuda = True

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float16, channels_last: bool = True) -> None:
        self.shape, self.dtype, self.channels_last = shape, dtype, channels_last


def test_which_gradients_take_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Any = gradients.has_reducing_unshuffle
    monkeypatch.setattr(gradients, "is_channels_last", lambda grad: grad.channels_last)
    half, wide = _OnCuda(2, 3, 8, 8), _OnCuda(2, 3, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        monkeypatch.setattr(gradients.libraries["cuda"], "problem", None)
        assert taken(half, None, Geometry())
        assert taken(half, half, Geometry())
        assert not taken(half, wide, Geometry())
        assert not taken(_OnCuda(2, 3, 8, 8, channels_last=False), None, Geometry())
        assert not taken(half, None, Geometry(groups=3))
        assert not taken(_OnCuda(2, 3, 8, 8, dtype=torch.complex64), None, Geometry())
        assert not taken(_OnCuda(1 << 13, 1, 512, 512), None, Geometry())
        assert not taken(_OnCuda(1, 1 << 12, 512, 512), None, Geometry())
        assert taken(_OnCuda(1, 1 << 11, 512, 512), None, Geometry())
        assert not taken(_OnCuda(1, 1 << 11, 512, 512), None, Geometry(crop_top=512))
        monkeypatch.setattr(gradients.libraries["cuda"], "problem", "not built")
        assert not taken(half, None, Geometry())
    monkeypatch.setattr(gradients.libraries["cuda"], "problem", None)
    with torch.enable_grad():
        assert not taken(half, None, Geometry())


# ---- the operator in plain PyTorch -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_plain_operator(case: Case, dtype: torch.dtype) -> None:
    grad = torch.randint(-3, 4, case.output, generator=torch.Generator().manual_seed(1)).to(dtype)
    low, bias = OPERATOR(grad, tuple(case.geometry))
    channels, vector = case.weight[0], 16 // grad.element_size()
    expected = reference.uncrop_and_unshuffle(grad, case.geometry)
    assert low.shape == (grad.shape[0], -(-channels // vector) * vector, *case.low)
    assert low.is_contiguous(memory_format=torch.channels_last)
    assert low[:, :channels].equal(expected)
    assert not low[:, channels:].any()
    assert bias.equal(expected.double().sum((0, 2, 3)).to(dtype))


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_opcheck(case: Case, channels_last: bool) -> None:
    _, grad, output = tensors_of(variant(case, activation="sigmoid"), channels_last)
    torch.library.opcheck(OPERATOR, (grad.float(), tuple(case.geometry)))
    assert output is not None
    torch.library.opcheck(OPERATOR, (grad.float(), tuple(case.geometry), output.float(), 7))


def test_plain_operator_checks_the_output() -> None:
    grad = torch.zeros(CASES[0].output)
    with pytest.raises(ValueError, match="output goes with an activation"):
        fallback._plain_unshuffle_reduce(grad, CASES[0].geometry, grad)
