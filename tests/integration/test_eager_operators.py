# SPDX-License-Identifier: BSD-3-Clause
"""The operators of eager calls, which take all options in one tensor: what they compute, who sees them."""

from __future__ import annotations

import itertools
import os
import threading
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import Case, variant
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fused_subpixel as fs
from fused_subpixel.dispatch.call import eager_options, read_eager_options
from fused_subpixel.dispatch.choose import prepare_cached
from fused_subpixel.ops import fallback
from fused_subpixel.ops.geometry import Problem

ops = torch.ops.fused_subpixel
SQUARE = Case("square", (2, 4, 6, 5), (8, 4, 3, 3), padding=(1, 1, 1, 1))
CASES = (
    SQUARE,
    variant(SQUARE, activation="tanh"),
    variant(SQUARE, activation="leaky_relu"),
    variant(SQUARE, residual="nearest", clamp=(-0.5, None)),
    Case("uneven", (1, 3, 7, 6), (12, 3, 2, 3), (3, 2), padding=(2, 0, 1, 1), crop=(1, 0, 2, 1), order="dcr"),
)


def problem_of(case: Case, dtype: torch.dtype) -> Problem:
    return Problem(
        case.geometry, case.epilogue, case.input, case.weight, case.output, dtype, torch.device("cpu")
    )


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_public_operators_compute_the_same_bits(
    case: Case, dtype: torch.dtype, channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensors = cases.randoms(case, dtype).to(dtype, layout)
    problem = problem_of(case, dtype)
    options, numbers = eager_options(problem), tuple(case.geometry)
    output = ops.subpixel_conv2d(*tensors, numbers, *case.epilogue.numbers())
    found = ops._subpixel_conv2d(*tensors, options)
    assert found.equal(output) and found.stride() == output.stride()
    plain = fallback.PLAIN_KERNELS["_subpixel_conv2d"](*tensors, options)
    torch.testing.assert_close(found, plain, rtol=0.05, atol=0.05)

    if not case.epilogue.has_grad_from_output(tensors.residual is not None):
        return
    grad = torch.randn(case.output, generator=torch.Generator().manual_seed(1)).to(dtype)
    saved = (output, case.epilogue.activation, case.epilogue.negative_slope) if case.activation else ()
    by_input = ops.subpixel_conv2d_input_grad(
        grad, tensors.weight, *case.input[2:], numbers, channels_last, *saved
    )
    expected = (
        by_input,
        *ops.subpixel_conv2d_weight_grad(grad, tensors.input, *case.weight[2:], numbers, *saved),
    )
    for wanted in range(4):
        need_input, need_weight = wanted & 1, wanted & 2
        arguments = (
            grad, tensors.input if need_weight else None, tensors.weight if need_input else None,
            output if case.activation else None, options, wanted + 4 * channels_last,
        )  # fmt: skip
        got = ops._subpixel_conv2d_backward(*arguments)
        plainly = fallback.PLAIN_KERNELS["_subpixel_conv2d_backward"](*arguments)
        for gradient, truth, by_pytorch, need in zip(
            got, expected, plainly, (need_input, need_weight, need_weight), strict=True
        ):
            assert (gradient is not None) == bool(need) == (by_pytorch is not None)
            if gradient is not None:
                assert gradient.equal(truth) and gradient.stride() == truth.stride()
                torch.testing.assert_close(gradient, by_pytorch, rtol=0.1, atol=0.1)


def test_options_are_read_as_they_are_written() -> None:
    case = CASES[-1]
    fields = read_eager_options(eager_options(problem_of(case, torch.float32)))
    assert fields == (case.geometry, case.epilogue, False, [*case.input[2:], *case.weight[2:]])


def test_wrong_options_are_refused() -> None:
    tensors = cases.randoms(SQUARE, torch.float32).to(torch.float32)
    options = eager_options(problem_of(SQUARE, torch.float32))
    wrong = {
        "dense float64": [options[:-1], options.float(), options.repeat_interleave(2)[::2], options[None]],
        "is no integer": [torch.full_like(options, torch.nan), torch.full_like(options, torch.inf)],
        "too large": [options * 2.0**40],
        "does not fit input": [options * 0],
    }
    for message, tensor in ((message, t) for message, some in wrong.items() for t in some):
        with pytest.raises(RuntimeError, match=message):
            ops._subpixel_conv2d(*tensors, tensor)
    grad = torch.ones(SQUARE.output)
    for wanted, message in ((1, "needs the weight"), (2, "needs the input")):
        with pytest.raises(RuntimeError, match=message):
            ops._subpixel_conv2d_backward(grad, None, None, None, options, wanted)
    with pytest.raises(RuntimeError, match="does not fit the output"):
        ops._subpixel_conv2d_backward(grad[:, :1], None, tensors.weight, None, options, 1)


def leaves() -> list[Tensor]:
    return [t.requires_grad_() for t in cases.randoms(SQUARE, torch.float32).to(torch.float32)[:3]]  # type: ignore[union-attr]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = "tanh") -> Tensor:
    return fs.subpixel_conv2d(x, weight, bias, 2, padding=1, activation=activation)


def forward_and_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    tensors = tuple(t.detach().requires_grad_() for t in tensors)
    return torch.autograd.grad(conv(*tensors).sum(), tensors)


def names_in_profile(function: Any, *tensors: Tensor) -> list[str]:
    function(*tensors)  # which asks for the plan
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*tensors)
    names = [event.name for event in profile.events() if event.name.startswith("fused_subpixel::")]
    return [name.removeprefix("fused_subpixel::") for name in names]


