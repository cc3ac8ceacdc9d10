# SPDX-License-Identifier: BSD-3-Clause
"""bench/networks.py: a quick run leaves a complete file, a table and a picture, and wrong numbers stop it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_subpixel as fs
from bench import networks as bench

QUICK = ["--quick", "--no-compile", "--rounds", "2", "--only", "fsrcnn"]


def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.csv"
    assert bench.main([*QUICK, "--out", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["contender"] for row in rows]
    kinds = "eager", "fused", "fused, tf32 allowed,"
    assert names[:6] == [f"{kind} {layout}" for layout in ("NCHW", "channels_last") for kind in kinds]
    for row in rows:
        assert 0 < float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"])
        assert float(row["error"]) < bench.TOLERANCE
        assert row["torch"] == torch.__version__ and row["command"].endswith("--no-compile --quick")
    assert "FSRCNN x3" in path.with_suffix(".svg").read_text()
    assert "| FSRCNN x3 |" in capsys.readouterr().out
    assert torch.backends.mkldnn.conv.fp32_precision == "none"  # as it was


def test_wrong_numbers_are_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def shifted(model: nn.Module, inputs: Tensor, **options: Any) -> tuple[nn.Module, fs.Report]:
        return nn.Sequential(model, nn.Hardtanh(-1e-3, 1e-3)), fs.Report()

    monkeypatch.setattr(bench.fs, "accelerate", shifted)
    with pytest.raises(ArithmeticError, match=r"fsrcnn, fused NCHW: relative error of"):
        bench.main([*QUICK, "--out", str(tmp_path / "figures.csv")])
