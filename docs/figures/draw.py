# SPDX-License-Identifier: BSD-3-Clause
"""Draw the diagrams of the documentation, each in a light and a dark version.

python docs/figures/draw.py                  # writes docs/images/*_light.svg and *_dark.svg
python docs/figures/draw.py --png FOLDER     # PNG files for a look
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

IMAGES = Path(__file__).resolve().parent.parent / "images"
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "fused_subpixel",  # the same file at every run
}
LIGHT = {
    "back": "#ffffff", "ink": "#1f2328", "soft": "#656d76", "line": "#afb8c1", "panel": "#f3f5f7",
    "a": "#4c8bf5", "b": "#f2994a", "c": "#3fae6b", "d": "#c65bb5", "loss": "#d1242f", "ours": "#0a7d46",
}  # fmt: skip
DARK = {
    "back": "#131416", "ink": "#e6edf3", "soft": "#9aa4ae", "line": "#4b535c", "panel": "#202328",
    "a": "#3a72cf", "b": "#c9752d", "c": "#2f8c54", "d": "#a3489a", "loss": "#ff7b72", "ours": "#4ac98a",
}  # fmt: skip
Theme = dict[str, str]


class Canvas:
    """An empty picture, in units of a hundredth of an inch, with the few shapes that the diagrams need."""

    def __init__(self, theme: Theme, width: float, height: float) -> None:
        self.theme = theme
        self.figure = Figure(figsize=(width / 100, height / 100), facecolor=theme["back"])
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, color: str = "ink", **style: object) -> None:
        style = {"ha": "center", "va": "center", "fontsize": 10, **style}
        self.axes.text(x, y, text, color=self.theme[color], **style)

    def box(
        self, x: float, y: float, w: float, h: float, text: str = "", fill: str = "panel", edge: str = "line",
        **style: object,
    ) -> None:  # fmt: skip
        round_box = FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0,rounding_size=6", facecolor=self.theme[fill],
            edgecolor=self.theme[edge], linewidth=1,
        )  # fmt: skip
        self.axes.add_patch(round_box)
        if text:
            self.text(x + w / 2, y + h / 2, text, **style)

    def cell(
        self, x: float, y: float, w: float, h: float, fill: str, text: str = "", alpha: float = 1,
        color: str = "ink", **style: object,
    ) -> None:  # fmt: skip
        face = matplotlib.colors.to_rgba(self.theme[fill], alpha)
        cell = Rectangle((x, y), w, h, facecolor=face, edgecolor=self.theme["back"], linewidth=1)
        self.axes.add_patch(cell)
        if text:
            self.text(x + w / 2, y + h / 2, text, color, **style)

    def arrow(
        self, start: Sequence[float], end: Sequence[float], color: str = "soft", width: float = 1.4,
        **style: object,
    ) -> None:  # fmt: skip
        arrow = FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=self.theme[color], linewidth=width,
            shrinkA=0, shrinkB=0, **style,
        )  # fmt: skip
        self.axes.add_patch(arrow)

    def line(self, xs: Sequence[float], ys: Sequence[float], color: str = "line", **style: object) -> None:
        self.axes.plot(xs, ys, color=self.theme[color], linewidth=1, **style)


# ---- the operation -----------------------------------------------------------------------------------------

PHASES = ("a", "b", "c", "d")  # colours of phases (0, 0), (0, 1), (1, 0), (1, 1)


def _plates(c: Canvas, x: float, y: float, fills: Sequence[str], step: float = 9, size: float = 66) -> None:
    """Channels of one low-resolution tensor, behind each other; the first is in front."""
    for n, fill in reversed(list(enumerate(fills))):
        for row in range(3):
            for column in range(3):
                side = size / 3
                c.cell(x + n * step + column * side, y - n * step + row * side, side, side, fill)


def _image(c: Canvas, x: float, y: float, side: float = 22) -> None:
    for row in range(6):
        for column in range(6):
            c.cell(x + column * side, y + row * side, side, side, PHASES[row % 2 * 2 + column % 2])


def operation(theme: Theme) -> Canvas:
    c = Canvas(theme, 860, 440)
    c.text(20, 26, "PyTorch: two operators, and a tensor between them", ha="left", weight="bold")
    _plates(c, 40, 102, ["line"] * 3)
    c.text(82, 207, "input\n[N, Ci, H, W]", "soft", fontsize=9)
    c.arrow((146, 128), (286, 128))
    c.text(216, 112, "conv2d", family="monospace")
    c.box(292, 50, 186, 132, fill="back", edge="loss")
    _plates(c, 330, 104, PHASES, step=11)
    c.text(385, 209, "[N, C·r², H, W]\nwritten to memory, then read again", "loss", fontsize=9)
    c.arrow((484, 128), (646, 128))
    c.text(565, 112, "pixel_shuffle", family="monospace")
    _image(c, 660, 52)
    c.text(726, 207, "output\n[N, C, H·r, W·r]", "soft", fontsize=9)

    c.line([20, 840], [232, 232])
    c.text(20, 256, "fused_subpixel: one operator", ha="left", weight="bold")
    _plates(c, 40, 310, ["line"] * 3)
    c.text(82, 415, "input\n[N, Ci, H, W]", "soft", fontsize=9)
    c.arrow((146, 336), (646, 336), "ours", 2.6)
    c.text(396, 318, "fs.subpixel_conv2d", family="monospace")
    c.text(
        396, 358, "accumulators get bias, activation, residual and clamp in registers,\n"
        "and are stored at their shuffled places", "soft", fontsize=9,
    )  # fmt: skip
    _image(c, 660, 260)
    c.text(726, 415, "output\n[N, C, H·r, W·r]", "soft", fontsize=9)
    return c


# ---- the index map -----------------------------------------------------------------------------------------


def index_map(theme: Theme) -> Canvas:
    """C = 2 output channels, r = 2: eight low-resolution channels of one pixel."""
    c = Canvas(theme, 860, 350)
    channels, r = 2, 2
    orders: dict[str, tuple[str, Callable[[int, int, int], int]]] = {
        "crd": ("channel = c·r² + i·r + j", lambda o, i, j: o * r * r + i * r + j),
        "dcr": ("channel = (i·r + j)·C + c", lambda o, i, j: (i * r + j) * channels + o),
    }
    for panel, (order, (formula, channel_of)) in enumerate(orders.items()):
        left = 30 + panel * 425
        c.text(left, 24, f'channel_order="{order}"', ha="left", weight="bold", family="monospace")
        c.text(left, 48, formula, "soft", ha="left", family="monospace", fontsize=9)
        c.text(left, 78, "the C·r² channels of low-resolution pixel (h, w)", ha="left", fontsize=9)
        places = {channel_of(o, i, j): (o, i, j) for o in range(channels) for i in range(r) for j in range(r)}
        for channel, (o, i, j) in places.items():
            shade = 1 if o == 0 else 0.45
            c.cell(left + channel * 44, 92, 44, 34, PHASES[i * r + j], str(channel), shade)
        for o in range(channels):
            x = left + 30 + o * 185
            c.arrow((x + 48, 134), (x + 48, 172))
            for i in range(r):
                for j in range(r):
                    shade = 1 if o == 0 else 0.45
                    text = str(channel_of(o, i, j))
                    c.cell(x + j * 48, 180 + i * 48, 48, 48, PHASES[i * r + j], text, shade, fontsize=12)
                    if o == 0 and i == 0:
                        c.text(x + 24 + j * 48, 288, f"j = {j}", "soft", fontsize=8)
                if o == 0:
                    c.text(x - 20, 204 + i * 48, f"i = {i}", "soft", fontsize=8)
            c.text(x + 48, 312, f"output channel c = {o}", fontsize=9)
    c.text(430, 336, "sub-pixel block: output pixels (h·r + i, w·r + j)", "soft", fontsize=9)
    c.line([430, 430], [14, 290])
    return c


# ---- the CPU microkernels ----------------------------------------------------------------------------------


def _vector(c: Canvas, x: float, y: float, fill: str, alpha: float = 1, w: float = 88, h: float = 26) -> None:
    """One register of eight lanes."""
    for lane in range(8):
        c.cell(x + lane * w / 8, y, w / 8, h, fill, alpha=alpha)


def microkernels(theme: Theme) -> Canvas:
    c = Canvas(theme, 860, 400)
    panels = (
        ("OW-vectorised", "few output channels", "x[k]: vectors of neighbouring pixels", "a",
         "w[k]: one oc,\nbroadcast", "b", "oc {}", "acc[m][n] += broadcast(w[k][m]) · x[k][n]"),
        ("OC-vectorised", "wide layers, channels_last", "w[k]: vectors of output channels", "b",
         "x[k]: one pixel,\nbroadcast", "a", "pixel {}", "acc[m][n] += broadcast(x[k][m]) · w[k][n]"),
    )  # fmt: skip
    for panel, (name, use, top, top_fill, side, side_fill, row_name, formula) in enumerate(panels):
        left = 20 + panel * 430
        c.text(left, 24, name, ha="left", weight="bold", fontsize=11)
        c.text(left + 395, 24, use, "soft", ha="right", fontsize=9)
        c.text(left + 118, 58, top, ha="left", fontsize=9)
        for n in range(3):
            _vector(c, left + 118 + n * 94, 72, top_fill)
        c.text(left + 50, 92, side, fontsize=9)
        for m in range(4):
            y = 124 + m * 36
            c.cell(left + 78, y, 26, 26, side_fill)
            c.text(left + 70, y + 13, row_name.format(m), "soft", ha="right", fontsize=8)
            for n in range(3):
                _vector(c, left + 118 + n * 94, y, "c", 0.75)
        c.text(left + 250, 284, "accumulators acc: MR x NR vector registers", fontsize=9)
        c.box(left + 8, 304, 390, 60, fill="panel")
        c.text(left + 203, 322, "for each k = (input channel, tap):", fontsize=9, family="monospace")
        c.text(left + 203, 345, formula, fontsize=9, family="monospace")
    c.text(
        430, 385, "MR = 4, NR = 3 and eight lanes are drawn; the plan chooses MR and NR", "soft", fontsize=8
    )
    c.line([430, 430], [14, 366])
    return c


# ---- the CUDA pipeline -------------------------------------------------------------------------------------


def pipeline(theme: Theme) -> Canvas:
    c = Canvas(theme, 860, 470)
    c.text(20, 24, "One block: a tile of 128 pixels by BLOCK_N output channels", ha="left", weight="bold")
    for x, w, text in ((20, 150, "global memory"), (210, 200, "shared memory"), (452, 180, "registers"),
                       (672, 168, "global memory")):  # fmt: skip
        c.box(x, 46, w, 196, fill="panel")
        c.text(x + w / 2, 62, text, "soft", fontsize=9)
    c.box(32, 80, 126, 62, "input", "a")
    c.box(32, 160, 126, 62, "packed\nweights", "b")
    c.box(222, 80, 176, 62, "input tile with halo,\none BLOCK_K of channels", "a", fontsize=9)
    c.box(222, 160, 176, 62, "ring of stages:\nweights of some taps", "b", fontsize=9)
    c.box(464, 80, 156, 62, "tensor cores:\nacc += x · w", "c", fontsize=9)
    c.box(464, 160, 156, 62, "bias, activation", "c", fontsize=9)
    c.box(684, 120, 144, 72, "output, shuffled:\n16-byte stores", "d", fontsize=9)
    for y in (111, 191):
        c.arrow((158, y), (222, y))
    c.arrow((398, 111), (464, 111))
    c.arrow((398, 191), (464, 135))
    c.arrow((542, 142), (542, 160))
    c.arrow((620, 191), (684, 160))
    c.text(
        430, 262, "sm_80: cp.async → ldmatrix → mma.sync       sm_90a: bulk copies and mbarriers → wgmma\n"
        "The store stages the accumulators in shared memory, then adds residual and clamp.",
        "soft", fontsize=9, va="top",
    )  # fmt: skip

    c.text(20, 322, "Pipeline over K iterations (three stages)", ha="left", weight="bold")
    rows = (("copy", 0, "b"), ("compute", 2, "c"))
    for row, (name, delay, fill) in enumerate(rows):
        y = 342 + row * 36
        c.text(86, y + 14, name, ha="right", fontsize=9)
        for k in range(6):
            c.cell(100 + (k + delay) * 78, y, 78, 28, fill, f"k = {k}", fontsize=9)
    c.text(86, 342 + 72 + 14, "store", ha="right", fontsize=9)
    c.cell(100 + 8 * 78, 342 + 72, 78, 28, "d", "tile", fontsize=9)
    c.text(100 + 78, 342 + 36 + 14, "prologue", "soft", fontsize=8)
    c.arrow((100, 456), (820, 456), "line")
    c.text(460, 446, "time", "soft", fontsize=8)
    return c


# ---- the architecture --------------------------------------------------------------------------------------


def architecture(theme: Theme) -> Canvas:
    c = Canvas(theme, 860, 560)

    def room(x: float, y: float, w: float, title: str, path: str, fill: str = "panel", h: float = 46) -> None:
        c.box(x, y, w, h, fill=fill)
        c.text(x + w / 2, y + h * 0.33, title, fontsize=9.5)
        c.text(x + w / 2, y + h * 0.7, path, "soft" if fill == "panel" else "ink", fontsize=7.5,
               family="monospace")  # fmt: skip

    room(250, 16, 360, "SubpixelConv2d, ConvTranspose2d", "fused_subpixel/modules.py")
    room(16, 16, 200, "graphs", "fused_subpixel/fx/")
    room(644, 16, 200, "replaced models", "fused_subpixel/surgery/")
    room(250, 88, 360, "subpixel_conv2d, conv_transpose2d", "fused_subpixel/functional.py")
    room(250, 160, 360, "check arguments; choose who computes", "fused_subpixel/dispatch/")
    room(250, 232, 360, "operators, gradients, shape functions", "fused_subpixel/ops/")
    for y in (62, 134, 206):
        c.arrow((430, y), (430, y + 26))
    c.arrow((116, 62), (250, 255))
    c.arrow((644, 62), (610, 105))

    for x, name, torch_file, folder, isa in (
        (16, "CPU", "csrc/torch/ops_cpu.cpp", "csrc/cpu", "AVX-512, AVX2, portable"),
        (322, "CUDA", "csrc/torch/ops_cuda.cpp", "csrc/cuda", "generic, sm_80, sm_90a"),
    ):
        c.box(x, 312, 286, 236, fill="back")
        c.text(x + 12, 328, name, ha="left", weight="bold")
        c.text(x + 274, 328, isa, "soft", ha="right", fontsize=8)
        room(x + 12, 342, 262, "tensors → sizes, strides, pointers", torch_file)
        room(x + 12, 394, 262, "plan: kernel, tile, blocks, scratch", f"{folder}/plan.h", "b")
        c.box(x + 12, 446, 262, 90, fill="panel")
        for n, (stage, fill) in enumerate((("pack", "a"), ("gemm", "c"), ("store", "d"))):
            c.box(x + 22 + n * 84, 458, 74, 40, stage, fill)
            if n:
                c.arrow((x + 12 + n * 84, 478), (x + 22 + n * 84, 478))
        c.text(x + 143, 517, f"{folder}/kernels/", "soft", fontsize=7.5, family="monospace")
    c.box(628, 312, 216, 110, fill="back")
    c.text(640, 328, "reference", ha="left", weight="bold")
    room(640, 342, 192, "plain PyTorch", "fused_subpixel/reference.py", h=64)
    c.box(628, 438, 216, 110, fill="back")
    c.text(640, 454, "both devices", ha="left", weight="bold")
    room(640, 468, 192, "index map, epilogue", "csrc/common/", h=64)
    c.arrow((340, 278), (159, 312))
    c.arrow((430, 278), (465, 312))
    c.arrow((610, 190), (736, 312), connectionstyle="arc3,rad=-0.25")
    c.text(722, 240, "where no kernel\nruns", "soft", fontsize=8, ha="left")
    return c


FIGURES: dict[str, Callable[[Theme], Canvas]] = {
    "operation": operation,
    "index_map": index_map,
    "microkernels": microkernels,
    "pipeline": pipeline,
    "architecture": architecture,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the SVG files")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="PNG files instead, into this folder")
    options = parser.parse_args(arguments)
    folder, kind = (options.png, "png") if options.png else (options.out, "svg")
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            for suffix, theme in (("light", LIGHT), ("dark", DARK)):
                path = folder / f"{name}_{suffix}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                figure = draw(theme).figure
                figure.savefig(path, facecolor=theme["back"], dpi=100, metadata=metadata)
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
