# SPDX-License-Identifier: BSD-3-Clause
"""bench/: the files it writes, its command line, its correctness gate. Nothing here asserts a time."""

from __future__ import annotations

import csv
import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("tqdm")  # of the extra "bench"

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench import correctness, report, run, timing  # noqa: E402
from bench.peers import PEERS, Peer, build_eager, build_fused  # noqa: E402
from bench.workloads import BY_NAME, TINY, WORKLOADS, Operands, Workload, operands  # noqa: E402

SMALL = Workload("small", 2, 5, 6, 7, 3, 2, 3, "sizes that cannot be mixed up")
EVEN = dataclasses.replace(SMALL, kernel=2, r=3, activation="relu")
UNBIASED = dataclasses.replace(SMALL, kernel=1, bias=False)


def bench(*arguments: str | Path) -> int:
    return run.main(["--rounds", "2", "--min-time", "1e-4", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check(workload: Workload, peers: tuple[Peer, ...], dtype: torch.dtype = torch.float32) -> None:
    tensors = correctness.avoid_kink(workload, operands(workload, dtype))
    contenders = {peer: peer.prepare(workload, tensors) for peer in peers}
    correctness.check(workload, tensors, contenders, backward=True)


def test_run_writes_rows_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new folder" / "rows.csv"
    assert bench("--only", "mnist_up2", "--only", "tiny", "--out", path) == 0
    rows = rows_of(path)
    measured = [(row["workload"], row["pass"], row["contender"]) for row in rows]
    assert measured == [
        (name, direction, peer.name)
        for name in ("mnist_up2", "tiny")
        for direction in ("forward", "backward")
        for peer in PEERS
    ]
    assert tuple(rows[0])[: len(report.COLUMNS)] == report.COLUMNS
    environment = {
        "date",
        "cpu",
        "instruction_set",
        "cores",
        "threads",
        "torch",
        "fused_subpixel",
        "os",
        "command",
    }
    assert environment <= set(rows[0])
    for row in rows:
        assert 0 < float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"])
        assert float(row["gflops"]) > 0
        assert str(tmp_path) not in row["command"]
        assert row["threads"] == str(torch.get_num_threads())
    assert [row["rounds"] for row in rows] == ["2"] * 8 + [str(2 * run.TINY_ROUNDS)] * 8
    eager = [row for row in rows[:4] if "eager" in row["contender"]]
    assert max(float(row["ratio"]) for row in eager) == 1

    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("mnist_up2 ") for line in lines) == 2
    assert sum(line.startswith("tiny (µs) ") for line in lines) == 2
    assert any(line.startswith("fwd+bwd: ") and "worst" in line for line in lines)


def test_one_pass_only(tmp_path: Path) -> None:
    assert (
        bench("--only", "tiny", "--pass", "forward", "--dtype", "bfloat16", "--out", tmp_path / "a.csv") == 0
    )
    rows = rows_of(tmp_path / "a.csv")
    assert {(row["pass"], row["dtype"]) for row in rows} == {("forward", "bfloat16")}


@pytest.mark.parametrize("start", [["bench/run.py"], ["-m", "bench.run"]])
def test_unknown_names_are_answered_with_the_known(start: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *start, "--only", "espcn"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown workload 'espcn'" in done.stderr
    assert all(name in done.stderr for name in BY_NAME)


@pytest.mark.parametrize("option", ["--rounds", "--min-time", "--threads"])
def test_refuses_zero(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        run.main([option, "0"])
    assert refused.value.code == 2
    assert option in capsys.readouterr().err


def test_interrupted_run_keeps_finished_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interleave = timing.interleave
    calls = 0

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return interleave(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "interleave", interrupted)
    assert bench("--only", "tiny", "--out", tmp_path / "a.csv") == 130
    assert [row["pass"] for row in rows_of(tmp_path / "a.csv")] == ["forward"] * len(PEERS)


# ---- the gate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("workload", [SMALL, EVEN, UNBIASED], ids=["3x3", "2x2 relu", "1x1 no bias"])
def test_gate_lets_honest_contenders_pass(workload: Workload, dtype: torch.dtype) -> None:
    check(workload, PEERS, dtype)


def swapped_pixels(output: Tensor) -> Tensor:
    return output.flip(-1)


def slightly_off(output: Tensor) -> Tensor:
    return output * 1.001


def not_a_number(output: Tensor) -> Tensor:
    return output + math.nan


class HalfGradient(torch.autograd.Function):
    """The right output, a wrong gradient."""

    @staticmethod
    def forward(ctx: object, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient / 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swapped_pixels, "the output of cheat is off by"),
        (slightly_off, "the output of cheat is off by"),
        (not_a_number, "the output of cheat is off by nan"),
        (HalfGradient.apply, "the input gradient of cheat is off by"),
        (lambda output: output.contiguous(memory_format=torch.channels_last), "cheat is not in its layout"),
    ],
)
def test_gate_catches(spoil: Callable[[Tensor], Tensor], message: str) -> None:
    def build(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
        honest = build_eager(workload, operands)
        return lambda: spoil(honest())

    with pytest.raises(correctness.WrongNumbers, match=message):
        check(SMALL, (*PEERS, Peer("cheat", True, False, build)))


def test_wrong_numbers_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
        honest = build_fused(workload, operands)
        return lambda: slightly_off(honest())

    monkeypatch.setattr(run, "PEERS", (*PEERS, Peer("cheat", True, False, build)))
    assert bench("--only", "tiny", "--out", tmp_path / "a.csv") == 1
    assert "tiny: the output of cheat is off by" in capsys.readouterr().err
    assert rows_of(tmp_path / "a.csv") == []


# ---- the parts -------------------------------------------------------------------------------------------


def test_workloads_are_what_they_say() -> None:
    assert len(WORKLOADS) == 12
    assert len(BY_NAME) == 13
    srvgg = BY_NAME["srvgg_x4"]
    assert srvgg.output_shape == (1, 3, 1080, 1920)
    assert srvgg.flops(backward=False) == 2 * 270 * 480 * 48 * 64 * 9
    for workload in (BY_NAME["mnist_up1"], BY_NAME["mnist_up2"], TINY):
        tensors = operands(workload, torch.float32)
        for peer in PEERS:
            assert peer.prepare(workload, tensors).forward().shape == workload.output_shape


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = timing.interleave(functions, rounds=4, min_time=1e-12)
    assert "".join(calls[6:]) == "abc" + "bca" + "cab" + "abc"  # after two calls each to warm up
    assert all(found.rounds == 4 for found in timings.values())


def test_median_and_quartiles() -> None:
    found = timing.Timing.of([5.0, 1.0, 3.0, 2.0, 100.0])
    assert (found.low, found.median, found.high, found.rounds) == (2, 3, 5, 5)
    assert found.spread == 1.5
