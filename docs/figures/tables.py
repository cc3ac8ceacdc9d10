# SPDX-License-Identifier: BSD-3-Clause
"""Fill the tables of three pages that ``python -m bench.page`` does not fill.

    python docs/figures/tables.py            # rewrites the pages
    python docs/figures/tables.py --check    # exit status 1 if a page differs from the files

All numbers come from the files of bench/results that are named below.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench import files  # noqa: E402
from bench.files import Machine  # noqa: E402

RESULTS = ROOT / "bench" / "results"
ACCELERATED = "2026-12-01_1611_intel-xeon_networks.csv"
ACCELERATED_AMD = "2026-12-01_0434_amd-epyc-zen4_networks.csv"
LAYERS = "2026-12-01_1645_intel-xeon_layers.csv"
LAYERS_AMD = "2026-12-01_0529_amd-epyc-zen4_layers.csv"
TRAINING = "2026-11-30_1020_amd-epyc_training.csv"
AUTOCAST = "2026-11-30_1030_amd-epyc-avx512-bf16_autocast_training.csv"
STEPS = (
    "2026-11-30_1015_amd-epyc_float32_backward.csv",
    "2026-11-30_0745_intel-xeon-amx_float32_backward.csv",
)
GRADIENTS = "2026-11-30_0418_intel-xeon_float32_gradients.csv"
HALF = {  # instructions: file
    "widened": "2026-11-30_0446_intel-xeon_bfloat16.csv",
    "AVX512-BF16": "2026-11-30_1010_amd-epyc-avx512-bf16_bfloat16.csv",
    "AMX": "2026-11-30_0705_intel-xeon-amx_bfloat16.csv",
}
HALF_GRADIENTS = "2026-11-30_0712_intel-xeon-amx_bfloat16_gradients.csv"
AMX_WORDS = "two cores of an Intel Xeon with AMX"
ZEN4_WORDS = "two cores of an AMD EPYC (Zen 4) with AVX512-BF16"
SERIES = {"body": "body layers", "few": "few pixels", "signals": "signals", "volumes": "volumes"}
CPU_WORDS = "two AVX-512 cores of an Intel Xeon (Emerald Rapids)"
GPU = "2026-11-27_1952_nvidia-h100-80gb-hbm3_float16.csv"
NETWORKS = "2026-11-27_0707_amd-epyc_clients.csv"
TRANSPOSED = {  # heading: file
    "Zen 3, AVX2": "2026-11-28-amd-epyc-avx2-transposed-float32.csv",
    "Zen 5, AVX-512": "2026-11-27-amd-epyc-transposed-float32.csv",
    "Zen 4, AVX-512": "2026-11-30_2046_amd-epyc-zen4-transposed-float32.csv",
}
# the last one loses
HEADLINE_NETWORKS = ("edsr", "basicvsr", "cheng2020", "fsrcnn", "hifigan", "unet", "nafnet")
HEADLINE_LAYERS = (  # on the H100: one that wins, one that loses
    ("srvgg_x4", "Real-ESRGAN compact head x4"),
    ("compressai", "learned compression decoder"),
)
ACCELERATED_NAMES = {
    "edsr": "EDSR-baseline x2, 128x128",
    "animevideo": "Real-ESRGAN animevideov3 x4, 135x240",
    "rrdb": "ESRGAN (RRDB, 2 blocks) x4, 64x64",
    "basicvsr": "BasicVSR x4, 3 frames of 64x96",
    "swin2sr": "Swin2SR lightweight x2, 64x96",
    "nafnet": "NAFNet, width 32, 256x256",
    "cheng2020": "Cheng2020Anchor (compression), 128x192",
    "unet": "U-Net, width 32, 256x256",
    "fsrcnn": "FSRCNN x3, 180x320",
    "espcn": "ESPCN x3, 360x640",
    "dcgan": "DCGAN generator, batch of 16",
    "hifigan": "HiFi-GAN V1 (vocoder), 200 frames",
}
TRAINING_NAMES = {
    "edsr": "EDSR-baseline x2, 16 patches of 48x48",
    "srvgg": "SRVGG x4 (animevideov3), 8 patches of 64x64",
    "unet": "U-Net, width 32, 2 images of 256x256",
    "autoencoder": "MNIST autoencoder, 256 images of 28x28",
}
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
    if ms >= 1000:
        return f"{ms / 1000:.3g} s"
    return f"{ms:.3g} ms" if ms >= 0.5 else f"{ms * 1000:.3g} µs"


# ---- README ------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """Times of a network in milliseconds; the fastest of ours that are exact, and of all of ours."""

    name: str
    other: float
    other_name: str
    ours: float
    inexact: float


def accelerated_networks(file: str = ACCELERATED) -> dict[str, Network]:
    times: dict[str, dict[str, float]] = {}
    for row in rows_of(file):
        times.setdefault(row["network"], {})[row["contender"]] = float(row["median_ms"])
    found = {}
    for name, of in times.items():
        others = {contender: ms for contender, ms in of.items() if not contender.startswith("fused")}
        inexact = [ms for contender, ms in of.items() if contender.startswith("fused")]
        ours = [ms for contender, ms in of.items() if contender.startswith(("fused ", "fused, compiled"))]
        fastest = min(others, key=lambda contender: others[contender])
        found[name] = Network(ACCELERATED_NAMES[name], others[fastest], fastest, min(ours), min(inexact))
    return found


def means(networks: Sequence[Network]) -> tuple[str, str]:
    """Geometric means of the ratios, exact and where tf32 is allowed."""
    return (
        f"{statistics.geometric_mean(n.other / n.ours for n in networks):.2f}",
        f"{statistics.geometric_mean(n.other / n.inexact for n in networks):.2f}",
    )


def headline() -> str:
    networks, gpu = accelerated_networks(), machine(GPU, graph=True)
    rows = [
        ("CPU", n.name, f"{milliseconds(n.other)} ({n.other_name})", milliseconds(n.ours),
         f"{n.other / n.ours:.2f}", f"{n.other / n.inexact:.2f}")
        for n in (networks[name] for name in HEADLINE_NETWORKS)
    ]  # fmt: skip
    forward = {case.workload: case for case in gpu.cases if not case.backward}
    for workload, layer in HEADLINE_LAYERS:
        case = forward[workload]
        times = milliseconds(case.ms(case.peer)), milliseconds(case.ms(case.ours))
        rows.append(("H100", f"{layer} (one layer)", *times, f"{case.headline:.2f}", ""))
    head = ("device", "network or layer", "fastest other", "fused_subpixel", "ratio", "tf32 allowed")
    exact, inexact = means(list(networks.values()))
    facts = rows_of(ACCELERATED)[0]
    note = (
        f"CPU: `accelerate`, {CPU_WORDS}, float32, {facts['date'][:10]}; geometric mean of {len(networks)}\n"
        f"networks {exact}, and {inexact} where tf32 is allowed. "
        f"GPU: NVIDIA H100, float16, CUDA graphs, {gpu.facts['date'][:10]}."
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


def accelerated() -> str:
    return "\n\n".join((accelerated_on(ACCELERATED, CPU_WORDS), accelerated_on(ACCELERATED_AMD, ZEN4_WORDS)))


def accelerated_on(file: str, cpu: str) -> str:
    networks = accelerated_networks(file)
    rows = [
        (n.name, f"{milliseconds(n.other)} ({n.other_name})", milliseconds(n.ours), f"{n.other / n.ours:.2f}",
         milliseconds(n.inexact), f"{n.other / n.inexact:.2f}")
        for n in networks.values()
    ]  # fmt: skip
    exact, inexact = means(list(networks.values()))
    rows.append(("**geometric mean**", "", "", f"**{exact}**", "", f"**{inexact}**"))
    head = ("network and input", "fastest other", "accelerated", "ratio", "tf32 allowed", "ratio")
    return f"{title_of(file, cpu)}\n\n{markdown(head, rows)}"


def layers() -> str:
    return "\n\n".join((layers_on(LAYERS, CPU_WORDS), layers_on(LAYERS_AMD, ZEN4_WORDS)))


def layers_on(file: str, cpu: str) -> str:
    times: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows_of(file):
        times.setdefault((row["series"], row["layer"]), {})[row["contender"]] = float(row["median_ms"])
    body, ratios = [], {series: [] for series in SERIES}  # type: list[Sequence[str]], dict[str, list[float]]
    for (series, layer), of in times.items():
        compared = [name for name in of if "3d" not in name]  # as bench/layers.py does
        ours = min(of[name] for name in compared if name.startswith("fused"))
        other = min((name for name in compared if not name.startswith("fused")), key=lambda name: of[name])
        ratios[series].append(of[other] / ours)
        theirs = f"{milliseconds(of[other])} ({other})"
        if "eager channels_last_3d" in of:
            theirs += f"; {milliseconds(of['eager channels_last_3d'])} in channels_last_3d"
        body.append((SERIES[series], layer, theirs, milliseconds(ours), f"{of[other] / ours:.2f}"))
    for series, found in ratios.items():
        if not found:
            continue
        mean, middle = statistics.geometric_mean(found), statistics.median(found)
        words = f"geometric mean **{mean:.2f}**, median {middle:.2f}, least {min(found):.2f}"
        body.append((f"**{SERIES[series]}**", words, "", "", ""))
    table = markdown(("series", "layer", "fastest other", "fused", "ratio"), body)
    return f"{title_of(file, cpu)}\n\n{table}"


def title_of(file: str, cpu: str = CPU_WORDS) -> str:
    facts = rows_of(file)[0]
    return f"{cpu[0].upper()}{cpu[1:]}, {facts['date'][:10]}, `{file}`; `{facts['command']}`:"


def compared(file: str, key: str) -> dict[str, tuple[str, str, dict[str, float]]]:
    """By network or workload: the fastest other, the fastest of ours, and all times in milliseconds."""
    times: dict[str, dict[str, float]] = {}
    for row in rows_of(file):
        times.setdefault(row[key], {})[row["contender"]] = float(row["median_ms"])
    found = {}
    for name, of in times.items():
        ours, others = (
            [who for who in of if who.startswith("fused") is is_ours] for is_ours in (True, False)
        )
        found[name] = (min(others, key=of.__getitem__), min(ours, key=of.__getitem__), of)
    return found


def training(file: str = TRAINING) -> str:
    body, ratios = [], []
    for network, (other, ours, of) in compared(file, "network").items():
        ratios.append(of[other] / of[ours])
        cells = (f"{milliseconds(of[name])} ({name.removeprefix('fused, ')})" for name in (other, ours))
        body.append((TRAINING_NAMES[network], *cells, f"{ratios[-1]:.2f}"))
    body.append(("**geometric mean**", "", "", f"**{statistics.geometric_mean(ratios):.2f}**"))
    head = ("network and batch", "fastest other", "accelerated", "ratio")
    return f"{title_of(file, ZEN4_WORDS)}\n\n{markdown(head, body)}"


def half_training() -> str:
    return training(AUTOCAST)


def steps() -> str:
    return "\n\n".join(steps_of(*each) for each in zip(STEPS, (ZEN4_WORDS, AMX_WORDS), strict=True))


def steps_of(file: str, cpu: str) -> str:
    body, ratios = [], []
    for workload, (other, ours, of) in compared(file, "workload").items():
        ratio = of[other] / of[ours]
        ratios += [ratio] * (workload != "tiny")
        body.append((workload, milliseconds(of[other]), other, milliseconds(of[ours]), ours, f"{ratio:.2f}"))
    mean = f"**{statistics.geometric_mean(ratios):.2f}**"
    body.append(("**geometric mean, without tiny**", "", "", "", "", mean))
    head = ("workload", "fastest other", "which", "fused", "which", "ratio")
    return f"{title_of(file, cpu)}\n\n{markdown(head, body)}"


def half() -> str:
    found: dict[str, dict[tuple[str, str], float]] = {}
    for instructions, file in HALF.items():
        for row in rows_of(file):
            ratio = float(row["headline_ratio"])
            found.setdefault(row["workload"], {})[instructions, row["pass"]] = ratio
    columns = [(instructions, way) for instructions in HALF for way in ("forward", "backward")]
    body = [[name, *(f"{of[column]:.2f}" for column in columns)] for name, of in found.items()]
    means = [
        statistics.geometric_mean(of[column] for name, of in found.items() if name != "tiny")
        for column in columns
    ]
    body.append(["**geometric mean, without tiny**", *(f"**{mean:.2f}**" for mean in means)])
    ways = {"forward": "forward", "backward": "forward and backward"}
    head = ("workload", *(f"{instructions}: {ways[way]}" for instructions, way in columns))
    titles = (
        title_of(HALF["widened"]),
        title_of(HALF["AVX512-BF16"], ZEN4_WORDS),
        title_of(HALF["AMX"], AMX_WORDS),
    )
    return "\n\n".join((*titles, markdown(head, body)))


def gradients(file: str = GRADIENTS, cpu: str = CPU_WORDS) -> str:
    times: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows_of(file):
        of = times.setdefault(row["layer"], {})
        key = row["gradient"], row["contender"]
        of[key] = min(of.get(key, float("inf")), float(row["median_ms"]))
    body: list[Sequence[str]] = []
    ratios: dict[str, list[float]] = {"input": [], "weight": [], "all": []}
    for layer, of in times.items():
        cells = []
        for gradient, known in ratios.items():
            theirs, ours = of[gradient, "pytorch"], of[gradient, "plan" if gradient == "all" else "ours"]
            known.append(theirs / ours)
            cells.append(f"{milliseconds(theirs)} / {milliseconds(ours)} = {theirs / ours:.2f}")
        body.append((layer, *cells))
    means = (f"**{statistics.geometric_mean(known):.2f}**" for known in ratios.values())
    body.append(("**geometric mean**", *means))
    head = ("layer", "input gradient, PyTorch / ours", "weight gradient", "all, PyTorch / plan")
    return f"{title_of(file, cpu)}\n\n{markdown(head, body)}"


def half_gradients() -> str:
    return gradients(HALF_GRADIENTS, AMX_WORDS)


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
    "docs/training.md": {
        "training": training,
        "steps": steps,
        "gradients": gradients,
        "half": half,
        "half gradients": half_gradients,
        "half training": half_training,
    },
    "docs/benchmarks.md": {
        "layers": layers,
        "transposed": transposed,
        "networks": networks,
        "accelerated": accelerated,
    },
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
