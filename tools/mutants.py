# SPDX-License-Identifier: BSD-3-Clause
"""Make mistakes in copies of the sources, one after another; the fast tests must notice each: `make mutants`.

    make mutants                                   all of tools/mutants.toml
    make mutants ARGS="--only store-inl --jobs 4"  those whose file, kind or text contains a word
    make mutants-smoke                             the rows marked as smoke

A row of mutants.toml names a file, a text that occurs in it exactly once, and what replaces it. First the
tests that the row names run; if none of them fails, all fast tests run. A mutant that none notices survives,
and the exit status is 1.

All mutants of C++ are compiled at once, into one build, each behind a switch that an environment variable
turns on when a library is loaded; so their texts are expressions or statements. Mutants of Python are written
into a copy of the package. build/mutants/results.csv holds the results; a run that was interrupted continues
where it stopped. What was killed before is known as long as the row and the file stay the same; --again
forgets it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import hashlib
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings it
    import tomli as tomllib  # type: ignore[no-redef, import-not-found]

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tools" / "mutants.toml"
FOLDER = ROOT / "build" / "mutants"
TABLE_TEST = "tests/unit/test_tiers.py::test_the_table_of_mutants_fits_the_sources"  # not of changed ones
SWITCH = "FUSED_SUBPIXEL_MUTANT"
COLUMNS = ("key", "file", "line", "kind", "text", "replacement", "outcome", "by", "seconds")
LIMIT = 300  # seconds for the tests that a row names; a mutant may run for ever
LIMIT_OF_ALL = 1500

# Included before every C++ file. A constant expression keeps the right code.
HEADER = f"""\
#pragma once
#include <cstdlib>
namespace fs_mutants {{
static int read() {{
  const char* text = std::getenv("{SWITCH}");
  return text ? std::atoi(text) : 0;
}}
static const int chosen = read();
static constexpr bool on(int number) {{
  return __builtin_is_constant_evaluated() ? false : chosen == number;
}}
}}  // namespace fs_mutants
"""


class Mutant(NamedTuple):
    """A row of the table."""

    number: int  # from 1, of the switch
    file: str
    line: int
    start: int  # of the text, in characters
    kind: str
    text: str
    replacement: str
    tests: tuple[str, ...]  # that run first
    statement: bool
    smoke: bool
    machine: str = ""  # the only kind that compiles the text

    @property
    def compiled(self) -> bool:
        return not self.file.endswith(".py")

    def source(self) -> str:
        """What stands in the place of the text."""
        if not self.compiled:
            return self.replacement
        on = f"fs_mutants::on({self.number})"
        if self.statement:
            return f"if ({on}) {{ {self.replacement} }} else {{ {self.text} }}"
        return f"({on} ? ({self.replacement}) : ({self.text}))"


class Result(NamedTuple):
    outcome: str  # "killed", "survived", or "failed": the tests did not run
    by: str  # the test that noticed, or what went wrong
    seconds: float


# ---- the table ---------------------------------------------------------------------------------------------


def read_table(path: Path = TABLE, root: Path = ROOT) -> list[Mutant]:
    """All rows; exits with every row that does not fit the sources."""
    table = tomllib.loads(path.read_text())
    mutants, problems = [], []
    for number, row in enumerate(table["mutant"], 1):
        try:
            mutants.append(_mutant(number, row, table.get("tests", {}), root))
        except ValueError as error:
            problems.append(f"{path.name}, mutant {number}, {row.get('file')}: {error}")
    in_order = sorted((m for m in mutants if m.compiled), key=lambda m: (m.file, m.start))
    for one, next in itertools.pairwise(in_order):
        if one.file == next.file and next.start < one.start + len(one.text):
            problems.append(f"{path.name}, mutants {one.number} and {next.number}: their texts overlap")
    if problems:
        raise SystemExit("\n".join(problems))
    return mutants


def _mutant(number: int, row: dict[str, Any], tests_of: dict[str, list[str]], root: Path) -> Mutant:
    file, text, replacement = row["file"], row["text"], row["replacement"]
    if not (root / file).exists():
        raise ValueError("there is no such file")
    source, within = (root / file).read_text(), row.get("within", text)
    for place, part in ((source, within), (within, text)):
        if place.count(part) != 1:
            raise ValueError(f"{part!r} occurs {place.count(part)} times, not once")
    if text == replacement:
        raise ValueError("it changes nothing")
    start = source.index(within) + within.index(text)
    tests = row.get("tests") or next((tests for key, tests in tests_of.items() if key in file), [])
    for test in tests:
        if not (root / test.partition("::")[0]).exists():
            raise ValueError(f"there is no {test}")
    if not tests:
        raise ValueError("it names no tests")
    mutant = Mutant(
        number, file, source.count("\n", 0, start) + 1, start, row["kind"], text, replacement, tuple(tests),
        row.get("statement", False), row.get("smoke", False), row.get("machine", ""),
    )  # fmt: skip
    if not mutant.compiled:
        try:
            compile(changed(source, [mutant]), file, "exec")
        except SyntaxError as error:
            raise ValueError(f"it does not compile: {error}") from error
    return mutant


def key_of(mutant: Mutant) -> str:
    """Of the row and the file that it changes."""
    row = (mutant.file, mutant.start, mutant.text, mutant.replacement)
    return hashlib.sha256(f"{row}{(ROOT / mutant.file).read_text()}".encode()).hexdigest()[:16]


# ---- the copies --------------------------------------------------------------------------------------------


def copy_tree(to: Path, instead: dict[str, str]) -> None:
    """The project's files, but for the texts of those that are ``instead`` of theirs.

    Files that are the same stay as they are, so that ninja compiles only what has changed.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        update(to / name, instead[name].encode() if name in instead else (ROOT / name).read_bytes())
    for file in to.rglob("*.py"):  # that are gone here
        name = str(file.relative_to(to))
        if name not in names and not name.startswith("build/"):
            file.unlink()


