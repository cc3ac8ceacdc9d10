# SPDX-License-Identifier: BSD-3-Clause
"""What is supported is said in several files: metadata, build, workflows, documentation. They agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fused_subpixel
from fused_subpixel import torch_compat
from fused_subpixel.ops.geometry import Geometry
from fused_subpixel.ops.schemas import SCHEMAS
from tools import release_notes

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
BUILD = "".join(path.read_text() for path in (ROOT / "setup.py", *(ROOT / "tools/compile").glob("*.py")))
WORKFLOWS = {path.name: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
ROWS = [
    dict(re.findall(r'(\w+): "?([^",}]+?)"?[,\s}]', row))
    for row in re.findall(r"^ +- (\{ python: .*\})$", WORKFLOWS["test.yml"], re.MULTILINE)
]


def one(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return str(found)


OLDEST_TORCH = one(r'^dependencies = \["torch>=([\d.]+)"', PYPROJECT)
OLDEST_PYTHON = one(r'^requires-python = ">=([\d.]+)"$', PYPROJECT)
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
PINNED = (re.fullmatch(r"torch==([\d.]+)\.\*", row["torch"]) for row in ROWS)
TORCHES = list(dict.fromkeys(match[1] for match in PINNED if match))


def test_the_build_asks_for_the_oldest_torch() -> None:
    major, minor = map(int, OLDEST_TORCH.split("."))
    assert one(r"TORCH_TARGET_VERSION=(0x\w+)ULL", BUILD) == f"0x{major:02x}{minor:02x}{0:012x}"
    assert f"< ({major}, {minor}):" in BUILD
    assert f"'torch=={OLDEST_TORCH}.*'" in one(r'^before-build = """\n(.*)"""$', PYPROJECT)
    for name in ("wheels.yml", "nightly.yml"):
        assert f"torch=={OLDEST_TORCH}.*" in WORKFLOWS[name]
    recipe = (ROOT / "packaging/conda/recipe.yaml").read_text()
    assert set(re.findall(r"- pytorch (>=.*)", recipe)) == {f">={OLDEST_TORCH}"}


def test_the_tests_run_on_all_supported_versions() -> None:
    assert PYTHONS[0] == OLDEST_PYTHON
    assert set(PYTHONS) == {row["python"] for row in ROWS}
    major, first = OLDEST_TORCH.split(".")
    assert [f"{major}.{int(first) + n}" for n in range(len(TORCHES))] == TORCHES
    assert f"torch>={TORCHES[-1]}" in {row["torch"] for row in ROWS}  # the newest, whichever it is
    assert {row["cxx"] for row in ROWS} == {"g++", "clang++"}
    ends = {(row["python"], row["torch"]) for row in ROWS}
    assert {(PYTHONS[0], f"torch=={OLDEST_TORCH}.*"), (PYTHONS[-1], f"torch=={OLDEST_TORCH}.*")} <= ends


def test_the_documentation_says_the_same() -> None:
    text = (ROOT / "docs/versions.md").read_text()
    table = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE))
    assert table["torch"].startswith(f"{OLDEST_TORCH} and newer | {', '.join(TORCHES)} and the newest;")
    assert table["Python"].startswith(f"{OLDEST_PYTHON} and newer | {', '.join(PYTHONS)} |")
    image = one(r'^manylinux-x86_64-image = "manylinux_(\d+_\d+)"$', PYPROJECT).replace("_", ".")
    assert table["system"].startswith(f"Linux with glibc {image} or newer")
    architecture = one(r'^CUDA_ARCHS = "(\d+);', BUILD)
    assert f"compute capability {architecture[:-1]}.{architecture[-1]} or newer" in table["GPU"]
    cuda = one(r'^    "nvidia-cuda-nvcc==(\d+)\.', PYPROJECT)
    assert f"CUDA {cuda}" in table["GPU"]
    for page in ("README.md", "CONTRIBUTING.md", "docs/troubleshooting.md"):
        page_text = (ROOT / page).read_text()
        assert f"Python {OLDEST_PYTHON}" in page_text or f"Python from {OLDEST_PYTHON}" in page_text
        assert re.search(rf"torch (from )?{re.escape(OLDEST_TORCH)}\b", page_text), page


@pytest.mark.parametrize("released", (ROOT / "tests/packaging/schemas.txt").read_text().splitlines())
def test_operators_take_what_they_took(released: str) -> None:
    """Exported programs hold such calls. A new argument comes last, has a default, and goes into the file."""
    operator = released.partition("(")[0].removeprefix("fused_subpixel::")
    (now,) = (schema for schema in SCHEMAS if schema.startswith(f"{operator}("))
    parse = torch_compat.parse_schema
    assert parse(f"fused_subpixel::{now}").is_backward_compatible_with(parse(released))


def test_the_list_of_the_geometry_is_what_it_was() -> None:
    """Exported programs hold such lists. Operators that get longer ones have to take these too."""
    of_0_1 = (
        "upscale_h upscale_w stride_h stride_w pad_top pad_left pad_bottom pad_right dilation_h dilation_w "
        "groups crop_top crop_left crop_bottom crop_right channel_order tf32 kernel_pad_h kernel_pad_w"
    )
    assert " ".join(Geometry._fields) == of_0_1


# ---- the text of a release ----


def test_release_notes(tmp_path: Path) -> None:
    (tmp_path / "fused_subpixel").mkdir()
    (tmp_path / "fused_subpixel/__init__.py").write_text('__version__ = "1.2.0"\n')
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("## [Unreleased]\n\n## [1.2.0] - 2027-01-02\n\n- a\n\n## [1.1.0] - 2026-01-02\n")
    assert release_notes.notes("v1.2.0", tmp_path) == "- a\n"
    with pytest.raises(SystemExit, match=r"v1\.1\.0 is not v and the version of the package, 1\.2\.0"):
        release_notes.notes("v1.1.0", tmp_path)
    changelog.write_text("## [1.2.0] - unreleased\n\n- a\n")
    with pytest.raises(SystemExit, match=r"no section '## \[1\.2\.0\] - ' with a date"):
        release_notes.notes("v1.2.0", tmp_path)


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    for line in versions:
        assert re.fullmatch(r"## \[(Unreleased|\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d)\]?", line), line
    kinds = {line for line in lines if line.startswith("### ")}
    known = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert kinds <= {f"### {kind}" for kind in known}
    released = re.findall(r"\d+\.\d+\.\d+", "".join(versions))
    assert versions[0] == "## [Unreleased]" or released[0] == fused_subpixel.__version__
