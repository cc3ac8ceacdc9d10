# SPDX-License-Identifier: BSD-3-Clause
"""Measure single layers of networks against PyTorch on the CPU, in both layouts, without gradients.

    python -m bench.layers                    the figures that may be quoted, some minutes
    python -m bench.layers --series signals   one series
    python -m bench.layers --quick            three rounds, a look

The series are `body` (convolutions with the activation that follows), `few` (wide layers over few pixels,
transposed ones too), `signals` (one dimension, transposed ones too) and `volumes` (transposed ones of the
decoders of U-Nets). PyTorch runs eagerly, and compiled where an activation follows. In one dimension,
channels_last means a signal that is [N, L, C] in memory. All contenders are compared with float64 before they
are timed; they take turns. The ratio is of PyTorch's fastest to our faster layout; of volumes, whose
channels_last_3d is left to PyTorch, it is that of contiguous ones.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fused_subpixel as fs
from bench import environment
from bench.run import MIN_TIME, QUICK_ROUNDS, RESULTS
from bench.timing import Timing, interleave
from bench.workloads import memory_format

ROUNDS = 9
TOLERANCE = 1e-4  # of the largest value
ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {
    None: nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": functools.partial(nn.LeakyReLU, 0.2),
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class Layer(NamedTuple):
    """A convolution, and the activation that follows."""

    series: str
    name: str
    input_shape: tuple[int, ...]  # [N, Ci, H, W], [N, Ci, L] or [N, Ci, D, H, W]
    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    activation: str | None = None
    transposed: bool = False

    def module(self) -> nn.Sequential:
        """PyTorch's own."""
        kinds: dict[tuple[int, bool], Any] = {
            (3, False): nn.Conv1d, (3, True): nn.ConvTranspose1d,
            (4, False): nn.Conv2d, (4, True): nn.ConvTranspose2d, (5, True): nn.ConvTranspose3d,
        }  # fmt: skip
        conv = kinds[len(self.input_shape), self.transposed](
            self.input_shape[1], self.channels, self.kernel, self.stride, self.padding, dilation=self.dilation
        )
        return nn.Sequential(conv, ACTIVATIONS[self.activation]())

    def fused(self, x: Tensor, module: nn.Sequential) -> Tensor:
        """Ours, on the same parameters."""
        conv: Any = module[0]
        if x.dim() == 5:
            return fs.conv_transpose3d(x, conv.weight, conv.bias, self.stride, self.padding)
        signal = x.dim() == 3
        options: dict[str, Any] = {"activation": self.activation, "negative_slope": 0.2}
        if self.activation == "prelu":
            options["activation_weight"] = module[1].weight
        if self.transposed:
            transpose = fs.conv_transpose1d if signal else fs.conv_transpose2d
            return transpose(x, conv.weight, conv.bias, self.stride, self.padding, **options)
        convolve: Callable[..., Tensor] = fs.subpixel_conv1d if signal else fs.subpixel_conv2d
        return convolve(x, conv.weight, conv.bias, 1, padding=self.padding, dilation=self.dilation, **options)


