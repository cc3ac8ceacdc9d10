# SPDX-License-Identifier: BSD-3-Clause
"""How it is measured: contenders take turns, so that whatever the machine does meets them all."""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, sleep

FEWEST_ROUNDS = 7  # that quartiles can be told from


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the rounds and their quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles: what stands after ±."""
        return (self.high - self.low) / 2

    def columns(self) -> dict[str, object]:
        """In milliseconds, as the files have it."""
        times = {f"{key}_ms": f"{getattr(self, key) * 1e3:.6g}" for key in ("median", "low", "high")}
        return {**times, "rounds": self.rounds}

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, len(samples))


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next call, where it is glibc.

    Otherwise it gives large blocks back at once, or not, depending on what was freed before; then whoever
    allocates next waits for fresh pages, twice as long as a convolution into 16 MB takes. A model that runs
    all day, and the allocators of GPUs, have the pages already.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    min_time: float,
    advance: Callable[[float], object] = lambda fraction: None,
    clock: Callable[[Callable[[], object], int], float] | None = None,
    warm_up: float = 0,
    seconds: float = math.inf,
    pause: float = 0,
) -> dict[str, Timing]:
    """Time all ``functions`` once per round, each round starting with another one.

    A sample is as many calls in a row as take ``min_time`` seconds, at least one; ``clock`` takes it, given
    the function and the number of calls. ``advance`` is told after each sample and each warm-up which
    fraction of all this was; ``warm_up`` is for how many seconds at least all functions take turns before
    that. There are fewer ``rounds``, but FEWEST_ROUNDS, where they would take longer than ``seconds``. In the
    ``pause`` before each sample, threads of the one before stop waiting for work by spinning.
    """
    tick = clock or seconds_per_call

    keep_freed_memory()

    def take(function: Callable[[], object], calls: int) -> float:
        sleep(pause)
        return tick(function, calls)

    names = list(functions)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        repeats, round_time = {}, 0.0
        start = perf_counter()
        while perf_counter() - start < warm_up:
            for name in names:
                take(functions[name], 1)
        for name in names:
            once = take(functions[name], 1)
            # once more, now a few if they are quick: the very first is slower than those to come
            once = take(functions[name], min(10, _calls(min_time, once)))
            repeats[name] = _calls(min_time, once)
            round_time += once * repeats[name]
            advance(1 / len(names) / (rounds + 1))
        asked, rounds = rounds, min(rounds, max(FEWEST_ROUNDS, int(min(seconds / round_time, rounds))))
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(take(functions[name], repeats[name]))
                advance(asked / rounds / len(names) / (asked + 1))
    return {name: Timing.of(samples[name]) for name in names}


def _calls(min_time: float, once: float) -> int:
    return max(1, math.ceil(min_time / once))


def seconds_per_call(function: Callable[[], object], calls: int) -> float:
    """By the host's clock."""
    start = perf_counter()
    for _ in range(calls):
        function()
    return (perf_counter() - start) / calls


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
