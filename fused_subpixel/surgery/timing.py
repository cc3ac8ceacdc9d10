# SPDX-License-Identifier: BSD-3-Clause
"""Which of two ways to compute something is faster: measured in turns, so that both meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from ..torch_compat import StorageWeakRef, TorchDispatchMode, tree_leaves

Run = Callable[[], object]
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 50


class Comparison(NamedTuple):
    """Median seconds of two ways."""

    before: float
    after: float


def compare(before: Run, after: Run, seconds: float, devices: Iterable[torch.device] = ()) -> Comparison:
    """Run both in turns until ``seconds`` have passed, three times at least after a first round.

    ``devices``: where they compute.
    """
    devices = _asynchronous(devices)
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for number in range(_MOST_ROUNDS + 1):
        for run, taken in zip((before, after), times, strict=True):
            _synchronize(devices)
            began = time.perf_counter()
            run()
            _synchronize(devices)
            taken.append(time.perf_counter() - began)
        if number >= _FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
    return Comparison(*(statistics.median(taken[1:]) for taken in times))


def _asynchronous(devices: Iterable[torch.device]) -> list[torch.device]:
    """Those of ``devices`` that compute while Python goes on."""
    accelerator = torch.accelerator.current_accelerator()
    return [device for device in set(devices) if accelerator is not None and device.type == accelerator.type]


def _synchronize(devices: list[torch.device]) -> None:
    for device in devices:
        torch.accelerator.synchronize(device)


def peak_bytes(run: Run) -> int:
    """The size of all tensors that a run makes and holds at the same time, at most.

    Scratch memory inside of an operator is not counted.
    """
    with _Watch() as watch:
        run()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Follows the memory of the tensors that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.known: dict[Any, int] = {}  # storages, and the bytes that count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.known = {memory: size for memory, size in self.known.items() if not memory.expired()}
        for tensors, are_new in (((args, kwargs), False), (result, True)):
            for tensor in tree_leaves(tensors):
                if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                    memory = tensor.untyped_storage()
                    self.known.setdefault(StorageWeakRef(memory), memory.nbytes() * are_new)
        self.peak = max(self.peak, sum(self.known.values()))
        return result


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
