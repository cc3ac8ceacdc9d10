# SPDX-License-Identifier: BSD-3-Clause
"""What a run leaves behind: lines in the terminal, rows in a CSV file, a summary."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .peers import Peer
from .timing import Timing
from .workloads import DTYPES, TINY, Workload

PASSES = {"forward": "fwd", "backward": "fwd+bwd"}


def pass_name(backward: bool) -> str:
    return "backward" if backward else "forward"


@dataclass(frozen=True)
class Result:
    """One workload, one pass, all contenders."""

    workload: Workload
    backward: bool
    timings: dict[Peer, Timing]
    limit: float  # seconds that the device needs at least
    extra: dict[Peer, int]  # bytes allocated beyond operands and results, where that is known
    dtype: str = "float32"
    on_gpu: bool = False
    graph: bool = False  # replayed as a CUDA graph
    cpu: dict[Peer, float] = field(default_factory=dict)  # seconds to queue a call: on GPUs, without a graph

    @property
    def pass_name(self) -> str:
        return pass_name(self.backward)

    def fastest(self, fused: bool, build: str = "") -> float:
        """Seconds of the best of ours, by default of this build, or of the others."""
        own = (peer for peer in self.timings if (peer.fused, peer.build_name) == (fused, build))
        return min((self.timings[peer].median for peer in own), default=math.nan)

    @property
    def headline(self) -> float:
        """Fastest other / fastest fused: above 1 we win."""
        return self.fastest(fused=False) / self.fastest(fused=True)

    def against(self, build: str) -> float:
        """The other build / this one: above 1 this one wins; NaN where the other was left out."""
        return self.fastest(True, build) / self.fastest(True)

    def ratio(self, peer: Peer) -> float:
        """Fastest other / this contender."""
        return self.fastest(fused=False) / self.timings[peer].median

    @property
    def microseconds(self) -> bool:
        """Whether milliseconds are too coarse: on GPUs, and for the tiny call."""
        return self.on_gpu or self.workload is TINY

    def gflops(self, seconds: float) -> float:
        """Billions of operations per second."""
        return self.workload.flops(self.backward) / seconds / 1e9

    @property
    def flop_per_byte(self) -> float:
        size = self.workload.elements(self.backward) * DTYPES[self.dtype].itemsize
        return self.workload.flops(self.backward) / size


# ---- terminal --------------------------------------------------------------------------------------------


def heading(ours: Sequence[Peer], on_gpu: bool, build: str = "") -> str:
    """Of the table with contenders like ``ours``; of the others, the fastest is shown."""
    times = "".join(f"{peer.name.split()[0]:>{_width(peer) - 5}} {_layout(peer)}" for peer in ours)
    times += f"{'fastest other':>15}{'':<22}"
    ratios = "".join(f"{'x' + _layout(peer):>7}" for peer in ours if not peer.build_name)
    ratios += f"{'xbest':>7}" + (f"{'x@':>7}" if build else "")
    cpu = f"{'CPU: ours, other':>19}" if on_gpu else ""
    return f"{'workload':14} {'pass':{_pass_width(on_gpu)}}{times}{ratios}{'GFLOP/s':>9}{'limit':>7}{cpu}"


def line(result: Result, ours: Sequence[Peer], build: str = "") -> str:
    """One line of the table, in milliseconds, for tiny calls and on GPUs in microseconds."""
    unit = 1e6 if result.microseconds else 1e3
    timings = result.timings
    by_name = {peer.name: peer for peer in timings}  # those of transposed convolutions have the same names

    def time(peer: Peer) -> str:
        return f"{timings[peer].median * unit:{_width(peer) - 7}.2f} ±{timings[peer].spread * unit:<5.2f}"

    best = min((peer for peer in timings if not peer.fused), key=lambda peer: timings[peer].median)
    times = "".join(time(by_name[p.name]) if p.name in by_name else " " * _width(p) for p in ours)
    times += f"{time(best)} {best.name.replace('channels_last', 'NHWC'):<21}"
    ratios = "".join(f"{result.ratio(peer):7.2f}" for peer in timings if peer.fused and not peer.build_name)
    ratios += f"{result.headline:7.2f}" + (f"{result.against(build):7.2f}" if build else "")
    fastest = result.fastest(fused=True)
    rates = f"{result.gflops(fastest):9.1f}{result.limit / fastest:7.0%}"
    name = f"{result.workload.name}{' (µs)' if result.workload is TINY else ''}"
    label = f"{_label(result.pass_name, result.graph):{_pass_width(result.on_gpu)}}"
    cpu = ""
    if result.cpu:  # of those whose times are compared
        fused = min((peer for peer in timings if peer.fused), key=lambda peer: timings[peer].median)
        cpu = f"{result.cpu[fused] * 1e6:12.2f}{result.cpu[best] * 1e6:7.2f}"
    rates = " " * len(rates) if result.workload is TINY else rates
    return f"{name:14} {label}{times}{ratios}{rates}{cpu}".rstrip()


def summary(results: Iterable[Result], build: str = "") -> str:
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
        if build:
            ratios = {r.workload.name: r.against(build) for r in some}
            slowest = min(ratios, key=lambda name: ratios[name])
            lines.append(
                f"{label + ':':8} {build} / this build: median {statistics.median(ratios.values()):.2f}, "
                f"worst {ratios[slowest]:.2f} ({slowest})"
            )
    return "\n".join(lines)


def _label(pass_name: str, graph: bool) -> str:
    return PASSES[pass_name] + (" graph" if graph else "")


def _pass_width(on_gpu: bool) -> int:
    return 14 if on_gpu else 8


def _width(peer: Peer) -> int:
    return max(15, len(peer.name.split()[0]) + 6)


def _layout(peer: Peer) -> str:
    return "NHWC" if peer.channels_last else "NCHW"


# ---- file ------------------------------------------------------------------------------------------------

COLUMNS = (
    "workload", "pass", "contender", "dtype", "median_ms", "low_ms", "high_ms", "rounds", "gflops",
    "ratio", "headline_ratio", "limit_ms", "of_limit", "flop_per_byte", "extra_bytes", "graph", "cpu_ms",
)  # fmt: skip


class CsvFile:
    """Rows are on the disk as soon as they are written: an interrupted run keeps what it has."""

    def __init__(self, path: Path, environment: dict[str, str | int]) -> None:
        self.path, self.environment = path, environment
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, (*COLUMNS, *environment))
        self._writer.writeheader()

    def write(self, result: Result) -> None:
        for peer, timing in result.timings.items():
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
                    "limit_ms": f"{result.limit * 1e3:.6g}",
                    "of_limit": f"{result.limit / timing.median:.4f}",
                    "flop_per_byte": f"{result.flop_per_byte:.4g}",
                    "extra_bytes": result.extra.get(peer, ""),
                    "graph": "yes" if result.graph else "no",
                    "cpu_ms": f"{result.cpu[peer] * 1e3:.6g}" if peer in result.cpu else "",
                    **self.environment,
                }
            )
        self._file.flush()

    def __enter__(self) -> CsvFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
