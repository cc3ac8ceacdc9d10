# SPDX-License-Identifier: BSD-3-Clause
"""bench/: the files it writes, its command line, its correctness gate. Nothing here asserts a time."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tiers import tiered
from torch import Tensor

pytest.importorskip("tqdm")  # of the extra "bench"

from benching import ROOT, SMALL, bench, rows_of

from bench import (
    correctness,
    environment,
    limits,
    memory,
    report,
    run,
    runtimes,
    timing,
)
from bench.peers import (
    FURTHER_PEERS,
    GROUPS,
    PEERS,
    Peer,
    build_eager,
    build_fused,
    contenders,
)
from bench.workloads import (
    BY_NAME,
    GROWING,
    SUITE,
    TINY,
    WORKLOADS,
    Operands,
    Transposed,
    Workload,
    operands,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EVEN = dataclasses.replace(SMALL, kernel=2, r=3, activation="relu")
TRANSPOSED = Transposed("transposed", 2, 5, 6, 7, 3, 2, 5, "as small", cut=1)
UNBIASED = dataclasses.replace(SMALL, kernel=1, bias=False)


def check(workload: Workload, peers: tuple[Peer, ...], dtype: torch.dtype = torch.float32) -> None:
    tensors = correctness.avoid_kink(workload, operands(workload, dtype))
    prepared = {peer: peer.prepare(workload, tensors) for peer in peers}
    correctness.check(workload, tensors, prepared, backward=True)


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


@tiered("start", ["-m bench.run", "bench/run.py"], fast=["-m bench.run"])
def test_unknown_names_are_answered_with_the_known(start: str) -> None:
    command = [sys.executable, *start.split(), "--only", "espcn"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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


@pytest.mark.parametrize("option", ["--only", "--peers"])
def test_unknown_names_stop_before_a_file_is_made(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        bench(option, "espcn", "--out", tmp_path / "a.csv")
    assert refused.value.code == 2
    known = {"--only": BY_NAME, "--peers": (*GROUPS, "all", "none")}[option]
    said = capsys.readouterr().err
    assert all(name in said for name in known)
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.full
def test_ctrl_c_leaves_the_finished_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    words = (
        "--only tiny --only swinir_lw_x2 --threads 1 --rounds 200 --seconds 1e9 --min-time 1e-4 --no-plots"
    )
    command = [sys.executable, "-m", "bench.run", *words.split(" "), "--out", str(path)]
    # A shell's background jobs ignore it, and so would all that they start.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=heed
    ) as run:
        deadline = time.monotonic() + 50
        while time.monotonic() < deadline and (not path.exists() or len(rows_of(path)) < len(PEERS)):
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert f"Interrupted; what was finished is in {path}" in errors
    assert {row["workload"] for row in rows_of(path)} == {"tiny"}
    assert len(rows_of(path)) % len(PEERS) == 0


def test_fewer_rounds_where_they_take_long() -> None:
    def slow() -> None:
        time.sleep(0.01)

    fractions: list[float] = []
    found = timing.interleave({"slow": slow}, 1000, 1e-4, fractions.append, seconds=0.1)
    assert timing.FEWEST_ROUNDS <= found["slow"].rounds <= 10
    assert sum(fractions) == pytest.approx(1)
    assert timing.interleave({"slow": slow}, 3, 1e-4, seconds=1e-9)["slow"].rounds == 3


# ---- limits, memory, another build ------------------------------------------------------------------------


def test_limits_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    rates = limits.Rates.of("cpu", ["float32", "float64"])
    assert 1e8 < rates.copy < 1e13
    single, double = (rates.arithmetic[dtype] for dtype in ("float32", "float64"))
    assert single.by == double.by == "fma"
    assert all(1e9 < found.rate < threads * 1e12 for found in (single, double))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(limits, "MATRIX", 256)
    monkeypatch.setattr(limits, "_library", limits._library.__wrapped__)
    assert limits.arithmetic.__wrapped__("float32", threads).by == "matmul"


@pytest.mark.full
@pytest.mark.parametrize("backward", [False, True])
def test_memory_beyond_operands_and_results(backward: bool) -> None:
    tensors = operands(SMALL, torch.float32)
    fused, eager = (peer.prepare(SMALL, tensors) for peer in (PEERS[0], PEERS[2]))
    low = tensors.gradient.nbytes  # the tensor before the shuffle is as large as the output
    for prepared in (fused, eager):
        with torch.set_grad_enabled(backward):
            prepared.run(backward)()
    assert memory.extra_bytes(eager, backward, on_gpu=False) >= low
    if not backward:
        assert memory.extra_bytes(fused, backward, on_gpu=False) == 0


@pytest.mark.full
def test_against_another_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is this one."""
    path = tmp_path / "a.csv"
    monkeypatch.setattr(run, "SUITE", (TINY, dataclasses.replace(BY_NAME["unet_up"], ci=4, c=4)))
    assert bench("--against", ROOT, "--out", path) == 0
    others = [row for row in rows_of(path) if row["contender"].startswith(f"fused@{ROOT.name} ")]
    assert len(others) == 2 * 2 * 2
    assert all(float(row["median_ms"]) > 0 and row["extra_bytes"] for row in others)
    out = capsys.readouterr().out
    assert f"{ROOT.name} / this build: median" in out
    for row in others:  # the headline is ours against the others', not against ourselves
        assert float(row["headline_ratio"]) >= min(
            float(peer["ratio"])
            for peer in rows_of(path)
            if peer["contender"].startswith("fused ")
            and (peer["workload"], peer["pass"]) == (row["workload"], row["pass"])
        )


