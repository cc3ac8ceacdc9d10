# SPDX-License-Identifier: BSD-3-Clause
"""bench/clients.py: a quick run leaves a complete file and a table, and wrong numbers stop it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from clients import Client
from conftest import build
from torch import Tensor, nn

from bench import clients as bench

ANIMEVIDEO = bench.BY_NAME["animevideo"]


@pytest.fixture(autouse=True)
def _there() -> None:
    build(Client("animevideo", ANIMEVIDEO.build))


def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.csv"
    assert bench.main(["--quick", "--only", "animevideo", "--rounds", "2", "--out", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["what"], row["contender"]) for row in rows if "memory" not in row["what"]] == [
        (what, contender.name) for what in ("network", "heads") for contender in bench.CONTENDERS
    ]
    assert len(rows) == len(bench.UNITS) * len(bench.CONTENDERS)
    for row in rows:
        assert row["unit"] == bench.UNITS[row["what"]][1]
        assert float(row["low"]) <= float(row["median"]) <= float(row["high"])
        assert row["unit"] == "MB" or float(row["low"]) > 0
        assert row["torch"] == torch.__version__ and row["command"].endswith("--quick")
    table = capsys.readouterr().out
    assert f"| {ANIMEVIDEO.what} | {'x'.join(map(str, ANIMEVIDEO.quick))} |" in table


def test_wrong_numbers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: nn.Module, inputs: Tensor, *, inplace: bool) -> nn.Module:
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
        return model

    monkeypatch.setattr(bench.fs, "replace_pixel_shuffle", shifted)
    with pytest.raises(ArithmeticError, match=r"animevideo, replaced NCHW: relative error of"):
        bench.times(ANIMEVIDEO, ANIMEVIDEO.quick, rounds=1)


def test_memory_sees_the_tensor_between_convolution_and_shuffle() -> None:
    """It is as large as the output, [1, 3, 480, 640] in float32; the fused head needs the output alone."""
    shape, size = (1, 3, 120, 160), 3 * 480 * 640 * 4
    found = {
        row.contender: row.timing.median
        for row in bench.memory(ANIMEVIDEO, shape, processes=1)
        if row.what == "heads memory"
    }
    for contender, grown in found.items():
        if contender.replaced:
            assert grown <= 1.5 * size
        else:
            assert grown >= 1.9 * size
