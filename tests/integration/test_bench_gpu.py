# SPDX-License-Identifier: BSD-3-Clause
"""bench/ on a GPU: what it refuses without one, and the program around it with the CPU in a GPU's role."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiers import tiered
from torch import Tensor

pytest.importorskip("tqdm")  # of the extra "bench"

from benching import SMALL, bench, rows_of

from bench import cuda, environment, peers, profile_cuda, run
from bench.peers import CHEAP, FURTHER_PEERS, PEERS, Peer, build_eager
from bench.workloads import BY_NAME, TINY, Operands, Workload, operands

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "--device cuda: torch "),
        (["--graph"], "--graph needs --device cuda"),
        (["--dtype", "tf32"], "--dtype tf32 needs --device cuda"),
    ],
)
def test_what_needs_a_gpu_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        run.main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


class HostEvent:
    """An event of a GPU that is the CPU."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: HostEvent) -> float:
        return (end.time - self.time) * 1e3


class HostGraph:
    """What is called under capture is called once more in every replay: enough for the program around it."""

    captures = 0
    replays = 0

    def replay(self) -> None:
        HostGraph.replays += 1


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU in the role of a GPU, to run what a machine without one would never run."""
    properties = SimpleNamespace(
        name="NVIDIA Pretence", major=9, minor=0, multi_processor_count=1, L2_cache_size=1 << 12, uuid="none"
    )

    def graph(captured: HostGraph) -> nullcontext[None]:
        HostGraph.captures += 1
        return nullcontext()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Event": HostEvent,
        "CUDAGraph": HostGraph,
        "graph": graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
        "memory_allocated": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 1 << 30,
        "get_device_properties": lambda device: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in {
        "DEVICE": "cpu",
        "problem": lambda: None,
        "COPY_BYTES": 1 << 20,
        "MATRIX": 64,
    }.items():
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(environment, "load_per_core", lambda: 0.0)
    monkeypatch.setattr(run, "CUDA_WARM_UP", 1e-4)
    monkeypatch.setattr(run, "TINY_ROUNDS", 1)
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.usefixtures("pretended_gpu")
@tiered("option", ["no", "only", "both"], fast=["only"])
def test_run_on_a_gpu(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = {"no": ["no"], "only": ["yes"], "both": ["no", "yes"]}[option]
    HostGraph.captures = HostGraph.replays = 0
    options = ["--dtype", "tf32", "--dtype", "float32", "--graph", option]
    assert bench("--device", "cuda", "--only", "tiny", "--out", tmp_path / "a.csv", *options) == 0
    rows = rows_of(tmp_path / "a.csv")
    names = [peer.name for peer in PEERS + FURTHER_PEERS if peer.group in ("", *CHEAP)]
    assert [(row["dtype"], row["pass"], row["graph"], row["contender"]) for row in rows] == [
        (dtype, direction, graph, name)
        for dtype in ("tf32", "float32")
        for direction in ("forward", "backward")
        for graph in graphs
        for name in names
    ]
    assert {"copy_gb_per_s", "tflop_per_s", "driver", "sm_clock_mhz", "cuda"} <= set(rows[0])
    for row in rows:
        assert row["gpu"] == "NVIDIA Pretence"
        assert float(row["of_limit"]) >= 0 and float(row["limit_ms"]) > 0
        if row["graph"] == "yes":
            assert row["cpu_ms"] == ""
        else:  # on this GPU, queueing a call is computing it
            assert 0 < float(row["cpu_ms"]) <= float(row["high_ms"])
    assert HostGraph.captures == (2 * 2 * len(names) if "yes" in graphs else 0)
    assert HostGraph.replays >= 3 * HostGraph.captures  # to warm up, and two rounds
    assert torch.backends.cudnn.allow_tf32 is False  # as the last dtype wants it
    out = capsys.readouterr().out
    assert "fastest other" in out and "CPU: ours, other" in out and "\ntf32\n" in out


@pytest.mark.full
@pytest.mark.usefixtures("pretended_gpu")
def test_compiled_contenders_on_a_gpu(tmp_path: Path) -> None:
    options = ["--device", "cuda", "--only", "tiny", "--graph", "both", "--peers", "compile"]
    assert bench(*options, "--peers", "max-autotune", "--out", tmp_path / "a.csv") == 0
    names = [
        f"{group} {layout}" for group in ("compile", "max-autotune") for layout in ("NCHW", "channels_last")
    ]
    assert [(row["pass"], row["graph"], row["contender"]) for row in rows_of(tmp_path / "a.csv")] == [
        (direction, graph, name)
        for direction in ("forward", "backward")
        for graph in ("no", "yes")
        for name in (*(peer.name for peer in PEERS), *names)
    ]


@pytest.mark.usefixtures("pretended_gpu")
def test_sets_of_tensors_take_turns() -> None:
    assert cuda.rotation(1) == cuda.MOST_SETS
    assert cuda.rotation(1 << 10) == 8  # twice the L2 cache
    assert cuda.rotation(1 << 40) == cuda.FEWEST_SETS
    small = PEERS[0], PEERS[2]
    prepared = run.prepare(SMALL, operands(SMALL, torch.float32), 3, small)
    addresses = {peer: [own.leaves[0].data_ptr() for own in some] for peer, some in prepared.items()}
    assert all(len(set(found)) == 3 for found in addresses.values())
    assert prepared[PEERS[0]][1].leaves[0].equal(prepared[PEERS[0]][2].leaves[0])

    calls: list[int] = []
    turn = cuda.in_turn([lambda n=n: calls.append(n) for n in range(3)])
    assert cuda.Clock(calls=3, graph=False)(turn, 1) > 0
    assert calls == [0, 1, 2]


class Overlapping:
    """A call that returns while the GPU still works: the pretended one until its end is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: float) -> None:
        monkeypatch.setattr(HostEvent, "synchronize", self.synchronize)
        self.work, self.queued = work, 0.0

    def __call__(self) -> None:
        self.queued = self.work

    def synchronize(self) -> None:
        time.sleep(self.queued)


