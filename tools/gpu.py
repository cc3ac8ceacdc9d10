# SPDX-License-Identifier: BSD-3-Clause
"""Build, test, sanitize and measure on a machine with a CUDA GPU, in at most half an hour: `make gpu`.

    make gpu PYTHON=python3                       everything
    make gpu PYTHON=python3 STEPS=build,test      these only
    make gpu STEPS=build,bench ARGS="--bench='--peers compile --only srvgg_x4'"

Nothing is installed and nothing fetched: Python must hold a CUDA build of torch, setuptools and, for the
tests, pytest. Each step has a time limit and a log file, and leaves what it measured in a file of its name;
CONTRIBUTING.md lists the steps. A table ends the run. A step that fails does not stop the others; only after
a failed build the rest is skipped. The exit status is 1 if a step failed, 2 if there is nothing to run on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHORT = "tools/cuda_short.py"  # a few small calls of every kernel
GPU_TESTS = "tests/kernels/test_cuda.py"
EMULATOR_TEST = "emulator_matches_hardware"
# for torch.compile, which takes long: 1x1, which max-autotune makes a matrix product, and 3x3
COMPILED = ("nafnet_1x1", "fastai_1x1", "srvgg_x4", "edsr_base_x2")
TAIL = 40  # lines of a failed step's log that are shown


class Step(NamedTuple):
    """Commands in order, all of them, even if one fails."""

    limit: int  # seconds
    commands: list[list[str]]
    needs: tuple[str, ...] = ()  # Python modules and programs without which it cannot run
    shown: int = 1  # last lines of the log


class Outcome(NamedTuple):
    result: str  # "ok", or what went wrong
    seconds: float


def why_not() -> str | None:
    """Why nothing can run here, in one line."""
    if importlib.util.find_spec("torch") is None:
        return (
            f"{sys.executable} has no torch: say make gpu PYTHON=… with a CUDA build of torch 2.10 or newer"
        )
    import torch

    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
        return f"torch {torch.__version__} is too old: 2.10 or newer is needed"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: say make gpu PYTHON=… with a CUDA build"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA GPU (nvidia-smi shows what the driver finds)"
    return None


def architecture() -> str:
    """What FUSED_SUBPIXEL_CUDA_ARCHS calls the GPU that is here: 90a, 80."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if (major, minor) in ((9, 0), (10, 0)) else ''}"


def steps(results: Path, bench: Sequence[str]) -> dict[str, Step]:
    """All steps by name, in the order in which they run."""
    python, pytest = sys.executable, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        pytest += ["-n", str(min(8, os.cpu_count() or 1))]
    build = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    modules = [python, "setup.py", "--quiet", "build_host_tests"]
    verify = [python, "-m", "fused_subpixel", "verify"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1", "--launch-timeout", "60"]
    # torch's allocator hands out parts of large blocks: without it, every overrun is seen
    unpooled = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]

    def measure(name: str, limit: int, dtypes: Sequence[str], *arguments: str) -> Step:
        command = [python, "-m", "bench.run", "--device", "cuda", "--rounds", "11", "--no-plots"]
        words = [word for dtype in dtypes for word in ("--dtype", dtype)]
        return Step(
            limit, [[*command, *words, *arguments, "--out", f"{results}/{name}.csv"]], ("tqdm",), shown=TAIL
        )

    only = [word for name in COMPILED for word in ("--only", name)]
    both = ("float16", "tf32")
    return {
        "checks": Step(60, [[python, "-m", "tools.gpu_checks"]], ("nvcc",), shown=TAIL),
        "build": Step(120, [build], ("setuptools",)),
        "test": Step(
            240, [verify, [*pytest, "-m", "gpu", "-k", f"not {EMULATOR_TEST}", GPU_TESTS]], ("pytest",)
        ),
        "emulator": Step(
            60, [modules, [*pytest, "-m", "gpu", "-k", EMULATOR_TEST, GPU_TESTS]], ("pytest", "pybind11")
        ),
        "sanitize": Step(
            100,
            [
                [*(unpooled if tool != "racecheck" else []), *sanitizer, "--tool", tool, python, SHORT]
                for tool in ("memcheck", "racecheck", "initcheck")
            ],
            ("compute-sanitizer",),
        ),
        "bench": measure("bench", 300, both, "--graph", "both", *bench),
        "profile": Step(90, [[python, "-m", "bench.profile_cuda", "--out", f"{results}/profile.csv"]]),
        "model": Step(
            60,
            [[python, "-m", "tools.speed_model", "refit", f"{results}/profile.csv"]],
            ("tools.speed_model",),
            shown=TAIL,
        ),
        "compile": measure("compile", 240, both, "--graph", "both", "--peers", "compile", *only),
        "autotune": measure(
            "autotune", 300, both, "--graph", "both", "--pass", "forward", "--peers", "max-autotune", *only
        ),
        "dtypes": measure("dtypes", 180, ("bfloat16", "float32"), "--graph", "only"),
    }


