# SPDX-License-Identifier: BSD-3-Clause
"""What a run leaves behind: lines in the terminal, rows in a CSV file, a summary."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .peers import Peer
from .timing import Timing
from .workloads import TINY, Workload

PASSES = {"forward": "fwd", "backward": "fwd+bwd"}


@dataclass(frozen=True)
class Result:
    """One workload, one pass, all contenders."""

    workload: Workload
    backward: bool
    timings: dict[Peer, Timing]
    dtype: str = "float32"
    graph: bool = False  # replayed as a CUDA graph
    limit: float | None = None  # seconds that the device needs at least, where that was measured

    @property
    def pass_name(self) -> str:
        return "backward" if self.backward else "forward"

    def fastest(self, fused: bool) -> float:
        """Seconds of the best of ours, or of the others."""
        return min(timing.median for peer, timing in self.timings.items() if peer.fused == fused)

    @property
    def headline(self) -> float:
        """Fastest other / fastest fused: above 1 we win."""
        return self.fastest(fused=False) / self.fastest(fused=True)

    def ratio(self, peer: Peer) -> float:
        """Fastest other / this contender."""
        return self.fastest(fused=False) / self.timings[peer].median

    @property
    def microseconds(self) -> bool:
        """Whether milliseconds are too coarse: on GPUs, and for the tiny call."""
        return self.limit is not None or self.workload is TINY

    def gflops(self, seconds: float) -> float:
        """Billions of operations per second."""
        return self.workload.flops(self.backward) / seconds / 1e9


# ---- terminal --------------------------------------------------------------------------------------------


MOST_COLUMNS = 4  # contenders beyond these are left to the file: of the others, the fastest is shown


def heading(peers: Sequence[Peer], limit: bool = False) -> str:
    all_shown = len(peers) <= MOST_COLUMNS
    shown = [peer for peer in peers if peer.fused or all_shown]
    times = "".join(f"{peer.name.split()[0] + ' ' + _layout(peer):>15}" for peer in shown)
    times += "" if all_shown else f"{'fastest other':>15}{'':<22}"
    ratios = "".join(f"{'x' + _layout(peer):>7}" for peer in peers if peer.fused)
    rates = f"{'GFLOP/s':>9}" + (f"{'limit':>7}" if limit else "")
    return f"{'workload':13} {'pass':{_pass_width(limit)}}{times}{ratios}{'xbest':>7}{rates}"


def line(result: Result, all_shown: bool = True) -> str:
    """One line of the table, in milliseconds, for tiny calls and on GPUs in microseconds."""
    unit = 1e6 if result.microseconds else 1e3
    timings = result.timings
    best = min((peer for peer in timings if not peer.fused), key=lambda peer: timings[peer].median)
    shown = [peer for peer in timings if peer.fused or all_shown] + ([] if all_shown else [best])
    times = "".join(f"{timings[p].median * unit:8.2f} ±{timings[p].spread * unit:<5.2f}" for p in shown)
    times += "" if all_shown else f" {best.name.replace('channels_last', 'NHWC'):<21}"
    ratios = "".join(f"{result.ratio(peer):7.2f}" for peer in timings if peer.fused)
    fastest = result.fastest(fused=True)
    rate = "" if result.workload is TINY else f"{result.gflops(fastest):9.1f}"
    rate += "" if result.limit is None or result.workload is TINY else f"{result.limit / fastest:7.0%}"
    name = f"{result.workload.name}{' (µs)' if result.workload is TINY else ''}"
    label = f"{_label(result.pass_name, result.graph):{_pass_width(result.limit is not None)}}"
    return f"{name:13} {label}{times}{ratios}{result.headline:7.2f}{rate}"


def summary(results: Iterable[Result]) -> str:
    """Worst and median of the ratios, and where we lose."""
    results = list(results)
    lines = []
    for name, graph in itertools.product(PASSES, (False, True)):
        label = _label(name, graph)
        some = [r for r in results if (r.pass_name, r.graph) == (name, graph) and r.workload is not TINY]
        if not some:
            continue
        worst = min(some, key=lambda result: result.headline)
        median = statistics.median(result.headline for result in some)
        lost = sorted((r for r in some if r.headline < 1), key=lambda result: result.headline)
        names = ", ".join(f"{r.workload.name} {r.headline:.2f}" for r in lost) or "nowhere"
        lines.append(
            f"{label + ':':8} fastest peer / fastest fused: median {median:.2f}, "
            f"worst {worst.headline:.2f} ({worst.workload.name}); slower: {names}"
        )
    return "\n".join(lines)


def _label(pass_name: str, graph: bool) -> str:
    return PASSES[pass_name] + (" graph" if graph else "")


def _pass_width(on_gpu: bool) -> int:
    return 14 if on_gpu else 8


def _layout(peer: Peer) -> str:
    return "NHWC" if peer.channels_last else "NCHW"


# ---- file ------------------------------------------------------------------------------------------------

COLUMNS = (
    "workload", "pass", "contender", "dtype", "median_ms", "low_ms", "high_ms", "rounds", "gflops",
    "ratio", "headline_ratio",
)  # fmt: skip


GPU_COLUMNS = ("graph", "limit_ms", "of_limit")


class CsvFile:
    """Rows are on the disk as soon as they are written: an interrupted run keeps what it has."""

    def __init__(self, path: Path, environment: dict[str, str | int], gpu: bool = False) -> None:
        self.path, self.environment = path, environment
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        columns = (*COLUMNS, *(GPU_COLUMNS if gpu else ()), *environment)
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()

    def write(self, result: Result) -> None:
        for peer, timing in result.timings.items():
            on_gpu = {}
            if result.limit is not None:
                on_gpu["graph"] = "yes" if result.graph else "no"
                on_gpu["limit_ms"] = f"{result.limit * 1e3:.6g}"
                on_gpu["of_limit"] = f"{result.limit / timing.median:.4f}"
            self._writer.writerow(
                {
                    "workload": result.workload.name,
                    "pass": result.pass_name,
                    "contender": peer.name,
                    "dtype": result.dtype,
                    "median_ms": f"{timing.median * 1e3:.6g}",
                    "low_ms": f"{timing.low * 1e3:.6g}",
                    "high_ms": f"{timing.high * 1e3:.6g}",
                    "rounds": timing.rounds,
                    "gflops": f"{result.gflops(timing.median):.4g}",
                    "ratio": f"{result.ratio(peer):.4f}",
                    "headline_ratio": f"{result.headline:.4f}",
                    **on_gpu,
                    **self.environment,
                }
            )
        self._file.flush()

    def __enter__(self) -> CsvFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