@pytest.mark.usefixtures("pretended_gpu")
def test_cpu_time_does_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Overlapping(monkeypatch, 0.02)
    clock = cuda.Clock(calls=1, graph=False)
    started = time.perf_counter()
    for _ in range(3):
        clock(call, 1)
    assert time.perf_counter() - started >= 3 * 0.02
    assert 0 < clock.cpu_time(call, 3) < 0.01
    clock.enqueued[call] = [9.0, 9.0, 1.0, 2.0, 3.0]  # those to warm up do not count
    assert clock.cpu_time(call, 3) == 2


LOADS = {"before": [1.5], "after": [0.5, 1.01]}


@pytest.mark.full
@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("when", LOADS)
def test_plain_calls_on_a_busy_machine_are_not_reported(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = iter(LOADS[when])
    monkeypatch.setattr(environment, "load_per_core", lambda: next(loads))
    options = ["--device", "cuda", "--only", "tiny", "--pass", "forward", "--graph", "both"]
    assert bench(*options, "--peers", "none", "--out", tmp_path / "a.csv") == 0
    assert {row["graph"] for row in rows_of(tmp_path / "a.csv")} == {"yes"}
    assert next(loads, None) is None
    assert "tiny: fwd without a graph is not reported: the machine's load is 1." in capsys.readouterr().err


@pytest.mark.usefixtures("pretended_gpu")
def test_a_run_that_reports_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "load_per_core", lambda: 2.0)
    assert bench("--device", "cuda", "--only", "tiny", "--out", tmp_path / "a.csv") == 1
    assert rows_of(tmp_path / "a.csv") == []


