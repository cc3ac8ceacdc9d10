# SPDX-License-Identifier: BSD-3-Clause
"""Measure whole networks on the CPU: as they are, after fused_subpixel.accelerate, and by other programs.

    make bench-networks                       the figures that may be quoted, half an hour
    make bench-networks ARGS=--quick          three rounds of small inputs, a look
    make bench-networks ARGS="--only edsr"    one network

Contenders take turns in one process, as in bench.run: eager and compiled PyTorch and accelerated models, in
both layouts; ONNX Runtime and OpenVINO where they are installed. All compute in float32 without gradients,
and are compared with eager PyTorch first. The ratio is of the fastest baseline to the fastest of ours: the
accelerated model in both layouts, eager and compiled. Accelerated models run once more where
torch.backends.mkldnn.conv.fp32_precision allows tf32.
A CSV, a table in Markdown and a picture end the run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import datetime
import io
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fused_subpixel as fs
from bench import environment, network_models, runtimes
from bench.memory import host_peak_bytes
from bench.run import MIN_TIME, QUICK_ROUNDS, RESULTS
from bench.timing import Timing, interleave
from bench.workloads import memory_format

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "clients"))

import clients

warnings.filterwarnings("ignore", "torch.meshgrid")  # of BasicVSR

ROUNDS = 9
TOLERANCE = 1e-3  # of the largest value: float32 through a whole network
LAYOUTS = {"NCHW": False, "channels_last": True}
OURS, INEXACT = "fused", "fused, tf32 allowed,"  # names of contenders, before the layout


class Network(NamedTuple):
    """One that people use, in a size that they use it in."""

    name: str
    build: clients.Build
    shape: tuple[int, ...]  # of the input
    quick: tuple[int, ...]  # the same for a first look
    what: str


NETWORKS = (
    Network("edsr", network_models.EDSR, (1, 3, 128, 128), (1, 3, 32, 32), "EDSR-baseline x2"),
    Network("animevideo", clients.animevideo(4), (1, 3, 135, 240), (1, 3, 24, 32),
            "Real-ESRGAN animevideov3 x4, its own weights"),
    Network("rrdb", clients.spandrel("ESRGAN", num_blocks=2), (1, 3, 64, 64), (1, 3, 16, 16),
            "RRDBNet (ESRGAN) x4, 2 blocks"),
    Network("basicvsr", clients.basicvsr, (1, 3, 3, 64, 96), (1, 2, 3, 64, 64),
            "BasicVSR x4, its own weights, 3 frames"),
    Network("swin2sr", clients.swin2sr("pixelshuffledirect", 2, image_size=64, embed_dim=60, depths=[6] * 4,
                                       num_heads=[6] * 4), (1, 3, 64, 96), (1, 3, 16, 24),
            "Swin2SR lightweight x2"),
    Network("nafnet", clients.spandrel("NAFNet", width=32, enc_blk_nums=(1, 1, 1, 28), middle_blk_num=1,
                                       dec_blk_nums=(1, 1, 1, 1)), (1, 3, 256, 256), (1, 3, 32, 32),
            "NAFNet, width 32"),
    Network("cheng2020", clients.compressai("Cheng2020Anchor", 192), (1, 3, 128, 192), (1, 3, 64, 64),
            "Cheng2020Anchor, 192 channels"),
    Network("unet", network_models.UNet, (1, 3, 256, 256), (1, 3, 64, 64), "U-Net, width 32"),
    Network("fsrcnn", network_models.fsrcnn, (1, 1, 180, 320), (1, 1, 32, 32), "FSRCNN x3"),
    Network("espcn", network_models.espcn, (1, 1, 360, 640), (1, 1, 32, 32), "ESPCN x3"),
    Network("dcgan", network_models.dcgan, (16, 100, 1, 1), (2, 100, 1, 1), "DCGAN generator, batch 16"),
    Network("hifigan", network_models.hifigan, (1, 200, 80), (1, 20, 80), "HiFi-GAN V1, 200 frames"),
)  # fmt: skip
BY_NAME = {network.name: network for network in NETWORKS}


class Row(NamedTuple):
    """One contender of one network, as the file has it."""

    network: str
    contender: str
    timing: Timing  # seconds
    peak_bytes: int | None
    error: float  # largest difference from eager PyTorch, in parts of the largest value

    def columns(self) -> dict[str, object]:
        return {
            "network": self.network, "contender": self.contender, **self.timing.columns(),
            "peak_bytes": self.peak_bytes, "error": f"{self.error:.3g}",
        }  # fmt: skip


def inputs_of(shape: Sequence[int], channels_last: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    if shape[-3:-2] == (3,) and len(shape) >= 4 and max(shape[-2:]) <= 400:
        x = clients.photographs(*shape).float()
    return x.contiguous(memory_format=memory_format(channels_last)) if x.dim() == 4 else x


def first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return first_tensor(next(iter(output.values() if isinstance(output, Mapping) else output)))


def build(network: Network) -> nn.Module:
    torch.manual_seed(0)
    model = network.build().eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2)
    return model


Contenders = dict[str, Callable[[], Any]]


def prepare(
    network: Network, shape: Sequence[int], seconds: float, compiles: bool, say: Callable[[str], None]
) -> Contenders:
    """All contenders that can be had for a network; what cannot is said."""
    model = build(network)
    found: Contenders = {}
    for layout, channels_last in LAYOUTS.items():
        if channels_last and len(shape) == 3:
            continue  # a signal
        # of a clip, whose frames the network takes apart, the weights alone have the format
        own = copy.deepcopy(model).to(memory_format=memory_format(channels_last))
        x = inputs_of(shape, channels_last)
        found[f"eager {layout}"] = _calling(own, x)
        say(f"accelerate, {layout}")
        exact = own
        for precision in ("ieee", "tf32"):
            with warnings.catch_warnings(), _precision(precision):
                warnings.simplefilter("ignore", UserWarning)
                fast, report = fs.accelerate(own, x, seconds=seconds, return_report=True, progress=False)
            say(report.summary.partition("\n")[0])
            exact = fast if precision == "ieee" else exact
            name = OURS if precision == "ieee" else INEXACT
            found[f"{name} {layout}"] = _precision(precision)(_calling(fast, x))
        if not compiles:
            continue
        torch._dynamo.reset()
        for name, candidate in (("compile", own), (f"{OURS}, compiled,", exact)):
            say(f"{name} {layout}")
            compiled = _precision("ieee")(_calling(torch.compile(candidate), x))
            try:
                compiled()
            except Exception as error:  # a compiler's faults are not ours, and no reason to measure nothing
                say(f"{name} {layout}: {type(error).__name__}")
            else:
                found[f"{name} {layout}"] = compiled
    found |= sessions(model, inputs_of(shape, False), say)
    return found


@contextlib.contextmanager
def _precision(precision: str) -> Iterator[None]:
    """What float32 convolutions may be computed as."""
    setting = torch.backends.mkldnn.conv
    before, setting.fp32_precision = setting.fp32_precision, precision
    try:
        yield
    finally:
        setting.fp32_precision = before


def _calling(model: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
    return lambda: model(x)


def sessions(model: nn.Module, x: Tensor, say: Callable[[str], None]) -> Contenders:
    """The network as an ONNX model, in each of the runtimes that are installed."""
    wanted = [name for name in runtimes.SESSIONS if runtimes.missing(name) is None]
    if not wanted:
        return {}
    say("export to ONNX")
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (x,), dynamo=True, input_names=["input"], output_names=["output"], verbose=False
            )
        assert program is not None
        program.save(file)
    except Exception as error:
        say(f"no ONNX model: {type(error).__name__}")
        return {}
    found: Contenders = {}
    image = x.numpy()
    for name in wanted:
        try:
            session = runtimes.SESSIONS[name](file.getvalue(), torch.get_num_threads())
            session(image)
        except Exception as error:
            say(f"{name}: {type(error).__name__}")
        else:
            found[name] = lambda session=session: torch.from_numpy(session(image))
    return found


def measure(network: Network, options: argparse.Namespace, say: Callable[[str], None]) -> list[Row]:
    shape = network.quick if options.quick else network.shape
    with torch.no_grad():
        contenders = prepare(network, shape, 2 if options.quick else 30, options.compile, say)
        expected = first_tensor(contenders["eager NCHW"]()).clone()
        errors = {}
        for name in list(contenders):
            found = first_tensor(contenders[name]())
            errors[name] = ((found - expected).abs().max() / expected.abs().max()).item()
            if not errors[name] < TOLERANCE:
                if name.startswith(OURS):
                    raise ArithmeticError(f"{network.name}, {name}: relative error of {errors[name]:.2g}")
                say(f"{name}: left out, relative error of {errors[name]:.2g}")
                del contenders[name]
        say("measure")
        timings = interleave(contenders, options.rounds, MIN_TIME, pause=0.05)
        peaks = {
            name: host_peak_bytes(function) if name.startswith(("eager", OURS, "compile")) else None
            for name, function in contenders.items()
        }
    return [Row(network.name, name, timings[name], peaks[name], errors[name]) for name in contenders]


# ---- terminal, file and picture ----------------------------------------------------------------------------


class Result(NamedTuple):
    """A network's fastest baseline, and the fastest of ours, exact and with tf32 allowed."""

    network: Network
    baseline: Row
    ours: Row
    inexact: Row
    eager: Row

    @property
    def ratio(self) -> float:
        return self.baseline.timing.median / self.ours.timing.median

    @property
    def inexact_ratio(self) -> float:
        return self.baseline.timing.median / self.inexact.timing.median


