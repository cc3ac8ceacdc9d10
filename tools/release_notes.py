# SPDX-License-Identifier: BSD-3-Clause
"""Print the section of CHANGELOG.md that a release has, for its page.

    python tools/release_notes.py v1.2.3

Fails if the tag is not the version of the package, or if the section is missing or has no date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(tag: str, root: Path = ROOT) -> str:
    source = (root / "fused_subpixel/__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if tag != f"v{version}":
        raise SystemExit(f"the tag {tag} is not v and the version of the package, {version}")
    sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    for section in sections:
        title, text = section.split("\n", 1)
        if re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", title):
            return text.strip() + "\n"
    raise SystemExit(f"CHANGELOG.md has no section '## [{version}] - ' with a date")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(notes(sys.argv[1]), end="")