def test_against_what_is_no_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--against", tmp_path, "--out", tmp_path / "a.csv") == 2
    assert f"--against: {tmp_path} holds no fused_subpixel" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


WRONG = """
true = subpixel_conv2d
def subpixel_conv2d(*arguments, **options):
    return true(*arguments, **options) * 1.001
"""


@pytest.mark.full
def test_wrong_numbers_of_another_build_are_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "wrong" / "fused_subpixel"
    shutil.copytree(ROOT / "fused_subpixel", package, copy_function=os.symlink)
    start = package / "__init__.py"
    right = start.read_text()
    start.unlink()
    start.write_text(right + WRONG)
    path = tmp_path / "a.csv"
    assert bench("--only", "tiny", "--pass", "forward", "--against", package.parent, "--out", path) == 0
    assert (
        "tiny: fused@wrong is left out: tiny: the output of fused NCHW is off by" in capsys.readouterr().err
    )
    assert [row["contender"] for row in rows_of(path)] == [peer.name for peer in PEERS]


# ---- further contenders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", [SMALL, EVEN, UNBIASED], ids=["3x3", "2x2 relu", "1x1 no bias"])
@pytest.mark.parametrize("group", ["conv_transpose2d", "nearest"])
def test_further_contenders_pass_the_gate(workload: Workload, group: str) -> None:
    tensors = operands(workload, torch.float32, uniform_bias=True)
    tensors = correctness.avoid_kink(workload, tensors)
    peers = (*PEERS, *(peer for peer in FURTHER_PEERS if peer.group == group))
    prepared = {peer: peer.prepare(workload, tensors) for peer in peers}
    assert correctness.check(workload, tensors, prepared, backward=True) == {}
    assert len(prepared) == 6


def test_a_further_contender_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
        raise_it: Callable[[], Tensor] = lambda: torch.empty(-1)  # noqa: E731
        return raise_it

    broken = Peer("nearest NCHW", False, False, build, group="nearest")
    monkeypatch.setattr(
        run, "FURTHER_PEERS", (*(p for p in FURTHER_PEERS if p.name == "nearest channels_last"), broken)
    )
    assert (
        bench("--only", "tiny", "--pass", "forward", "--peers", "nearest", "--out", tmp_path / "a.csv") == 0
    )
    assert "tiny: nearest NCHW is left out: " in capsys.readouterr().err
    measured = [row["contender"] for row in rows_of(tmp_path / "a.csv")]
    assert measured == [*(peer.name for peer in PEERS), "nearest channels_last"]


