# SPDX-License-Identifier: BSD-3-Clause
"""Which of two ways to compute something is faster: measured in turns, so that both meet the same machine."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

Run = Callable[[], object]
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 50


class Comparison(NamedTuple):
    """Median seconds of two ways."""

    before: float
    after: float


def compare(before: Run, after: Run, seconds: float) -> Comparison:
    """Run both in turns until ``seconds`` have passed, three times at least after a first round."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else _nothing
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for number in range(_MOST_ROUNDS + 1):
        for run, taken in zip((before, after), times, strict=True):
            synchronize()
            began = time.perf_counter()
            run()
            synchronize()
            taken.append(time.perf_counter() - began)
        if number >= _FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
    return Comparison(*(statistics.median(taken[1:]) for taken in times))


def _nothing() -> None:
    pass


def peak_bytes(run: Run) -> int | None:
    """What a run allocates at most at a time, beyond what is there before; None where PyTorch cannot tell."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    results = getattr(getattr(profiler, "profiler", None), "kineto_results", None)
    if results is None:
        return None
    events = [event for event in results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes), default=0)


def with_progress(items: Iterable[Any], total: int, shown: bool) -> Iterator[Any]:
    """``items`` beside a progress bar, if one is wanted, tqdm is installed and a person sees it."""
    if shown:
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]
        except ImportError:
            pass
        else:
            items = tqdm(items, total=total, desc="measuring", unit="layer", leave=False, disable=None)
    yield from items
