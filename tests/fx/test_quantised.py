# SPDX-License-Identifier: BSD-3-Clause
"""Quantised programs: fuse leaves their convolutions alone, and unfuse writes what a quantizer looks for."""

from __future__ import annotations

import io
import logging

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
import torch.nn.functional as F
from conftest import needs_cpu_library
from torch import Tensor, nn
from torch.fx.passes.utils.source_matcher_utils import get_source_partitions

import fused_subpixel as fs

pytestmark = [
    needs_cpu_library,
    pytest.mark.usefixtures("one_thread"),
    # PyTorch's own, of export and Dynamo
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

OPERATOR = torch.ops.fused_subpixel.subpixel_conv2d.default


class Quantised(nn.Module):
    """A convolution 3 -> 12 and a shuffle, as torchao writes them: integers are widened just before use."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("weight", torch.randint(-128, 128, (12, 3, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(12) / 128)
        self.register_buffer("zero_points", torch.zeros(12, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        numbers = (0.02, 128, 0, 255, torch.uint8)
        wide = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *numbers), *numbers)
        weight = ops.dequantize_per_channel(
            self.weight, self.scales, self.zero_points, 0, -128, 127, torch.int8
        )
        return F.pixel_shuffle(F.conv2d(wide.to(self.dtype), weight.to(self.dtype), padding=1), 2)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_quantised_convolution_is_left_alone(dtype: torch.dtype, plain: bool) -> None:
    model, x = Quantised(dtype), torch.randn(1, 3, 5, 6)
    with pytest.warns(UserWarning, match="nothing was replaced"):
        fused, report = fs.fuse(torch.export.export(model, (x,)), plain=plain, return_report=True)
    assert len(report.left_alone) == 1 + plain
    assert all(site.reason.endswith("is quantised") for site in report)
    assert torch.equal(fused.module()(x), model(x))


def test_a_quantised_convolution_is_left_alone_by_compile(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Quantised(), torch.randn(1, 3, 5, 6)
    with caplog.at_level(logging.INFO, "fused_subpixel"):
        found = torch.compile(model, backend=fs.fusing_backend("eager"))(x)
    assert "is quantised" in caplog.text
    assert torch.equal(found, model(x))


def test_a_call_in_a_quantised_program_is_said_to_be_none() -> None:
    model = nn.Sequential(Quantised(), fs.SubpixelConv2d(3, 3, 3, 2, padding=1)).eval()
    program = torch.export.export(model, (torch.randn(1, 3, 5, 6),))
    _, report = fs.fuse(program, return_report=True)
    (site,) = report.already_replaced
    assert site.reason.startswith("not quantised; to quantise it, export restore(model)")
    _, report = fs.fuse(torch.export.export(model[1], (torch.randn(1, 3, 5, 6),)), return_report=True)
    assert report.already_replaced[0].reason == ""


def test_quantizers_find_the_convolutions_of_unfused_programs() -> None:
    """Those that look for what a module did: torchao's for x86 processors. Saved and loaded, too."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), fs.SubpixelConv2d(3, 3, 3, 2, padding=1, activation="relu"))
    program = torch.export.export(model.eval(), (torch.randn(1, 3, 5, 6),))
    # None in torch 2.10, whose programs do not say what a module of PyTorch did.
    found_before = len(get_source_partitions(program.graph, [nn.Conv2d]).get(nn.Conv2d, []))
    plain = fs.unfuse(program)
    file = io.BytesIO()
    torch.export.save(plain, file)
    file.seek(0)
    for program in (plain, torch.export.load(file)):
        partitions = get_source_partitions(program.graph, [nn.Conv2d])[nn.Conv2d]
        nodes = [node for partition in partitions for node in partition.nodes]
        assert [node.target for node in nodes] == [torch.ops.aten.conv2d.default] * (found_before + 1)
        assert OPERATOR not in [node.target for node in program.graph.nodes]