def toolkits() -> list[str]:
    """Where compute-sanitizer is, if not on PATH."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [f"{home}/bin" for home in (*homes, "/usr/local/cuda")]


def missing(step: Step) -> str | None:
    for name in step.needs:
        if importlib.util.find_spec(name.replace("-", "_")) is None and shutil.which(name) is None:
            if name in ("compute-sanitizer", "nvcc"):
                return f"no {name} on PATH"
            if name.startswith("tools."):
                return f"this checkout has no {name}"
            return f"no {name} for {sys.executable}: pip install it, or carry its wheel to this machine"
    return None


def run(step: Step, log: Path, env: dict[str, str]) -> Outcome:
    """Run a step; its output goes to ``log``, and its end to the terminal if it failed."""
    start = time.monotonic()
    if problem := missing(step):
        return Outcome(problem, 0)
    failures: list[str] = []
    with log.open("w") as file:
        for command in step.commands:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            left = step.limit - (time.monotonic() - start)
            # a process group of its own: at the limit, whatever the command has started ends with it
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status = process.wait(max(left, 1))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(stop, KeyboardInterrupt):
                    raise
                failures.append(f"not done after {step.limit} s")
                break
            if status:
                failures.append(f"exit status {status}")
    result = ", ".join(failures) or "ok"
    lines = log.read_text(errors="replace").splitlines()
    shown = lines[-(step.shown if result == "ok" else TAIL) :]
    print("\n".join(line[:240] for line in shown), flush=True)
    return Outcome(result, time.monotonic() - start)


def environment() -> dict[str, Any]:
    import torch

    from bench import cuda

    facts = {**cuda.facts(), "torch": torch.__version__, "python": sys.version.split()[0]}
    torch.cuda.empty_cache()  # the steps are processes of their own and want the memory
    return facts


def main() -> int:
    names = list(steps(Path(), ()))
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", default="", help=f"by default {','.join(names)}")
    parser.add_argument(
        "--results", type=Path, help="folder for logs and figures; by default in bench/results"
    )
    parser.add_argument("--bench", type=shlex.split, default=[], help="additional arguments of bench.run")
    options = parser.parse_args()
    asked = [name for name in options.steps.replace(" ", ",").split(",") if name] or names
    if unknown := [name for name in asked if name not in names]:
        parser.error(f"unknown step {unknown[0]!r}; known are {', '.join(names)}")
    if problem := why_not():
        print(f"make gpu: {problem}", file=sys.stderr)
        return 2

    from bench.environment import slug

    facts = environment()
    date = datetime.now().strftime("%Y-%m-%d_%H%M")
    results = options.results or ROOT / "bench" / "results" / f"{date}_{slug(facts['gpu'])}"
    results = results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    (results / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"results and logs: {results}", flush=True)

    arch = os.environ.get("FUSED_SUBPIXEL_CUDA_ARCHS") or architecture()
    env = {**os.environ, "FUSED_SUBPIXEL_CUDA": "1", "FUSED_SUBPIXEL_CUDA_ARCHS": arch}
    env["PYTHONUNBUFFERED"] = "1"  # at a time limit, a step's output so far counts
    env["PATH"] = os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *toolkits()])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    table: dict[str, Outcome] = {}
    todo = {name: step for name, step in steps(results, options.bench).items() if name in asked}
    for name, step in todo.items():
        print(f"---- {name}, at most {step.limit} s", flush=True)
        if "build" in table and table["build"].result != "ok":
            table[name] = Outcome("skipped: the build failed", 0)
            continue
        table[name] = run(step, results / f"{name}.log", env)
    width = max(map(len, table))
    lines = [f"{name:{width}}  {seconds:6.1f} s  {result}" for name, (result, seconds) in table.items()]
    (results / "summary.txt").write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
    return int(any(outcome.result != "ok" for outcome in table.values()))


if __name__ == "__main__":
    sys.exit(main())
