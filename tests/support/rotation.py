# SPDX-License-Identifier: BSD-3-Clause
"""Covering arrays instead of products: each case meets every instruction set, with another dtype and layout.

A case of index k runs once on every vector instruction set, and with bfloat16 on those of tile registers.
Which (dtype, layout) it meets there rotates with k, so that all combinations occur equally often over the
cases. Further turns, each with another combination, carry the marker ``full``; ``pytest --all-combinations``
runs the whole product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import cases
import pytest
import torch
from cases import DTYPES, LAYOUTS

ISA_NAMES = (
    "portable", "avx2", "avx512", "avx512_bf16", "amx", "neon_bf16", "avx512_bf16_stand_in", "amx_stand_in",
)  # fmt: skip
FULL_TURNS = 3  # of the full tier, the first of which is the fast tier's
turns = FULL_TURNS  # that are collected; conftest.py sets it

STEP = 5  # from one instruction set to the next; has no divisor in common with the numbers of combinations


def combinations(dtypes: Iterable[Any] = DTYPES, layouts: Iterable[str] = LAYOUTS) -> list[tuple[Any, str]]:
    """All (dtype, layout)."""
    return list(itertools.product(dtypes, layouts))


def rotation(
    count: int, isas: Sequence[Any], choices: Sequence[Any], turn: int, together: bool = False
) -> Iterable[tuple[int, Any, Any]]:
    """(index of a case, instruction set, choice) of one turn.

    ``together`` gives all instruction sets of a case the same choice, so that they share a reference.
    """
    for index, (place, isa) in itertools.product(range(count), enumerate(isas)):
        yield index, isa, choices[(index + (0 if together else STEP * place) + turn) % len(choices)]


def label(value: Any) -> str:
    return str(value).removeprefix("torch.")


def rotated(
    names: str,
    rows: Iterable[Any],
    *,
    dtypes: Iterable[Any] = DTYPES,
    layouts: Iterable[str] = LAYOUTS,
    together: bool = False,
) -> pytest.MarkDecorator:
    """Parametrize ``names``, whose values are ``rows``, with ``isa``, ``dtype`` and ``layout``."""
    return _parametrize(names, rows, ["dtype", "layout"], combinations(dtypes, layouts), True, together)


def rotated_layouts(names: str, rows: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize ``names`` with ``isa`` and ``layout``, for tests of a single dtype."""
    return _parametrize(names, rows, ["layout"], [(layout,) for layout in LAYOUTS], True)


def rotated_without_isa(
    names: str, rows: Iterable[Any], choice_names: Sequence[str], choices: Sequence[tuple[Any, ...]]
) -> pytest.MarkDecorator:
    """Parametrize ``names`` with one of ``choices`` each, for kernels that have no instruction sets."""
    return _parametrize(names, rows, choice_names, choices, False)


def _parametrize(
    names: str,
    rows: Iterable[Any],
    choice_names: Sequence[str],
    choices: Sequence[tuple[Any, ...]],
    with_isa: bool,
    together: bool = False,
) -> pytest.MarkDecorator:
    own = [name.strip() for name in names.split(",")]
    given = [row if len(own) > 1 else (row,) for row in rows]
    isas = cases.usable_isas() if with_isa else [None]
    parameters = []
    # Tile registers multiply bfloat16 only.
    of_matrix = [choice for choice in choices if torch.bfloat16 in choice]
    for turn in range(min(turns, len(choices))):
        met = list(rotation(len(given), isas, choices, turn, together))
        if with_isa and turn < len(of_matrix):
            met += rotation(len(given), cases.usable_matrix_isas(), of_matrix, turn, together)
        for index, isa, choice in met:
            on = [isa] if with_isa else []
            shown = map(label, (*given[index], *(ISA_NAMES[isa] for isa in on), *choice))
            marks = [pytest.mark.full] if turn else []
            parameters.append(pytest.param(*given[index], *on, *choice, id="-".join(shown), marks=marks))
    argument_names = [*own, *(["isa"] if with_isa else []), *choice_names]
    return pytest.mark.parametrize(argument_names, parameters, indirect=["isa"] if with_isa else False)