def fastest(chosen: Sequence[Row]) -> Row:
    return min(chosen, key=lambda row: row.timing.median)


def results_of(rows: Sequence[Row]) -> list[Result]:
    results = []
    for network in NETWORKS:
        own = [row for row in rows if row.network == network.name]
        if not own:
            continue

        inexact = [row for row in own if row.contender.startswith(OURS)]  # where tf32 helps or not
        ours = [row for row in inexact if not row.contender.startswith(INEXACT)]
        eager = [row for row in own if row.contender.startswith("eager")]
        others = [row for row in own if not row.contender.startswith(OURS)]
        results.append(Result(network, fastest(others), fastest(ours), fastest(inexact), fastest(eager)))
    return results


def table(results: Sequence[Result]) -> str:
    """In Markdown."""

    def ms(row: Row) -> str:
        return f"{row.timing.median * 1e3:.4g} ± {row.timing.spread * 1e3:.2g}"

    lines = [
        "| network | eager PyTorch, ms | fastest baseline, ms | accelerated, ms | ratio | tf32 allowed, ms "
        "| ratio | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        memory = (result.ours.peak_bytes or 0) / (result.eager.peak_bytes or math.inf)
        baseline = f"{ms(result.baseline)} ({result.baseline.contender})"
        lines.append(
            f"| {result.network.what} | {ms(result.eager)} | {baseline} | {ms(result.ours)} "
            f"| {result.ratio:.2f} | {ms(result.inexact)} | {result.inexact_ratio:.2f} | {memory:.2f} |"
        )
    exact, inexact = (
        statistics.geometric_mean(ratios)
        for ratios in ([r.ratio for r in results], [r.inexact_ratio for r in results])
    )
    lines.append(f"\ngeometric mean of the ratios: {exact:.2f}, with tf32 allowed {inexact:.2f}")
    return "\n".join(lines)


def draw(results: Sequence[Result], path: Path) -> None:
    """Ratios as bars."""
    from matplotlib.figure import Figure

    from bench import plots

    figure = Figure(figsize=(8, 0.55 * len(results) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    exact, inexact = [r.ratio for r in results], [r.inexact_ratio for r in results]
    bars = axes.barh([p - 0.2 for p in places], exact, 0.4, color=plots.OURS, label="float32")
    axes.bar_label(bars, [f"{r.ratio:.2f}, {r.baseline.contender}" for r in results], padding=3, fontsize=8)
    bars = axes.barh(
        [p + 0.2 for p in places], inexact, 0.4, color=plots.OURS, alpha=0.5, label="tf32 allowed"
    )
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in inexact], padding=3, fontsize=8)
    axes.set_yticks(places, [result.network.what for result in results])
    axes.axvline(1, color="0.3", lw=1)
    axes.set_xlabel("times as fast as the fastest baseline")
    axes.set_xlim(0, 1.5 * max(*exact, *inexact))
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = environment.describe(command(options))
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    partial = "_quick" if options.quick else "_part" if options.only else ""
    path = options.out or RESULTS / f"{date}_{environment.slug(str(facts['cpu']))}_networks{partial}.csv"
    print(", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("date", "command")))
    if float(facts["load_before"]) > 0.5:
        print("The machine is busy with something else; figures to be quoted want it idle.")
    rows: list[Row] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = [BY_NAME[name] for name in options.only or BY_NAME]
    with path.open("w", newline="") as file, tqdm(chosen, unit="network", disable=None) as bar:
        columns = ("network", "contender", "median_ms", "low_ms", "high_ms", "rounds", "peak_bytes", "error")
        writer = csv.DictWriter(file, (*columns, *facts))
        writer.writeheader()
        for network in bar:

            def say(text: str, name: str = network.name) -> None:
                bar.write(f"{name}: {text}", file=sys.stderr)

            try:
                found = measure(network, options, say)
            except ImportError as error:
                say(f"left out: {error}")
                continue
            for row in found:
                writer.writerow({**row.columns(), **facts})
                bar.write(
                    f"{network.name:11} {row.contender:34} {row.timing.median * 1e3:9.4g} ms "
                    f"± {row.timing.spread * 1e3:.2g}, error {row.error:.1e}"
                )
            file.flush()
            rows += found
    if not rows:
        print("No network could be measured.")
        return 1
    results = results_of(rows)
    draw(results, path.with_suffix(".svg"))
    print(f"\n{table(results)}\n\nwritten: {path} and {path.with_suffix('.svg')}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=BY_NAME, help="a network; may be repeated")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--threads", type=int, help="default: as PyTorch chooses")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="small inputs, few rounds: not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def command(options: argparse.Namespace) -> str:
    """How to repeat the run; not as it was typed, which could hold paths."""
    words = ["python -m bench.networks", *(f"--only {name}" for name in options.only or ())]
    words += [f"--rounds {options.rounds} --threads {torch.get_num_threads()}"]
    words += ["--no-compile"] * (not options.compile) + ["--quick"] * options.quick
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
