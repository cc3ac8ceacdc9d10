# SPDX-License-Identifier: BSD-3-Clause
"""Measure training steps of whole networks on the CPU: as they are, and after fused_subpixel.accelerate.

    python -m bench.training                   the figures that may be quoted, some minutes
    python -m bench.training --only edsr       one network
    python -m bench.training --autocast        with bfloat16 where torch.autocast puts it
    python -m bench.training --quick           three rounds of small inputs, a look

A step is the forward pass, the mean of the squared output and the backward pass to all parameters. PyTorch
runs eagerly and compiled, in both layouts, and so do accelerated models. Outputs and gradients are compared
with eager PyTorch before anything is timed; contenders take turns. The ratio is of PyTorch's fastest to the
fastest of ours.
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import functools
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fused_subpixel as fs
from bench import environment, network_models
from bench.run import MIN_TIME, QUICK_ROUNDS, RESULTS
from bench.timing import Timing, interleave
from bench.workloads import memory_format

ROUNDS = 9
# Of the largest gradient, through a whole network and back: in float32 and with autocast to bfloat16.
TOLERANCE, HALF_TOLERANCE = 2e-3, 0.1
LAYOUTS = {"NCHW": False, "channels_last": True}
COLUMNS = ("network", "contender", "median_ms", "low_ms", "high_ms", "rounds")


class Network(NamedTuple):
    """One that is trained, with the batch that is usual."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    quick: tuple[int, int, int, int]
    what: str


NETWORKS = (
    Network("edsr", network_models.EDSR, (16, 3, 48, 48), (2, 3, 12, 12), "EDSR-baseline x2, patches"),
    Network("srvgg", network_models.SRVGG, (8, 3, 64, 64), (2, 3, 12, 12), "SRVGG x4, patches"),
    Network("unet", network_models.UNet, (2, 3, 256, 256), (2, 3, 32, 32), "U-Net, width 32"),
    Network("autoencoder", network_models.autoencoder, (256, 1, 28, 28), (8, 1, 28, 28), "MNIST autoencoder"),
)  # fmt: skip


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def step(
    model: Callable[[Tensor], Tensor], parameters: Sequence[nn.Parameter], x: Tensor, half: bool
) -> Tensor:
    for parameter in parameters:
        parameter.grad = None
    with autocast(half):
        output = model(x)
    loss = output.float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def prepare(
    network: Network, shape: Sequence[int], seconds: float, compiles: bool, half: bool
) -> dict[str, Callable[[], Tensor]]:
    """Steps by contender, whose gradients are right."""
    torch.manual_seed(0)
    model = network.build().train()
    inputs = torch.rand(shape)
    found: dict[str, Callable[[], Tensor]] = {}
    expected: list[Tensor] = []
    for layout, channels_last in LAYOUTS.items():
        own = copy.deepcopy(model).to(memory_format=memory_format(channels_last))
        x = inputs.contiguous(memory_format=memory_format(channels_last))
        with warnings.catch_warnings(), autocast(half):
            warnings.simplefilter("ignore", UserWarning)
            fast = fs.accelerate(own, x, seconds=seconds, progress=False)
        for name, candidate in (("eager", own), ("fused", fast)):
            parameters = list(candidate.parameters())
            torch._dynamo.reset()
            ways = {f"{name} {layout}": candidate}
            if compiles:
                ways[f"{name}, compiled, {layout}"] = torch.compile(candidate)
            for contender, function in ways.items():
                found[contender] = functools.partial(step, function, parameters, x, half)
                found[contender]()
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                expected = expected or gradients
                for gradient, right in zip(gradients, expected, strict=True):
                    largest = max(float(g.abs().max()) for g in expected)
                    error = float((gradient - right).abs().max()) / largest
                    if not error < (HALF_TOLERANCE if half else TOLERANCE):
                        raise ArithmeticError(f"{network.name}, {contender}: relative error of {error:.2g}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=[n.name for n in NETWORKS], help="may be repeated")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--threads", type=int, help="default: as PyTorch chooses")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--autocast", action="store_true", help="with torch.autocast to bfloat16")
    parser.add_argument("--quick", action="store_true", help="few rounds of small inputs: not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    if options.threads:
        torch.set_num_threads(options.threads)
    command = f"python -m bench.training --rounds {rounds} --threads {torch.get_num_threads()}"
    command += "".join(f" --only {name}" for name in options.only or ())
    command += " --no-compile" * (not options.compile) + " --autocast" * options.autocast
    command += " --quick" * options.quick
    facts = environment.describe(command)
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    kind = "autocast_training" if options.autocast else "training"
    path = options.out or RESULTS / f"{date}_{environment.slug(str(facts['cpu']))}_{kind}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = [network for network in NETWORKS if network.name in (options.only or [n.name for n in NETWORKS])]
    ratios: dict[str, float] = {}
    print("| network | fastest other, ms | fused, ms | ratio |\n|---|---|---|---|")
    with path.open("w", newline="") as file, tqdm(chosen, unit="network", disable=None, leave=False) as bar:
        writer = csv.DictWriter(file, (*COLUMNS, *facts))
        writer.writeheader()
        for network in bar:
            bar.set_description_str(network.name)
            shape = network.quick if options.quick else network.shape
            seconds = 1 if options.quick else 20
            contenders = prepare(network, shape, seconds, options.compile, options.autocast)
            timings = interleave(contenders, rounds, MIN_TIME, pause=0)
            for contender, timing in timings.items():
                names = {"network": network.name, "contender": contender}
                writer.writerow({**names, **timing.columns(), **facts})
            file.flush()
            ours, other = fastest(timings, True), fastest(timings, False)
            ratios[network.name] = timings[other].median / timings[ours].median
            bar.write(
                f"| {network.what} | {ms_of(timings[other])} ({other}) | {ms_of(timings[ours])} ({ours}) "
                f"| {ratios[network.name]:.2f} |"
            )
    print(f"\ngeometric mean of the ratios: {statistics.geometric_mean(ratios.values()):.2f}")
    print(f"written: {path}")
    return 0


def fastest(timings: dict[str, Timing], ours: bool) -> str:
    names = (name for name in timings if name.startswith("fused") is ours)
    return min(names, key=lambda name: timings[name].median)


def ms_of(timing: Timing) -> str:
    return f"{timing.median * 1e3:.4g} ± {timing.spread * 1e3:.2g}"


if __name__ == "__main__":
    sys.exit(main())
