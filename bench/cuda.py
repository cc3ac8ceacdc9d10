# SPDX-License-Identifier: BSD-3-Clause
"""What measuring on a GPU takes: its clock, a flushed cache, CUDA graphs, and the limits of the device."""

from __future__ import annotations

import math
import statistics
import subprocess
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

DEVICE = "cuda"
MOST_SETS, FEWEST_SETS = 32, 4  # of tensors, see rotation()
FLUSH_BYTES = 1 << 26  # at least; else twice the L2 cache
COPY_BYTES = 1 << 30
MATRIX = 8192
SMI_LOAD = 0.5  # seconds of work under which nvidia-smi reads the clock


def problem() -> str | None:
    """Why nothing can be measured here, in words."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU"
    from fused_subpixel.ops import library  # here, since worker.py runs other builds

    return library.libraries["cuda"].problem  # without the library, ours would be PyTorch's


def allow_tf32(allowed: bool) -> None:
    """For convolutions and matrix products; the fused kernels go by the former."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def l2_bytes() -> int:
    return int(torch.cuda.get_device_properties(DEVICE).L2_cache_size)


def rotation(footprint: int) -> int:
    """How many sets of tensors of ``footprint`` bytes it takes until the first has left the L2 cache."""
    return min(MOST_SETS, max(FEWEST_SETS, math.ceil(2 * l2_bytes() / footprint)))


def in_turn(functions: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """One call that makes all of them: a contender with one set of tensors after the other."""

    def run() -> None:
        for function in functions:
            function()

    return run


class Clock:
    """Times functions that make ``calls`` calls each, by events on the GPU, starting with a cold L2 cache.

    Without graphs the GPU is idle when the calls begin, so that what Python and PyTorch take to start them
    counts, as it does for users. A graph's replay is queued while the GPU still flushes: only the GPU counts.
    """

    def __init__(self, calls: int, graph: bool) -> None:
        self.calls, self.graph = calls, graph
        self.enqueued: dict[Callable[[], object], list[float]] = {}  # seconds per call, of each sample
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flusher = torch.zeros(max(2 * l2_bytes(), FLUSH_BYTES) // 4, dtype=torch.int32, device=DEVICE)

    def __call__(self, function: Callable[[], object], repeats: int) -> float:
        """Seconds per call; ``repeats`` is 1, as a sample is one turn through all sets of tensors."""
        assert repeats == 1
        self.flusher.add_(1)
        if not self.graph:
            torch.cuda.synchronize()
        self.start.record()
        before = perf_counter()
        function()
        self.enqueued.setdefault(function, []).append((perf_counter() - before) / self.calls)
        self.end.record()
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1e3 / self.calls

    def cpu_time(self, function: Callable[[], object], rounds: int) -> float:
        """Seconds in which a call returns, its work queued and the GPU not waited for: of the last rounds."""
        return statistics.median(self.enqueued[function][-rounds:])


def captured(function: Callable[[], object]) -> Callable[[], None]:
    """The replay of a CUDA graph of ``function``, which has run a few times before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is set up at first calls must not be in the graph
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    replay: Callable[[], None] = graph.replay  # it keeps the graph, and the graph its memory
    return replay


def peak_bytes(function: Callable[[], object]) -> int:
    """What a call allocates at most, over what was allocated before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


# ---- the device --------------------------------------------------------------------------------------------


def _seconds(function: Callable[[], object], rounds: int = 9) -> float:
    for _ in range(3):
        function()
    clock = Clock(calls=1, graph=True)
    return statistics.median(clock(function, 1) for _ in range(rounds))


def copy_rate() -> float:
    """Bytes per second of a copy on the device, those read and those written."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _seconds(lambda: target.copy_(source))


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, under the tf32 setting of the moment."""
    a, b = (torch.randn(MATRIX, MATRIX, device=DEVICE).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return 2 * MATRIX**3 / _seconds(lambda: torch.mm(a, b, out=product))


def facts() -> dict[str, str | int]:
    """The columns that describe the GPU, with its clock while it is at work."""
    properties = torch.cuda.get_device_properties(DEVICE)
    driver, clock, highest = _nvidia_smi("driver_version", "clocks.sm", "clocks.max.sm")
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size >> 20,
        "driver": driver,
        "sm_clock_mhz": f"{clock} of {highest}",
        "cuda": torch.version.cuda or "",
        "cudnn": torch.backends.cudnn.version() or "",
    }


def _nvidia_smi(*fields: str) -> list[str]:
    a = torch.randn(MATRIX, MATRIX, device=DEVICE)

    def load() -> Tensor:
        return torch.mm(a, a)

    for _ in range(max(1, math.ceil(SMI_LOAD / _seconds(load, rounds=1)))):
        load()  # queued: nvidia-smi looks while the GPU is at work
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(DEVICE).uuid}"
    query = ["nvidia-smi", gpu, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        found = ""
    torch.cuda.synchronize()
    values = [value.strip() for value in found.splitlines()[0].split(",")] if found.strip() else []
    return values if len(values) == len(fields) else ["unknown"] * len(fields)
