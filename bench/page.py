# SPDX-License-Identifier: BSD-3-Clause
"""Write the figures of CSV files into docs/benchmarks.md, between its markers, and the pictures beside it.

    python -m bench.page bench/results/A.csv bench/results/B_growth.csv ...

All that the page shall show must be named: what it showed before is replaced.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import files, plots
from bench.files import Case, Machine
from bench.workloads import BY_NAME, GROWTH, SUITE, TINY

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
CAPTIONS = {
    "forward": "Forward: every contender, relative to the fastest peer",
    "backward": "Forward and backward: every contender, relative to the fastest peer",
    "roofline": "What is reached of the roofline",
    "size": "Time per pixel by the size of the output",
    "factor": "Time per pixel by the factor",
}


def heading(machine: Machine) -> str:
    return f"{machine.name}, {machine.dtype}{', CUDA graphs' if machine.graph else ''}"


def stem(machine: Machine) -> str:
    """Of the pictures' names."""
    return "benchmarks_" + re.sub(r"[^a-z0-9]+", "-", heading(machine).lower()).strip("-")


# ---- the generated parts -----------------------------------------------------------------------------------


def measured(machine: Machine, images: dict[str, list[Path]]) -> str:
    """Environment, a table for each pass, pictures."""
    facts = machine.facts
    columns = ("instruction_set", "driver", "cuda", "torch", "fused_subpixel", "os")
    known = ", ".join(f"{name} {facts[name]}" for name in columns if facts.get(name))
    sources = ", ".join(f"`{name}`" for name in machine.files)
    paragraphs = [f"{facts['date'][:10]}; {known}. From {sources}; the first by `{facts['command']}`."]
    if facts.get("tflop_per_s"):
        paragraphs.append(
            f"Limits measured in the same process: copy {facts['copy_gb_per_s']} GB/s; "
            f"arithmetic, in TFLOP/s, {facts['tflop_per_s']}."
        )
    for backward, name in plots.PASSES.items():
        if cases := machine.some([workload.name for workload in SUITE], backward):
            paragraphs += [f"**{name.capitalize()}**", table(cases)]
    paragraphs += [
        f"![{CAPTIONS[name]}](images/{path.name})" for name, paths in images.items() for path in paths
    ]
    return "\n\n".join(paragraphs)


def table(cases: Sequence[Case]) -> str:
    """Of our layouts the faster, and of all others the fastest."""
    head = ("workload", "fused, ms", "fastest other, ms", "which", "ratio", "of the limit", "beyond, MB")
    return markdown(
        head,
        [
            (
                case.workload,
                time(case, case.ours),
                time(case, case.peer),
                case.peer,
                f"**{case.headline:.2f}**",
                shown(case.number(case.ours, "of_limit"), "{:.0%}") if case.workload != TINY.name else "",
                " / ".join(megabytes(case.number(name, "extra_bytes")) for name in (case.ours, case.peer)),
            )
            for case in cases
        ],
    )


def losses(machine: Machine) -> str:
    """Everything that somebody else computes faster, the worst first."""
    body = {workload.name for workload in GROWTH["body"]}  # not what this package is for
    lost = [case for case in machine.cases if case.headline < 1 and case.workload not in body]
    lost.sort(key=lambda case: case.headline)
    lines = [
        f"- `{case.workload}`, {plots.PASSES[case.backward]}: {case.headline:.2f}, against {case.peer}"
        + (" - within the spreads" if within_spreads(case) else "")
        for case in lost
    ]
    return "\n".join(lines) or "Nowhere in this measurement."


def within_spreads(case: Case) -> bool:
    both = case.ours, case.peer
    return abs(case.ms(case.ours) - case.ms(case.peer)) <= sum(case.spread(name) for name in both)


def claims(machine: Machine) -> str:
    """By the factor: what the paper says, and the times of the others over eager and over fused."""
    found = []
    for name, what in plots.FACTOR_SERIES.items():
        for backward, which in plots.PASSES.items():
            cases = machine.some([workload.name for workload in GROWTH[name]], backward)
            rows = []
            for case in cases:
                r = BY_NAME[case.workload].r
                ratios = [
                    shown(ratio(case, other, own), "{:.2f}")
                    for other in ("conv_transpose2d", "nearest")
                    for own in ("eager", "fused")
                ]
                rows.append((str(r), f"{math.log2(r * r):.2f}", *ratios[:2], str(r * r), *ratios[2:]))
            if rows:
                head = (
                    "r", "log2 r²", "deconvolution / eager", "deconvolution / fused",
                    "r²", "nearest / eager", "nearest / fused",
                )  # fmt: skip
                found += [f"{what}; {which}:", markdown(head, rows)]
    return "\n\n".join([*found, *body_claim(machine)])


def body_claim(machine: Machine) -> list[str]:
    """How much longer a layer before the head takes after upscaling, in eager PyTorch."""
    columns = {
        backward: machine.some([w.name for w in GROWTH["body"]], backward) for backward in plots.PASSES
    }
    times: dict[int, list[float]] = {}  # by factor, in each pass
    for cases in columns.values():
        for case in cases:
            eager = case.fastest("eager")
            assert eager
            times.setdefault(int(case.workload.removeprefix("body_r")), []).append(case.ms(eager))
    if 1 not in times:
        return []
    rows = [
        (str(r), str(r * r), *(f"{ms / first:.2f}" for ms, first in zip(found, times[1], strict=True)))
        for r, found in times.items()
    ]
    passes = [name for backward, name in plots.PASSES.items() if columns[backward]]
    return [
        "A layer before the head, 64 to 32 channels in eager PyTorch: its time on an image of 60x80 that "
        "was upscaled first, over its time on the image itself:",
        markdown(("r", "r²", *passes), rows),
    ]


def ratio(case: Case, other: str, own: str) -> float | None:
    names = case.fastest(other), case.fastest(own)
    return case.ms(names[0]) / case.ms(names[1]) if names[0] and names[1] else None


def time(case: Case, name: str) -> str:
    return f"{case.ms(name):.3g} ± {case.spread(name):.2g}"


def shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def megabytes(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e6:.3g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- the page ----------------------------------------------------------------------------------------------


def fill(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers called ``name``."""
    begin, end = f"<!-- {name}: written by bench.page -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"the page lacks the markers {begin} and {end}")
    inside = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    return inside.sub(lambda _: f"\n{content}\n", text, count=1)


def sections(machines: Sequence[Machine], part: Callable[[Machine], str]) -> str:
    found = {heading(machine): part(machine) for machine in machines}
    some = [f"### {title}\n\n{text}" for title, text in found.items() if text]
    return "\n\n".join(some) or "Not measured yet."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/benchmarks.md")
    options = parser.parse_args(arguments)
    text = options.page.read_text()
    for name in ("measured", "losses", "claims"):
        fill(text, name, "")  # before anything is written: whether all markers are there
    machines = files.read(options.files)
    folder = options.page.parent / "images"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("benchmarks_*.png"):
        stale.unlink()

    def part(machine: Machine) -> str:
        return measured(machine, plots.draw_machine(machine, folder / stem(machine), ["png"]))

    for name, of in (("measured", part), ("losses", losses), ("claims", claims)):
        text = fill(text, name, sections(machines, of))
    options.page.write_text(text)
    print(f"written: {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
