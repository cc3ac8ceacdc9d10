# SPDX-License-Identifier: BSD-3-Clause
"""What the speed model takes from the emulator: trips of a block, and those of its committed CSV."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cases import SAME3, Case
from tiers import tiered

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.workloads import BY_NAME, SUITE  # noqa: E402
from tools.speed_model import fit, model, trips  # noqa: E402

WORKLOADS = [workload.name for workload in SUITE]
STALE = "the kernels execute other sections than planned.csv says: run `python -m tools.speed_model count`"
FEW = trips.H100._replace(multiprocessors=2)  # blocks go from tile to tile
# By mma.sync with resident weights, in steps and element by element, and by wgmma.
CASES = (
    (Case("resident", (1, 32, 25, 40), (36, 32, 3, 3), (3, 3), padding=SAME3), "float16", FEW),
    (Case("in steps", (3, 96, 20, 20), (64, 96, 3, 3), (2, 2), padding=SAME3), "tf32", trips.H100),
    (Case("elements", (1, 60, 21, 23), (12, 60, 3, 3), (2, 2), padding=SAME3), "float16", FEW),
    (Case("wgmma", (2, 128, 17, 15), (256, 128, 2, 2), (2, 2)), "tf32", FEW),
)


@pytest.mark.parametrize(("case", "dtype", "target"), CASES, ids=lambda value: str(value))
def test_one_block_stands_for_all(case: Case, dtype: str, target: trips.emulated.Target) -> None:
    """The images end within tiles, so that some blocks have less to do; none has more."""
    first = trips.count(case, dtype, target)
    everything = trips.count(case, dtype, target, blocks=())
    assert first.trips == everything.trips
    assert (first.kernel, first.blocks, first.tiles) == (
        everything.kernel,
        everything.blocks,
        everything.tiles,
    )
    assert first.trips["stage", "store"] == -(-first.tiles // first.blocks)


@tiered("workload", WORKLOADS, fast=WORKLOADS[::3])
def test_committed_trips_are_those_of_the_kernels(workload: str) -> None:
    committed = {one.dtype: one for one in model.read(fit.PLANNED) if one.workload == workload}
    assert committed
    for dtype, launch in committed.items():
        found = trips.count(trips.case_of(BY_NAME[workload]), dtype)
        passed: dict[str, int] = {}
        for (mark, _), count in found.trips.items():
            passed[mark] = passed.get(mark, 0) + count
        assert passed == {name: section.trips for name, section in launch.sections.items()}, STALE
        assert (found.kernel, found.tiles, found.blocks, found.threads, found.shared_bytes) == (
            launch.kernel, launch.tiles, launch.blocks, launch.threads, launch.shared_bytes,
        ), STALE  # fmt: skip
        assert found.multiplications == launch.multiplications, STALE
