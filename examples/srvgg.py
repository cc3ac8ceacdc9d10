# SPDX-License-Identifier: BSD-3-Clause
"""SRVGGNetCompact, the network of Real-ESRGAN's small models: as its authors wrote it, and fused.

A plain chain of 3x3 convolutions on the small picture; the last one makes C * r^2 channels, which a pixel
shuffle turns into a picture r times larger, on top of the input enlarged by repeating its pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from ncnn_weights import Layer, NcnnError, read_model
from torch import Tensor, nn

import fused_subpixel as fs


class SRVGGNetCompact(nn.Module):
    """Parameters are named as in the authors' checkpoints: body.0.weight, body.0.bias, body.1.weight, ..."""

    def __init__(self, channels: int = 3, features: int = 64, convolutions: int = 16, upscale: int = 4):
        super().__init__()
        self.upscale = upscale
        self.body = nn.ModuleList([nn.Conv2d(channels, features, 3, padding=1), nn.PReLU(features)])
        for _ in range(convolutions):
            self.body += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        self.body.append(nn.Conv2d(features, channels * upscale**2, 3, padding=1))

    def features(self, x: Tensor) -> Tensor:
        for layer in self.body[:-1]:
            x = layer(x)
        return x  # [N, features, H, W]

    def head(self, features: Tensor, x: Tensor) -> Tensor:
        out = F.pixel_shuffle(self.body[-1](features), self.upscale)
        out += F.interpolate(x, scale_factor=self.upscale, mode="nearest")
        return out  # [N, channels, H * upscale, W * upscale]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x), x)


class FusedSRVGGNetCompact(SRVGGNetCompact):
    """The same network; convolution, shuffle, enlarged input and their sum in one pass over memory."""

    def head(self, features: Tensor, x: Tensor) -> Tensor:
        last = self.body[-1]
        return fs.subpixel_conv2d(features, last.weight, last.bias, self.upscale, padding=1, residual=x)

    def explain_head(self, features: Tensor, x: Tensor) -> str:
        """Which of the package's implementations computes the head here."""
        last = self.body[-1]
        options = {"padding": 1, "residual": x}
        how = fs.explain(fs.subpixel_conv2d, features, last.weight, last.bias, self.upscale, **options)
        return f"backend {how.backend}: {how.forward}"


class Upscaler(nn.Module):
    """A network, and the bicubic reduction which the x2 and x3 models put after their x4 network."""

    def __init__(self, network: SRVGGNetCompact, reduction: float = 1.0) -> None:
        super().__init__()
        self.network, self.reduction = network, reduction
        self.scale = round(network.upscale * reduction)

    @property
    def reach(self) -> int:
        """How far, in input pixels, an output pixel can see: the overlap that makes tiles seamless."""
        convolutions = sum(isinstance(layer, nn.Conv2d) for layer in self.network.body)
        return convolutions + (self.reduction != 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        if self.reduction != 1:
            y = F.interpolate(y, scale_factor=self.reduction, mode="bicubic", align_corners=False)
        return y


def load(param: Path, weights: Path) -> tuple[Upscaler, Upscaler]:
    """The network of an ncnn .param/.bin pair: as its authors wrote it, and fused."""
    layers = read_model(param, weights)
    try:
        return _build(SRVGGNetCompact, layers), _build(FusedSRVGGNetCompact, layers)
    except NcnnError as error:
        raise NcnnError(f"{param.name}: not an SRVGGNetCompact: {error}") from error


def _build(network_class: type[SRVGGNetCompact], layers: list[Layer]) -> Upscaler:
    """Check that the graph is this chain of layers, and copy its weights."""
    chain = [layer for layer in layers if layer.kind not in ("Input", "Split")]
    body = [layer for layer in chain if layer.weights]
    tail = chain[len(body) :]
    kinds = [layer.kind for layer in chain]
    expected = ["Convolution", "PReLU"] * (len(body) // 2)
    expected += ["Convolution", "PixelShuffle", "Interp", "BinaryOp"]
    if len(body) < 3 or kinds not in (expected, [*expected, "Interp"]):
        raise NcnnError(f"its layers are {', '.join(kinds)}")
    for layer in body[::2]:  # 2 is the dilation, 3 the stride, 4 the padding
        if [layer.integer(2, 1), layer.integer(3, 1), layer.integer(4)] != [1, 1, 1]:
            raise NcnnError(f"{layer.name} has a stride, a dilation or another padding than 1")
    upscale = tail[0].integer(0)
    if tail[0].integer(1) != 0:  # 0 is PyTorch's order of channels
        raise NcnnError("its pixel shuffle takes the channels in another order")
    nearest, add = tail[1:3]
    # Interp: 0 is the filter (1 nearest, 3 bicubic), 1 and 2 the factors; BinaryOp: 0 the operation (0 adds)
    if [nearest.params.get(key) for key in (0, 1, 2)] != [1, upscale, upscale] or add.integer(0) != 0:
        raise NcnnError("its residual is not the input enlarged by repeating pixels")
    reduction = 1.0
    if len(tail) == 4:
        reduction = float(tail[3].params.get(1, 0))
        if tail[3].params.get(0) != 3 or tail[3].params.get(2) != reduction or not 0 < reduction < 1:
            raise NcnnError("its last layer is not a bicubic reduction")

    first = body[0].weights["weight"]  # [features, channels, 3, 3]
    network = network_class(first.shape[1], first.shape[0], len(body) // 2 - 1, upscale)
    state = {
        f"body.{index}.{name}": torch.from_numpy(value)
        for index, layer in enumerate(body)
        for name, value in layer.weights.items()
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # a missing bias, another kernel size
        raise NcnnError(" ".join(str(error).split())) from error
    return Upscaler(network, reduction).eval().requires_grad_(False)
