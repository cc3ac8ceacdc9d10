# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of the files of bench.run: python -m bench.plots FILE.csv ... draws them beside each file.

Against every peer, by pass; the roofline; growth with the image and with the factor, where that was measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench import files
from bench.environment import slug
from bench.files import Case, Machine
from bench.workloads import BY_NAME, GROWTH, SUITE, TINY, Workload

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "bench",  # the same file for the same figures
}
OURS = "#d62728"
COLORS = {
    "fused": OURS,
    "eager": "#1f77b4",
    "compile": "#17becf",
    "max-autotune": "#9467bd",
    "conv_transpose2d": "#2ca02c",
    "nearest": "#8c564b",
    "onnxruntime": "#ff7f0e",
    "openvino": "#e377c2",
}
LAYOUTS = {"NCHW": ("o", "-"), "channels_last": ("s", "--")}  # marker, line
PASSES = {False: "forward", True: "forward and backward"}
FACTOR_SERIES = {"narrow": "32 to 3 channels, input 120x160", "wide": "64 to 64 channels, input 48x48"}
SIZES = {"1080x1920": "1080p", "2160x3840": "4K"}


def color(contender: str) -> str:
    """Unknown ones, other builds above all, are grey."""
    return COLORS.get(contender.split()[0], "0.5")


def families(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(name.split()[0] for case in cases for name in case.rows))


def legend(figure: Figure, cases: Sequence[Case], lines: bool) -> None:
    """Colours tell the contender, markers the layout."""
    handles = [Line2D([], [], color=color(name), lw=4, label=name) for name in families(cases)]
    handles += [
        Line2D([], [], color="0.3", marker=marker, ls=line if lines else "", label=layout)
        for layout, (marker, line) in LAYOUTS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5 if len(handles) > 6 else 6)


# ---- the pictures ------------------------------------------------------------------------------------------


def against_peers(backward: bool) -> Callable[[Machine], Figure | None]:
    def draw(machine: Machine) -> Figure | None:
        """By workload, all times relative to the fastest peer."""
        cases = machine.some([w.name for w in SUITE], backward)
        if not cases:
            return None
        figure = Figure(figsize=(8, 1.6 + 0.3 * len(cases)), layout="constrained")
        axes = figure.subplots()
        for y, case in enumerate(cases):
            unit = case.ms(case.peer)
            axes.plot([1, case.ms(case.ours) / unit], [y, y], color=OURS, lw=1.5, alpha=0.4, zorder=2)
            for name in sorted(case.rows, key=lambda name: name.startswith("fused ")):
                marker, _ = LAYOUTS[name.split()[1]]
                ours = name.startswith("fused ")
                axes.plot(
                    case.ms(name) / unit, y, marker, color=color(name), ms=7 if ours else 5,
                    mec="white" if ours else color(name), mfc=color(name) if ours else "none", zorder=3,
                )  # fmt: skip
        axes.axvline(1, color="0.3", lw=1, zorder=1)
        axes.set_yticks(range(len(cases)), [case.workload for case in cases])
        axes.set_ylim(len(cases) - 0.5, -0.5)
        times = [case.ms(name) / case.ms(case.peer) for case in cases for name in case.rows]
        ratio_axis(axes, min(times), max(times))
        axes.set_xlabel("time / time of the fastest peer (left of 1: faster than all of them)")
        title(axes, machine, PASSES[backward])
        legend(figure, cases, lines=False)
        return figure

    return draw


def ratio_axis(axes: Axes, lowest: float, highest: float) -> None:
    axes.set_xscale("log")
    ticks = [m * 10.0**e for e in range(-2, 5) for m in (1, 2, 5)]
    ticks = sorted({*ticks, *(0.6, 0.7, 0.8, 1.5)} if highest < 20 else ticks)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.xaxis)
    axes.set_xlim(lowest / 1.1, highest * 1.1)


