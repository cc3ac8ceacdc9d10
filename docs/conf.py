# SPDX-License-Identifier: BSD-3-Clause
"""Sphinx configuration. ``make docs`` builds the site into build/docs; the build needs no network."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # autodoc reads the docstrings of this checkout

import fused_subpixel  # noqa: E402

# From pyproject.toml, by a pattern because tomllib is not in Python 3.10.
_found = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
assert _found, "pyproject.toml lacks the URL of the repository"
REPOSITORY = _found[1]

project = "fused_subpixel"
author = "fused_subpixel authors"
copyright = author
version = release = fused_subpixel.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
if importlib.util.find_spec("sphinx_copybutton"):
    extensions.append("sphinx_copybutton")
exclude_patterns = ["figures"]

html_theme = "furo"
html_title = f"fused_subpixel {version}"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
html_static_path: list[str] = []

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
suppress_warnings = ["myst.header"]  # decision records begin with a table, examples with a picture

linkcheck_timeout = 20
linkcheck_ignore = [REPOSITORY + ".*"]  # links into the repository are checked by tests/docs


def _link_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links that leave docs/ lead to the repository: the page sources work there without Sphinx too."""
    folder = Path("docs", docname).parent

    def url(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        target = (ROOT / folder / path).resolve().relative_to(ROOT)
        if target.parts[0] == "docs":
            return match[0]
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{target.as_posix()}{anchor})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)", url, source[0])


def _add_dark_images(app: Sphinx, tree: nodes.document) -> None:
    """Each image ``name_light.svg`` is joined by ``name_dark.svg``; the theme shows one of the two."""
    for image in list(tree.findall(nodes.image)):
        if not image["uri"].endswith("_light.svg"):
            continue
        dark = image.deepcopy()
        dark["uri"] = image["uri"].replace("_light.svg", "_dark.svg")
        image["classes"].append("only-light")
        dark["classes"].append("only-dark")
        image.parent.insert(image.parent.index(image) + 1, dark)


def setup(app: Sphinx) -> None:
    """Connect the two events above."""
    app.connect("source-read", _link_repository)
    app.connect("doctree-read", _add_dark_images, priority=100)  # before Sphinx collects the images
