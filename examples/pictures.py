# SPDX-License-Identifier: BSD-3-Clause
"""Pictures in and out of upscale.py: files of every kind, PSNR, and the sheet that compares results."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # others reduce the size or the colours without a word
FORMATS_WITH_ALPHA = ("PNG", "TIFF", "WEBP")


class PictureError(Exception):
    """A picture cannot be read or written; the message fits on one line."""


@dataclass
class Picture:
    """What the network sees, and what it must not lose."""

    rgb: np.ndarray  # [H, W, 3] uint8
    alpha: Image.Image | None = None
    gray: bool = False
    icc_profile: bytes | None = None
    notices: list[str] = field(default_factory=list)


def read_picture(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            return _decode(image)
    except FileNotFoundError as error:
        raise PictureError(f"there is no file {path}") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture of a known format") from error
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise PictureError(f"cannot read {path}: {reason}") from error


def _decode(image: Image.Image) -> Picture:
    notices = []
    if getattr(image, "n_frames", 1) > 1:
        notices.append(f"the file holds {image.n_frames} pictures: only the first is used")
    icc_profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)  # cameras store turned pictures with a note which way is up

    gray = image.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT)
    if image.mode == "F":
        raise PictureError("pictures of floating-point values are not supported")
    if image.mode in SIXTEEN_BIT:
        notices.append("16 bits a channel become 8")
        values = np.clip(np.asarray(image, np.float64), 0, 65535)
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    alpha = None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            alpha = image.getchannel("A")
            notices.append("the network knows no transparency: that channel is enlarged bicubically")
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):  # CMYK, Lab: the profile describes those channels
        icc_profile = None
    return Picture(np.array(image.convert("RGB")), alpha, gray, icc_profile, notices)


def prepare_folder(folder: Path) -> None:
    """Find out that a folder cannot be written to before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise PictureError(f"cannot write to the folder {folder}: {reason}") from error


def prepare_file(path: Path) -> None:
    """The same for a file, whose name must also tell a format."""
    if _format_of(path) not in FORMATS:
        raise PictureError(f"the name {path.name} should end in .png, .jpg, .webp, .tiff or .bmp")
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise PictureError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'write-protected'}")
    prepare_folder(path.parent)


def save_like(rgb: np.ndarray, source: Picture, path: Path) -> list[str]:
    """Save the enlarged `source` with its alpha channel, greyness and colour profile; returns notices."""
    image = Image.fromarray(rgb)
    notices = []
    if source.gray:
        image = image.convert("L")  # the network may have tinted a gray picture
    if source.alpha is not None:
        if _format_of(path) in FORMATS_WITH_ALPHA:
            image.putalpha(source.alpha.resize(image.size, Image.Resampling.BICUBIC))
        else:
            notices.append(f"{path.suffix} files hold no transparency: dropped")
    save(image, path, icc_profile=source.icc_profile)
    return notices


def save(image: Image.Image, path: Path, icc_profile: bytes | None = None) -> None:
    """Write all of a file or nothing: a failure leaves whatever was there before."""
    partial = path.with_name(f".{path.name}.part")
    options = {"icc_profile": icc_profile} if icc_profile else {}
    if _format_of(path) in ("JPEG", "WEBP"):
        options["quality"] = 95
    try:
        image.save(partial, format=_format_of(path), **options)
        os.replace(partial, path)
    except (OSError, ValueError) as error:  # a full disk; more pixels than the format can hold
        partial.unlink(missing_ok=True)
        raise PictureError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _format_of(path: Path) -> str:
    return Image.registered_extensions().get(path.suffix.lower(), "")


def psnr(picture: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """PSNR in dB of 8-bit pictures, on RGB and on luminance (Y of BT.601, as super-resolution papers do)."""
    luminance = np.array([65.481, 128.553, 24.966]) / 255

    def decibels(difference: np.ndarray) -> float:
        error = np.mean(np.square(difference))
        return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))

    difference = picture.astype(np.float64) - truth
    return decibels(difference), decibels(difference @ luminance)


def comparison_sheet(
    whole: np.ndarray, panels: list[tuple[str, np.ndarray]], centre: tuple[float, float], caption: list[str]
) -> Image.Image:
    """The whole picture with a frame and a caption; beside it the frame's inside, in each of four panels."""
    margin, cell, label, zoom = 20, 280, 26, 2
    side = min(cell // zoom, *whole.shape[:2])  # of the frame, in pixels of the picture
    height, width = whole.shape[:2]
    left = round(min(max(centre[0] * width - side / 2, 0), width - side))
    top = round(min(max(centre[1] * height - side / 2, 0), height - side))
    box = (left, top, left + side, top + side)

    picture = Image.fromarray(whole)
    picture.thumbnail((640, 440), Image.Resampling.LANCZOS)
    shrink = picture.width / width
    ImageDraw.Draw(picture).rectangle([round(edge * shrink) for edge in box], outline="white", width=2)

    title_font, font = ImageFont.load_default(18), ImageFont.load_default(17)
    column = max(picture.width, *(round(font.getlength(line)) for line in caption))
    grid = column + 2 * margin  # where the panels begin
    sheet = Image.new("RGB", (grid + 2 * (cell + margin), 2 * (label + cell + margin) + margin // 2), "white")
    draw = ImageDraw.Draw(sheet)
    sheet.paste(picture, (margin, margin // 2 + label))
    draw.text((margin, margin // 2), caption[0], "black", title_font)
    for row, line in enumerate(caption[1:]):
        draw.text((margin, picture.height + 3 * margin + row * 30), line, "#333", font)
    for index, (title, pixels) in enumerate(panels):
        x = grid + index % 2 * (cell + margin)
        y = margin // 2 + index // 2 * (label + cell + margin)
        draw.text((x, y), title, "black", title_font)
        # nearest: every pixel of the result shows as a square, nothing is smoothed over
        crop = Image.fromarray(pixels).crop(box).resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(crop, (x, y + label))
    return sheet
