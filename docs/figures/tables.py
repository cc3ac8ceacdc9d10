# SPDX-License-Identifier: BSD-3-Clause
"""Fill the tables of README.md and docs/benchmarks.md that ``python -m bench.page`` does not fill.

    python docs/figures/tables.py            # rewrites both pages
    python docs/figures/tables.py --check    # exit status 1 if a page differs from the files

All numbers come from the files of bench/results that are named below.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench import files  # noqa: E402
from bench.files import Case, Machine  # noqa: E402

RESULTS = ROOT / "bench" / "results"
CPU = "2026-11-27_0655_amd-epyc_float32.csv"
GPU = "2026-11-27_1952_nvidia-h100-80gb-hbm3_float16.csv"
NETWORKS = "2026-11-27_0707_amd-epyc_clients.csv"
TRANSPOSED = {  # heading: file
    "Zen 3, AVX2": "2026-11-28-amd-epyc-avx2-transposed-float32.csv",
    "Zen 5, AVX-512": "2026-11-27-amd-epyc-transposed-float32.csv",
}
HEADLINE = (  # layers that win, and on each device one that loses
    ("CPU", "srvgg_x4", "Real-ESRGAN compact head x4"),
    ("CPU", "edsr_x2", "EDSR upsampler x2"),
    ("CPU", "fastai_1x1", "U-Net 1x1 upsampler"),
    ("H100", "srvgg_x4", "Real-ESRGAN compact head x4"),
    ("H100", "compressai", "learned compression decoder"),
)
NETWORK_NAMES = {
    "basicvsr": "BasicVSR x4, its own weights, 3 frames of 64x96",
    "animevideo": "Real-ESRGAN animevideov3 x4, its own weights, 135x240",
    "swin2sr": "Swin2SR lightweight x2, 96x144",
    "cheng2020": "Cheng2020Anchor, 192 channels, 256x384",
    "nafnet": "NAFNet, width 32, 256x256",
}


def machine(file: str, graph: bool = False) -> Machine:
    return next(found for found in files.read([RESULTS / file]) if found.graph == graph)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def milliseconds(ms: float) -> str:
    return f"{ms:.3g} ms" if ms >= 0.5 else f"{ms * 1000:.3g} µs"


# ---- README ------------------------------------------------------------------------------------------------


def headline() -> str:
    machines = {"CPU": machine(CPU), "H100": machine(GPU, graph=True)}
    cases: dict[tuple[str, str, bool], Case] = {
        (device, case.workload, case.backward): case for device, of in machines.items() for case in of.cases
    }
    rows = []
    for device, workload, layer in HEADLINE:
        forward, backward = (cases[device, workload, which] for which in (False, True))
        times = milliseconds(forward.ms(forward.peer)), milliseconds(forward.ms(forward.ours))
        ratios = f"{forward.headline:.2f}", f"{backward.headline:.2f}"
        rows.append((device, f"{layer} (`{workload}`)", *times, *ratios))
    head = (
        "device", "layer (name in the benchmark)", "fastest other, forward", "fused, forward",
        "ratio, forward", "ratio, with gradients",
    )  # fmt: skip
    medians = {
        (device, which): statistics.median(
            case.headline for case in of.cases if case.backward is which and case.workload != "tiny"
        )
        for device, of in machines.items()
        for which in (False, True)
    }
    dates = {device: of.facts["date"][:10] for device, of in machines.items()}
    note = (
        f"CPU: two cores of an AMD EPYC (Zen 5), float32, {dates['CPU']}. "
        f"GPU: NVIDIA H100, float16, CUDA graphs, {dates['H100']}.\n"
        f"Median ratio of the 14 workloads: {medians['CPU', False]:.2f} forward and "
        f"{medians['CPU', True]:.2f} with gradients on the CPU, {medians['H100', False]:.2f} and "
        f"{medians['H100', True]:.2f} on the H100."
    )
    return f"{markdown(head, rows)}\n\n{note}"


# ---- docs/benchmarks.md ------------------------------------------------------------------------------------


def rows_of(file: str) -> list[dict[str, str]]:
    with (RESULTS / file).open(newline="") as opened:
        return list(csv.DictReader(opened))


def transposed() -> str:
    ratios: dict[tuple[str, str, str, str], float] = {}
    dates, names = {}, {}
    for machine_name, file in TRANSPOSED.items():
        for row in rows_of(file):
            dates[machine_name] = row["date"][:10]
            if row["contender"] == "fused":
                ratios[machine_name, row["layer"], row["pass"], row["layout"]] = float(row["ratio"])
                names[row["layer"]] = None
    columns = [
        (m, p, la) for m in TRANSPOSED for p in ("forward", "backward") for la in ("NCHW", "channels_last")
    ]
    parts = []
    for machine_name, file in TRANSPOSED.items():
        own = [column for column in columns if column[0] == machine_name]
        body = [
            (f"`{layer}`", *(_ratio(ratios.get((m, layer, p, layout))) for m, p, layout in own))
            for layer in names
            if (machine_name, layer, "forward", "NCHW") in ratios
        ]
        middle = [
            statistics.median(r for (m, _, p, la), r in ratios.items() if (m, p, la) == column)
            for column in own
        ]
        body.append(("**median**", *(f"**{value:.2f}**" for value in middle)))
        head = ("layer", "forward, NCHW", "channels_last", "with gradients, NCHW", "channels_last")
        title = f"Two cores of an AMD EPYC ({machine_name}), {dates[machine_name]}, `{file}`:"
        parts.append(f"{title}\n\n{markdown(head, body)}")
    return "\n\n".join(parts)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def networks() -> str:
    best: dict[tuple[str, str, str], float] = {}
    for row in rows_of(NETWORKS):
        key = row["network"], row["what"], row["contender"].split()[0]
        best[key] = min(best.get(key, float("inf")), float(row["median"]))
    head = ("network and input", "forward, ms", "ratio", "heads, ms", "ratio", "heads, MB")
    body = []
    for network in dict.fromkeys(key[0] for key in best):
        cells = [NETWORK_NAMES.get(network, network)]
        for what, scale, with_ratio in (("network", 1, True), ("heads", 1, True), ("heads memory", 1, False)):
            before, after = (best[network, what, state] / scale for state in ("original", "replaced"))
            cells.append(f"{before:.1f} → {after:.1f}")
            if with_ratio:
                cells.append(f"{before / after:.2f}")
        body.append(cells)
    return markdown(head, body)


# ---- the pages ---------------------------------------------------------------------------------------------

PARTS = {
    "README.md": {"headline": headline},
    "docs/benchmarks.md": {"transposed": transposed, "networks": networks},
}


def filled(page: str) -> str:
    """The text of a page with its tables written anew."""
    text = (ROOT / page).read_text()
    for name, write in PARTS[page].items():
        begin, end = f"<!-- {name}: written by docs/figures/tables.py -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{page} lacks the markers {begin} and {end}")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{write()}\n{end}{after}"
    return text


def main(arguments: Sequence[str]) -> int:
    stale = [page for page in PARTS if filled(page) != (ROOT / page).read_text()]
    if "--check" in arguments:
        print(
            f"differs from bench/results: {', '.join(stale)}" if stale else "tables agree with bench/results"
        )
        return 1 if stale else 0
    for page in stale:
        (ROOT / page).write_text(filled(page))
        print(f"written: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
