# SPDX-License-Identifier: BSD-3-Clause
"""What several test files share: backends to run on, and tensors to run with."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import cases
import pytest
import rotation
import surgery_checks
import torch
from cases import DTYPES, LAYOUTS
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel.ops import library
from fused_subpixel.surgery import timing

# Inductor is stricter where CI is set, as hosted test machines do, and its cache, whose keys know nothing of
# this package's operators, could answer with what an earlier version compiled.
os.environ.update(CI="true", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")

# One warning per process is right for users; tests must neither depend on who comes first nor drown in it.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    library.warn_if_missing("cpu")

needs_cpu_library = pytest.mark.skipif(
    not library.libraries["cpu"].loaded, reason=f"no CPU library: {library.libraries['cpu'].problem}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-combinations", action="store_true",
        help="run each case with all dtypes and layouts on all instruction sets (support/rotation.py)",
    )  # fmt: skip

    parser.addoption(
        "--part", metavar="K/N",
        help="run the Kth of N parts of the tests, K from 0 to N-1: those whose names have the checksum K",
    )  # fmt: skip


# Of single tests that take long: first, or else one processor waits for them at the end.
_LONG = ("test_deployment.py", "test_machine_code.py", "test_examples.py", "test_bench.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests, and leave the parts out that are not asked for."""
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))
    if config.option.part is None:
        return
    part, _, parts = config.option.part.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise pytest.UsageError(f"--part: expected K/N with 0 <= K < N, got {config.option.part!r}")
    chosen = {item: zlib.crc32(item.nodeid.encode()) % int(parts) == int(part) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if not chosen[item]])
    items[:] = [item for item in items if chosen[item]]


def pytest_configure(config: pytest.Config) -> None:
    """Before test files are imported, whose tests are made by what is set here."""
    if config.option.all_combinations:
        rotation.turns = 10**6
    elif config.option.markexpr == "not full":
        rotation.turns = 1  # none is collected to be deselected


@pytest.fixture(params=["reference", pytest.param("cpu", marks=needs_cpu_library)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per backend that can compute on CPU tensors."""
    with fs.use_backend(request.param):
        yield request.param


@pytest.fixture(params=cases.usable_isas(), ids=rotation.ISA_NAMES.__getitem__)
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test once per instruction set that can run here."""
    with cases.instruction_set(request.param):
        yield request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_outputs() -> Iterator[None]:
    """For tests of kernels: memory starts as NaN, so that a value that is not written shows."""
    with cases.outputs_start_as_nan():
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For thousands of tiny calls: where other processes run, threads would wait for each other each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fused_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of fs.accelerate, which times must not decide."""
    monkeypatch.setattr(timing, "compare", surgery_checks.saying(2.0, 1.0))


def conv_tensors(
    input_shape: tuple[int, ...] = (2, 3, 5, 6),
    weight_shape: tuple[int, ...] = (8, 3, 3, 2),
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    requires_grad: bool = False,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, weight, bias) with sizes that cannot be mixed up: 3x2 kernel, height unlike width."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensors: list[Any] = [
        torch.randn(input_shape, dtype=dtype).contiguous(memory_format=layout),
        torch.randn(weight_shape, dtype=dtype),
        torch.randn(weight_shape[0], dtype=dtype) if bias else None,
    ]
    for tensor in tensors:
        if tensor is not None:
            tensor.requires_grad_(requires_grad)
    return tuple(tensors)  # type: ignore[return-value]
