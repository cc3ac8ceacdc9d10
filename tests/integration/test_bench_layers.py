# SPDX-License-Identifier: BSD-3-Clause
"""bench/layers.py: every layer computes what PyTorch's does; a run leaves a file and a table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from bench import layers as bench


@pytest.mark.parametrize("layer", bench.LAYERS, ids=lambda layer: f"{layer.series} {layer.name}")
def test_both_sides_of_a_layer(layer: bench.Layer) -> None:
    """Of smaller images, and few channels."""
    channels = min(layer.input_shape[1], 8)
    sizes = [min(size, 16 + layer.dilation * layer.kernel) for size in layer.input_shape[2:]]
    small = layer._replace(input_shape=(1, channels, *sizes), channels=6)
    module, x = small.module().double(), torch.randn(small.input_shape, dtype=torch.float64)
    torch.testing.assert_close(small.fused(x, module), module(x))


def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.csv"
    chosen = ["--only", "pix2pix_1x1", "--only", "gelu", "--only", "hifigan_256"]
    assert bench.main(["--quick", "--no-compile", *chosen, "--out", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contender"] for row in rows[:4]] == [
        f"{who} {layout}" for layout in ("NCHW", "channels_last") for who in ("eager", "fused")
    ]
    assert all(0 < float(row["low_ms"]) <= float(row["median_ms"]) for row in rows)
    assert {row["series"] for row in rows} == {"body", "few", "signals"}
    printed = capsys.readouterr().out
    assert "| few | pix2pix_1x1 |" in printed and "signals: geometric mean" in printed
