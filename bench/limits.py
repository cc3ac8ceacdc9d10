# SPDX-License-Identifier: BSD-3-Clause
"""What the device reaches at best, measured in the same process: no contender can be faster than that."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from bench import cuda
from bench.workloads import DTYPES, Workload

SOURCE = Path(__file__).with_name("fma_rate.cpp")
LIBRARY = SOURCE.parent.parent / "build" / "fma_rate.so"
COPY_BYTES = 1 << 28  # far beyond caches
MATRIX = 2048  # at most
ROUNDS = 30
ENOUGH_SECONDS = 2.0
FMA_ITERATIONS = 2_000_000  # some 4 ms: short enough to find the processor undisturbed once


class Arithmetic(NamedTuple):
    """Operations per second, and by what they were measured."""

    rate: float
    by: str  # "fma" or "matmul"


class Rates(NamedTuple):
    """Bytes per second of a copy, those read and those written; by dtype, operations per second."""

    copy: float
    arithmetic: dict[str, Arithmetic]

    @classmethod
    def of(cls, device: str, dtypes: Sequence[str]) -> Rates:
        if device == "cpu":
            threads = torch.get_num_threads()
            return cls(copy_rate(threads), {dtype: arithmetic(dtype, threads) for dtype in dtypes})
        found = {}
        for dtype in dtypes:
            cuda.allow_tf32(dtype == "tf32")
            found[dtype] = Arithmetic(cuda.matmul_rate(DTYPES[dtype]), "matmul")
        return cls(cuda.copy_rate(), found)

    def limit(self, workload: Workload, dtype: str, backward: bool) -> float:
        """Seconds below which nothing can be: the longer of arithmetic and traffic."""
        size = workload.elements(backward) * DTYPES[dtype].itemsize
        return max(size / self.copy, workload.flops(backward) / self.arithmetic[dtype].rate)

    def facts(self) -> dict[str, str | int]:
        found = "; ".join(f"{d} {rate / 1e12:.4g} {by}" for d, (rate, by) in self.arithmetic.items())
        return {"copy_gb_per_s": f"{self.copy / 1e9:.4g}", "tflop_per_s": found}


@functools.cache  # the threads are the key: the rates of a process do not change otherwise
def copy_rate(threads: int) -> float:
    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _seconds(lambda: target.copy_(source))


@functools.cache
def arithmetic(dtype: str, threads: int) -> Arithmetic:
    """By a loop in registers; by a matrix product where there is no compiler, and for half types.

    A processor without instructions for a half type computes in float32: then that limit holds.
    """
    library = _library()
    if library and (loop := getattr(library, f"fma_{dtype}", None)):
        return Arithmetic(_fma_rate(loop, threads), "fma")
    found = Arithmetic(_matmul_rate(DTYPES[dtype]), "matmul")
    return found if dtype in ("float32", "float64") else max(found, arithmetic("float32", threads))


def _matmul_rate(dtype: torch.dtype) -> float:
    # A processor without instructions for a half type may take minutes for the largest size. Twice the size
    # is eight times the work.
    size = min(256, MATRIX)
    while True:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        seconds = _seconds(lambda a=a, b=b: torch.mm(a, b))  # type: ignore[misc]
        if size == MATRIX or 8 * seconds > ENOUGH_SECONDS / ROUNDS:
            return 2 * size**3 / seconds
        size = min(2 * size, MATRIX)


def _seconds(function: Callable[[], object]) -> float:
    """Of the fastest of some calls: a limit is what can be reached at best."""
    samples: list[float] = []
    end = perf_counter() + ENOUGH_SECONDS
    while not samples or (len(samples) < ROUNDS and perf_counter() < end):
        start = perf_counter()
        function()
        samples.append(perf_counter() - start)
    return min(samples)


def _fma_rate(loop: Callable[..., int], threads: int) -> float:
    def one(_: int) -> int:
        return loop(ctypes.c_long(FMA_ITERATIONS), ctypes.byref(ctypes.c_double(1)))

    with ThreadPoolExecutor(threads) as pool:  # a foreign function runs without Python's lock
        done = sum(pool.map(one, range(threads)))
        return done / _seconds(lambda: list(pool.map(one, range(threads))))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """fma_rate.cpp compiled for this very processor, or None where no compiler does it."""
    named = shlex.split(os.environ.get("CXX", ""))
    compiler = named or [found for found in ("g++", "clang++") if shutil.which(found)][:1]
    LIBRARY.parent.mkdir(exist_ok=True)
    fresh = LIBRARY.with_suffix(
        f".{os.getpid()}.so"
    )  # moved at the end: another run may be using the old one
    options = ["-O3", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(fresh)]
    try:
        subprocess.run([*compiler, *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    fresh.replace(LIBRARY)
    library = ctypes.CDLL(str(LIBRARY))
    for function in (library.fma_float32, library.fma_float64):
        function.restype = ctypes.c_long
    return library
