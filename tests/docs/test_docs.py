# SPDX-License-Identifier: BSD-3-Clause
"""README and docs: the code runs, and what they name exists.

Python blocks of a page run from top to bottom in one namespace. A comment in front of a block changes that:
``<!-- not run: reason -->``, or ``<!-- needs: package package -->``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pages import ROOT, blocks, text_of
from tiers import tiered

import fused_subpixel as fs

DOCS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
READMES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").rglob("README.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "GOVERNANCE.md", "SECURITY.md"]
PAGES += ["bench/README.md", *READMES, "packaging/README.md", "tests/simt/README.md", *DOCS]
TOP = ("csrc", "fused_subpixel", "tests", "bench", "docs", "examples", "tools", ".github")
SOURCES = (".py", ".h", ".cpp", ".cuh", ".cu", ".toml", ".csv")
STEPS_OF_MAKE_GPU = ("bench", "dtypes", "compile", "autotune", "profile")  # those that measure
WRITTEN_BY_PROGRAMS = ("log.csv", "psnr.csv", *(f"{step}.csv" for step in STEPS_OF_MAKE_GPU))


def prose(text: str) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    """What stands in backticks, outside of blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text))


# ---- code --------------------------------------------------------------------------------------------------


WITH_CODE = [p for p in ("README.md", *DOCS) if "```python" in text_of(p)]


@pytest.fixture
def settings() -> Iterator[None]:
    """Put back what the pages show how to set."""
    logger, tf32 = logging.getLogger("fused_subpixel"), torch.backends.cudnn.conv.fp32_precision
    level, handlers = logger.level, logging.getLogger().handlers[:]
    yield
    logger.setLevel(level)
    logging.getLogger().handlers[:] = handlers
    torch.backends.cudnn.conv.fp32_precision = tf32


@pytest.mark.filterwarnings("ignore:fused_subpixel runs as plain PyTorch:RuntimeWarning")
@tiered("page", WITH_CODE, fast=[p for p in WITH_CODE if p != "docs/export.md"])  # which takes long
def test_code_runs(page: str, settings: None, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": page}
    for block in blocks(text_of(page)):
        kind, _, rest = block.comment.partition(": ")
        if block.language != "python" or kind == "not run":
            continue
        if kind == "needs" and not all(importlib.util.find_spec(package) for package in rest.split()):
            continue
        block.run(page, namespace)


@pytest.mark.parametrize("page", PAGES)
def test_every_comment_before_a_block_is_known(page: str) -> None:
    for block in blocks(text_of(page)):
        if block.comment:
            kind, _, rest = block.comment.partition(": ")
            assert kind in ("not run", "needs") and rest.strip(), f"{page}:{block.line}: {block.comment}"


# ---- names -------------------------------------------------------------------------------------------------


def resolve(dotted: str) -> None:
    """Import as much of ``dotted`` as is modules, then take attributes."""
    found: object = fs
    path = "fused_subpixel"
    for part in dotted.split("."):
        path += f".{part}"
        if not hasattr(found, part):
            importlib.import_module(path)
        found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_exist(page: str) -> None:
    text = text_of(page)
    names = re.findall(r"\b(?:fs|(?<!ops\.)fused_subpixel)\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", text)
    for name in names:
        if not name.endswith((".so", ".py")):
            resolve(name)


@functools.cache
def names_of_files() -> set[str]:
    return {path.name for top in TOP for path in (ROOT / top).rglob("*")} | {p.name for p in ROOT.iterdir()}


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    missing = []
    for name in quoted(text_of(page)):
        if not re.fullmatch(r"[\w./*-]+", name):
            continue
        if name.split("/")[0] in TOP and "/" in name:
            found = bool(list(ROOT.glob(name.rstrip("/"))))
        elif "/" not in name and name.endswith(SOURCES) and name not in WRITTEN_BY_PROGRAMS:
            found = name in names_of_files()
        else:
            continue
        if not found:
            missing.append(name)
    assert not missing


@functools.cache
def words_of_sources() -> set[str]:
    folders = [ROOT / top for top in ("csrc", "fused_subpixel", "tests", "tools", "bench", "examples")]
    paths = [p for f in folders for p in f.rglob("*") if p.suffix in SOURCES[:5]]
    paths += [ROOT / "setup.py", ROOT / "Makefile", ROOT / "pyproject.toml"]
    paths += (ROOT / ".github").rglob("*.yml")
    return {word for path in paths for word in re.findall(r"\w+", path.read_text())}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *(p for p in DOCS if "examples" not in p)])