@pytest.mark.full
@pytest.mark.parametrize("name", runtimes.SESSIONS)
@pytest.mark.parametrize("workload", [SMALL, EVEN, UNBIASED], ids=["3x3", "2x2 relu", "1x1 no bias"])
def test_runtimes_pass_the_gate(workload: Workload, name: str) -> None:
    if missing := runtimes.missing(name):
        pytest.skip(f"{missing} is not installed")
    tensors = correctness.avoid_kink(workload, operands(workload, torch.float32))
    peers = (*PEERS, *(peer for peer in FURTHER_PEERS if peer.group == name))
    prepared = {peer: peer.prepare(workload, tensors) for peer in peers}
    assert correctness.check(workload, tensors, prepared, backward=True) == {}


def test_runtimes_that_cannot_run_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(runtimes.SESSIONS, "openvino", lambda model, threads: None)
    monkeypatch.setattr(runtimes, "missing", lambda name: "some-package")
    asked = ["--only", "tiny", "--pass", "forward", "--peers", "openvino"]
    assert bench(*asked, "--out", tmp_path / "a.csv") == 0
    assert bench(*asked, "--dtype", "float64", "--out", tmp_path / "b.csv") == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "openvino is left out: it needs the package some-package",
        "openvino is left out: it is measured on the CPU in float32 only",
    ]


@pytest.mark.full
def test_compiled_contenders(tmp_path: Path) -> None:
    assert bench("--only", "tiny", "--peers", "compile", "--out", tmp_path / "a.csv") == 0
    assert sum(row["contender"].startswith("compile ") for row in rows_of(tmp_path / "a.csv")) == 4


def test_limit() -> None:
    arithmetic = {"float16": limits.Arithmetic(3.0, "fma"), "float32": limits.Arithmetic(1e30, "fma")}
    rates = limits.Rates(2.0, arithmetic)
    assert SMALL.elements(backward=False) == 2 * 5 * 6 * 7 + 12 * 5 * 9 + 12 + 2 * 3 * 12 * 14
    assert rates.limit(SMALL, "float32", False) == SMALL.elements(False) * 4 / 2
    assert rates.limit(SMALL, "float16", True) == SMALL.flops(True) / 3


# ---- plots and the page ------------------------------------------------------------------------------------

MARKERS = "".join(
    f"<!-- {name}: written by bench.page -->\nold\n<!-- end of {name} -->\n\nprose\n"
    for name in ("measured", "losses", "claims")
)


SLOW = {("edsr_x2", "fused"): 3, ("body_r4", "eager"): 5}


def made_up(path: Path, workloads: Sequence[Workload]) -> Path:
    """A file as of a run: ours takes 2 ms, eager 3 and all others 4, times what SLOW says."""
    rates = limits.Rates(2e10, {"float32": limits.Arithmetic(2e11, "fma")})
    times = {"fused": 2e-3, "eager": 3e-3}
    with report.CsvFile(path, {**environment.describe("made up"), **rates.facts()}) as file:
        for workload in workloads:
            timings = {}
            for peer in contenders(workload, (*PEERS, *FURTHER_PEERS)):
                time = SLOW.get((workload.name, peer.name.split()[0]), 1) * times.get(
                    peer.name.split()[0], 4e-3
                )
                timings[peer] = timing.Timing(time, time * 0.99, time * 1.01, 9)
            limit = rates.limit(workload, "float32", False)
            for backward in (False, True):
                file.write(report.Result(workload, backward, timings, limit, {}))
    return path


