# SPDX-License-Identifier: BSD-3-Clause
"""tools/gpu.py without a GPU: its table of steps, and what becomes of steps that fail."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("tqdm")  # of the extra "bench"

from benching import ROOT

from bench import cuda, profile_cuda, run
from tools import gpu

HALF_AN_HOUR = 1800  # as its help says
RESULTS = Path("/results")
STEPS = gpu.steps(RESULTS, ["--only", "tiny"])
COMMANDS = [(name, command) for name, step in STEPS.items() for command in step.commands]
PYTHON = sys.executable


def commands_of(module: str) -> list[tuple[str, list[str]]]:
    """Steps and the arguments that they give to a module of Python's."""
    start = [PYTHON, "-m", module]
    return [(name, command[3:]) for name, command in COMMANDS if command[:3] == start]


def test_limits_of_the_steps_add_up() -> None:
    assert all(0 < step.limit <= 300 for step in STEPS.values())
    assert sum(step.limit for step in STEPS.values()) <= HALF_AN_HOUR
    assert "in at most half an hour" in (gpu.__doc__ or "")


def test_the_documentation_lists_the_steps() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = [name for name in STEPS if f"| `{name}` | {STEPS[name].limit} s |" in text]
    assert listed == list(STEPS)


def test_what_the_commands_start_is_there() -> None:
    for name, command in COMMANDS:
        for module in (command[at + 1] for at, word in enumerate(command) if word == "-m" and at == 1):
            if module not in STEPS[name].needs:  # else its absence is told
                assert importlib.util.find_spec(module), command
        for word in command:
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), command


def test_outputs_have_the_names_of_their_steps() -> None:
    for name, command in COMMANDS:
        if "--out" in command:
            assert command[command.index("--out") + 1] == str(RESULTS / f"{name}.csv")
    measured = {name for name, command in COMMANDS if "--out" in command}
    assert measured == {"bench", "profile", "compile", "autotune", "dtypes"}
    assert commands_of("tools.speed_model") == [("model", ["refit", str(RESULTS / "profile.csv")])]
    names = list(STEPS)
    assert names.index("profile") < names.index("model")


def test_the_arguments_are_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to where the GPU is missed."""
    monkeypatch.setattr(cuda, "problem", lambda: "no GPU for this test")
    measuring = commands_of("bench.run")
    assert len(measuring) == 4
    for _, arguments in measuring:
        with pytest.raises(SystemExit):
            run.main(arguments)
        assert "error: --device cuda: no GPU for this test" in capsys.readouterr().err
    for _, arguments in commands_of("bench.profile_cuda"):
        with pytest.raises(SystemExit):
            profile_cuda.main(arguments)
        assert "error: no GPU for this test" in capsys.readouterr().err


def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training under CUDA graphs, the 1x1 layers against max-autotune, all dtypes."""
    monkeypatch.setattr(cuda, "problem", lambda: None)
    found = {name: run.parse(arguments) for name, arguments in commands_of("bench.run")}
    assert found["bench"].only == ["tiny"]  # what was asked for
    assert all(found[name].graph == "both" for name in ("bench", "compile", "autotune"))
    assert all("backward" in found[name].passes for name in ("bench", "compile", "dtypes"))
    assert found["compile"].peers == ("compile",) and found["autotune"].peers == ("max-autotune",)
    assert {"nafnet_1x1", "fastai_1x1"} < set(found["autotune"].only)
    assert found["autotune"].only == found["compile"].only
    assert {*found["bench"].dtypes, *found["dtypes"].dtypes} == {"float16", "bfloat16", "tf32", "float32"}


# ---- running them -----------------------------------------------------------------------------------------


def says(text: str, status: int = 0) -> list[str]:
    return [PYTHON, "-c", f"import sys; print({text!r}); sys.exit({status})"]


def outcome(step: gpu.Step, folder: Path) -> gpu.Outcome:
    return gpu.run(step, folder / "step.log", dict(os.environ))


def test_all_commands_of_a_step_run_even_if_one_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcome(gpu.Step(60, [says("first", 3), says("second")]), tmp_path)
    assert found.result == "exit status 3"
    assert "first" in (tmp_path / "step.log").read_text() and "second" in capsys.readouterr().out


def test_a_step_shows_as_many_lines_as_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(gpu.Step(60, [says("a\nb\nc")], shown=2), tmp_path).result == "ok"
    assert capsys.readouterr().out == "b\nc\n"


def test_a_step_ends_at_its_limit(tmp_path: Path) -> None:
    sleep = [PYTHON, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    found = outcome(gpu.Step(2, [sleep, says("never")]), tmp_path)
    assert found.result == "not done after 2 s" and found.seconds < 30
    assert "never" not in (tmp_path / "step.log").read_text().splitlines()


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ("no_such_package", f"no no_such_package for {PYTHON}: "),
        ("tools.no_such_tool", "this checkout has no tools.no_such_tool"),
    ],
)
def test_what_a_step_lacks_is_told(need: str, message: str, tmp_path: Path) -> None:
    found = outcome(gpu.Step(60, [says("never")], ("sys", need)), tmp_path)
    assert found.result.startswith(message)
    assert not (tmp_path / "step.log").exists()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU, whose steps are others."""

    def steps(results: Path, bench: Sequence[str]) -> dict[str, gpu.Step]:
        status = int(os.environ.get("STATUS", "0"))
        return {
            "checks": gpu.Step(60, [says("yes: all is well", 1)]),
            "build": gpu.Step(60, [says("built", status)]),
            "bench": gpu.Step(60, [says("measured")]),
        }

    monkeypatch.setattr(gpu, "steps", steps)
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "environment", lambda: {"gpu": "NVIDIA Pretence"})
    monkeypatch.setattr(gpu, "architecture", lambda: "90a")
    monkeypatch.setenv("PATH", os.environ["PATH"])  # it is added to
    results = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(results)])
    return results


def summary(results: Path) -> list[list[str]]:
    lines = (results / "summary.txt").read_text().splitlines()
    return [[line.split()[0], line.split(" s  ")[1]] for line in lines]


def test_a_failed_step_does_not_stop_the_others(pretended: Path) -> None:
    assert gpu.main() == 1
    assert summary(pretended) == [["checks", "exit status 1"], ["build", "ok"], ["bench", "ok"]]
    assert "measured" in (pretended / "bench.log").read_text()


def test_after_a_failed_build_the_rest_is_skipped(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATUS", "1")
    assert gpu.main() == 1
    assert summary(pretended)[1:] == [["build", "exit status 1"], ["bench", "skipped: the build failed"]]
    assert not (pretended / "bench.log").exists()
