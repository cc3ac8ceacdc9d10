# SPDX-License-Identifier: BSD-3-Clause
"""Sub-pixel convolutions of TensorFlow on this package: which channel becomes which pixel.

    python examples/tensorflow_orders.py      checks that the three below agree with NumPy

Shi et al. (CVPR 2016) define the periodic shuffle of T, [H, W, C*r*r], as

    PS(T)[x, y, c] = T[floor(x/r), floor(y/r), C*r*mod(y, r) + C*mod(x, r) + c]

If x counts columns and y rows, this is TensorFlow's depth_to_space, here ``channel_order="dcr"``. Read as
arrays are indexed, x first and so for the rows, it is the transpose within each r x r block. The TensorFlow
code that made the operation popular (its function PS) does the latter. For colour images it shuffles three
planes of r*r channels apart and concatenates them, so the channels of a plane are neighbours: ``"crd"``,
PyTorch's order. ``swap_phases`` makes up for the transpose, once, in the weights.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fused_subpixel as fs


def periodic_shuffle(maps: np.ndarray, r: int) -> np.ndarray:
    """The paper's formula, index by index: [H, W, C*r*r] to [H*r, W*r, C], x along the first axis."""
    height, width, depth = maps.shape
    channels = depth // (r * r)
    output = np.empty((height * r, width * r, channels), maps.dtype)
    for x, y, c in np.ndindex(output.shape):
        output[x, y, c] = maps[x // r, y // r, channels * r * (y % r) + channels * (x % r) + c]
    return output


def depth_to_space(maps: np.ndarray, r: int) -> np.ndarray:
    """The same formula with x along the columns."""
    return periodic_shuffle(maps.swapaxes(0, 1), r).swapaxes(0, 1)


def periodic_shuffle_color(maps: np.ndarray, r: int) -> np.ndarray:
    """Three planes, shuffled apart: [H, W, 3*r*r] to [H*r, W*r, 3]."""
    planes = np.split(maps, 3, axis=2)
    return np.concatenate([periodic_shuffle(plane, r) for plane in planes], axis=2)


def swap_phases(rows: Tensor, r: int, channel_order: str) -> Tensor:
    """Weight or bias, [C*r*r, ...], with the phases (i, j) and (j, i) of each channel exchanged."""
    if channel_order == "dcr":
        return rows.unflatten(0, (r, r, -1)).transpose(0, 1).flatten(0, 2)
    return rows.unflatten(0, (-1, r, r)).transpose(1, 2).flatten(0, 2)


def main() -> None:
    r, generator = 2, torch.Generator().manual_seed(0)
    x = torch.rand(1, 5, 7, 4, generator=generator)  # TensorFlow's [N, H, W, C]
    kernel = torch.rand(3, 3, 4, 3 * r * r, generator=generator)  # and [k_h, k_w, Ci, Co]

    image = x.permute(0, 3, 1, 2)  # a view in channels_last
    weight = kernel.permute(3, 2, 0, 1)
    maps = F.conv2d(image, weight, padding="same")[0].permute(1, 2, 0).numpy()

    for name, shuffle, rows, order in (
        ("depth_to_space", depth_to_space, weight, "dcr"),
        ("PS(X, r)", periodic_shuffle, swap_phases(weight, r, "dcr"), "dcr"),
        ("PS(X, r, color=True)", periodic_shuffle_color, swap_phases(weight, r, "crd"), "crd"),
    ):
        y = fs.subpixel_conv2d(image, rows, None, r, padding="same", channel_order=order)
        apart = np.abs(y[0].permute(1, 2, 0).numpy() - shuffle(maps, r)).max()
        print(f"{name:<22}channel_order={order!r}, largest difference {apart:.1e}")


if __name__ == "__main__":
    main()
