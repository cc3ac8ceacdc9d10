# SPDX-License-Identifier: BSD-3-Clause
"""The speed model's arithmetic, its reading of machine code, and its errors on the committed measurements."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.speed_model import fit, model  # noqa: E402
from tools.speed_model.counts import MARKS, Code  # noqa: E402
from tools.speed_model.model import Constants, Gpu, Launch, Section, kernel_us  # noqa: E402

GPU = Gpu(multiprocessors=10, clocks_per_us=1000.0, dram_bytes_per_us=1e9, l2_bytes_per_us=1e9)
CONSTANTS = Constants(latency=4.0, contention=0.5, launch_us=2.0, pack_share=0.25)
# Warps of 1000 instructions, 400 of them in the loop; one warp to a scheduler.
LAUNCH = Launch(
    "planned", "hand-made", "float16", "conv_mma_kernel<Float16, 64, 4, 1, true>", tiles=10, blocks=10,
    threads=128, shared_bytes=99 << 10, registers=64, multiplications=10, dram_bytes=0,
    sections={"tap": Section(8, 50.0), "stage": Section(1, 500.0), "store": Section(10, 10.0)},
)  # fmt: skip


def us(launch: Launch, constants: Constants = CONSTANTS, gpu: Gpu = GPU) -> float:
    return kernel_us(launch, constants, gpu)


def test_one_round_is_the_latency_of_one_block() -> None:
    assert us(LAUNCH) == pytest.approx(2.0 + 1000 * (4.0 + 0.5) / 1000)


def test_rounds_are_full_and_then_the_rest() -> None:
    """Two blocks share a multiprocessor, so 25 blocks are a round of 20 and one of 5."""
    assert model.blocks_together(LAUNCH, GPU) == 2
    assert us(dataclasses.replace(LAUNCH, tiles=25, blocks=25)) == pytest.approx(2.0 + 5.0 + 4.5)


def test_blocks_that_go_from_tile_to_tile_have_a_round_for_each() -> None:
    sections = {name: Section(3 * s.trips, s.instructions) for name, s in LAUNCH.sections.items()}
    launch = dataclasses.replace(LAUNCH, tiles=45, blocks=20, sections=sections, multiplications=30)
    assert us(launch) == pytest.approx(2.0 + 5.0 + 5.0 + 4.5)


@pytest.mark.parametrize(("registers", "together"), [(64, 2), (256, 2), (264, 1)])
def test_registers_limit_what_runs_together(registers: int, together: int) -> None:
    assert model.blocks_together(dataclasses.replace(LAUNCH, registers=registers), GPU) == together


def test_multiplications_take_the_loops_place_where_they_take_longer() -> None:
    """An mma.sync takes 8 clocks: 300 are more than 400 instructions of 4.5 clocks. A wgmma takes 64."""
    assert us(dataclasses.replace(LAUNCH, multiplications=225)) == us(LAUNCH)
    assert us(dataclasses.replace(LAUNCH, multiplications=300)) == pytest.approx(2.0 + 600 * 4.5e-3 + 2.4)
    wgmma = dataclasses.replace(LAUNCH, kernel="conv_wgmma_kernel<Float16, 8, true>", multiplications=300)
    assert us(wgmma) == pytest.approx(2.0 + 600 * 4.5e-3 + 300 * 64e-3)


def test_narrow_tiles_wait_for_shared_memory() -> None:
    """With 16 output channels, four multiplications need three reads of 512 bytes."""
    narrow = dataclasses.replace(LAUNCH, kernel="conv_mma_kernel<Float16, 64, 2, 1, true>")
    assert (model.multiply_clocks(narrow), model.multiply_clocks(LAUNCH)) == (12.0, 8.0)


def test_issue_memory_and_packing() -> None:
    assert us(LAUNCH, Constants(0.2, 0.1, 2.0, 0.25)) == pytest.approx(2.0 + 1.0)  # one instruction a clock
    assert us(dataclasses.replace(LAUNCH, dram_bytes=10**10)) == pytest.approx(2.0 + 10.0)
    fetched = {**LAUNCH.sections, "pixels": Section(1000, 0.0)}
    slow = GPU._replace(l2_bytes_per_us=1e6)
    assert us(dataclasses.replace(LAUNCH, sections=fetched), gpu=slow) == pytest.approx(2.0 + 20.48)
    assert us(dataclasses.replace(LAUNCH, pack_us=8.0)) == pytest.approx(us(LAUNCH) + 2.0)


def test_csv_keeps_launches(tmp_path: Path) -> None:
    some = [LAUNCH, dataclasses.replace(LAUNCH, kernel_us=7.5, pack_us=2.5)]
    model.write(tmp_path / "some.csv", some)
    read = model.read(tmp_path / "some.csv")
    assert math.isnan(read[0].kernel_us)
    assert read[1] == some[1]


def code_of(*operations: str) -> Code:
    """Instructions 16 bytes apart; `->3` stands for the address of the fourth."""
    lines = []
    for i, operation in enumerate(operations):
        text, _, target = operation.partition("->")
        lines.append(f"        /*{16 * i:04x}*/   {text}{f'0x{16 * int(target):x}' if target else ''} ;")
    return Code.read("\n".join(lines))


def mark(name: str) -> str:
    return f"PMTRIG 0x{1 << MARKS.index(name):x}"


def test_the_shortest_way_between_marks_counts() -> None:
    code = code_of(
        "MOV R1, R2", mark("tap"), "@P0 BRA ->5", "FADD R1, R1, R2", "FADD R1, R1, R2", "HMMA R1, R1",
        "@!P1 BRA ->1", "EXIT",
    )  # fmt: skip
    assert code.ways() == {("start", "tap"): 1, ("tap", "tap"): 3, ("tap", "start"): 4}


def test_a_mark_on_the_way_ends_it() -> None:
    """A predicate does not, nor a condition as BRA's operand: both ways are open there."""
    code = code_of(
        mark("store"), "BRA P2, ->5", mark("aligned"), "@P0 EXIT", "BRA ->0", "BRA.U UP0, ->0", "EXIT"
    )
    assert code.ways() == {
        ("store", "aligned"): 1, ("store", "store"): 2, ("store", "start"): 3,
        ("aligned", "store"): 2, ("aligned", "start"): 1,
    }  # fmt: skip


