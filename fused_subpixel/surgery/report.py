# SPDX-License-Identifier: BSD-3-Clause
"""What a replacement did and did not do: :class:`Report`, of one :class:`Site` per place looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from torch import nn

REPLACED: Final = "replaced"
ALREADY_REPLACED: Final = "already replaced"
LEFT_ALONE: Final = "left alone"
Status = Literal["replaced", "already replaced", "left alone"]
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclasses.dataclass(frozen=True)
class Site:
    """A place of a model that was looked at.

    Attributes:
        path: names of the modules, as in ``named_modules()``, joined by `` -> `` in the order of the data.
        layers: what stands there, with its shape: ``Conv2d(64, 12, 3x3) -> PixelShuffle(2)``.
        status: ``"replaced"``, ``"already replaced"`` or ``"left alone"``.
        reason: how it is replaced, or why it was left alone.
        saved_bytes: memory that a run of the model on the example inputs need not write and read any more;
            None where the size of the tensors is not known.
        saved_bytes_per_pixel: the same for each pixel of the convolution's output; None where unknown.
        before_ms, after_ms: milliseconds of all calls in a run of the model, in training mode with their
            backward passes, by PyTorch and by the fused kernels; None where they were not measured.
    """

    path: str
    layers: str
    status: Status
    reason: str = ""
    saved_bytes: int | None = None
    saved_bytes_per_pixel: int | None = None
    before_ms: float | None = None
    after_ms: float | None = None

    @property
    def saving(self) -> str:
        """The expected saving, in words: of a run, else per low-resolution pixel, else nothing."""
        if self.saved_bytes is not None:
            return format_bytes(self.saved_bytes)
        return "" if self.saved_bytes_per_pixel is None else f"{self.saved_bytes_per_pixel} B/pixel"


class WholeModel(NamedTuple):
    """A run of the whole model before and after: median milliseconds, and the most bytes of its tensors.

    ``training``: the run and its backward pass.
    """

    before_ms: float
    after_ms: float
    before_bytes: int | None = None
    after_bytes: int | None = None
    training: bool = False

    def __str__(self) -> str:
        what = "whole model, a training step" if self.training else "whole model"
        text = (
            f"{what}: {self.before_ms:.3g} ms before, {self.after_ms:.3g} ms after, "
            f"{self.before_ms / self.after_ms:.2f} times as fast"
        )
        if self.before_bytes is None or self.after_bytes is None:
            return text
        before, after = format_bytes(self.before_bytes), format_bytes(self.after_bytes)
        return f"{text}; peak memory {before} before, {after} after"


class Report:
    """The sites of a replacement, best printed: a table and a line that sums it up.

    Iterates over its :class:`Site` objects, in the order of ``named_modules()``. ``whole`` is the measurement
    of the whole model, where there is one.
    """

    def __init__(self, sites: Iterable[Site] = (), note: str = "", whole: WholeModel | None = None) -> None:
        self.sites = tuple(sites)
        self.note = note
        self.whole = whole

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, index: int) -> Site:
        return self.sites[index]

    def with_status(self, status: Status) -> list[Site]:
        """The sites of a ``status``."""
        return [site for site in self.sites if site.status == status]

    @property
    def replaced(self) -> list[Site]:
        """The sites that were replaced by this call."""
        return self.with_status(REPLACED)

    @property
    def already_replaced(self) -> list[Site]:
        """The sites that an earlier call had replaced."""
        return self.with_status(ALREADY_REPLACED)

    @property
    def left_alone(self) -> list[Site]:
        """The sites that stay as they are."""
        return self.with_status(LEFT_ALONE)

    @property
    def saved_bytes(self) -> int | None:
        """Sum over the replaced sites whose saving is known, or None where none is."""
        known = [site.saved_bytes for site in self.sites if site.status != LEFT_ALONE]
        found = [size for size in known if size is not None]
        return sum(found) if found else None

    @property
    def summary(self) -> str:
        """One line: how many sites have which status, and the saving."""
        if not self.sites:
            text = "no site found"
        else:
            counts = [
                f"{len(found)} {status}"
                for status in (REPLACED, ALREADY_REPLACED, LEFT_ALONE)
                if (found := self.with_status(status))
            ]
            text = f"{len(self.sites)} {'site' if len(self.sites) == 1 else 'sites'}: {', '.join(counts)}"
            if self.saved_bytes is not None:
                text += f"; {format_bytes(self.saved_bytes)} less to write and read per run"
        text = f"{text}. {self.note}" if self.note else text
        return f"{text}\n{self.whole}" if self.whole else text

    def __str__(self) -> str:
        if not self.sites:
            return self.summary
        if any(site.before_ms is not None for site in self.sites):
            heads = ("PyTorch ms", "fused ms")
            rows: list[tuple[str, ...]] = [("path", "layers", "status", *heads, "how, or why not")]
            rows += [
                (site.path, site.layers, site.status, _ms(site.before_ms), _ms(site.after_ms), site.reason)
                for site in self.sites
            ]
        else:
            rows = [("path", "layers", "status", "saving", "how, or why not")]
            rows += [(site.path, site.layers, site.status, site.saving, site.reason) for site in self.sites]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join((*(line.rstrip() for line in lines), self.summary))

    def __repr__(self) -> str:
        return f"<Report: {self.summary}>"


def what_else_finds(model: nn.Module, called: str) -> str:
    """Which calls, other than the one that found no site, serve the layers of ``model``; in sentences."""

    def holds(*kinds: type[nn.Module]) -> bool:
        return any(isinstance(module, kinds) for module in model.modules())

    hints = []
    if called != "replace_conv_transpose" and holds(*TRANSPOSED):
        hints.append("Its transposed convolutions are replaced by replace_conv_transpose")
    if called != "replace_pixel_shuffle" and holds(nn.PixelShuffle):
        hints.append("Its pixel shuffles are replaced by replace_pixel_shuffle")
    if holds(nn.Conv2d) and not holds(nn.PixelShuffle):
        hints.append(
            "It has no nn.PixelShuffle; accelerate looks at all its convolutions. "
            "A shuffle written by hand (view, permute, reshape) is found in graphs: by "
            "torch.compile(model, backend=fusing_backend()) or fuse(torch.export.export(...))"
        )
    if holds(nn.Conv1d):
        hints.append("Its 1-D convolutions are replaced by accelerate")
    if holds(nn.Conv3d):
        hints.append("3-D convolutions cannot be replaced")
    return ". ".join(hints)


def _ms(time: float | None) -> str:
    return "" if time is None else f"{time:.3g}"


def format_bytes(size: int) -> str:
    """A size as people write it: ``0 B``, ``12.3 MB``."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.3g} {unit}"