def plain_numbers(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def roofline(machine: Machine) -> Figure | None:
    """Operations per second over operations per byte, below what the device reaches at best."""
    names = [w.name for w in SUITE if w is not TINY]
    passes = {backward: machine.some(names, backward) for backward in PASSES}
    passes = {backward: cases for backward, cases in passes.items() if cases}
    if not passes or not machine.facts.get("tflop_per_s"):
        return None
    copy = float(machine.facts["copy_gb_per_s"])  # GB/s times operations per byte is GFLOP/s
    rates = dict(text.split(" ", 1) for text in machine.facts["tflop_per_s"].split("; "))
    rate, by = rates[machine.dtype].split()
    peak = float(rate) * 1e3
    figure = Figure(figsize=(8, 4.2 * len(passes)), layout="constrained")
    for axes, (backward, cases) in zip(
        figure.subplots(len(passes), squeeze=False)[:, 0], passes.items(), strict=True
    ):
        points = sorted(((float(c.rows[c.ours]["flop_per_byte"]), c) for c in cases), key=lambda p: p[0])
        left, right = points[0][0] / 1.6, max(points[-1][0], peak / copy) * 1.6
        roof = [left, peak / copy, right]
        axes.plot(roof, [min(peak, copy * x) for x in roof], color="0.3", lw=1.5)
        rates_of = [float(case.rows[n]["gflops"]) for _, case in points for n in (case.ours, case.peer)]
        bottom, top = min(rates_of) / 5, max(peak, *rates_of) * 1.35
        for (x, case), shown in zip(points, spread_out([x for x, _ in points], left, right), strict=True):
            ours, peer = (float(case.rows[name]["gflops"]) for name in (case.ours, case.peer))
            axes.plot([x, x], [ours, peer], color="0.6", lw=1, zorder=1)
            axes.plot(x, peer, "o", color=COLORS["eager"], mfc="white", ms=6, zorder=2)
            axes.plot(x, ours, "o", color=OURS, ms=6, zorder=3)
            axes.annotate(
                case.workload, (x, min(ours, peer)), (shown, bottom * 1.1), rotation=90, ha="center",
                va="bottom", fontsize=8, arrowprops={"arrowstyle": "-", "color": "0.8", "lw": 0.8},
            )  # fmt: skip
        axes.loglog()
        axes.set(xlim=(left, right), ylim=(bottom, top), ylabel="GFLOP/s")
        axes.set_xlabel("operations per byte of operands and results, each counted once")
        title(axes, machine, f"{PASSES[backward]}; roof: copy {copy:.3g} GB/s, {by} {peak:.4g} GFLOP/s")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plain_numbers(axes.xaxis)
        plain_numbers(axes.yaxis)
    handles = [
        Line2D([], [], color=OURS, marker="o", ls="", label="fused"),
        Line2D([], [], color=COLORS["eager"], marker="o", mfc="white", ls="", label="fastest peer"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def spread_out(positions: Sequence[float], left: float, right: float) -> list[float]:
    """Sorted positions on a logarithmic axis, moved until labels beside each other do not touch."""
    gap = math.log(right / left) / 36
    found: list[float] = []
    for x in map(math.log, positions):
        found.append(max(x, found[-1] + gap) if found else x)
    limit = math.log(right) - gap
    for n in reversed(range(len(found))):
        found[n] = min(found[n], limit)
        limit = found[n] - gap
    return [math.exp(x) for x in found]


def growth_with_size(machine: Machine) -> Figure | None:
    def size(workload: Workload) -> str:
        text = workload.name.removeprefix("size_")
        return SIZES.get(text, text.split("x")[0] + "²")

    return growth(
        machine, {"size": "ESPCN head x4, 32 to 3 channels"}, lambda w: w.h * w.w * w.r**2, size,
        "output size; the input is a quarter of it in each direction",
    )  # fmt: skip


def growth_with_factor(machine: Machine) -> Figure | None:
    return growth(
        machine, FACTOR_SERIES, lambda w: w.r, lambda w: str(w.r), "factor r; the input stays the same"
    )


def growth(
    machine: Machine,
    series: dict[str, str],
    position: Callable[[Workload], float],
    label: Callable[[Workload], str],
    xlabel: str,
) -> Figure | None:
    """Time per pixel by what grows: a row of pictures for each of ``series``, a column for each pass."""
    found = {
        (name, backward): machine.some([w.name for w in GROWTH[name]], backward)
        for name in series
        for backward in PASSES
    }
    if not any(found.values()):
        return None
    figure = Figure(figsize=(9, 1 + 3.4 * len(series)), layout="constrained")
    grid = figure.subplots(len(series), len(PASSES), squeeze=False)
    for axes, ((name, backward), cases) in zip(grid.flat, found.items(), strict=True):
        for contender in dict.fromkeys(name for case in cases for name in case.rows):
            marker, line = LAYOUTS[contender.split()[1]]
            own = [
                (position(workload), case.ms(contender) * 1e6 / math.prod(workload.output_shape[2:]))
                for case, workload in ((case, BY_NAME[case.workload]) for case in cases)
                if contender in case.rows
            ]
            ours = contender.startswith("fused ")
            axes.plot(
                *zip(*own, strict=True), marker=marker, ls=line, color=color(contender), ms=4,
                lw=2 if ours else 1.2, zorder=3 if ours else 2,
            )  # fmt: skip
        ticks = [BY_NAME[case.workload] for case in cases]
        axes.loglog()
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([position(w) for w in ticks], [label(w) for w in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plain_numbers(axes.yaxis)
        axes.set(xlabel=xlabel, ylabel="ns per pixel of the output")
        axes.set_title(f"{series[name]}; {PASSES[backward]}", fontsize=9, loc="left")
    figure.suptitle(f"{machine.name}, {machine.dtype}", fontsize=9)
    legend(figure, [case for cases in found.values() for case in cases], lines=True)
    return figure


def title(axes: Axes, machine: Machine, text: str) -> None:
    graph = ", CUDA graph" if machine.graph else ""
    axes.set_title(f"{machine.name}, {machine.dtype}{graph}: {text}", fontsize=9, loc="left")


PICTURES: dict[str, Callable[[Machine], Figure | None]] = {
    "forward": against_peers(backward=False),
    "backward": against_peers(backward=True),
    "roofline": roofline,
    "size": growth_with_size,
    "factor": growth_with_factor,
}

# ---- the program -------------------------------------------------------------------------------------------


def draw_machine(machine: Machine, stem: Path, formats: Sequence[str]) -> dict[str, list[Path]]:
    """Files ``stem``_forward.png and so on, by picture; without those that nothing was measured for."""
    written: dict[str, list[Path]] = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            if figure := draw(machine):
                for suffix in formats:
                    path = stem.with_name(f"{stem.name}_{name}.{suffix}")
                    undated = {"Date": None} if suffix == "svg" else {}
                    figure.savefig(path, dpi=130, metadata=undated)
                    written.setdefault(name, []).append(path)
    return written


def draw(path: Path) -> list[Path]:
    """PNG and SVG beside the CSV file."""
    machines = files.read([path])
    written = []
    for machine in machines:
        several = slug(f"{machine.dtype}{' graph' if machine.graph else ''}")
        stem = path.with_name(path.stem + (f"_{several}" if len(machines) > 1 else ""))
        for images in draw_machine(machine, stem, ("png", "svg")).values():
            written += images
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv")
    for path in parser.parse_args(arguments).files:
        print(*(f"written: {image}" for image in draw(path)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