def copy_built(to: Path) -> None:
    """The libraries and the tests' modules as they are."""
    built = [*(ROOT / "fused_subpixel").glob("*.so"), *(ROOT / "build" / "tests").glob("*.so")]
    if not built:
        raise SystemExit("mutants: nothing is built here; `make mutants` does so first")
    for file in built:
        update(to / file.relative_to(ROOT), file.read_bytes())


def update(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def changed(source: str, mutants: Iterable[Mutant]) -> str:
    """A file with mutants in it: of C++, behind switches."""
    for mutant in sorted(mutants, key=lambda mutant: mutant.start, reverse=True):
        source = source[: mutant.start] + mutant.source() + source[mutant.start + len(mutant.text) :]
    return source


def build(mutants: Sequence[Mutant], tree: Path, **env: str) -> None:
    """Libraries and the tests' modules, with all mutants of C++ in them; ``env`` is setup.py's."""
    files = {mutant.file for mutant in mutants if mutant.compiled}
    copy_tree(
        tree,
        {
            name: changed((ROOT / name).read_text(), [mutant for mutant in mutants if mutant.file == name])
            for name in files
        },
    )
    update(tree / "mutants.h", HEADER.encode())
    environment = {
        **os.environ, "FUSED_SUBPIXEL_CUDA": "0", "FUSED_SUBPIXEL_BUILD_TESTS": "1",
        "CXXFLAGS": f"-O1 -include {tree / 'mutants.h'}", **env,
    }  # fmt: skip
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    if subprocess.run(command, cwd=tree, env=environment).returncode:
        raise SystemExit(f"mutants: {tree} does not compile: is a text neither expression nor statement?")


def overlay(mutant: Mutant, tree: Path, to: Path) -> Path:
    """A tree of its own for a mutant of Python: links to ``tree``, and a copy of what it changes."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    folder = Path(mutant.file).parts[0]
    for entry in tree.iterdir():
        if entry.name != folder:
            (to / entry.name).symlink_to(entry)
    shutil.copytree(tree / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (to / mutant.file).write_text(changed((ROOT / mutant.file).read_text(), [mutant]))
    return to


# ---- running -----------------------------------------------------------------------------------------------


def run_tests(tree: Path, number: int, tests: Sequence[str], limit: float) -> Result:
    """Run until the first failure."""
    env = {
        **os.environ, SWITCH: str(number), "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider",
        "--rootdir", str(tree), "-n", "0", "--deselect", TABLE_TEST, *tests,
    ]  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=tree, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return Result("killed", f"not done after {limit:.0f} s", time.monotonic() - start)
    seconds = time.monotonic() - start
    if process.returncode < 0:
        return Result("killed", f"the process died of signal {-process.returncode}", seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+(?: [^-]\S*)*)", output, re.M)
    if process.returncode == 1 and failed:
        return Result("killed", failed[1], seconds)
    if process.returncode == 0:
        return Result("survived", "", seconds)
    return Result("failed", (output.strip().splitlines() or ["no output"])[-1], seconds)


class Rightness:
    """Whether tests pass where nothing is wrong: else it proves nothing that they fail with a mutant."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.known: dict[tuple[str, ...], bool] = {}
        self.lock = threading.Lock()

    def of(self, tests: tuple[str, ...]) -> bool:
        with self.lock:
            if tests in self.known:
                return self.known[tests]
        passed = run_tests(self.tree, 0, tests, LIMIT_OF_ALL).outcome == "survived"
        with self.lock:
            self.known[tests] = passed
        return passed


def examine(mutant: Mutant, tree: Path, rightness: Rightness) -> Result:
    """The tests that the row names, then all of them."""
    wrong = tree if mutant.compiled else overlay(mutant, tree, FOLDER / f"overlay-{mutant.number}")
    start = time.monotonic()
    try:
        for tests, limit in ((mutant.tests, LIMIT), (("tests",), LIMIT_OF_ALL)):
            found = run_tests(wrong, mutant.number, tests, limit)
            if found.outcome == "killed" and not rightness.of((found.by,) if "::" in found.by else tests):
                found = Result("failed", f"fails without the mutant too: {found.by}", found.seconds)
            if found.outcome != "survived":
                break
        return found._replace(seconds=time.monotonic() - start)
    finally:
        if wrong != tree:
            shutil.rmtree(wrong, ignore_errors=True)


class Progress:
    """A line for each mutant, and below it a bar where there is a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def add(self, mutant: Mutant, result: Result) -> None:
        self.done += 1
        print(
            f"{'' if not sys.stdout.isatty() else chr(13) + chr(27) + '[K'}"
            f"{result.outcome:8}  {result.seconds:5.0f} s  {mutant.file}:{mutant.line}  {mutant.kind}"
            + (f"  by {result.by}" if result.by else ""),
            flush=True,
        )
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done) / 60
        bar = "#" * (30 * self.done // self.total)
        if sys.stdout.isatty():
            print(f"[{bar:.<30}] {self.done} of {self.total}, {left:.0f} min left", end="", flush=True)


def earlier(path: Path) -> dict[str, Result]:
    """Results of earlier runs, by key."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            row["key"]: Result(row["outcome"], row["by"], float(row["seconds"]))
            for row in csv.DictReader(file)
        }