def test_load_is_that_of_the_machine_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (6.0, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert environment.load_per_core() == 1.5


@pytest.mark.full
@pytest.mark.usefixtures("pretended_gpu")
def test_what_cannot_be_captured_is_left_out_of_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capturing = False

    def graph(captured: HostGraph) -> nullcontext[None]:
        nonlocal capturing
        capturing = True
        return nullcontext()

    def build(workload: Workload, operands: Operands) -> Callable[[], Tensor]:
        eager = build_eager(workload, operands)

        def head() -> Tensor:
            if capturing:
                raise RuntimeError("not permitted when the stream is capturing\nand so on")
            return eager()

        return head

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(run, "FURTHER_PEERS", (Peer("nearest NCHW", False, False, build, group="nearest"),))
    options = ["--device", "cuda", "--only", "tiny", "--pass", "forward", "--graph", "both"]
    assert bench(*options, "--peers", "nearest", "--out", tmp_path / "a.csv") == 0
    measured = [(row["graph"], row["contender"]) for row in rows_of(tmp_path / "a.csv")]
    ours_and_eager = [peer.name for peer in PEERS]
    assert measured == [("no", name) for name in (*ours_and_eager, "nearest NCHW")] + [
        ("yes", name) for name in ours_and_eager
    ]
    said = capsys.readouterr().err
    assert (
        "tiny: nearest NCHW in a CUDA graph is left out: not permitted when the stream is capturing\n" in said
    )


def test_torch_compile_does_not_give_up_in_a_long_run() -> None:
    """Past its limits it would go on eagerly, under the name of compile."""
    config = torch._dynamo.config
    # pytest's monkeypatch would delete the settings
    with config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        peers.build_compiled("default")(TINY, operands(TINY, torch.float32))
        most = len(BY_NAME) * len(run.DTYPES) * 2 * 2 * 2  # layouts, with and without gradients, modes
        assert min(config.recompile_limit, config.accumulated_recompile_limit) >= most


# ---- kernels ----------------------------------------------------------------------------------------------


@pytest.fixture
def profiled_processor(pretended_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_cuda, "ACTIVITY", torch.profiler.ProfilerActivity.CPU)
    monkeypatch.setattr(profile_cuda, "DEVICE_TYPE", torch.autograd.DeviceType.CPU)


@pytest.mark.usefixtures("profiled_processor")
def test_kernel_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "profile.csv"
    options = ["--only", "tiny", "--dtype", "float32", "--dtype", "tf32", "--out", str(path)]
    assert profile_cuda.main(options) == 0
    rows = rows_of(path)
    assert tuple(rows[0]) == profile_cuda.COLUMNS
    assert [(row["dtype"], row["contender"], row["pass"]) for row in rows] == [
        (dtype, peer.name, direction)
        for dtype in ("float32", "tf32")
        for peer in PEERS
        for direction in ("forward", "backward")
    ]
    for row in rows:
        kernels = [kernel.split(" ", 1) for kernel in row["kernels_us"].split("; ")]
        times = [float(time) for time, _ in kernels]
        assert times == sorted(times, reverse=True)
        assert sum(times) == pytest.approx(float(row["total_us"]), abs=0.06 * (len(times) + 1))
        assert row["gpu"] == "NVIDIA Pretence"
    assert "aten::conv2d" in rows[4]["kernels_us"]
    assert torch.backends.cudnn.allow_tf32 is True  # as the last dtype wants it
    assert f"written: {path}" in capsys.readouterr().out


@pytest.mark.usefixtures("profiled_processor")
def test_a_profiler_that_sees_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_cuda, "DEVICE_TYPE", torch.autograd.DeviceType.CUDA)
    with pytest.raises(RuntimeError, match="has seen no kernel"):
        profile_cuda.kernel_times(lambda: None)


def test_kernel_times_are_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, ns: int, device: str = "CUDA", annotation: bool = False) -> SimpleNamespace:
        kind = getattr(torch.autograd.DeviceType, device)
        values = {"name": name, "duration_ns": ns, "device_type": kind, "is_user_annotation": annotation}
        return SimpleNamespace(**{key: lambda value=value: value for key, value in values.items()})

    events = [event("void f<int>(int)", 2500), event("g", 10_000), event("void f<int>(int)", 2500)]
    events += [event("launch", 10**6, device="CPU"), event("step", 10**6, annotation=True)]
    found = SimpleNamespace(profiler=SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events)))
    monkeypatch.setattr(profile_cuda, "profile", lambda activities: nullcontext(found))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls: list[int] = []
    times = profile_cuda.kernel_times(lambda: calls.append(1))
    assert len(calls) == profile_cuda.WARM_UP + profile_cuda.CALLS
    assert times == {"g": 10 / profile_cuda.CALLS, "f<int>": 5 / profile_cuda.CALLS}
    assert list(times) == ["g", "f<int>"]


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (
            "void fused_subpixel::cuda::conv<fused_subpixel::Float16, 64, 2>(fused_subpixel::cuda::Params)",
            "conv<Float16, 64, 2>",
        ),
        ("void at::native::(anonymous namespace)::pick<(int)3>(float*)", "at::native::pick<(int)3>"),
        ("sm90_xmma_fprop_implicit_gemm", "sm90_xmma_fprop_implicit_gemm"),
        ("Memset (Device)", "Memset"),
    ],
)
def test_names_of_kernels(kernel: str, name: str) -> None:
    assert profile_cuda.short(kernel) == name
