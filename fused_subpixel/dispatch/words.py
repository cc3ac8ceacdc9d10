# SPDX-License-Identifier: BSD-3-Clause
"""How messages name shapes and sizes: as the caller knows them, in one, two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .checks import shape_of


class Words(NamedTuple):
    """The words for one number of dimensions. A signal [N, C, L] is computed as the image [N, C, 1, L]."""

    is_signal: bool
    input: str
    weight: str
    transposed_weight: str
    for_transposed: str  # a hint for weights of a transposed convolution
    channels_first: str  # a hint for inputs that have their channels last
    pixel: str
    sizes: str
    large: str
    factor: str  # the number of phases

    def shape(self, shape: Sequence[int]) -> str:
        """The shape of an image; of a signal without its height."""
        return shape_of([*shape[:-2], *shape[-1:]] if self.is_signal else shape)

    def size(self, height: int, width: int) -> str:
        """A size in pixels."""
        return f"{width}" if self.is_signal else f"{height}x{width}"

    def pair(self, values: tuple[int, ...]) -> str:
        """An option's value for all directions."""
        return f"{values[1] if self.is_signal else values}"

    def phases(self, factor_h: int, factor_w: int) -> str:
        """The number of phases, as a formula."""
        product = f"{factor_w}" if self.is_signal else f"{factor_h}*{factor_w} = {factor_h * factor_w}"
        return f"{self.factor} = {product}"


IMAGES = Words(
    False,
    "[N, Ci, H, W] or [Ci, H, W]",
    "[C*r_h*r_w, Ci/groups, k_h, k_w]",
    "[Ci, C/groups, K_h, K_w]",
    "; a weight [Ci, C, K_h, K_w] of nn.ConvTranspose2d is one for conv_transpose2d",
    "; channels come before height and width: permute the axes",
    "pixel",
    "a height and a width",
    "high and wide",
    "r_h*r_w",
)
SIGNALS = Words(
    True,
    "[N, Ci, L] or [Ci, L]",
    "[C*r, Ci/groups, k]",
    "[Ci, C/groups, K]",
    "; a weight [Ci, C, K] of nn.ConvTranspose1d is one for conv_transpose1d",
    "; channels come before the length: transpose the axes",
    "sample",
    "a length",
    "long",
    "r",
)
VOLUMES = Words(
    False,
    "[N, Ci, D, H, W] or [Ci, D, H, W]",
    "",
    "[Ci, C/groups, K_d, K_h, K_w]",
    "",
    "; channels come before depth, height and width: permute the axes",
    "voxel",
    "a depth, a height and a width",
    "",
    "",
)