def body(name: str, ci: int, h: int, w: int, c: int, kernel: int, activation: str | None) -> Layer:
    return Layer("body", name, (1, ci, h, w), c, kernel, padding=kernel // 2, activation=activation)


def dilated(name: str, c: int, kernel: int, dilation: int, length: int) -> Layer:
    padding = (kernel - 1) // 2 * dilation
    return Layer("signals", name, (1, c, length), c, kernel, 1, padding, dilation)


def signal_up(name: str, ci: int, c: int, kernel: int, stride: int, padding: int, length: int) -> Layer:
    return Layer("signals", name, (1, ci, length), c, kernel, stride, padding, transposed=True)


def volume_up(ci: int, c: int, size: int) -> Layer:
    return Layer("volumes", f"unet3d_{ci}_{size}", (1, ci, size, size, size), c, 2, 2, transposed=True)


LAYERS = (
    body("edsr", 64, 192, 192, 64, 3, "relu"),
    body("srvgg", 64, 270, 480, 64, 3, "prelu"),
    body("espcn1", 1, 360, 640, 64, 5, "tanh"),
    body("espcn2", 64, 360, 640, 32, 3, "tanh"),
    body("edsr256", 256, 96, 96, 256, 3, "relu"),
    body("rrdb", 160, 128, 128, 32, 3, "leaky_relu"),
    body("unet", 128, 64, 64, 128, 3, "relu"),
    body("gelu", 64, 128, 128, 64, 3, "gelu"),
    body("silu", 64, 128, 128, 64, 3, "silu"),
    body("sigmoid", 64, 128, 128, 64, 3, "sigmoid"),
    body("1x1_gelu", 64, 128, 128, 256, 1, "gelu"),
    *(
        Layer("few", f"conv_{c}_{size}x{size}", (1, c, size, size), c, 3, padding=1)
        for c in (64, 256, 512, 1024)
        for size in (1, 4, 16)
    ),
    *(
        Layer("few", f"up_{c}_{size}x{size}", (1, c, size, size), c // 2, 4, 2, 1, transposed=True)
        for c in (64, 256, 512, 1024)
        for size in (1, 4, 16)
    ),
    Layer("few", "dcgan_first", (16, 100, 1, 1), 512, 4, transposed=True),
    Layer("few", "pix2pix_1x1", (1, 512, 1, 1), 512, 4, 2, 1, transposed=True),
    Layer("few", "pix2pix_2x2", (1, 1024, 2, 2), 512, 4, 2, 1, transposed=True),
    signal_up("hifigan_up1", 512, 256, 16, 8, 4, 200),
    signal_up("hifigan_up2", 256, 128, 16, 8, 4, 1600),
    signal_up("hifigan_up3", 128, 64, 4, 2, 1, 12800),
    signal_up("hifigan_up4", 64, 32, 4, 2, 1, 25600),
    signal_up("encodec_up1", 512, 256, 16, 8, 0, 150),
    signal_up("dac_up1", 1536, 768, 16, 8, 4, 86),
    dilated("body1d_128", 128, 11, 5, 12800),
    dilated("body1d_32", 32, 11, 3, 51200),
    dilated("hifigan_256", 256, 3, 1, 1600),
    dilated("hifigan_64", 64, 7, 3, 25600),
    volume_up(320, 320, 4),
    volume_up(320, 256, 8),
    volume_up(256, 128, 16),
    volume_up(128, 64, 32),
    volume_up(64, 32, 64),
)
SERIES = tuple(dict.fromkeys(layer.series for layer in LAYERS))
COLUMNS = ("layer", "series", "contender", "median_ms", "low_ms", "high_ms", "rounds")


LAYOUTS = {3: ("NCL", "channels_last"), 4: ("NCHW", "channels_last"), 5: ("NCDHW", "channels_last_3d")}


def in_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    if tensor.dim() == 3:
        return tensor.mT.contiguous().mT if channels_last else tensor
    return tensor.contiguous(memory_format=format_of(tensor, channels_last))


def format_of(tensor: Tensor, channels_last: bool) -> torch.memory_format:
    return torch.channels_last_3d if channels_last and tensor.dim() == 5 else memory_format(channels_last)


def measure(layer: Layer, rounds: int, compiles: bool) -> dict[str, Timing]:
    """Seconds by contender."""
    torch.manual_seed(0)
    module, x = layer.module().requires_grad_(False), torch.randn(layer.input_shape)
    exact = layer.module().double()
    exact.load_state_dict(module.state_dict())
    contenders: dict[str, Callable[[], Tensor]] = {}
    with torch.no_grad():
        truth = exact(x.double())
        for layout in (False, True):
            name = LAYOUTS[x.dim()][layout]
            own = layer.module().requires_grad_(False)
            own.load_state_dict(module.state_dict())
            own = own.to(memory_format=format_of(x, layout)) if x.dim() > 3 else own
            image = in_layout(x, layout)
            contenders[f"eager {name}"] = functools.partial(own, image)
            contenders[f"fused {name}"] = functools.partial(layer.fused, image, own)
            if compiles and layer.activation is not None:
                torch._dynamo.reset()
                contenders[f"compile {name}"] = functools.partial(torch.compile(own), image)
        for name, contender in contenders.items():
            error = ((contender().double() - truth).abs().max() / truth.abs().max()).item()
            if not error < TOLERANCE:
                raise ArithmeticError(f"{layer.name}, {name}: relative error of {error:.2g}")
        return interleave(contenders, rounds, MIN_TIME, pause=0)


def fastest(timings: dict[str, Timing], ours: bool) -> str:
    names = (name for name in timings if name.startswith("fused") is ours and "3d" not in name)
    return min(names, key=lambda name: timings[name].median)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.layers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--series", action="append", choices=SERIES, help="may be repeated; default: all")
    parser.add_argument("--only", action="append", choices=[layer.name for layer in LAYERS], help="a layer")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--threads", type=int, help="default: as PyTorch chooses")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="few rounds: not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = [
        layer
        for layer in LAYERS
        if layer.series in (options.series or SERIES) and (not options.only or layer.name in options.only)
    ]
    command = f"python -m bench.layers --rounds {rounds} --threads {torch.get_num_threads()}"
    command += "".join(f" --series {series}" for series in options.series or ())
    command += "".join(f" --only {name}" for name in options.only or ())
    command += " --no-compile" * (not options.compile)
    facts = environment.describe(command)
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    path = options.out or RESULTS / f"{date}_{environment.slug(str(facts['cpu']))}_layers.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    ratios: dict[str, dict[str, float]] = {}
    print("| series | layer | fastest other, ms | fused, ms | ratio |\n|---|---|---|---|---|")
    with path.open("w", newline="") as file, tqdm(chosen, unit="layer", disable=None, leave=False) as bar:
        writer = csv.DictWriter(file, (*COLUMNS, *facts))
        writer.writeheader()
        for layer in bar:
            bar.set_description_str(layer.name)
            timings = measure(layer, rounds, options.compile)
            for contender, timing in timings.items():
                names = {"layer": layer.name, "series": layer.series, "contender": contender}
                writer.writerow({**names, **timing.columns(), **facts})
            file.flush()
            ours, other = fastest(timings, True), fastest(timings, False)
            ratio = timings[other].median / timings[ours].median
            ratios.setdefault(layer.series, {})[layer.name] = ratio
            bar.write(
                f"| {layer.series} | {layer.name} | {timings[other].median * 1e3:.4g} ({other}) "
                f"| {timings[ours].median * 1e3:.4g} ({ours.split()[1]}) | {ratio:.2f} |"
            )
    print()
    for series, found in ratios.items():
        least = min(found, key=lambda name: found[name])
        mean, median = statistics.geometric_mean(found.values()), statistics.median(found.values())
        print(f"{series}: geometric mean {mean:.2f}, median {median:.2f}, least {found[least]:.2f} ({least})")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
