# SPDX-License-Identifier: BSD-3-Clause
"""Sub-pixel convolution as its definition reads: loops over pixels and taps, slow and obviously right.

Nothing is shared with the package: index arithmetic and epilogue are written here once more, in NumPy. The
arithmetic type is that of the arrays, so float64 or, as truth for float64 itself, longdouble.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
Pair = tuple[int, int]
Sides = tuple[int, int, int, int]  # top, left, bottom, right


def subpixel_conv2d(
    input: Array,  # [N, Ci, H, W]
    weight: Array,  # [C*r_h*r_w, Ci/groups, k_h, k_w]
    bias: Array | None,  # [C*r_h*r_w]
    upscale: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    crop: Sides = (0, 0, 0, 0),
    channel_order: str = "crd",
    activation: str | None = None,
    negative_slope: float = 0.01,
    activation_weight: Array | None = None,
    residual: Array | None = None,
    clamp: tuple[float | None, float | None] | None = None,
) -> Array:
    """Return the shuffled, cropped output, [N, C, P*r_h - crops, Q*r_w - crops]."""
    batch, _, height, width = input.shape
    rows, group_channels, kernel_h, kernel_w = weight.shape
    r_h, r_w = upscale
    group_rows = rows // groups
    lr_h = (height + padding[0] + padding[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    lr_w = (width + padding[1] + padding[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    out_h, out_w = lr_h * r_h - crop[0] - crop[2], lr_w * r_w - crop[1] - crop[3]
    c, i, j = places(rows, upscale, channel_order)
    output = np.empty((batch, rows // (r_h * r_w), out_h, out_w), input.dtype)
    for n, p, q in np.ndindex(batch, lr_h, lr_w):
        sums = np.zeros(rows, input.dtype) if bias is None else bias.copy()
        for a, b in np.ndindex(kernel_h, kernel_w):
            y = p * stride[0] + a * dilation[0] - padding[0]
            x = q * stride[1] + b * dilation[1] - padding[1]
            if not (0 <= y < height and 0 <= x < width):
                continue
            for group in range(groups):
                out = slice(group * group_rows, (group + 1) * group_rows)
                into = slice(group * group_channels, (group + 1) * group_channels)
                sums[out] += weight[out, :, a, b] @ input[n, into, y, x]
        values = activate(sums, activation, negative_slope, slopes_of(activation_weight, rows, c))
        y, x = p * r_h + i - crop[0], q * r_w + j - crop[1]
        inside = (y >= 0) & (y < out_h) & (x >= 0) & (x < out_w)
        if residual is not None:
            if residual.shape == output.shape:
                values[inside] += residual[n, c[inside], y[inside], x[inside]]
            elif residual.shape[1] == output.shape[1]:
                values += residual[n, c, p, q]
            else:
                values += residual[n, :, p, q]
        if clamp is not None:
            low, high = (
                -math.inf if clamp[0] is None else clamp[0],
                math.inf if clamp[1] is None else clamp[1],
            )
            values = np.minimum(np.maximum(values, low), high)
        output[n, c[inside], y[inside], x[inside]] = values[inside]
    return output


def gradients(
    grad: Array,  # of the output
    input: Array,
    weight: Array,
    upscale: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    crop: Sides = (0, 0, 0, 0),
    channel_order: str = "crd",
) -> tuple[Array, Array, Array]:
    """Gradients of input, weight and bias of :func:`subpixel_conv2d` without an epilogue, tap by tap."""
    rows, group_channels, kernel_h, kernel_w = weight.shape
    (r_h, r_w), group_rows = upscale, rows // groups
    whole = np.pad(grad, ((0, 0), (0, 0), (crop[0], crop[2]), (crop[1], crop[3])))
    c, i, j = places(rows, upscale, channel_order)
    low = np.stack([whole[:, channel, y::r_h, x::r_w] for channel, y, x in zip(c, i, j, strict=True)], axis=1)
    padded = np.pad(input, ((0, 0), (0, 0), (padding[0], padding[2]), (padding[1], padding[3])))
    grad_padded, grad_weight = np.zeros_like(padded), np.zeros_like(weight)
    for a, b, group in np.ndindex(kernel_h, kernel_w, groups):
        out = slice(group * group_rows, (group + 1) * group_rows)
        into = slice(group * group_channels, (group + 1) * group_channels)
        y, x = a * dilation[0], b * dilation[1]
        read = (
            slice(None),
            into,
            slice(y, y + (low.shape[2] - 1) * stride[0] + 1, stride[0]),
            slice(x, x + (low.shape[3] - 1) * stride[1] + 1, stride[1]),
        )
        grad_weight[out, :, a, b] = np.einsum("nohw,nchw->oc", low[:, out], padded[read])
        grad_padded[read] += np.einsum("nohw,oc->nchw", low[:, out], weight[out, :, a, b])
    height, width = input.shape[2:]
    inside = grad_padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return inside, grad_weight, low.sum(axis=(0, 2, 3))


def places(rows: int, upscale: Pair, channel_order: str) -> tuple[Array, Array, Array]:
    """(c, i, j) of every low-resolution channel: output channel and place within the r_h x r_w cell."""
    r_h, r_w = upscale
    channels = rows // (r_h * r_w)
    found = {}
    for c in range(channels):
        for i in range(r_h):
            for j in range(r_w):
                row = c * r_h * r_w + i * r_w + j if channel_order == "crd" else (i * r_w + j) * channels + c
                found[row] = (c, i, j)
    return tuple(np.array([found[row][k] for row in range(rows)]) for k in range(3))  # type: ignore[return-value]


def slopes_of(activation_weight: Array | None, rows: int, c: Array) -> Array | None:
    """One prelu slope per low-resolution channel, from one, C or C*r_h*r_w of them."""
    if activation_weight is None:
        return None
    if activation_weight.size == 1:
        return np.repeat(activation_weight, rows)
    return activation_weight if activation_weight.size == rows else activation_weight[c]


def activate(x: Array, activation: str | None, negative_slope: float, slopes: Array | None) -> Array:
    if activation is None:
        return x
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "leaky_relu":
        return np.where(x > 0, x, x * x.dtype.type(negative_slope))
    if activation == "prelu":
        return np.where(x > 0, x, x * slopes)
    if activation == "silu":
        return x / (1 + np.exp(-x))
    if activation == "gelu":
        return x / 2 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x], x.dtype))
    if activation == "tanh":
        return np.tanh(x)
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if activation == "relu6":
        return np.clip(x, 0, 6)
    if activation == "hardsigmoid":
        return np.clip(x + 3, 0, 6) / 6
    if activation == "hardswish":
        return x * (np.clip(x + 3, 0, 6) / 6)
    if activation == "gelu_tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if activation == "elu":
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    softplus = np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))
    if activation == "mish":
        return x * np.tanh(softplus)
    assert activation == "softplus"
    return softplus
