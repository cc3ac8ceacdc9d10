# SPDX-License-Identifier: BSD-3-Clause
"""The fast tier meets all combinations of instruction set, dtype and layout; mutants.toml fits the code."""

from __future__ import annotations

import collections
import itertools
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import rotation

ROOT = Path(__file__).resolve().parents[2]
ISAS = ("portable", "avx2", "avx512")


@pytest.mark.parametrize("choices", [2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("isas", [1, 2, 3])
def test_one_turn_meets_every_combination_equally_often(choices: int, isas: int) -> None:
    count = 5 * choices
    met = collections.Counter(
        (isa, choice) for _, isa, choice in rotation.rotation(count, range(isas), range(choices), 0)
    )
    assert set(met) == set(itertools.product(range(isas), range(choices)))
    assert set(met.values()) == {5}


@pytest.mark.parametrize("together", [False, True])
def test_all_turns_are_the_product(together: bool) -> None:
    choices = rotation.combinations()
    met = [run for turn in range(len(choices)) for run in rotation.rotation(3, ISAS, choices, turn, together)]
    assert len(met) == len(set(met))
    assert set(met) == set(itertools.product(range(3), ISAS, choices))


def test_every_case_meets_every_instruction_set() -> None:
    met = collections.Counter((index, isa) for index, isa, _ in rotation.rotation(20, ISAS, range(8), 0))
    assert set(met) == set(itertools.product(range(20), ISAS))
    assert set(met.values()) == {1}


@pytest.mark.full
@pytest.mark.parametrize("file", ["test_kernels.py", "test_kernel_gradients.py"])
def test_the_tests_of_the_kernels_meet_every_combination(file: str) -> None:
    """Of the fast tier, as pytest collects it."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"tests/kernels/{file}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    met: dict[str, set[tuple[str, ...]]] = collections.defaultdict(set)
    for line in done.stdout.splitlines():
        name, _, parameters = line.partition("[")
        met[name.rpartition("::")[2]].add(tuple(parameters.rstrip("]").split("-")[-3:]))
    isas = [rotation.ISA_NAMES[isa] for isa in cases.usable_isas()]
    combinations = [(rotation.label(dtype), layout) for dtype, layout in rotation.combinations()]
    expected = {(isa, *combination) for isa, combination in itertools.product(isas, combinations)}
    matrix_isas = [rotation.ISA_NAMES[isa] for isa in cases.usable_matrix_isas()]
    expected |= set(itertools.product(matrix_isas, ["bfloat16"], cases.LAYOUTS))
    names = {
        "test_kernels.py": ("test_exact_on_integers", "test_as_accurate_as_pytorch"),
        "test_kernel_gradients.py": (
            "test_input_gradient_is_exact_on_integers", "test_weight_gradient_is_exact_on_integers",
            "test_as_accurate_as_pytorch", "test_activation_is_applied_on_load",
        ),
    }[file]  # fmt: skip
    for name in names:
        assert met[name] == expected, name


def test_the_table_of_mutants_fits_the_sources() -> None:
    done = subprocess.run(
        [sys.executable, "tools/mutants.py", "--list"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) >= 60
    for part in ("csrc/common", "csrc/cpu", "csrc/cuda", "fused_subpixel/"):
        assert sum(row.startswith(part) for row in rows) >= 3, part
