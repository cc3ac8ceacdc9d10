# SPDX-License-Identifier: BSD-3-Clause
"""Enlarge a photograph with a real super-resolution network, with and without fused_subpixel.

    python examples/upscale.py                                      the demonstration, on a photograph at hand
    python examples/upscale.py photo.jpg --scale 4 --out big.png    your own picture

The network is Real-ESRGAN's animevideov3 (SRVGGNetCompact) with its authors' weights. It runs twice: as its
authors wrote it, and with its last convolution, pixel shuffle and enlarged input done by
fused_subpixel.subpixel_conv2d. The demonstration reduces a photograph, enlarges it again, and compares.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NoReturn

try:
    import numpy as np
    import skimage
    import torch
    from fetch_weights import DEFAULT_FOLDER, GRAPHS, WEIGHTS, WeightsError, verify
    from ncnn_weights import NcnnError
    from pictures import (
        PictureError,
        comparison_sheet,
        prepare_file,
        prepare_folder,
        psnr,
        read_picture,
        save,
        save_like,
    )
    from PIL import Image
    from srvgg import Upscaler, load
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    print(
        f"upscale: the Python package {missing.name} is not installed; `make demo`, run in the repository, "
        "installs all that this needs",
        file=sys.stderr,
    )
    sys.exit(2)

# Photographs inside the scikit-image package, and where to look closely (fractions of width and height).
PHOTOS = {
    "astronaut": ("astronaut.png", (0.15, 0.25)),
    "camera": ("camera.png", (0.50, 0.30)),
    "cat": ("chelsea.png", (0.35, 0.38)),
    "coffee": ("coffee.png", (0.38, 0.55)),
    "galaxies": ("hubble_deep_field.jpg", (0.50, 0.50)),
    "motorcycle": ("motorcycle_left.png", (0.72, 0.20)),
    "retina": ("retina.jpg", (0.20, 0.50)),
    "rocket": ("rocket.jpg", (0.50, 0.40)),
}
TILE = 256  # pixels of the input, before the overlap: then the 64 channels of a layer take 22 MB
TOLERANCE = 1e-4  # float32 sums in another order, through one layer; 8-bit steps are 40 times as large
SECONDS_A_ROW = 1.5  # of the table of times


@dataclass
class Enlarged:
    """What the plain and the fused network made of one picture."""

    plain: np.ndarray  # [H * scale, W * scale, 3] uint8
    fused: np.ndarray
    difference: float  # the largest between the two, before rounding to 8 bits, of 1


def enlarge(rgb: np.ndarray, plain: Upscaler, fused: Upscaler, tile: int = TILE) -> Enlarged:
    """Run both networks tile by tile, for the sake of memory; the overlap leaves no seams."""
    height, width, _ = rgb.shape
    scale, reach = plain.scale, plain.reach
    result = Enlarged(*(np.empty((height * scale, width * scale, 3), np.uint8) for _ in range(2)), 0.0)
    corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
    for y, x in tqdm(corners, desc="enlarging", unit="tile", delay=1, leave=False, disable=None):
        top, left = max(y - reach, 0), max(x - reach, 0)
        source = as_tensor(rgb[top : y + tile + reach, left : x + tile + reach])
        rows = slice((y - top) * scale, (min(y + tile, height) - top) * scale)
        columns = slice((x - left) * scale, (min(x + tile, width) - left) * scale)
        here = slice(y * scale, (y + tile) * scale), slice(x * scale, (x + tile) * scale)
        by_plain, by_fused = (network(source)[..., rows, columns] for network in (plain, fused))
        result.plain[here], result.fused[here] = as_pixels(by_plain), as_pixels(by_fused)
        result.difference = max(result.difference, (by_plain - by_fused).abs().max().item())
    return result


def as_tensor(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float().div(255).contiguous()  # [1, 3, H, W], 0 to 1


def as_pixels(image: torch.Tensor) -> np.ndarray:
    return image[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()


def interleaved_medians(functions: Sequence[Callable[[], object]], budget: float, name: str) -> list[float]:
    """Median seconds of each function, run in turns, so that a busy moment of the machine meets them all."""
    for function in functions:
        function()  # the first run allocates and chooses kernels
    times: list[list[float]] = [[] for _ in functions]
    bar_format = "{l_bar}{bar}"  # the budget is in seconds, the time left is plain to see
    with tqdm(total=budget, desc=f"timing {name}", bar_format=bar_format, leave=False, disable=None) as bar:
        began = time.perf_counter()
        while len(times[0]) < 5 or time.perf_counter() - began < budget:
            for function, seconds in zip(functions, times, strict=True):
                start = time.perf_counter()
                function()
                seconds.append(time.perf_counter() - start)
            bar.update(min(time.perf_counter() - began, budget) - bar.n)
    return [median(seconds) for seconds in times]


def report_times(rgb: np.ndarray, plain: Upscaler, fused: Upscaler) -> None:
    """Time the part that was replaced, alone and inside the whole network, on at most one tile."""
    x = as_tensor(rgb[:TILE, :TILE])
    size = f"{x.shape[3]} x {x.shape[2]} pixels"
    print(f"\n{'median time, ' + size:<42}{'plain torch':>14}{'fused':>12}{'ratio':>8}")
    kernels = []
    for layout in (torch.contiguous_format, torch.channels_last):
        name = "NCHW" if layout is torch.contiguous_format else "channels_last"
        image = x.contiguous(memory_format=layout)
        networks = [upscaler.network.to(memory_format=layout) for upscaler in (plain, fused)]
        features = networks[0].features(image).contiguous(memory_format=layout)
        rows = {
            f"convolution, shuffle and sum, {name}": [partial(n.head, features, image) for n in networks],
            f"whole network, {name}": [partial(n, image) for n in networks],
        }
        for row, functions in rows.items():
            before, after = interleaved_medians(functions, SECONDS_A_ROW, row)
            print(f"  {row:<43}{before * 1e3:>8.2f} ms{after * 1e3:>9.2f} ms{before / after:>7.2f}x")
        kernels.append(f"  fused, {name}: {networks[1].explain_head(features, image)}")
    print("\n".join(kernels))


def report_difference(difference: float) -> bool:
    within = difference <= TOLERANCE
    print(
        f"largest difference between the two runs: {difference:.1e} of 1"
        f" ({'within' if within else 'MORE THAN'} {TOLERANCE:.0e})"
    )
    return within


def demonstrate(photo: str, folder: Path, plain: Upscaler, fused: Upscaler) -> bool:
    """Reduce a photograph, enlarge it again in every way, and compare with what it was."""
    prepare_folder(folder)
    file, centre = PHOTOS[photo]
    scale = plain.scale
    truth = read_picture(Path(skimage.__file__).parent / "data" / file).rgb
    truth = truth[: truth.shape[0] // scale * scale, : truth.shape[1] // scale * scale]
    height, width, _ = truth.shape
    small_size = width // scale, height // scale

    small = Image.fromarray(truth).resize(small_size, Image.Resampling.BICUBIC)  # Pillow's is antialiased
    print(
        f"photograph: {photo}, {width} x {height}, reduced to {small_size[0]} x {small_size[1]} "
        "(bicubic, antialiased) and enlarged again"
    )
    bicubic = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    result = enlarge(np.array(small), plain, fused)

    scores = {
        "bicubic": psnr(bicubic, truth),
        "network, plain torch": psnr(result.plain, truth),
        "network, fused": psnr(result.fused, truth),
    }
    print(f"\n{'PSNR to the photograph':<30}{'RGB':>12}{'luminance':>12}")
    for name, (rgb, luminance) in scores.items():
        print(f"  {name:<28}{rgb:>9.2f} dB{luminance:>9.2f} dB")
    if scores["network, fused"][0] < scores["bicubic"][0]:
        print(
            "  The network scores below bicubic here, which is no surprise: it was made for animation\n"
            "  video (drawn lines, flat colours, compression noise). It sharpens edges, flattens texture,\n"
            "  and PSNR forgives a blur sooner than an edge a pixel off. Look at the pictures."
        )
    within = report_difference(result.difference)
    report_times(np.array(small), plain, fused)

    pixels = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
    panels = [("input", pixels), ("bicubic", bicubic), ("network, fused", result.fused), ("original", truth)]
    caption = [
        f"{photo}, {small_size[0]} x {small_size[1]}, enlarged {scale} times",
        "Real-ESRGAN animevideov3; its last convolution, pixel shuffle",
        "and residual run as one fused_subpixel.subpixel_conv2d.",
        f"PSNR  bicubic {scores['bicubic'][0]:.2f} dB,  network {scores['network, fused'][0]:.2f} dB",
        f"Largest difference to plain PyTorch: {result.difference:.0e} of 1",
    ]
    pictures = {
        "input": small,
        "bicubic": Image.fromarray(bicubic),
        "network": Image.fromarray(result.fused),
        "original": Image.fromarray(truth),
        "comparison": comparison_sheet(result.fused, panels, centre, caption),
    }
    for name, picture in pictures.items():
        save(picture, folder / f"{name}.png")
    print(f"\nin {folder}: {', '.join(f'{name}.png' for name in pictures)}")
    return within


def enlarge_file(path: Path, out: Path, plain: Upscaler, fused: Upscaler) -> bool:
    picture = read_picture(path)
    prepare_file(out)
    height, width, _ = picture.rgb.shape
    scale = plain.scale
    print(f"{path}: {width} x {height}, to be {width * scale} x {height * scale}")
    result = enlarge(picture.rgb, plain, fused)
    print(f"writing {out}", flush=True)
    notices = picture.notices + save_like(result.fused, picture, out)
    for notice in notices:
        print(f"note: {notice}")
    within = report_difference(result.difference)
    report_times(picture.rgb, plain, fused)
    return within


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse would print before it."""
        self.exit(2, f"upscale: {message} (--help tells more)\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="upscale.py", description=__doc__, formatter_class=layout)
    parser.add_argument(
        "picture", nargs="?", type=Path, help="the picture to enlarge (without one: the demonstration)"
    )
    parser.add_argument(
        "--scale",
        type=int,
        choices=sorted(GRAPHS),
        default=4,
        help="how many times larger (default: 4; the authors' models for 2 and 3 are the one "
        "for 4 and a bicubic reduction)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the file to write (default: NAME_xSCALE.png in the current folder); for the "
        "demonstration, a folder (default: build/demo)",
    )
    parser.add_argument(
        "--photo",
        choices=PHOTOS,
        help="the demonstration's photograph (default: coffee); one of " + ", ".join(PHOTOS),
        metavar="NAME",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="processor threads (default: as many as PyTorch chooses)"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="where fetch_weights.py put the network's weights (default: build/weights)",
    )
    args = parser.parse_args(argv)
    if args.threads is not None and args.threads < 1:
        parser.error("--threads should be at least 1")
    if args.picture is not None and args.photo is not None:
        parser.error("--photo is for the demonstration, which takes no picture of yours")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        verify(args.weights)
        plain, fused = load(args.weights / GRAPHS[args.scale], args.weights / WEIGHTS)
        with torch.inference_mode():
            if args.picture is None:
                within = demonstrate(args.photo or "coffee", args.out or Path("build/demo"), plain, fused)
            else:
                out = args.out or Path(f"{args.picture.stem}_x{args.scale}.png")
                if out.exists() and args.picture.exists() and out.samefile(args.picture):
                    raise PictureError(f"--out {out} would replace the picture itself")
                within = enlarge_file(args.picture, out, plain, fused)
    except (PictureError, WeightsError, NcnnError) as error:
        print(f"upscale: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # PyTorch reports a lack of memory as a RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        print("upscale: not enough memory for a picture of this size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
