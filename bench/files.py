# SPDX-License-Identifier: BSD-3-Clause
"""The CSV files of bench.run, read back for plots and tables. Columns that old files lack are empty."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One workload in one pass, with the rows of all contenders by their names."""

    workload: str
    backward: bool
    rows: dict[str, Row]

    def ms(self, contender: str) -> float:
        return float(self.rows[contender]["median_ms"])

    def spread(self, contender: str) -> float:
        row = self.rows[contender]
        return (float(row["high_ms"]) - float(row["low_ms"])) / 2

    def number(self, contender: str, column: str) -> float | None:
        text = self.rows[contender].get(column, "")
        return float(text) if text else None

    def fastest(self, family: str) -> str | None:
        """The contender of this family, of its layouts the faster."""
        own = [name for name in self.rows if name.split()[0] == family]
        return min(own, key=self.ms, default=None)

    @property
    def ours(self) -> str:
        found = self.fastest("fused")
        assert found
        return found

    @property
    def peer(self) -> str:
        return min((name for name in self.rows if not name.startswith("fused")), key=self.ms)

    @property
    def headline(self) -> float:
        return self.ms(self.peer) / self.ms(self.ours)


@dataclass(frozen=True)
class Machine:
    """What was measured with one dtype on one machine; ``facts`` are the columns of its environment."""

    name: str
    dtype: str
    graph: bool
    facts: Row
    cases: list[Case]
    files: list[str]  # their names

    def some(self, workloads: Sequence[str], backward: bool) -> list[Case]:
        """In the order of ``workloads``."""
        found = {case.workload: case for case in self.cases if case.backward == backward}
        return [found[name] for name in workloads if name in found]


def read(paths: Sequence[Path]) -> list[Machine]:
    """All of ``paths``, those of the same machine, dtype and number of threads together."""
    found: dict[tuple[str, ...], dict[tuple[str, bool], Case]] = {}
    facts: dict[tuple[str, ...], Row] = {}
    names: dict[tuple[str, ...], dict[str, None]] = {}
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                gpu = row.get("gpu", "")
                key = (gpu or row["cpu"], "" if gpu else row["threads"], row["dtype"], row.get("graph", ""))
                facts.setdefault(key, row)
                names.setdefault(key, {})[path.name] = None
                case = (row["workload"], row["pass"] == "backward")
                rows = found.setdefault(key, {}).setdefault(case, Case(*case, {})).rows
                rows[row["contender"]] = row
    return [
        Machine(
            key[0] + (f", {key[1]} threads" if key[1] else ""),
            key[2],
            key[3] == "yes",
            facts[key],
            [case for case in cases.values() if any(name.startswith("fused ") for name in case.rows)],
            list(names[key]),
        )
        for key, cases in found.items()
    ]