def test_an_eager_call_is_one_operator_each_way() -> None:
    assert names_in_profile(forward_and_backward, *leaves()) == [
        "_subpixel_conv2d",
        "_subpixel_conv2d_backward",
    ]


PUBLIC = {"subpixel_conv2d", "subpixel_conv2d_input_grad", "subpixel_conv2d_weight_grad"}


def test_modes_see_the_public_operators() -> None:
    seen = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.namespace == "fused_subpixel":
                seen.add(function._opname)
            return function(*args, **(kwargs or {}))

    prepare_cached.cache_clear()  # the first call of this kind may well be one in a mode
    with Record():
        forward_and_backward(*leaves())
    assert seen == PUBLIC
    assert names_in_profile(conv, *leaves()) == ["_subpixel_conv2d"]


@pytest.mark.parametrize("pre_dispatch", (False, True))
def test_traces_hold_the_public_operators(pre_dispatch: bool) -> None:
    graph = make_fx(forward_and_backward, pre_dispatch=pre_dispatch)(*leaves()).graph
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    found = {t._opname for t in targets if getattr(t, "namespace", "") == "fused_subpixel"}
    assert found == PUBLIC


@pytest.mark.full
def test_symbolic_traces_keep_their_sizes() -> None:
    trace = make_fx(lambda x, weight, bias: conv(x, weight, bias), tracing_mode="symbolic")
    graph = trace(*(t.detach() for t in leaves()))
    _, weight, bias = (t.detach() for t in leaves())
    other = torch.randn(3, 4, 9, 7)
    torch.testing.assert_close(graph(other, weight, bias), conv(other, weight, bias))


def test_nothing_is_recorded_below_autograd() -> None:
    x, weight, bias = leaves()
    with torch.no_grad():
        assert not conv(x, weight, bias).requires_grad
    prepare_cached.cache_clear()
    with torch.inference_mode():  # in which the options are made
        assert conv(x, weight, bias).is_inference()
    assert all(t.grad_fn is None for t in torch.autograd.grad(conv(x, weight, bias).sum(), (x, weight)))


@pytest.mark.parametrize("activation", (None, "tanh"))
def test_tangents_of_gradients(activation: str | None) -> None:
    """Forward over reverse: in the backward pass a gradient has a tangent, which our operators would drop."""
    x, weight, bias = leaves()

    def tangents(output: Tensor) -> list[Tensor]:
        draw = torch.Generator().manual_seed(1)
        grad, tangent = (torch.randn(output.shape, generator=draw) for _ in range(2))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(grad, tangent)
            gradients = torch.autograd.grad(output, (x, weight, bias), dual)
            return [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]

    expected = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), 2)
    truth = tangents(expected.tanh() if activation else expected)
    torch.testing.assert_close(tangents(conv(x, weight, bias, activation)), truth)


@pytest.mark.parametrize("requires_grad", (False, True))
def test_tensors_that_a_transform_left_behind(requires_grad: bool) -> None:
    left: list[Tensor] = []
    x, weight, bias = leaves()
    x.requires_grad_(requires_grad)
    torch.func.vjp(lambda t: (left.append(t), t.sum())[1], x)
    torch.func.grad(lambda t: (left.append(t), t.sum())[1])(x.detach())
    for tensor, keeps in zip(left, (requires_grad, False), strict=True):
        output = conv(tensor, weight, bias)
        torch.testing.assert_close(output, conv(x, weight, bias))
        if keeps:
            found, truth = (torch.autograd.grad(y.sum(), x)[0] for y in (output, conv(x, weight, bias)))
            assert found.equal(truth)


def test_hooks_of_saved_tensors_may_return_others() -> None:
    """A saved tensor may come back as a subclass: then no operator of ours is handed the options."""

    class Wrapped(Tensor):
        pass

    tensors = leaves()
    truth = torch.autograd.grad(conv(*tensors).sum(), tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), lambda t: t.as_subclass(Wrapped)):
        output = conv(*tensors)
    for found, expected in zip(torch.autograd.grad(output.sum(), tensors), truth, strict=True):
        assert found.equal(expected)


@pytest.mark.full
def test_compiled_autograd() -> None:
    from torch._dynamo import compiled_autograd

    tensors = leaves()
    truth = torch.autograd.grad(conv(*tensors).sum(), tensors)
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="aot_eager")):
        conv(*tensors).sum().backward()
    for tensor, expected in zip(tensors, truth, strict=True):
        torch.testing.assert_close(tensor.grad, expected)


def test_threads_and_forks_share_options() -> None:
    tensors = [t.detach() for t in leaves()]
    truth = conv(*tensors)
    results: list[bool] = []

    def run() -> None:
        results.append(all(conv(*tensors).equal(truth) for _ in range(20)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # PyTorch's pool of threads is the parent's
        os._exit(0 if conv(*tensors).equal(truth) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("groups", (1, 2))
def test_transposed_calls_use_them_too(groups: int) -> None:
    draw = torch.Generator().manual_seed(3)
    tensors = [
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((2, 4, 5, 6), (4, 6 // groups, 4, 3), (6,))
    ]
    found = fs.conv_transpose2d(*tensors, stride=2, padding=1, groups=groups)
    truth = F.conv_transpose2d(*tensors, stride=2, padding=1, groups=groups)
    torch.testing.assert_close(found, truth)
    for needed in itertools.product((False, True), repeat=3):
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        if not wanted:
            continue
        pair = (torch.autograd.grad(y.sum(), wanted, retain_graph=True) for y in (found, truth))
        torch.testing.assert_close(*pair)
    names = names_in_profile(lambda *t: fs.conv_transpose2d(*t, stride=2, padding=1, groups=groups), *tensors)
    assert names == ["_subpixel_conv2d"]
