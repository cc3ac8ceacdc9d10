# SPDX-License-Identifier: BSD-3-Clause
"""On a GPU: the CUDA library against float64, the emulator against the hardware, and CUDA's own rules."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cases
import pytest
import torch
from cases import EPILOGUES, GEOMETRIES, Case, Tensors
from gradients import ACTIVATED, RECOVERABLE, applied_once, integer_gradient, quarters, saved
from gradients import exact as exact_gradients
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel import reference
from fused_subpixel.dispatch import backends

HERE = torch.device("cuda", 0)


def why_not() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU"
    return backends.refusal("cuda", HERE, torch.float32)


if reason := why_not():
    pytest.skip(reason, allow_module_level=True)
pytestmark = pytest.mark.gpu


@pytest.fixture(params=(False, True), ids=("contiguous", "channels_last"))
def channels_last(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=(False, True), ids=("exact", "tf32"))
def tf32(request: pytest.FixtureRequest) -> bool:
    return request.param


def layout_of(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def on_gpu(tensors: Tensors) -> Tensors:
    return Tensors(*(None if t is None else t.cuda() for t in tensors))


def forward(case: Case, tensors: Tensors, tf32: bool = False) -> Tensor:
    geometry = case.geometry._replace(tf32=int(tf32))
    return cases.operators.subpixel_conv2d(*tensors, geometry, *case.epilogue)


def gradients(
    case: Case,
    grad: Tensor,
    tensors: Tensors,
    channels_last: bool,
    tf32: bool,
    output: Tensor | None = None,
) -> list[Tensor]:
    geometry, rest = case.geometry._replace(tf32=int(tf32)), saved(case, output)
    return [
        cases.operators.subpixel_conv2d_input_grad(
            grad, tensors.weight, *case.input[2:], geometry, channels_last, *rest
        ),
        *cases.operators.subpixel_conv2d_weight_grad(grad, tensors.input, *case.weight[2:], geometry, *rest),
    ]


# ---- right ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", (*GEOMETRIES, *EPILOGUES), ids=str)
def test_exact_on_integers(case: Case, dtype: torch.dtype, channels_last: bool, tf32: bool) -> None:
    tensors = on_gpu(cases.integers(case).to(dtype, layout_of(channels_last)))
    with cases.outputs_start_as_nan():
        found = forward(case, tensors, tf32)
    assert found.is_contiguous(memory_format=layout_of(channels_last))
    assert found.cpu().equal(cases.exact(case).to(dtype))


@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_gradients_are_exact_on_integers(
    case: Case, dtype: torch.dtype, channels_last: bool, tf32: bool
) -> None:
    tensors = on_gpu(cases.integers(case).to(dtype, layout_of(channels_last)))
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=layout_of(channels_last)).cuda()
    with cases.outputs_start_as_nan():
        found = gradients(case, grad, tensors, not channels_last, tf32)
    for gradient, expected in zip(found, exact_gradients(case), strict=True):
        assert gradient.cpu().equal(expected.to(dtype))


@pytest.mark.parametrize("activation", (None, *RECOVERABLE))
@pytest.mark.parametrize("base", GEOMETRIES, ids=str)
def test_unshuffle_reduce_is_exact_on_integers(
    base: Case, activation: str | None, dtype: torch.dtype, channels_last: bool
) -> None:
    case = cases.variant(base, activation=activation)
    layout = layout_of(channels_last)
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=layout)
    output = quarters(case).to(dtype).contiguous(memory_format=layout) if activation else None
    rest = saved(case, None if output is None else output.cuda())
    with cases.outputs_start_as_nan():
        low, bias = cases.operators.unshuffle_reduce(grad.cuda(), case.geometry, *rest)
    applied = grad if output is None else applied_once(grad, output, case)
    expected, channels = reference.uncrop_and_unshuffle(applied, case.geometry), case.weight[0]
    assert low.is_contiguous(memory_format=torch.channels_last)
    assert low[:, :channels].cpu().equal(expected)
    assert not low[:, channels:].any()
    assert bias.cpu().equal(expected.double().sum((0, 2, 3)).to(dtype))
    again = cases.operators.unshuffle_reduce(grad.cuda(), case.geometry, *rest)
    assert again[0].equal(low)
    assert again[1].equal(bias)


@pytest.mark.parametrize("activation", (None, "tanh"))
def test_training_takes_unshuffle_reduce(activation: str | None, channels_last: bool) -> None:
    """Of groups and of gradients that are differentiated again, PyTorch unshuffles the gradient."""
    x = torch.randn(2, 16, 9, 8, dtype=torch.float64, device="cuda")
    x = x.contiguous(memory_format=layout_of(channels_last))
    weight, bias = (torch.randn(s, dtype=x.dtype, device="cuda") for s in ((12, 16, 3, 3), (12,)))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with fs.use_backend("cuda"):
        output = fs.subpixel_conv2d(*leaves, 2, padding=1, activation=activation)
    grad = torch.randn_like(output)
    with torch.profiler.profile() as profile:
        found = torch.autograd.grad(output, leaves, grad, retain_graph=True)
    assert any(event.key == "fused_subpixel::unshuffle_reduce" for event in profile.key_averages())
    differentiable = torch.autograd.grad(output, leaves, grad, create_graph=True)
    torch.testing.assert_close(found, differentiable)


WIDE = Case("wide rows", (2, 128, 33, 34), (256, 128, 3, 3), padding=cases.SAME3)


@pytest.mark.parametrize("activation", RECOVERABLE)
@pytest.mark.parametrize("base", (*ACTIVATED, WIDE), ids=str)
def test_activation_is_applied_on_load(
    base: Case, activation: str, dtype: torch.dtype, channels_last: bool, tf32: bool
) -> None:
    case = cases.variant(base, activation=activation)
    tensors = on_gpu(cases.integers(case).to(dtype, layout_of(channels_last)))
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=layout_of(channels_last)).cuda()
    for output_last in (False, True):
        output = quarters(case).to(dtype).contiguous(memory_format=layout_of(output_last)).cuda()
        with cases.outputs_start_as_nan():
            found = gradients(case, grad, tensors, output_last, tf32, output)
        for gradient, expected in zip(found, exact_gradients(case), strict=True):
            assert gradient.cpu().equal(expected.to(dtype))


@pytest.mark.parametrize("base", cases.BASES, ids=str)
def test_as_accurate_as_pytorch(base: Case, dtype: torch.dtype, tf32: bool) -> None:
    tensors = cases.randoms(base, dtype)
    truth = torch.from_numpy(cases.by_oracle(base, tensors))
    ours = on_gpu(tensors.to(dtype, torch.channels_last))
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        plain = cases.plain(base, ours).cpu()
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision
    found = forward(base, ours, tf32).cpu()
    # cuDNN may take an exact kernel although tf32, of 10 bits, is allowed
    eps = 2**-10 if tf32 and dtype == torch.float32 else torch.finfo(dtype).eps
    slack = eps * float(truth.abs().max())
    assert (found.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max() + 2 * slack


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("factors", [(2, 2), (3, 2), (1, 4)], ids=str)
def test_shuffle_alone(factors: tuple[int, int], order: str, dtype: torch.dtype, channels_last: bool) -> None:
    x = torch.randn(2, 24, 6, 12).to(dtype).contiguous(memory_format=layout_of(channels_last))
    found = fs.pixel_shuffle(x.cuda(), factors, order)
    assert found.is_contiguous(memory_format=layout_of(channels_last))
    assert found.cpu().equal(fs.pixel_shuffle(x, factors, order))
    leaf = x.cuda().requires_grad_()
    (grad,) = torch.autograd.grad(fs.pixel_shuffle(leaf, factors, order), leaf, found)
    assert grad.cpu().equal(x)
    assert fs.pixel_unshuffle(found, factors, order).cpu().equal(x)


# ---- the emulator -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", (*cases.BASES, *GEOMETRIES[:12]), ids=str)
def test_emulator_matches_hardware(case: Case, channels_last: bool) -> None:
    """Bit for bit, with the same plan, on sums that are exact: within an instruction the order differs."""
    emulated = pytest.importorskip("emulated")
    _, _, sm, multiprocessors, shared_bytes, _ = cases.operators._cuda_capability(0)
    target = emulated.Target(sm, multiprocessors, shared_bytes)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        tensors = cases.integers(case).to(dtype, layout_of(channels_last))
        found = forward(case, on_gpu(tensors), tf32=True).cpu()
        assert found.equal(emulated.forward(case, tensors, channels_last, target, tf32=True))


# ---- CUDA's rules -----------------------------------------------------------------------------------------


def test_graph_capture_and_streams() -> None:
    case = cases.LARGE
    tensors = on_gpu(cases.integers(case).to(torch.float16, torch.channels_last))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        forward(case, tensors)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(case, tensors)
    output.zero_()
    graph.replay()
    assert output.cpu().equal(cases.exact(case).half())


def test_repetition_changes_nothing(dtype: torch.dtype) -> None:
    case = cases.Case("large", (4, 64, 67, 93), (256, 64, 3, 3), padding=cases.SAME3)
    tensors = on_gpu(cases.randoms(case, dtype).to(dtype, torch.channels_last))
    grad = torch.randn(case.output, device=HERE).to(dtype)
    first = [forward(case, tensors, True), *gradients(case, grad, tensors, True, True)]
    for _ in range(3):
        again = [forward(case, tensors, True), *gradients(case, grad, tensors, True, True)]
        assert all(a.equal(b) for a, b in zip(first, again, strict=True))


def test_past_32_bits() -> None:
    x = torch.ones(1, 64, 5000, 7000, dtype=torch.float16, device=HERE)  # 2.2e9 elements
    weight = torch.ones(4, 64, 1, 1, dtype=torch.float16, device=HERE)
    output = fs.subpixel_conv2d(x, weight, backend="cuda")
    assert bool((output == 64).all())


def test_out_of_memory_stays_what_it_is() -> None:
    x = torch.empty(1, 1, 1, 1, device=HERE).expand(1, 1, 200_000, 200_000)
    with pytest.raises(torch.OutOfMemoryError):
        fs.subpixel_conv2d(x, torch.ones(256, 1, 1, 1, device=HERE), None, 16, backend="cuda")


def test_tensors_on_different_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        fs.subpixel_conv2d(torch.ones(1, 1, 2, 2, device=HERE), torch.ones(4, 1, 1, 1))


def test_training_through_the_public_function(dtype: torch.dtype) -> None:
    case = cases.NARROW
    tensors = cases.integers(case).to(dtype, torch.channels_last)
    leaves = [t.cuda().requires_grad_() for t in tensors[:3]]
    output = fs.subpixel_conv2d(*leaves, 2, padding=1, backend="cuda")
    grad = integer_gradient(case).to(dtype).cuda()
    for found, expected in zip(torch.autograd.grad(output, leaves, grad), exact_gradients(case), strict=True):
        assert found.cpu().equal(expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiles_without_graph_breaks(dtype: torch.dtype) -> None:
    x, weight = (
        torch.randn(1, 8, 9, 11, device=HERE, dtype=dtype),
        torch.randn(12, 8, 3, 3, device=HERE, dtype=dtype),
    )
    function = lambda x: fs.subpixel_conv2d(x, weight, None, 2, padding=1)  # noqa: E731
    found = torch.compile(function, fullgraph=True, dynamic=True)(x)
    torch.testing.assert_close(found, function(x))


def test_empty_batches_have_gradients(dtype: torch.dtype, channels_last: bool) -> None:
    x = torch.empty(0, 3, 5, 6, device=HERE, dtype=dtype).contiguous(memory_format=layout_of(channels_last))
    weight = torch.randn(12, 3, 3, 3, device=HERE, dtype=dtype)
    leaves = x.requires_grad_(), weight.requires_grad_()
    output = fs.subpixel_conv2d(*leaves, None, 2, backend="cuda")
    grads = torch.autograd.grad(output.sum(), leaves)
    assert grads[0].shape == x.shape
    assert bool((grads[1] == 0).all())


def test_threads_with_different_sizes() -> None:
    small = torch.randn(1, 64, 40, 40, device=HERE).half(), torch.randn(48, 64, 3, 3, device=HERE).half()
    large = torch.randn(1, 512, 40, 40, device=HERE).half(), torch.randn(48, 512, 3, 3, device=HERE).half()
    expected = [fs.subpixel_conv2d(*tensors, None, 4) for tensors in (small, large)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [(pool.submit(fs.subpixel_conv2d, *(small, large)[n % 2], None, 4), n % 2) for n in range(200)]
        assert all(job.result().equal(expected[which]) for job, which in jobs)


def test_auto_leaves_exact_float32_to_pytorch() -> None:
    x, weight = torch.randn(1, 8, 9, 11, device=HERE).double(), torch.randn(12, 8, 3, 3, device=HERE).double()
    assert fs.explain(fs.subpixel_conv2d, x, weight).backend == "reference"
    assert fs.explain(fs.subpixel_conv2d, x, weight, backend="cuda").backend == "cuda"


def test_explain_names_the_kernels() -> None:
    x = torch.ones(1, 64, 64, 64, device=HERE, dtype=torch.float16)
    weight = torch.ones(48, 64, 3, 3, device=HERE, dtype=torch.float16)
    text = str(fs.explain(fs.subpixel_conv2d, x, weight, None, 4, padding=1))
    assert "backend cuda" in text
    assert ("tensor cores" in text) == (torch.cuda.get_device_capability()[0] >= 8)