@pytest.mark.full
def test_page_and_pictures(tmp_path: Path) -> None:
    page, plots = pytest.importorskip("bench.page"), pytest.importorskip("bench.plots")
    suite = made_up(tmp_path / "a.csv", SUITE)
    growth = made_up(tmp_path / "b.csv", GROWING)
    text = tmp_path / "benchmarks.md"
    text.write_text(MARKERS)
    (tmp_path / "images").mkdir()
    stale = tmp_path / "images" / "benchmarks_gone_forward.png"
    stale.touch()
    for _ in range(2):  # the second time changes nothing
        assert page.main([str(suite), str(growth), "--page", str(text)]) == 0
        written = text.read_text()
        assert "old" not in written and written.count("prose") == 3
        images = re.findall(r"\(images/(benchmarks_\S+\.png)\)", written)
        assert [image.rsplit("_")[-1] for image in images] == [f"{name}.png" for name in plots.PICTURES]
        assert {path.name for path in (tmp_path / "images").iterdir()} == set(images)
        assert re.search(r"\| espcn_x3_y \| 2 ± 0.02 \| 3 ± 0.03 \| eager NCHW \| \*\*1.50\*\* \|", written)
        lost = [line for line in written.splitlines() if line.startswith("- ")]
        assert lost == [
            f"- `edsr_x2`, {which}: 0.50, against eager NCHW" for which in ("forward", "forward and backward")
        ]
        assert written.count("| 4 | 4.00 | 1.33 | 2.00 | 16 | 1.33 | 2.00 |") == 4  # two series, two passes
        assert "| r | r² | forward | forward and backward |" in written
        assert "| 4 | 16 | 5.00 | 5.00 |" in written


def test_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = pytest.importorskip("bench.page")
    text = tmp_path / "benchmarks.md"
    text.write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the markers"):
        page.main([str(made_up(tmp_path / "a.csv", [TINY])), "--page", str(text)])
    assert text.read_text() == "no markers"


def test_the_page_of_the_docs_has_all_workloads_and_markers() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert all(f"| {workload.name} |" in text for workload in SUITE)
    for name in ("measured", "losses", "claims"):
        assert text.count(f"<!-- {name}: written by bench.page -->") == 1
        assert text.count(f"<!-- end of {name} -->") == 1


@pytest.mark.full
def test_pictures_beside_a_file(tmp_path: Path) -> None:
    """Of a file that has not all that there can be."""
    plots = pytest.importorskip("bench.plots")
    path = made_up(tmp_path / "a.csv", [BY_NAME["unet_up"], TINY])
    images = {f"a_{name}.{kind}" for name in ("forward", "backward", "roofline") for kind in ("png", "svg")}
    assert plots.main([str(path)]) == 0
    found = {image.name: image.stat().st_size for image in tmp_path.glob("a_*")}
    assert set(found) == images
    assert all(1000 < size < 100_000 for size in found.values())


@pytest.mark.full
def test_a_run_ends_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.csv"
    assert run.main(["--only", "tiny", "--pass", "forward", "--rounds", "1", "--out", str(path)]) == 0
    assert f"written: {tmp_path / 'a_forward.svg'}" in capsys.readouterr().out


def test_labels_do_not_touch() -> None:
    plots = pytest.importorskip("bench.plots")
    found = plots.spread_out([10.0, 10.0, 10.1, 900.0, 999.0], 1.0, 1000.0)
    assert found == sorted(found)
    steps = [b / a for a, b in itertools.pairwise(found)]
    assert min(steps) >= (1000.0 ** (1 / 36)) * 0.999
    assert found[-1] < 1000.0


# ---- the gate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "workload", [SMALL, EVEN, UNBIASED, TRANSPOSED], ids=["3x3", "2x2 relu", "1x1 no bias", "transposed"]
)
def test_gate_lets_honest_contenders_pass(workload: Workload, dtype: torch.dtype) -> None:
    check(workload, contenders(workload, PEERS), dtype)


def test_gate_allows_for_the_rounding_of_one_bias_for_all_phases() -> None:
    """A sum of r*r times as many pixels, which PyTorch sums in series."""
    workload = BY_NAME["size_256x256"]
    tensors = operands(workload, torch.float32, uniform_bias=True)
    peers = (PEERS[2], *(peer for peer in FURTHER_PEERS if peer.name == "conv_transpose2d NCHW"))
    prepared = {peer: peer.prepare(workload, tensors) for peer in peers}
    assert correctness.check(workload, tensors, prepared, backward=True) == {}


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
    assert [workload.name for workload in SUITE[12:]] == ["dcgan_up", "unet_up", "tiny"]
    assert len(BY_NAME) == len(SUITE) + len(GROWING)
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
