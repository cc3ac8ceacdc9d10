# SPDX-License-Identifier: BSD-3-Clause
"""Real models before and after replace_pixel_shuffle: the same numbers and names, only the expected sites."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from clients import CLIENTS, Client
from conftest import build
from torch import Tensor, nn
from tracing import Trace, trace

import fused_subpixel as fs

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Of the largest value of a tensor. Both ways sum the same products in another order, an error of some eps for
# each site, and the other layers pass that on. Ten times the largest found, 8e-15 and 2.3e-6.
BOUNDS = {torch.float64: 1e-13, torch.float32: 2.5e-5}


@dataclasses.dataclass
class Swap:
    """A client before and after."""

    client: Client
    original: nn.Module  # in eval mode, as all here
    description: str  # of the original before the replacement
    state: dict[str, Tensor]  # likewise
    replaced: nn.Module
    report: fs.Report
    inputs: Tensor

    def in_layout(self, model: nn.Module, layout: str) -> tuple[nn.Module, Tensor]:
        """A copy of a model and its inputs. A clip has five dimensions and no such layout."""
        model = copy.deepcopy(model).to(self.inputs.dtype).to(memory_format=LAYOUTS[layout])
        images = self.inputs.dim() == 4
        return model, self.inputs.contiguous(memory_format=LAYOUTS[layout]) if images else self.inputs


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: client.name)
def swap(request: pytest.FixtureRequest) -> Iterator[Swap]:
    client: Client = request.param
    original = build(client)
    inputs = client.inputs().to(client.dtype)
    run(original, inputs)  # what some do to their weights when they first run is not the replacement's doing
    description, state = repr(original), copy.deepcopy(original.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no site found: a test of its own
        replaced, report = fs.replace_pixel_shuffle(original, (inputs,), return_report=True)
    yield Swap(client, original, description, state, replaced, report, inputs)


def tensors(output: Any) -> list[Tensor]:
    """All in a model's output, whatever it is: a tensor, or dicts, lists and tuples of them."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [found for value in values if value is not None for found in tensors(value)]


