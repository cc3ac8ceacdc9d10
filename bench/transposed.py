# SPDX-License-Identifier: BSD-3-Clause
"""Measure conv_transpose2d against PyTorch's on the CPU, in both layouts.

    python -m bench.transposed              the figures that may be quoted, some minutes
    python -m bench.transposed --quick      three rounds, a look

The layers are DCGAN's, a U-Net's, FSRCNN's, CycleGAN's, pix2pix's and a codec's, and of every workload of
bench.run the transposed convolution that computes the same. All contenders are compared with float64 before
they are timed; they take turns.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import fused_subpixel as fs
from bench import environment
from bench.run import MIN_TIME, QUICK_ROUNDS, RESULTS
from bench.timing import Timing, interleave
from bench.workloads import WORKLOADS, memory_format

ROUNDS = 11


class Layer(NamedTuple):
    """An nn.ConvTranspose2d and its input."""

    name: str
    input_shape: tuple[int, int, int, int]
    channels: int
    kernel: int
    stride: int
    padding: int
    output_padding: int = 0


LAYERS = (
    Layer("dcgan_up", (16, 256, 16, 16), 128, 4, 2, 1),
    Layer("unet_up", (1, 128, 128, 128), 64, 2, 2, 0),
    Layer("fsrcnn_x3", (1, 56, 180, 320), 1, 9, 3, 4, 2),
    Layer("fsrcnn_x2", (1, 56, 270, 480), 1, 9, 2, 4, 1),
    Layer("cyclegan_up", (1, 256, 64, 64), 128, 3, 2, 1, 1),
    Layer("pix2pix_up", (1, 256, 64, 64), 64, 4, 2, 1),
    Layer("compression_up", (1, 192, 32, 48), 192, 5, 2, 2, 1),
    *(Layer(w.name, w.input_shape, w.c, w.kernel * w.r, w.r, (w.kernel - 1) // 2 * w.r) for w in WORKLOADS),
)
COLUMNS = ("layer", "pass", "contender", "layout", "median_ms", "low_ms", "high_ms", "rounds", "ratio")
CONTENDERS: dict[str, Callable[..., Tensor]] = {"fused": fs.conv_transpose2d, "PyTorch": F.conv_transpose2d}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.transposed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing to quote")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--layers", nargs="+", choices=[layer.name for layer in LAYERS], help="only these")
    parser.add_argument("--out", type=Path, help="the CSV file; by default one in bench/results")
    options = parser.parse_args(arguments)
    rounds = QUICK_ROUNDS if options.quick else options.rounds
    layers = [layer for layer in LAYERS if not options.layers or layer.name in options.layers]
    command = f"python -m bench.transposed --rounds {rounds}"
    if options.layers:
        command += f" --layers {' '.join(options.layers)}"
    facts = environment.describe(command)
    name = f"{datetime.date.today().isoformat()}-{environment.slug(str(facts['cpu']))}-transposed-float32.csv"
    path = options.out or RESULTS / name
    print("| layer | pass | fused NCHW | PyTorch NCHW | ratio | fused NHWC | PyTorch NHWC | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    ratios: dict[str, list[float]] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file, tqdm(total=2 * len(layers), disable=None, leave=False) as bar:
        writer = csv.DictWriter(file, (*COLUMNS, *facts))
        writer.writeheader()
        for layer in layers:
            for backward in (False, True):
                bar.set_description_str(layer.name)
                timings = measure(layer, backward, rounds)
                which = "backward" if backward else "forward"
                cells = []
                for layout in ("NCHW", "channels_last"):
                    ours, theirs = timings["fused", layout], timings["PyTorch", layout]
                    ratio = theirs.median / ours.median
                    ratios.setdefault(which, []).append(ratio)
                    cells += [f"{ours.median * 1e3:.2f}", f"{theirs.median * 1e3:.2f}", f"{ratio:.2f}"]
                    for contender, timing in (("fused", ours), ("PyTorch", theirs)):
                        numbers = (timing.median * 1e3, timing.low * 1e3, timing.high * 1e3)
                        values = (layer.name, which, contender, layout, *(f"{n:.6g}" for n in numbers))
                        row = dict(zip(COLUMNS, (*values, timing.rounds, f"{ratio:.4f}"), strict=True))
                        writer.writerow({**row, **facts})
                file.flush()
                tqdm.write(f"| {layer.name} | {which} | {' | '.join(cells)} |")
                bar.update()
    for which, found in ratios.items():
        median, least = statistics.median(found), min(found)
        print(f"{which}: PyTorch / fused of the same layout: median {median:.2f}, least {least:.2f}")
    print(f"written: {path}")
    return 0


def measure(layer: Layer, backward: bool, rounds: int) -> dict[tuple[str, str], Timing]:
    """By (contender, layout)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layer.input_shape, generator=generator)
    fan_in = layer.input_shape[1] * (layer.kernel / layer.stride) ** 2
    shape = (layer.input_shape[1], layer.channels, layer.kernel, layer.kernel)
    weight, bias = torch.randn(shape, generator=generator) / fan_in**0.5, torch.randn(layer.channels)
    options = (layer.stride, layer.padding, layer.output_padding)
    truth = F.conv_transpose2d(x.double(), weight.double(), bias.double(), *options)
    gradient = torch.randn(truth.shape, generator=generator)
    functions: dict[str, Callable[[], object]] = {}
    for layout in ("NCHW", "channels_last"):
        target = memory_format(layout == "channels_last")
        leaves = [t.contiguous(memory_format=target).requires_grad_() for t in (x, weight)] + [
            bias.detach().clone().requires_grad_()
        ]
        grad = gradient.contiguous(memory_format=target)
        for contender, function in CONTENDERS.items():

            def run(
                function: Callable[..., Tensor] = function,
                leaves: list[Tensor] = leaves,
                grad: Tensor = grad,
            ) -> object:
                output = function(*leaves, *options)
                return torch.autograd.grad(output, leaves, grad) if backward else output

            with torch.no_grad():
                error = (function(*leaves, *options).double() - truth).abs().max()
            if not error <= 1e-4 * truth.abs().max():
                raise SystemExit(f"{layer.name}: {contender} {layout} is off by {error:.2e}")
            functions[f"{contender} {layout}"] = run
    with torch.set_grad_enabled(backward):
        timings = interleave(functions, rounds, MIN_TIME)
    return {(key.split()[0], key.split()[1]): timing for key, timing in timings.items()}


if __name__ == "__main__":
    sys.exit(main())
