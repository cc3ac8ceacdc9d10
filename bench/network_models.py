# SPDX-License-Identifier: BSD-3-Clause
"""Networks that bench.networks measures and that no package here provides, as their papers describe them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3(channels, channels), nn.ReLU(True), conv3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class EDSR(nn.Module):
    """EDSR-baseline: 64 channels, 16 blocks. B. Lim et al., arXiv 1707.02921."""

    def __init__(self, channels: int = 64, blocks: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.head = conv3(3, channels)
        self.body = nn.Sequential(
            *(ResidualBlock(channels) for _ in range(blocks)), conv3(channels, channels)
        )
        self.tail = nn.Sequential(
            conv3(channels, channels * scale**2), nn.PixelShuffle(scale), conv3(channels, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(x + self.body(x))


def espcn(scale: int = 3) -> nn.Module:
    """ESPCN. W. Shi et al., arXiv 1609.05158."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), conv3(64, 32), nn.Tanh(), conv3(32, scale**2),
        nn.PixelShuffle(scale),
    )  # fmt: skip


def fsrcnn(scale: int = 3, d: int = 56, s: int = 12, m: int = 4) -> nn.Module:
    """FSRCNN(56, 12, 4). C. Dong et al., arXiv 1608.00367."""
    mapping = [layer for _ in range(m) for layer in (conv3(s, s), nn.PReLU(s))]
    return nn.Sequential(
        nn.Conv2d(1, d, 5, padding=2), nn.PReLU(d), nn.Conv2d(d, s, 1), nn.PReLU(s), *mapping,
        nn.Conv2d(s, d, 1), nn.PReLU(d), nn.ConvTranspose2d(d, 1, 9, scale, 4, scale - 1),
    )  # fmt: skip


class SRVGG(nn.Module):
    """SRVGGNetCompact, of Real-ESRGAN's animevideov3. X. Wang et al., arXiv 2107.10833."""

    def __init__(self, channels: int = 64, layers: int = 16, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        body: list[nn.Module] = [conv3(3, channels), nn.PReLU(channels)]
        for _ in range(layers):
            body += [conv3(channels, channels), nn.PReLU(channels)]
        self.body = nn.Sequential(*body, conv3(channels, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


def autoencoder(code: int = 32) -> nn.Module:
    """An autoencoder of MNIST's digits, as in examples/mnist_autoencoder.py, by PyTorch's own layers."""

    def up(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels_in, 4 * channels_out, 2, padding="same"), nn.PixelShuffle(2))

    return nn.Sequential(
        conv3(1, 16), nn.ReLU(True), nn.MaxPool2d(2), conv3(16, 32), nn.ReLU(True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, code),
        nn.Linear(code, 32 * 7 * 7), nn.ReLU(True), nn.Unflatten(1, (32, 7, 7)),
        up(32, 32), nn.ReLU(True), up(32, 1),
    )  # fmt: skip


class UNet(nn.Module):
    """U-Net with batch norm and transposed convolutions. O. Ronneberger et al., arXiv 1505.04597."""

    def __init__(self, channels: int = 32, levels: int = 4) -> None:
        super().__init__()
        widths = [channels << level for level in range(levels + 1)]
        self.down = nn.ModuleList(self.block(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(self.block(a, b) for a, b in pairs)
        self.last = nn.Conv2d(channels, 2, 1)

    @staticmethod
    def block(channels_in: int, channels_out: int) -> nn.Module:
        sizes = ((channels_in, channels_out), (channels_out, channels_out))
        layers = [
            layer for a, b in sizes
            for layer in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True))
        ]  # fmt: skip
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            seen.append(x)
        seen.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat((enlarge(x), seen.pop()), 1))
        return self.last(x)


def dcgan(noise: int = 100, channels: int = 64) -> nn.Module:
    """The generator of DCGAN for 64x64 pixels. A. Radford et al., arXiv 1511.06434."""
    layers: list[nn.Module] = []
    widths = [noise, *(channels * factor for factor in (8, 4, 2, 1))]
    for number, (a, b) in enumerate(itertools.pairwise(widths)):
        stride, padding = (2, 1) if number else (1, 0)
        layers += [nn.ConvTranspose2d(a, b, 4, stride, padding, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 4, 2, 1, bias=False), nn.Tanh())


def hifigan() -> nn.Module:
    """The generator V1 of HiFi-GAN, by transformers. J. Kong et al., arXiv 2010.05646."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        upsample_initial_channel=512, upsample_rates=[8, 8, 2, 2], upsample_kernel_sizes=[16, 16, 4, 4],
        resblock_kernel_sizes=[3, 7, 11], resblock_dilation_sizes=[[1, 3, 5]] * 3, normalize_before=False,
    )  # fmt: skip
    return SpeechT5HifiGan(config)
