# SPDX-License-Identifier: BSD-3-Clause
"""Measure whole networks of other packages before and after replace_pixel_shuffle, on the CPU.

    make bench-clients                  the figures that may be quoted, some minutes
    make bench-clients ARGS=--quick     three rounds of small pictures, a look

Time: contenders take turns, as in bench.run; median and quartiles. Memory: the peak of resident memory over
what was resident before, each time in a process of its own. Both also of the heads alone: each convolution
with its shuffle, on what the network gives it. A table in Markdown ends the run.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fused_subpixel as fs
from bench import environment
from bench.run import MIN_TIME, QUICK_ROUNDS, RESULTS
from bench.timing import Timing, interleave
from bench.workloads import memory_format

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "clients"))

import clients
from tracing import Trace

warnings.filterwarnings("ignore", "torch.meshgrid")  # of BasicVSR

ROUNDS = 11
PROCESSES = 3  # for the memory of each contender; they differ little
TOLERANCE = 1e-3  # of the largest value: float32 through a whole network; the clients' tests are stricter


class Network(NamedTuple):
    """One that people use, in a size that they use it in."""

    name: str
    build: clients.Build
    shape: tuple[int, ...]  # of the input
    quick: tuple[int, ...]  # the same for a first look; also the warm-up before memory is measured
    what: str


NETWORKS = (
    Network("basicvsr", clients.basicvsr, (1, 3, 3, 64, 96), (1, 3, 3, 64, 64),
            "BasicVSR x4, its own weights, 3 frames"),
    Network("animevideo", clients.animevideo(4), (1, 3, 135, 240), (1, 3, 24, 32),
            "Real-ESRGAN animevideov3 x4, its own weights"),
    Network("swin2sr", clients.swin2sr("pixelshuffledirect", 2, image_size=64, embed_dim=60, depths=[6] * 4,
                                       num_heads=[6] * 4), (1, 3, 96, 144), (1, 3, 16, 24),
            "Swin2SR lightweight x2"),
    Network("cheng2020", clients.compressai("Cheng2020Anchor", 192), (1, 3, 256, 384), (1, 3, 64, 64),
            "Cheng2020Anchor, 192 channels"),
    Network("nafnet", clients.spandrel("NAFNet", width=32, enc_blk_nums=(1, 1, 1, 28), middle_blk_num=1,
                                       dec_blk_nums=(1, 1, 1, 1)), (1, 3, 256, 256), (1, 3, 32, 32),
            "NAFNet, width 32"),
)  # fmt: skip
BY_NAME = {network.name: network for network in NETWORKS}


class Contender(NamedTuple):
    replaced: bool
    channels_last: bool

    @property
    def name(self) -> str:
        layout = "channels_last" if self.channels_last else "NCHW"
        return f"{'replaced' if self.replaced else 'original'} {layout}"


CONTENDERS = tuple(Contender(replaced, layout) for replaced in (True, False) for layout in (False, True))


UNITS = {
    "network": (1e3, "ms"),
    "heads": (1e3, "ms"),
    "network memory": (1e-6, "MB"),
    "heads memory": (1e-6, "MB"),
}


class Row(NamedTuple):
    """One contender in one measurement, as the file has it."""

    network: str
    what: str  # of UNITS
    contender: Contender
    timing: Timing  # in seconds, of memory in bytes

    def columns(self) -> dict[str, str | int]:
        factor, unit = UNITS[self.what]
        values = {key: f"{getattr(self.timing, key) * factor:.6g}" for key in ("median", "low", "high")}
        return {
            "network": self.network, "what": self.what, "contender": self.contender.name, **values,
            "unit": unit, "rounds": self.timing.rounds,
        }  # fmt: skip


def picture(shape: Sequence[int], contender: Contender) -> Tensor:
    found = clients.photographs(*shape).float()
    # a clip has five dimensions: the layout of its images is up to the network
    return (
        found.contiguous(memory_format=memory_format(contender.channels_last)) if found.dim() == 4 else found
    )


def build(network: Network, contender: Contender) -> nn.Module:
    """The network in eval mode and in the contender's layout, always with the same numbers."""
    torch.manual_seed(0)
    model = network.build().eval()
    if contender.replaced:
        model = fs.replace_pixel_shuffle(model, (picture(network.quick, contender),), inplace=True)
    return model.to(memory_format=memory_format(contender.channels_last))


def first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return first_tensor(next(iter(output.values() if isinstance(output, Mapping) else output)))


