# SPDX-License-Identifier: BSD-3-Clause
"""A deconvolution is a convolution: the same numbers three ways, and pictures of why.

    python examples/deconvolution_is_convolution.py                  prints, and draws into docs/images
    python examples/deconvolution_is_convolution.py --out pictures   draws elsewhere

After W. Shi et al., "Is the deconvolution layer the same as a convolutional layer?", arXiv 1609.07009: an
image of 4 x 4 pixels and r = 2. The convolution's kernel is (4, 1, 2, 2), its result (4, 4, 4) is shuffled to
(1, 8, 8); the deconvolution's kernel is (1, 1, 4, 4). The second picture shows the checkerboard of a random
start, and how ICNR (arXiv 1707.02937) avoids it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch
    import torch.nn.functional as F
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from skimage import data, transform
    from torch import Tensor

    import fused_subpixel as fs
    from fused_subpixel import reference
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: install it with pip install --no-build-isolation '.[examples]'") from None

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
R = 2
COLOURS = ("#f4a6a0", "#a7cdf0", "#b9e3a8", "#f6dc8e")  # of the phases (0, 0), (0, 1), (1, 0), (1, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder for the pictures")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    image = torch.randint(0, 10, (1, 1, 4, 4)).float()
    weight = torch.randint(-3, 4, (R * R, 1, 2, 2)).float()  # [C*r*r, Ci, k, k], C = 1
    kernel = fs.subpixel_weight_to_conv_transpose(weight, R)  # [1, 1, 4, 4]

    # Full padding of one pixel before, none after: the output of 4 x 4 pixels per phase that the note shows.
    low = F.conv2d(F.pad(image, (1, 0, 1, 0)), weight)
    subpixel = fs.subpixel_conv2d(image, weight, None, R, padding=(1, 1, 0, 0))
    deconvolved = fs.conv_transpose2d(image, kernel, stride=R)[..., : 4 * R, : 4 * R]
    fractional = reference.fractionally_strided_conv2d(image, kernel, stride=R)[..., : 4 * R, : 4 * R]

    for name, result in (
        ("1. convolution (4, 1, 2, 2), result (4, 4, 4), shuffled to (1, 8, 8)", subpixel),
        ("2. deconvolution (1, 1, 4, 4), stride 2", deconvolved),
        ("3. zeros inserted between the pixels, then the same kernel turned by 180 degrees", fractional),
    ):
        rows = "\n".join(" ".join(f"{int(value):4d}" for value in row) for row in result[0, 0])
        print(f"{name}\n{rows}\n")
    eager = F.pixel_shuffle(low, R)
    print(f"largest difference of 1 and PyTorch's pixel_shuffle: {_distance(subpixel, eager):g}")
    print(f"largest difference of 1 and 2: {_distance(subpixel, deconvolved):g}")
    print(f"largest difference of 1 and 3: {_distance(subpixel, fractional):g}")

    for name, figure in (
        ("deconvolution_is_convolution.png", phases_figure(image, weight, kernel, low, subpixel)),
        ("checkerboard.png", checkerboard_figure()),
    ):
        figure.savefig(options.out / name, dpi=110)
        plt.close(figure)
        print(f"drawn: {options.out / name}")
    return 0


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---- the figure of the note --------------------------------------------------------------------------------


def phases_figure(image: Tensor, weight: Tensor, kernel: Tensor, low: Tensor, output: Tensor) -> plt.Figure:
    """Kernel taps, low-resolution maps and output pixels, each in the colour of its phase."""
    figure = plt.figure(figsize=(13, 6), layout="constrained")
    grid = figure.add_gridspec(4, 7)
    _cells(figure.add_subplot(grid[:2, 0:2]), image[0, 0], None, "image, 4 x 4")
    by_phase = torch.arange(R * R).view(R, R)
    _cells(
        figure.add_subplot(grid[2:, 0:2]),
        kernel[0, 0],
        by_phase.repeat(2, 2),
        "deconvolution kernel, 4 x 4",
    )
    for phase in range(R * R):
        colour = torch.full((4, 4), phase)
        title = f"its taps ({phase // R}, {phase % R}), turned"
        _cells(figure.add_subplot(grid[phase, 2]), weight[phase, 0], colour[:2, :2], title)
        _cells(figure.add_subplot(grid[phase, 3]), low[0, phase], colour, f"convolved: map {phase}", 6)
    title = "the maps interleaved, 8 x 8:\nthe deconvolution's output"
    _cells(figure.add_subplot(grid[:, 4:]), output[0, 0], by_phase.repeat(4, 4), title)
    return figure


def _cells(axes: Axes, values: Tensor, phases: Tensor | None, title: str, size: int = 9) -> None:
    shown = torch.zeros_like(values) if phases is None else phases
    colours = ListedColormap(("#eeeeee",) if phases is None else COLOURS)
    axes.imshow(shown.numpy(), cmap=colours, vmin=-0.5, vmax=colours.N - 0.5)
    for (y, x), value in _items(values):
        axes.text(x, y, f"{int(value)}", ha="center", va="center", fontsize=size)
    axes.set_xticks([i - 0.5 for i in range(1, values.shape[1])], labels=[])
    axes.set_yticks([i - 0.5 for i in range(1, values.shape[0])], labels=[])
    axes.grid(color="white", linewidth=1.5)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9)


def _items(values: Tensor) -> list[tuple[tuple[int, int], float]]:
    return [((y, x), float(values[y, x])) for y in range(values.shape[0]) for x in range(values.shape[1])]


# ---- the checkerboard --------------------------------------------------------------------------------------


def checkerboard_figure() -> plt.Figure:
    """A photograph through untrained layers of upscale factor 4."""
    factor, size = 4, 48
    photograph = transform.resize(data.camera(), (size, size), anti_aliasing=True)
    image = torch.from_numpy(photograph).float()[None, None]
    starts = {"as nn.Conv2d starts": torch.nn.init.kaiming_uniform_, "ICNR": fs.icnr_}
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    axes[0].imshow(photograph, cmap="gray")
    axes[0].set_title(f"input, {size} x {size}")
    for place, (name, start) in zip(axes[1:], starts.items(), strict=True):
        torch.manual_seed(1)
        weight = torch.empty(factor**2, 1, 3, 3)
        start(weight, factor) if start is fs.icnr_ else start(weight, a=5**0.5)
        output = fs.subpixel_conv2d(image, weight, None, factor, padding=1)[0, 0, 4:-4, 4:-4]
        place.imshow(output.numpy(), cmap="gray")
        place.set_title(f"untrained sub-pixel convolution x{factor}: {name}")
    for place in axes:
        place.axis("off")
    return figure


if __name__ == "__main__":
    sys.exit(main())
