# SPDX-License-Identifier: BSD-3-Clause
"""Runs of bench.run that measure next to nothing, for its tests."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench import run  # noqa: E402
from bench.workloads import Workload  # noqa: E402

SMALL = Workload("small", 2, 5, 6, 7, 3, 2, 3, "sizes that cannot be mixed up")


def bench(*arguments: str | Path) -> int:
    return run.main(["--rounds", "2", "--min-time", "1e-4", "--no-plots", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