def heads(model: nn.Module, inputs: Tensor, contender: Contender) -> Callable[[], None]:
    """A call of all convolutions that a shuffle follows, on what the original ``model`` gives them."""
    given: dict[str, Tensor] = {}
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def keep(_: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                given[path] = args[0]

            hooks.append(module.register_forward_pre_hook(keep))
    with Trace(model) as found:
        model(inputs)
    for hook in hooks:
        hook.remove()
    pairs = [
        (given[pair.convolution], model.get_submodule(pair.convolution), pair.factor)
        for pair in found.pairs
        if not pair.between
    ]

    def original() -> None:
        for x, conv, factor in pairs:
            F.pixel_shuffle(conv(x), factor)

    def fused() -> None:
        for x, conv, factor in pairs:
            fs.subpixel_conv2d(x, conv.weight, conv.bias, factor, padding=conv.padding)

    return fused if contender.replaced else original


def times(network: Network, shape: Sequence[int], rounds: int) -> list[Row]:
    with torch.no_grad():
        ready = {each: (build(network, each), picture(shape, each)) for each in CONTENDERS}
        outputs = {contender: first_tensor(model(inputs)) for contender, (model, inputs) in ready.items()}
        expected = outputs[Contender(replaced=False, channels_last=False)]
        for contender, output in outputs.items():
            error = ((output - expected).abs().max() / expected.abs().max()).item()
            if not error < TOLERANCE:
                raise ArithmeticError(f"{network.name}, {contender.name}: relative error of {error:.2g}")
        del outputs, expected

        def calling(model: nn.Module, inputs: Tensor) -> Callable[[], object]:
            return lambda: model(inputs)

        whole = {contender: calling(*own) for contender, own in ready.items()}
        alone = {each: heads(*ready[each._replace(replaced=False)], each) for each in CONTENDERS}
        return [
            Row(network.name, what, contender, timing)
            for what, functions in (("network", whole), ("heads", alone))
            for contender, timing in interleave(functions, rounds, MIN_TIME).items()
        ]


# glibc: memory that is freed is the system's again, so that none of it is resident before it is measured
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def memory(network: Network, shape: Sequence[int], processes: int) -> list[Row]:
    os.environ.update(RETURN_MEMORY)  # for the processes
    rows = []
    for contender in CONTENDERS:
        arguments = (network.name, contender, tuple(shape), torch.get_num_threads())
        found = []
        for _ in range(processes):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                found.append(process.submit(peaks, *arguments).result())
        for what, values in zip(("network memory", "heads memory"), zip(*found, strict=True), strict=True):
            rows.append(Row(network.name, what, contender, Timing.of(list(map(float, values)))))
    return rows


def peaks(name: str, contender: Contender, shape: tuple[int, ...], threads: int) -> tuple[int, int]:
    """Bytes by which resident memory grows at most while network and heads run; for a fresh process."""
    torch.set_num_threads(threads)
    network = BY_NAME[name]
    with torch.no_grad():
        original, model = build(network, contender._replace(replaced=False)), build(network, contender)
        model(picture(network.quick, contender))  # loads what is loaded at the first call
        inputs = picture(shape, contender)
        whole = growth(lambda: model(inputs))
        return whole, growth(heads(original, inputs, contender))


def growth(function: Callable[[], object]) -> int:
    # What small objects left free within the heap is resident too, and large tensors would be put there.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


# ---- terminal and file -----------------------------------------------------------------------------------


def table(rows: Sequence[Row], quick: bool) -> str:
    """In Markdown: of both layouts the better one, for PyTorch -> replaced."""
    lines = [
        "| network | input | ms | ratio | MB | heads, ms | ratio | heads, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in NETWORKS:
        own = [row for row in rows if row.network == network.name]
        if not own:
            continue
        cells = [network.what, "x".join(map(str, network.quick if quick else network.shape))]
        for what in ("network", "network memory", "heads", "heads memory"):
            best = [
                min(
                    (row.timing for row in own if row.what == what and row.contender.replaced == replaced),
                    key=lambda timing: timing.median,
                )
                for replaced in (False, True)
            ]
            factor, unit = UNITS[what]
            cells.append(" → ".join(f"{t.median * factor:.1f} ± {t.spread * factor:.1f}" for t in best))
            cells += [f"{best[0].median / best[1].median:.2f}"] if unit == "ms" else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = environment.describe(command(options))
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    partial = "_quick" if options.quick else "_part" if options.only else ""
    name = f"{date}_{environment.slug(str(facts['cpu']))}_clients{partial}.csv"
    path = options.out or RESULTS / name
    print(", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("date", "command")))
    if float(facts["load_before"]) > 0.5:
        print("The machine is busy with something else; figures to be quoted want it idle.")
    rows: list[Row] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        columns = ("network", "what", "contender", "median", "low", "high", "unit", "rounds", *facts)
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for network in (BY_NAME[name] for name in options.only or BY_NAME):
            shape = network.quick if options.quick else network.shape
            processes = 1 if options.quick else PROCESSES
            found = times(network, shape, options.rounds) + memory(network, shape, processes)
            for row in found:
                values = row.columns()
                writer.writerow({**values, **facts})
                line = "{network:11} {what:14} {contender:22} {median:>8} {unit}, {low} to {high}"
                print(line.format(**values), flush=True)
            file.flush()
            rows += found
    print("\nPyTorch → replaced, median ± half the interquartile range\n")
    print(f"{table(rows, options.quick)}\n\nwritten: {path}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=BY_NAME, help="a network; may be repeated")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--threads", type=int, help="default: as PyTorch chooses")
    parser.add_argument("--quick", action="store_true", help="small pictures, few rounds: not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def command(options: argparse.Namespace) -> str:
    """How to repeat the run; not as it was typed, which could hold paths."""
    words = ["python -m bench.clients", *(f"--only {name}" for name in options.only or ())]
    words += [f"--rounds {options.rounds} --threads {torch.get_num_threads()}"]
    return " ".join(words + (["--quick"] if options.quick else []))


if __name__ == "__main__":
    sys.exit(main())
