# SPDX-License-Identifier: BSD-3-Clause
"""Microseconds of a forward kernel, from what its warps execute.

    t = launch + pack_share * pack + max(sum over rounds of clocks(round) / clock rate, DRAM, L2)

A round is one tile of every block that runs at once: full rounds first, then the rest, with fewer blocks to a
multiprocessor. Its clocks are those of one block, whose warps share each scheduler with w - 1 others:

    latency   instructions of a warp * (latency + contention * w)
    issue     instructions of a warp * w
    multiply  in the loop of the taps: the tensor core's, or shared memory's, where that is more

`launch`, `pack_share`, `latency` and `contention` are fitted. All else is counted or is the hardware's.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

SECTIONS = (
    "start", "pixel_table", "pixels", "pixel_parts", "weights", "step", "tap", "oc_table", "place_table",
    "line_table", "round", "stage", "store", "place", "aligned", "unaligned",
)  # fmt: skip
LOOP = ("step", "tap")  # runs beside the tensor core


class Gpu(NamedTuple):
    """An H100 SXM. Which numbers are measured: docs/speed_model.md."""

    multiprocessors: int = 132
    clocks_per_us: float = 1755.0
    shared_bytes: int = 233472  # of a multiprocessor; each block takes 1 KB more than it asks for
    registers: int = 65536
    threads: int = 2048
    dram_bytes_per_us: float = 3.0e6
    l2_bytes_per_us: float = 7.3e6
    mma_clocks: float = 8.0  # of a scheduler's tensor core, for an mma.sync
    wgmma_clocks: float = 64.0  # for a warp's part of m64n128
    shared_bytes_per_clock: float = 128.0


H100 = Gpu()


class Section(NamedTuple):
    """What a warp of the block executes from one kind of mark on."""

    trips: int
    instructions: float  # of a trip


@dataclasses.dataclass(frozen=True)
class Launch:
    """A row of measured.csv or planned.csv."""

    configuration: str  # "planned" or "without wgmma"
    workload: str
    dtype: str
    kernel: str
    tiles: int  # times blocks of output channels
    blocks: int
    threads: int
    shared_bytes: int
    registers: int  # of a thread
    multiplications: int  # mma.sync or wgmma instructions of a warp
    dram_bytes: int  # that cannot be avoided
    sections: Mapping[str, Section]
    packs: int = 1  # whether another kernel packs the weight before
    kernel_us: float = math.nan  # measured
    pack_us: float = math.nan  # of the kernel that packs the weight, measured

    def instructions(self, names: Iterable[str] = SECTIONS) -> float:
        """Of a warp, for all tiles of its block."""
        some = (self.sections[name] for name in names if name in self.sections)
        return sum(section.trips * section.instructions for section in some)

    @functools.cached_property
    def in_loop(self) -> float:
        return self.instructions(LOOP)

    @functools.cached_property
    def outside(self) -> float:
        return self.instructions() - self.in_loop

    @functools.cached_property
    def template(self) -> tuple[str, list[int]]:
        """The name, and the template's numbers."""
        return self.kernel.partition("_kernel")[0], [int(n) for n in re.findall(r"\b\d+\b", self.kernel)]

    @functools.cached_property
    def l2_bytes(self) -> int:
        """That all blocks fetch: 16 bytes in a thread's trip, and for wgmma a tap at once."""
        sections = self.sections
        trips = sum(sections[n].trips for n in ("pixels", "pixel_parts", "weights") if n in sections)
        name, numbers = self.template
        taps = sections["tap"].trips * 128 * 16 * numbers[0] if name == "conv_wgmma" else 0
        return self.tiles * (trips * self.threads * 16 + taps) // sections["stage"].trips


class Constants(NamedTuple):
    """What is fitted: clocks of an instruction, microseconds, the part of the packing that is waited for."""

    latency: float
    contention: float
    launch_us: float
    pack_share: float


def multiply_clocks(launch: Launch, gpu: Gpu = H100) -> float:
    """Of one multiplication, for each warp of a scheduler: the tensor core's, or shared memory's if more."""
    name, numbers = launch.template
    if name == "conv_wgmma":
        return gpu.wgmma_clocks
    # 2 * tiles multiplications need 2 + tiles / 2 ldmatrix of 512 bytes; four schedulers share the memory
    tiles = numbers[1]
    shared = 4 * (2 + tiles / 2) * 512 / gpu.shared_bytes_per_clock / (2 * tiles)
    return max(gpu.mma_clocks, shared)


def blocks_together(launch: Launch, gpu: Gpu = H100) -> int:
    """How many a multiprocessor holds at once."""
    registers = -(-launch.registers // 8) * 8 * launch.threads
    return max(
        1,
        min(
            gpu.shared_bytes // (launch.shared_bytes + 1024),
            gpu.registers // registers,
            gpu.threads // launch.threads,
        ),
    )


def tile_clocks(launch: Launch, together: int, constants: Constants, gpu: Gpu = H100) -> float:
    """Of a tile whose block shares its multiprocessor with together - 1 others."""
    warps = together * launch.threads / 128  # of a scheduler
    clocks = constants.latency + constants.contention * warps
    multiply = launch.multiplications * warps * multiply_clocks(launch, gpu)
    chain = launch.outside * clocks + max(launch.in_loop * clocks, multiply)
    block = max(chain, (launch.outside + launch.in_loop) * warps)
    return block / launch.sections["stage"].trips  # one for each of the block's tiles


def kernel_us(launch: Launch, constants: Constants, gpu: Gpu = H100) -> float:
    """Of the convolution's kernel, as a profiler sees it; with the measured time of the packing before it."""
    most = min(launch.blocks, blocks_together(launch, gpu) * gpu.multiprocessors)
    clocks = 0.0
    for done in range(0, launch.tiles, most):
        running = min(most, launch.tiles - done)
        clocks += tile_clocks(launch, -(-running // gpu.multiprocessors), constants, gpu)
    memory = max(launch.dram_bytes / gpu.dram_bytes_per_us, launch.l2_bytes / gpu.l2_bytes_per_us)
    pack = 0.0 if math.isnan(launch.pack_us) else constants.pack_share * launch.pack_us
    return constants.launch_us + pack + max(clocks / gpu.clocks_per_us, memory)


def read(path: Path) -> list[Launch]:
    """Launches from a CSV. A section's cell is `trips*instructions`."""
    fields = [field for field in dataclasses.fields(Launch) if field.name != "sections"]
    kinds = {"int": int, "float": float, "str": str}
    launches = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            sections = {}
            for name in SECTIONS:
                if row.get(name):  # counted before there was such a section, without it
                    trips, instructions = row[name].split("*")
                    sections[name] = Section(int(trips), float(instructions))
            values = {f.name: kinds[str(f.type)](row[f.name]) for f in fields if row.get(f.name)}
            launches.append(Launch(**values, sections=sections))
    return launches


def write(path: Path, launches: Iterable[Launch]) -> None:
    names = [field.name for field in dataclasses.fields(Launch) if field.name != "sections"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *SECTIONS])
        for launch in launches:
            values = [getattr(launch, name) for name in names]
            cells = ["" if isinstance(v, float) and math.isnan(v) else v for v in values]
            sections = [launch.sections.get(name) for name in SECTIONS]
            cells += [f"{s.trips}*{s.instructions:.1f}" if s else "" for s in sections]
            writer.writerow(cells)
