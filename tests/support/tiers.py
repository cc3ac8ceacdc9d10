# SPDX-License-Identifier: BSD-3-Clause
"""Which values of a test's parameter the fast tier runs; the full tier runs the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def tiered(
    names: str | tuple[str, ...], values: Iterable[Any], fast: Collection[Any]
) -> pytest.MarkDecorator:
    """Parametrize ``names``; values that are not in ``fast`` carry the marker ``full``."""
    values = list(values)
    unknown = [value for value in fast if value not in values]
    assert not unknown, f"no value of {names}: {unknown}"
    parameters = []
    for value in values:
        marks = [] if value in fast else [pytest.mark.full]
        parts = (value,) if isinstance(names, str) else value
        parameters.append(pytest.param(*parts, id="-".join(map(str, parts)), marks=marks))
    return pytest.mark.parametrize(names, parameters)