def run(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(1)  # some models draw noise
    with torch.no_grad():
        return tensors(model(inputs.clone()))  # RCAN works on its input in place


def gradients(model: nn.Module, inputs: Tensor) -> dict[str, Tensor | None]:
    """Of a sum of the outputs with random weights, in training mode: by the input and by every parameter."""
    model.train()
    leaf = inputs.clone().requires_grad_()
    torch.manual_seed(1)
    outputs = [found for found in tensors(model(leaf.clone())) if found.requires_grad]
    # not randn_like, whose order is that of the memory: layouts may differ
    loss = sum((found * torch.randn(found.shape, dtype=found.dtype)).mean() for found in outputs)
    loss.backward()
    return {"the input": leaf.grad} | {name: value.grad for name, value in model.named_parameters()}


def largest(values: Tensor | None) -> float:
    return values.abs().max().item() if values is not None and values.numel() else 0.0


def assert_close(actual: Tensor, expected: Tensor, what: str, slack: float = 0.0) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    error, scale = largest(actual - expected), largest(expected)
    assert error <= BOUNDS[expected.dtype] * scale + slack, f"{what}: an error of {error:.3g} in {scale:.3g}"


def convolution(site: fs.Site) -> str:
    return site.path.split(" -> ")[0]


def test_exactly_the_expected_sites_are_replaced(swap: Swap) -> None:
    assert sorted(map(convolution, swap.report.replaced)) == sorted(swap.client.sites), str(swap.report)
    assert not swap.report.already_replaced
    assert len(swap.report.left_alone) >= len(swap.client.between), str(swap.report)
    assert all(site.reason for site in swap.report.left_alone), str(swap.report)


def test_what_was_replaced_does_not_run_any_more(swap: Swap) -> None:
    """Neither the convolution nor the shuffle: so the tensor between them is nowhere."""
    found = trace(swap.replaced, swap.inputs.clone())
    assert not set(found.convolutions) & set(swap.client.sites)
    assert {pair.convolution: pair.between for pair in found.pairs} == swap.client.between


def test_sites_that_structure_proves_need_no_example(swap: Swap) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model, report = fs.replace_pixel_shuffle(swap.original, return_report=True)
    found, sites = {convolution(site) for site in report.replaced}, set(swap.client.sites)
    assert found == sites if swap.client.static else found < sites, str(report)
    for actual, expected in zip(run(model, swap.inputs), run(swap.original, swap.inputs), strict=True):
        assert_close(actual, expected, "an output")


WITHOUT_SITES = [client for client in CLIENTS if not client.sites]


@pytest.mark.parametrize("client", WITHOUT_SITES, ids=lambda client: client.name)
def test_where_nothing_is_replaced_a_warning_says_so(client: Client) -> None:
    model, inputs = build(client), client.inputs().to(client.dtype)
    with pytest.warns(UserWarning, match="replace_pixel_shuffle: (no site found|. sites?: . left alone)"):
        unchanged, report = fs.replace_pixel_shuffle(model, inputs, return_report=True)
    assert not report.replaced
    assert repr(unchanged) == repr(model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs(swap: Swap, layout: str) -> None:
    expected = run(*swap.in_layout(swap.original, layout))
    actual = run(*swap.in_layout(swap.replaced, layout))
    assert len(actual) == len(expected)
    for number, pair in enumerate(zip(actual, expected, strict=True)):
        assert_close(*pair, f"output {number}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_in_float32(swap: Swap, layout: str) -> None:
    """As far from those in float64 as the original's are, at most twice."""
    if swap.inputs.dtype != torch.float64:
        pytest.skip("it has no float64 to compare with; test_outputs compares float32")
    exact = run(swap.original, swap.inputs)
    single = dataclasses.replace(swap, inputs=swap.inputs.float())
    expected = run(*single.in_layout(swap.original, layout))
    actual = run(*single.in_layout(swap.replaced, layout))
    for truth, want, found in zip(exact, expected, actual, strict=True):
        allowed = 2 * largest(want - truth) + 4 * torch.finfo(torch.float32).eps * largest(truth)
        assert largest(found - truth) <= allowed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients(swap: Swap, layout: str) -> None:
    expected = gradients(*swap.in_layout(swap.original, layout))
    actual = gradients(*swap.in_layout(swap.replaced, layout))
    assert list(actual) == list(expected)
    # gradients that would be zero without rounding are the rounding of larger ones
    slack = torch.finfo(swap.inputs.dtype).eps * max(map(largest, expected.values()))
    for name, found in actual.items():
        want = expected[name]
        assert (found is None) == (want is None), name
        if found is not None and want is not None:
            assert_close(found, want, f"the gradient of {name}", slack)
    for site in swap.client.sites:
        weight = f"{site}.weight_v" if f"{site}.weight_v" in expected else f"{site}.weight"
        assert largest(expected[weight]) > 0, "a gradient that cannot be wrong"


def test_the_state_keeps_names_and_shapes_and_loads_both_ways(swap: Swap) -> None:
    state = swap.replaced.state_dict()
    assert list(state) == list(swap.state)
    for name, value in state.items():
        assert torch.equal(value, swap.state[name]) and value.dtype == swap.state[name].dtype, name
    assert [name for name, _ in swap.replaced.named_parameters()] == [
        name for name, _ in swap.original.named_parameters()
    ]
    # other parameters, so that whoever kept the old ones is found out
    parameters = {name for name, _ in swap.original.named_parameters()}
    other = {name: value * 1.03125 if name in parameters else value for name, value in state.items()}
    original, replaced = copy.deepcopy(swap.original), copy.deepcopy(swap.replaced)
    original.load_state_dict(other, strict=True)
    replaced.load_state_dict(original.state_dict(), strict=True)
    expected = run(original, swap.inputs)
    for actual, want in zip(run(replaced, swap.inputs), expected, strict=True):
        assert_close(actual, want, "an output after loading")
    back = copy.deepcopy(swap.original)
    back.load_state_dict(replaced.state_dict(), strict=True)
    for actual, want in zip(run(back, swap.inputs), expected, strict=True):
        assert torch.equal(actual, want)


def test_a_second_call_changes_nothing(swap: Swap) -> None:
    before = repr(swap.replaced)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        again, report = fs.replace_pixel_shuffle(swap.replaced, (swap.inputs,), return_report=True)
    assert repr(again) == repr(swap.replaced) == before
    assert not report.replaced, str(report)
    assert sorted(map(convolution, report.already_replaced)) == sorted(swap.client.sites), str(report)
    for actual, expected in zip(run(again, swap.inputs), run(swap.replaced, swap.inputs), strict=True):
        assert torch.equal(actual, expected)


def test_the_original_is_untouched(swap: Swap) -> None:
    assert repr(swap.original) == swap.description
    assert not swap.original.training
    state = swap.original.state_dict()
    assert list(state) == list(swap.state)
    assert all(torch.equal(value, swap.state[name]) for name, value in state.items())
    assert torch.equal(swap.inputs, swap.client.inputs().to(swap.inputs.dtype))
    found = trace(swap.original, swap.inputs.clone())
    assert {pair.convolution for pair in found.pairs} == {*swap.client.sites, *swap.client.between}


def test_restored_it_computes_as_before(swap: Swap) -> None:
    restored = fs.restore_pixel_shuffle(swap.replaced)
    assert repr(restored) == swap.description
    with Trace(restored) as found:
        outputs = run(restored, swap.inputs)
    assert {pair.convolution for pair in found.pairs} == {*swap.client.sites, *swap.client.between}
    for actual, expected in zip(outputs, run(swap.original, swap.inputs), strict=True):
        assert torch.equal(actual, expected)


def test_batch_norms_fold_on_request() -> None:
    """DDColor's have convolutions with a spectral norm before them and a ReLU behind."""
    client = next(client for client in CLIENTS if client.name == "ddcolor")
    original, inputs = build(client), client.inputs()
    replaced, report = fs.replace_pixel_shuffle(original, inputs, fold_batch_norm=True, return_report=True)
    sites = {*client.sites, *client.between}
    assert {convolution(site) for site in report.replaced} == sites
    assert not set(trace(replaced, inputs).convolutions) & sites
    for actual, expected in zip(run(replaced, inputs), run(original, inputs), strict=True):
        assert_close(actual, expected, "an output")


TRANSPOSED = [client for client in CLIENTS if client.transposed]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("client", TRANSPOSED, ids=lambda client: client.name)
def test_transposed_convolutions(client: Client, layout: str) -> None:
    """replace_conv_transpose: same outputs, gradients and names; loads both ways; a second call is idle."""
    original = build(client).to(client.dtype)
    inputs = client.inputs().to(client.dtype)
    original.to(memory_format=LAYOUTS[layout])
    if inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=LAYOUTS[layout])
    run(original, inputs)
    replaced, report = fs.replace_conv_transpose(original, return_report=True)
    assert {site.path for site in report.replaced} >= set(client.transposed), str(report)
    assert not report.left_alone, str(report)
    for actual, expected in zip(run(replaced, inputs), run(original, inputs), strict=True):
        assert_close(actual, expected, "an output")
    state = original.state_dict()
    assert {name: value.shape for name, value in replaced.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    replaced.load_state_dict(state, strict=True)
    original.load_state_dict(replaced.state_dict(), strict=True)
    expected_gradients = gradients(copy.deepcopy(original), inputs)
    slack = torch.finfo(client.dtype).eps * max(map(largest, expected_gradients.values()))
    for name, gradient in gradients(copy.deepcopy(replaced), inputs).items():
        expected = expected_gradients[name]
        assert (gradient is None) == (expected is None), name
        if gradient is not None and expected is not None:
            assert_close(gradient, expected, f"the gradient of {name}", slack)
    again, second = fs.replace_conv_transpose(replaced, inplace=True, return_report=True)
    assert again is replaced
    assert not second.replaced
