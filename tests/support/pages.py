# SPDX-License-Identifier: BSD-3-Clause
"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


class Block(NamedTuple):
    line: int
    code: str
    language: str
    comment: str  # in front of the block: its kind and the rest

    def run(self, page: str, namespace: dict[str, object]) -> None:
        """Errors show the page's lines."""
        code = "\n" * (self.line - 1) + self.code
        exec(compile(code, str(ROOT / page), "exec"), namespace)


def blocks(text: str) -> Iterator[Block]:
    pattern = r"(?:<!-- ([^>]*) -->\n)?^```(\w*)\n(.*?)^```$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        yield Block(text.count("\n", 0, match.start(3)) + 1, match[3], match[2], match[1] or "")
