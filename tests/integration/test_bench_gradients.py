# SPDX-License-Identifier: BSD-3-Clause
"""bench/gradients.py and training.py: a run leaves a file and tables, and does not time wrong numbers."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import needs_cpu_library
from torch import Tensor, nn

from bench import gradients as bench
from bench import training
from bench.workloads import Transposed, Workload

pytestmark = needs_cpu_library
SMALL = (
    Workload("plain", 1, 4, 6, 7, 2, 2, 3, "small"),
    Workload("even", 2, 3, 5, 4, 8, 1, 2, "small", bias=False),
    Transposed("up", 2, 4, 5, 6, 3, 2, 4, "small", cut=1),
)


def test_a_quick_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "WORKLOADS", SMALL[:2])
    monkeypatch.setattr(bench, "TRANSPOSED", SMALL[2:])
    monkeypatch.setattr(bench, "BODY", ())
    monkeypatch.setattr(bench, "MIN_TIME", 1e-5)
    path = tmp_path / "figures.csv"
    assert bench.main(["--quick", "--out", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(SMALL) * len(bench.LAYOUTS) * len(bench.NEEDED) * 3
    assert all(0 < float(row["low_ms"]) <= float(row["median_ms"]) for row in rows)
    estimated = {(row["gradient"], row["contender"]) for row in rows if row["estimated_cycles"]}
    assert estimated == {(gradient, who) for gradient in ("input", "weight") for who in ("ours", "pytorch")}
    printed = capsys.readouterr().out
    assert "| plain | NCHW |" in printed
    assert "weight: geometric mean" in printed
    assert "plan, all gradients: " in printed


def test_wrong_numbers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench.convolution_gradients

    def wrong(*arguments: Any) -> tuple[Tensor | None, ...]:
        by_ours = arguments[5].input_grad
        return tuple(g if g is None or not by_ours else 2 * g for g in right(*arguments))

    monkeypatch.setattr(bench, "convolution_gradients", wrong)
    with pytest.raises(ArithmeticError, match="plain, ours, input"):
        bench.measure(SMALL[0], torch.float32, False, 1)


def test_random_layers_are_always_the_same() -> None:
    layers = list(bench.random_layers(5))
    assert layers == list(bench.random_layers(5))
    assert len({layer.name for layer in layers}) == 5


@pytest.mark.parametrize("autocast", [False, True])
def test_training_steps(
    autocast: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MIN_TIME", 1e-5)
    path = tmp_path / "figures.csv"
    chosen = ["--only", "autoencoder", "--only", "srvgg", *["--autocast"] * autocast]
    assert training.main(["--quick", "--no-compile", "--rounds", "1", *chosen, "--out", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["contender"] for row in rows} == {
        f"{name} {layout}" for name in ("eager", "fused") for layout in training.LAYOUTS
    }
    assert all(0 < float(row["low_ms"]) <= float(row["median_ms"]) for row in rows)
    assert "| MNIST autoencoder | " in capsys.readouterr().out


def test_wrong_gradients_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = next(network for network in training.NETWORKS if network.name == "autoencoder")

    def wrong(model: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            next(changed.parameters()).mul_(1.5)
        return changed

    monkeypatch.setattr(training.fs, "accelerate", wrong)
    with pytest.raises(ArithmeticError, match="autoencoder, fused NCHW"):
        training.prepare(network, network.quick, 0.1, False, False)
