# SPDX-License-Identifier: BSD-3-Clause
"""Names that arguments take are types: those that the checks at run time know, and no others."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from building import ROOT, run

import fused_subpixel as fs
from fused_subpixel import modules
from fused_subpixel.dispatch import checks
from fused_subpixel.ops import geometry
from fused_subpixel.surgery import report

TABLES = {
    fs.Activation: [name for name in geometry.ACTIVATIONS if name is not None],
    fs.Backend: checks.BACKENDS,
    fs.ChannelOrder: geometry.CHANNEL_ORDERS,
    fs.PaddingMode: modules._PADDING_MODES,
    report.Status: (report.REPLACED, report.ALREADY_REPLACED, report.LEFT_ALONE),
}
ANNOTATIONS = {
    "activation": "Activation",
    "backend": "Backend",
    "channel_order": "ChannelOrder",
    "padding_mode": "PaddingMode",
}


@pytest.mark.parametrize("names", TABLES, ids=lambda names: get_args(names)[0])
def test_a_type_and_its_table_have_the_same_names(names: Any) -> None:
    assert list(get_args(names)) == list(TABLES[names])


def public_callables() -> dict[str, Any]:
    found = {name: getattr(fs, name) for name in fs.__all__}
    found = {name: each for name, each in found.items() if inspect.isfunction(each) or inspect.isclass(each)}
    methods = {"from_conv1d": fs.SubpixelConv1d, "from_conv2d": fs.SubpixelConv2d}
    return found | {name: getattr(kind, name) for name, kind in methods.items()}


def test_every_public_signature_has_them() -> None:
    seen = set()
    for name, function in public_callables().items():
        for argument in inspect.signature(function).parameters.values():
            of_pytorch = name.startswith("ConvTranspose")  # whose classes these are
            if argument.name in ANNOTATIONS and not of_pytorch and name != "fusing_backend":
                annotation = argument.annotation.removesuffix(" | None")
                assert annotation == ANNOTATIONS[argument.name], f"{name}({argument.name})"
                seen.add(argument.name)
    assert seen == ANNOTATIONS.keys()


USER = """\
import torch
import fused_subpixel as fs

x, weight = torch.rand(1, 3, 8, 8), torch.rand(12, 3, 3, 3)
conv = torch.nn.Conv2d(3, 12, 3)


def upscale(name: str, known: fs.Activation | None) -> None:
    fs.subpixel_conv2d(x, weight, activation=known)
    fs.subpixel_conv2d(x, weight, activation=name)  # refused
    fs.subpixel_conv2d(x, weight, activation="gelu_tanh", channel_order="dcr", backend="cpu")
    fs.subpixel_conv2d(x, weight, activation="lrelu")  # refused
    fs.subpixel_conv2d(x, weight, channel_order="CRD")  # refused
    fs.subpixel_conv2d(x, weight, backend="gpu")  # refused
    fs.subpixel_conv2d(x, conv.weight, conv.bias, padding=conv.padding)
    fs.conv_transpose2d(x, weight, activation="lrelu")  # refused
    fs.SubpixelConv2d(3, 3, 3, padding="same", padding_mode="reflect", activation="relu")
    fs.SubpixelConv2d(3, 3, 3, padding_mode=conv.padding_mode)
    fs.SubpixelConv2d(3, 3, 3, padding_mode="mirror")  # refused
    fs.SubpixelConv1d(3, 3, 3, activation="swish")  # refused
    fs.pixel_shuffle(x, 2, "dcr")
    fs.pixel_shuffle1d(x, 2, "tf")  # refused
    fs.icnr_(weight, 2, channel_order="tf")  # refused
    with fs.use_backend(fs.explain(fs.subpixel_conv2d, x, weight).backend):
        pass
    with fs.use_backend("fastest"):  # refused
        pass
    _, report = fs.replace_pixel_shuffle(conv, x, return_report=True)
    report.with_status("left alone")
    report.with_status("left out")  # refused
"""


@pytest.mark.full
def test_mypy_refuses_other_names(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    done = run(*command, cwd=tmp_path, MYPYPATH=str(ROOT))  # an editable install is nothing to mypy
    lines = USER.splitlines()
    refused = {int(line) for line in re.findall(r"^user\.py:(\d+): error: ", done.stdout, re.MULTILINE)}
    assert refused == {number for number, line in enumerate(lines, 1) if "# refused" in line}, done.stdout