def test_identifiers_exist(page: str) -> None:
    """Functions, constants and macros in backticks occur in the sources."""
    own = {w for w in quoted(text_of(page)) if re.fullmatch(r"k[A-Z]\w+|[A-Za-z]\w*_\w+", w)}
    # the benchmark's growth series have composed names, and the glossary has prefixes
    own -= {w for w in own if re.match(r"(size|narrow|wide)_", w) or w.endswith("_")}
    assert not {w for w in own if w not in words_of_sources() and not hasattr(torch, w)}


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", text_of("Makefile"), re.MULTILINE))
    named = re.findall(r"^make ([a-z0-9-]+)", "\n".join(b.code for b in blocks(text_of(page))), re.MULTILINE)
    named += [m[1] for name in quoted(text_of(page)) if (m := re.match(r"make ([a-z0-9-]+)", name))]
    assert set(named) <= targets


def test_the_api_page_has_every_public_name() -> None:
    named = re.findall(r"^\.\. auto(?:function|class|data):: (\w+)$", text_of("docs/api.md"), re.MULTILINE)
    assert sorted(named) == sorted(fs.__all__)


def test_pages_that_the_sources_name_exist() -> None:
    for folder in ("fused_subpixel", "csrc", "bench", "examples", "tests", "tools"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SOURCES[:5] and path != Path(__file__).resolve():
                for name in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text()):
                    assert (ROOT / name).exists(), f"{path}: {name}"


# ---- links and pictures ------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = prose(text_of(page))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_is_in_a_table_of_contents() -> None:
    for page in DOCS:
        name = page.removeprefix("docs/").removesuffix(".md")
        if name != "index":
            index = "docs/decisions/index.md" if name.startswith("decisions/0") else "docs/index.md"
            entry = name.removeprefix("decisions/") if name.startswith("decisions/0") else name
            assert re.search(rf"^{entry}$", text_of(index), re.MULTILINE), page


def test_pictures_are_used_and_come_in_both_themes() -> None:
    used = "\n".join(map(text_of, PAGES))
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.name.replace("_dark.svg", "_light.svg") in used, path.name
        if path.name.endswith("_light.svg"):
            assert path.with_name(path.name.replace("_light", "_dark")).exists()


def test_the_diagrams_are_what_their_program_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(ROOT / "docs/figures/draw.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "images").glob("*.svg")}


# ---- figures in tables -------------------------------------------------------------------------------------


def test_tables_agree_with_the_files_of_results() -> None:
    command = [sys.executable, str(ROOT / "docs/figures/tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_benchmark_page_agrees_with_the_files_of_results() -> None:
    pytest.importorskip("matplotlib")
    from bench import files, page, workloads

    text = text_of("docs/benchmarks.md")
    measured = text.split("<!-- measured")[1].split("<!-- end of measured")[0]
    names = dict.fromkeys(re.findall(r"`(\d{4}-\S+\.csv)`", measured))
    suite = [workload.name for workload in workloads.SUITE]
    for machine in files.read([ROOT / "bench" / "results" / name for name in names]):
        for backward in (False, True):
            assert page.table(machine.some(suite, backward)) in text
        assert page.losses(machine) in text
        assert page.claims(machine) in text


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 130