def test_copies_of_a_mark_have_their_mean() -> None:
    code = code_of(mark("tap"), "NOP", mark("tap"), "NOP", "NOP", "NOP", "BRA ->0")
    assert code.ways()[("tap", "tap")] == (1 + 4) / 2


def test_fit_recovers_what_made_the_times() -> None:
    constants = Constants(3.0, 0.7, 1.5, 0.4)
    launches = []
    for i, launch in enumerate(model.read(fit.MEASURED)):
        packed = dataclasses.replace(launch, pack_us=2.0 + i % 5)
        launches.append(dataclasses.replace(packed, kernel_us=kernel_us(packed, constants)))
    found = fit.fit(launches)
    assert fit.rms(fit.errors_of(launches, found)) < 0.01
    assert found.latency == pytest.approx(constants.latency, abs=0.3)


def test_fit_needs_measurements() -> None:
    with pytest.raises(ValueError, match="3 measured kernels are too few"):
        fit.fit(model.read(fit.MEASURED)[:3])


def test_errors_on_the_committed_measurements() -> None:
    half, tf32, without = fit.split(model.read(fit.MEASURED))
    assert (len(half), len(tf32), len(without)) == (15, 13, 13)
    constants = fit.fit(half)
    assert fit.rms(fit.errors_of(half, constants)) <= 0.10
    assert fit.rms(fit.errors_of(tf32, constants)) <= 0.15
    assert fit.rms(fit.errors_of(without, constants)) <= 0.15
    assert fit.roofline_rms(half, tf32) > 2 * fit.rms(fit.errors_of(tf32, constants))


def test_committed_predictions_are_those_of_the_model() -> None:
    measured = model.read(fit.MEASURED)
    rows = fit.predict(measured, model.read(fit.PLANNED), fit.fit(fit.split(measured).half))
    with fit.PREDICTED.open(newline="") as file:
        committed = list(csv.DictReader(file))
    assert [(row["workload"], row["dtype"]) for row in committed] == [(r.workload, r.dtype) for r in rows]
    for row, expected in zip(committed, rows, strict=True):
        for name in ("modelled", "whole", "ratio"):
            message = f"{expected.workload}: run `python -m tools.speed_model predict`"
            assert float(row[name]) == pytest.approx(getattr(expected, name), rel=0.01), message


def test_profiles_give_times_to_the_kernels_that_they_name(tmp_path: Path) -> None:
    profile = tmp_path / "profile.csv"
    kernels = '"{} conv_mma<Float16, 64, {}, 1, true>; 2.5 pack_filter<T>"'
    line = f"float16,hand-made,forward,fused channels_last,{kernels}"
    rows = [
        line.format("7.0", 4),
        line.format("9.0", 6),
        line.format("5.0", 4).replace("forward", "backward"),
    ]
    profile.write_text("\n".join(["dtype,workload,pass,contender,kernels_us", *rows]))
    found = fit.profiled(profile, [LAUNCH, dataclasses.replace(LAUNCH, workload="another")])
    assert [(one.workload, one.kernel_us, one.pack_us) for one in found] == [("hand-made", 7.0, 2.5)]
