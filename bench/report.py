# SPDX-License-Identifier: BSD-3-Clause
"""What a run leaves behind: lines in the terminal, rows in a CSV file, a summary."""

from __future__ import annotations

import csv
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

    def gflops(self, seconds: float) -> float:
        """Billions of operations per second."""
        return self.workload.flops(self.backward) / seconds / 1e9


# ---- terminal --------------------------------------------------------------------------------------------


def heading(peers: Sequence[Peer]) -> str:
    times = "".join(f"{peer.name.split()[0] + ' ' + _layout(peer):>15}" for peer in peers)
    ratios = "".join(f"{'x' + _layout(peer):>7}" for peer in peers if peer.fused)
    return f"{'workload':13} {'pass':8}{times}{ratios}{'xbest':>7}{'GFLOP/s':>9}"


def line(result: Result) -> str:
    """One line of the table, in milliseconds, for tiny calls in microseconds."""
    unit = 1e6 if result.workload is TINY else 1e3
    times = "".join(
        f"{timing.median * unit:8.2f} ±{timing.spread * unit:<5.2f}" for timing in result.timings.values()
    )
    ratios = "".join(f"{result.ratio(peer):7.2f}" for peer in result.timings if peer.fused)
    rate = "" if result.workload is TINY else f"{result.gflops(result.fastest(fused=True)):9.1f}"
    name = f"{result.workload.name}{' (µs)' if result.workload is TINY else ''}"
    return f"{name:13} {PASSES[result.pass_name]:8}{times}{ratios}{result.headline:7.2f}{rate}"


def summary(results: Iterable[Result]) -> str:
    """Worst and median of the ratios, and where we lose."""
    results = list(results)
    lines = []
    for name, label in PASSES.items():
        some = [r for r in results if r.pass_name == name and r.workload is not TINY]
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


def _layout(peer: Peer) -> str:
    return "NHWC" if peer.channels_last else "NCHW"


# ---- file ------------------------------------------------------------------------------------------------

COLUMNS = (
    "workload", "pass", "contender", "dtype", "median_ms", "low_ms", "high_ms", "rounds", "gflops",
    "ratio", "headline_ratio",
)  # fmt: skip


class CsvFile:
    """Rows are on the disk as soon as they are written: an interrupted run keeps what it has."""

    def __init__(self, path: Path, dtype: str, environment: dict[str, str | int]) -> None:
        self.path, self.dtype, self.environment = path, dtype, environment
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
                    "dtype": self.dtype,
                    "median_ms": f"{timing.median * 1e3:.6g}",
                    "low_ms": f"{timing.low * 1e3:.6g}",
                    "high_ms": f"{timing.high * 1e3:.6g}",
                    "rounds": timing.rounds,
                    "gflops": f"{result.gflops(timing.median):.4g}",
                    "ratio": f"{result.ratio(peer):.4f}",
                    "headline_ratio": f"{result.headline:.4f}",
                    **self.environment,
                }
            )
        self._file.flush()

    def __enter__(self) -> CsvFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