def write(path: Path, rows: dict[str, tuple[Mutant, Result]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for key, (m, r) in rows.items():
            writer.writerow(
                (key, m.file, m.line, m.kind, m.text, m.replacement, r.outcome, r.by, f"{r.seconds:.1f}")
            )


def summary(rows: Iterable[tuple[Mutant, Result]]) -> str:
    """How many of each kind were killed, and which were not."""
    rows = list(rows)
    kinds: dict[str, list[str]] = {}
    for mutant, result in rows:
        language = "Python" if not mutant.compiled else "CUDA" if "cuda" in mutant.file else "C++"
        for name in (f"all of {language}", mutant.kind):
            kinds.setdefault(name, []).append(result.outcome)
    lines = [
        f"{name:34} {outcomes.count('killed'):3} of {len(outcomes):3} killed"
        for name, outcomes in sorted(kinds.items())
    ]
    for mutant, result in rows:
        if result.outcome != "killed":
            lines.append(
                f"{result.outcome.upper()}: {mutant.file}:{mutant.line}, {mutant.kind}\n"
                f"    {mutant.text!r}\n    {mutant.replacement!r}  {result.by}"
            )
    return "\n".join(lines)


def chosen(mutants: Sequence[Mutant], options: argparse.Namespace) -> list[Mutant]:
    return [
        mutant
        for mutant in mutants
        if (mutant.smoke or not options.smoke)
        and mutant.machine in ("", platform.machine())
        and any(word in f"{mutant.file} {mutant.kind} {mutant.text}" for word in options.only or [""])
    ]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mutants.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="a word of file, kind or text; may be repeated")
    parser.add_argument("--smoke", action="store_true", help="only the rows marked as smoke")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    parser.add_argument("--list", action="store_true", help="show the rows and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many run at a time")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    every = read_table()
    mutants = chosen(every, options)
    if options.list:
        print("\n".join(f"{m.file}:{m.line}  {m.kind}  {m.text!r} -> {m.replacement!r}" for m in mutants))
        return 0
    if not mutants:
        raise SystemExit("mutants: no row fits")
    path = FOLDER / "results.csv"
    keys = {mutant: key_of(mutant) for mutant in every}
    known = {key: r for key, r in earlier(path).items() if r.outcome == "killed"}
    rows = {keys[m]: (m, known[keys[m]]) for m in every if keys[m] in known}
    todo = [mutant for mutant in mutants if options.again or keys[mutant] not in rows]
    if todo:
        tree = FOLDER / "tree"
        before = len(mutants) - len(todo)
        print(f"{len(todo)} mutants, {before} known from before", flush=True)
        if any(mutant.compiled for mutant in todo):
            print("all mutants of C++ are compiled, at once", flush=True)
            build(every, tree)
        else:
            tree = FOLDER / "python"
            copy_tree(tree, {})
            copy_built(tree)
        rightness = Rightness(tree)
        progress = Progress(len(todo))
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = {pool.submit(examine, mutant, tree, rightness): mutant for mutant in todo}
            try:
                for future in concurrent.futures.as_completed(futures):
                    mutant = futures[future]
                    rows[keys[mutant]] = (mutant, future.result())
                    progress.add(mutant, future.result())
                    write(path, rows)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    asked = [rows[keys[mutant]] for mutant in mutants]
    print("\n" + summary(asked))
    return int(any(result.outcome != "killed" for _, result in asked))


if __name__ == "__main__":
    sys.exit(main())
