# SPDX-License-Identifier: BSD-3-Clause
"""docs/recipes.md: its code runs beside the packages that it is about, and does what the page says.

A test runs the blocks of its section, after those on top of the page, in one namespace. Then it compares with
the same model without this package.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clients import CLIENTS, TORCHVISION, spandrel
from conftest import build, skipped_if_missing
from pages import blocks, text_of
from stubs import stubs
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fused_subpixel as fs

PAGE = "docs/recipes.md"
OUTCOMES = ("works", "works with a caveat", "does not")
# timm and segmentation-models-pytorch import these for data sets, and for encoders that are not used here.
TIMM = (
    *TORCHVISION, "torchvision.datasets", "torchvision.ops", "torchvision.ops.misc", "torchvision.models",
    "torchvision.models.densenet", "torchvision.models.resnet", "torchvision.models.vgg",
)  # fmt: skip
OPERATORS = ("subpixel_conv2d", "_subpixel_conv2d")  # in graphs and in eager mode
TESTS: dict[str, str] = {}  # by tool

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages, which are not ours to mend


def recipe(tool: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks the test of a tool. It is skipped if the tool could not be had."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        TESTS[tool] = test.__name__

        @functools.wraps(test)
        def wrapped(**fixtures: Any) -> None:
            with skipped_if_missing(tool):
                test(**fixtures)

        return wrapped

    return decorate


def section(tool: str) -> str:
    """The section of a tool, after as many empty lines as the page has before it."""
    text = text_of(PAGE)
    start = text.index(f"\n### {tool}\n") + len("\n###")
    return "\n" * text.count("\n", 0, start) + re.split("^##", text[start:], flags=re.MULTILINE)[0]


def run(tool: str, **given: Any) -> Any:
    """All names after the block on top of the page and those of a tool, which find what is ``given``."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": PAGE}
    next(blocks(text_of(PAGE))).run(PAGE, names)
    names.update(given)
    for block in blocks(section(tool)):
        block.run(PAGE, names)
    return SimpleNamespace(**names)


def outputs(model: Callable[..., Any], *inputs: Tensor) -> Any:
    with torch.no_grad():
        return model(*inputs)


def calls(function: Callable[..., Any], *inputs: Any) -> int:
    """How often the fused kernels run in a call."""
    with torch.no_grad(), torch.autograd.profiler.profile() as profile:
        function(*inputs)
    return sum(event.name.rpartition("::")[2] in OPERATORS for event in profile.function_events)


def same(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def pairs(part: slice = slice(None)) -> DataLoader[Any]:
    """Batches of small and large images, or a part of each batch."""
    torch.manual_seed(1)
    batches = [(torch.rand(2, 3, 16, 24)[part], torch.rand(2, 3, 32, 48)[part]) for _ in range(3)]
    return DataLoader(batches, batch_size=None)


def train(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Train as the recipes of the page do, and return the last loss."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for small, large in loader:
        loss = F.mse_loss(model(small), large)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def same_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in found.items():
        same(value, expected[name])


def client(name: str) -> nn.Module:
    return build(next(client for client in CLIENTS if client.name == name))


# ---- the table ---------------------------------------------------------------------------------------------


def test_every_row_of_the_table_has_a_section_and_a_test() -> None:
    text = text_of(PAGE)
    rows = re.findall(r"^\| \[(.*?)\]\(#\S+\) \| (.*?) \| .*? \| `(\w+)` \|$", text, re.MULTILINE)
    assert {tool: test for tool, _, test in rows} == TESTS
    assert len(rows) == len(TESTS) == text.count("\n| [")
    assert {outcome for _, outcome, _ in rows} <= set(OUTCOMES)
    assert sorted(tool for tool, _, _ in rows) == sorted(re.findall("^### (.*)$", text, re.MULTILINE))
    for tool, outcome, _ in rows:
        named = "The caveat" in " ".join(section(tool).split())
        assert named == (outcome == "works with a caveat"), tool


# ---- libraries of models -----------------------------------------------------------------------------------


@recipe("diffusers")
def test_diffusers(tmp_path: Path) -> None:
    vae = client("dc-ae").float()
    vae.save_pretrained(tmp_path)
    page = run("diffusers", folder=tmp_path)
    assert len(page.report.replaced) == 2
    assert calls(page.vae.decode, page.latents) == 2
    same(page.image, outputs(vae.decode, page.latents).sample)


@recipe("transformers")
def test_transformers(tmp_path: Path) -> None:
    swin2sr = client("swin2sr-pixelshuffle-x4").float()
    swin2sr.save_pretrained(tmp_path)
    page = run("transformers", folder=tmp_path)
    assert len(page.report.replaced) == 2
    assert calls(page.swin2sr, page.x) == 2
    same(page.image, outputs(swin2sr, page.x).reconstruction)
    again = type(swin2sr).from_pretrained(tmp_path).eval()  # what the page has saved
    assert torch.equal(outputs(again, page.x).reconstruction, outputs(swin2sr, page.x).reconstruction)


@recipe("timm")
def test_timm() -> None:
    with stubs(*TIMM):
        page = run("timm")
    x = torch.rand(1, 3, 64, 64)
    assert len(page.report.replaced) == calls(page.lowformer, x) == 7
    same(outputs(page.lowformer, x), outputs(fs.restore(page.lowformer), x))
    with pytest.warns(UserWarning, match="no site found"):
        fs.replace_conv_transpose(page.resnet)
    same(outputs(page.faster, x), outputs(page.resnet, x))


@recipe("spandrel")
def test_spandrel(tmp_path: Path) -> None:
    network = spandrel("Compact", num_conv=2, upscale=2)().eval()
    torch.save({"params": network.state_dict()}, tmp_path / "model.pth")
    with stubs(*TORCHVISION):
        page = run("spandrel", folder=tmp_path)
    assert len(page.report.replaced) == calls(page.upscaler, page.x) == 1
    same(page.image, outputs(network, page.x).clamp(0, 1))
    with pytest.raises(TypeError, match=r"its attribute \.model is one"):
        fs.replace_pixel_shuffle(page.upscaler, page.x)


@recipe("segmentation-models-pytorch")
def test_segmentation_models() -> None:
    with stubs(*TIMM):
        page = run("segmentation-models-pytorch")
        unet = page.smp.Unet("tu-resnet18", encoder_weights=None)
    x = torch.rand(1, 3, 64, 64)
    assert len(page.report.replaced) == calls(page.linknet, x) == 5
    same(outputs(page.linknet, x), outputs(fs.restore(page.linknet), x))
    with pytest.warns(UserWarning, match="no site found"):
        fs.replace_conv_transpose(unet)


@recipe("MONAI")
def test_monai() -> None:
    from monai.networks.nets import DynUNet

    page = run("MONAI")
    assert len(page.report.replaced) == calls(page.unet, page.scan) == 2
    expected = outputs(page.sliding_window_inference, page.scan, (32, 32), 2, fs.restore(page.unet))
    assert type(page.segmented) is type(expected) is page.MetaTensor
    same(page.segmented.as_tensor(), expected.as_tensor())
    with pytest.warns(UserWarning, match="shuffle written by hand"):
        fs.replace_pixel_shuffle(page.up, page.features)
    assert len(page.fused_in_graph.replaced) == 1
    for function in (page.program.module(), page.compiled):
        same(outputs(function, page.features), outputs(page.up, page.features))
        assert calls(function, page.features) == 1
    for net, replaced in (
        (DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2)), True),
        (page.UNet(3, 1, 2, (8, 16, 32), (2, 2)), False),
    ):
        _, report = fs.replace_conv_transpose(net, return_report=True)
        assert [bool(report.replaced), bool(report.left_alone)] == [replaced, not replaced]
        assert replaced or "in depth the kernel has 3 taps and a stride of 2" in str(report)


# ---- training ----------------------------------------------------------------------------------------------


@recipe("Lightning")
def test_lightning(tmp_path: Path) -> None:
    loader = pairs()
    page = run("Lightning", folder=tmp_path, loader=loader)
    network = page.training.network
    loss = train(page.model, loader)
    assert float(page.trainer.callback_metrics["loss"]) == pytest.approx(loss, rel=1e-4)
    same_state(network.state_dict(), page.model.state_dict())
    assert calls(network.eval(), page.x) == 1
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    original = page.Training(page.model)
    original.load_state_dict(state, strict=True)
    page.training.load_state_dict(original.state_dict(), strict=True)
    assert torch.equal(page.model.head.weight, network.head.weight)


@recipe("PEFT LoRA")
def test_peft() -> None:
    from peft import LoraConfig, get_peft_model

    unmerged = []

    def tune(adapted: nn.Module) -> None:
        _, report = fs.replace_pixel_shuffle(adapted, run_x, return_report=True)
        unmerged.append(report)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        unmerged.append(outputs(adapted, run_x))

    torch.manual_seed(2)
    run_x = torch.rand(1, 3, 16, 24)
    page = run("PEFT LoRA", tune=tune)
    report, expected = unmerged
    assert not report.replaced and "fed by" in report.left_alone[0].reason
    assert len(page.report.replaced) == calls(page.merged, run_x) == 1
    same(outputs(page.merged, run_x), expected)
    assert not torch.allclose(page.merged.head.weight, page.fused.head.weight)  # the adapters are in it
    # the other way round
    adapted = get_peft_model(copy.deepcopy(page.fused), LoraConfig(r=4, target_modules=["head"]))
    tune(adapted)
    merged = adapted.merge_and_unload()
    same(outputs(merged, run_x), unmerged[-1])
    assert calls(merged, run_x) == 1


@recipe("Hugging Face accelerate")
def test_hugging_face_accelerate() -> None:
    loader = pairs()
    page = run("Hugging Face accelerate", loader=loader)
    loss = train(page.model, loader)
    assert float(page.loss) == pytest.approx(loss, rel=1e-4)
    same_state(page.accelerator.unwrap_model(page.network).state_dict(), page.model.state_dict())
    assert calls(page.network, page.x) == 1
    import accelerate

    assert accelerate.Accelerator is page.Accelerator
    assert accelerate is not fs.accelerate and "accelerate" in fs.__all__


def process(rank: int, port: int) -> None:
    """One of two processes of FSDP2, with half of each batch."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    loader = pairs(slice(rank, rank + 1))
    page = run("FSDP2", loader=loader)
    expected = outputs(page.model, page.x)
    page.fully_shard(page.model)
    train(page.model, loader)
    assert isinstance(page.network.head.weight, page.dist.tensor.DTensor)
    same_state(*({name: value.full_tensor() for name, value in model.named_parameters()}
                 for model in (page.network, page.model)))  # fmt: skip
    page.fully_shard(page.fused.head)
    same(outputs(page.fused, page.x), expected)
    assert [calls(model, page.x) for model in (page.network, page.model, page.fused)] == [1, 0, 0]
    page.dist.destroy_process_group()


@recipe("FSDP2")
def test_fsdp2() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(process, (port,), nprocs=2)


# ---- deployment --------------------------------------------------------------------------------------------


@recipe("ONNX Runtime")
def test_onnx_runtime(tmp_path: Path) -> None:
    page = run("ONNX Runtime", folder=tmp_path)
    same(torch.from_numpy(page.image), outputs(page.model, page.x))
    assert [node.op_type for node in page.program.model.graph] == ["Conv", "Relu", "Conv", "DepthToSpace"]


@recipe("OpenVINO")
def test_openvino() -> None:
    page = run("OpenVINO")
    same(torch.from_numpy(page.image), outputs(page.model, page.x))
    with pytest.raises(Exception, match="No conversion rule found"):
        page.openvino.convert_model(page.program)


@pytest.fixture(scope="module")
def inductor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder in which Inductor compiles its headers once for all tests, and its wrappers fast."""
    fast = torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"})
    with fast, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@recipe("AOTInductor")
def test_aot_inductor(tmp_path: Path, inductor: None) -> None:
    page = run("AOTInductor", folder=tmp_path)
    assert calls(page.loaded, page.x) == 1
    same(outputs(page.loaded, page.x), outputs(page.model, page.x))


def executed(path: Path, x: Tensor) -> Tensor:
    """What ExecuTorch's runtime computes."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path.read_bytes())  # holds the bytes, which the method reads
    (found,) = program.load_method("forward").execute([x])
    return found


@recipe("ExecuTorch, XNNPACK")
def test_executorch(tmp_path: Path) -> None:
    page = run("ExecuTorch, XNNPACK", folder=tmp_path)
    same(executed(tmp_path / "model.pte", page.x), outputs(page.model, page.x))
    targets = [str(node.target) for node in page.lowered.exported_program().graph.nodes if "call" in node.op]
    assert targets[0] == "executorch_call_delegate" and len(targets) == 2  # and what takes its only output
    with pytest.raises(RuntimeError, match="Missing out variants"):
        page.to_edge_transform_and_lower(page.program).to_executorch()


@recipe("TorchScript")
def test_torch_script() -> None:
    page = run("TorchScript")
    expected = outputs(page.model, page.x)
    for function in (page.scripted, page.traced):
        same(outputs(function, page.x), expected)
        assert calls(function, page.x) == 0
    with pytest.raises(ValueError, match="Unknown type annotation"):
        torch.jit.script(page.fused)


# ---- quantised models --------------------------------------------------------------------------------------


def quantised_convolutions(model: Any) -> int:
    return sum("dequantize_per_channel" in str(node.target) for node in model.graph.nodes)


@recipe("torchao, PT2E")
def test_torchao_pt2e(tmp_path: Path, inductor: None) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    page = run("torchao, PT2E")
    x, export = page.x, torch.export.export
    expected = page.quantise(export(page.model, (x,)), page.quantizer)
    assert quantised_convolutions(expected) == 2
    # restored: the same program, the same bits
    assert page.quantised.code == expected.code
    assert torch.equal(outputs(page.quantised, x), outputs(expected, x))
    # fused in the graph and unfused: the same bits
    unfused = page.quantise(fs.unfuse(fs.fuse(export(page.model, (x,)))), page.quantizer)
    assert torch.equal(outputs(unfused, x), outputs(expected, x))
    # layers of this package
    assert quantised_convolutions(page.quantised_too) == 2
    float_output = outputs(page.network, x)
    assert 0 < (outputs(page.quantised_too, x) - float_output).abs().max() < 0.02
    # with the call in the program: the head stays in float32, fused, and the report says so
    assert quantised_convolutions(page.mixed) == 1
    assert calls(page.mixed, x) == 1
    assert 0 < (outputs(page.mixed, x) - outputs(page.model, x)).abs().max() < 0.02
    assert [site.reason.split(";")[0] for site in page.of_mixed.already_replaced] == ["not quantised"]
    assert [site.reason.endswith("is quantised") for site in page.of_quantised.left_alone] == [True]
    # an export with the reference: PyTorch's operators, but no module that the quantizer knows
    with fs.use_backend("reference"):
        program = export(page.fused, (x,))
    assert quantised_convolutions(page.quantise(program, page.quantizer)) == 1
    # quantisation-aware training
    quantizer = page.x86.X86InductorQuantizer()
    quantizer.set_global(page.x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(export(fs.restore(page.fused).train(), (x,)).module(), quantizer)
    prepared(x).sum().backward()
    assert quantised_convolutions(page.convert_pt2e(prepared)) == 2
    # by the quantizer of ExecuTorch, which runs the program
    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    expected_there = page.quantise(export(page.model, (x,)), quantizer)
    for program in (export(fs.restore(page.fused), (x,)), fs.unfuse(export(page.fused, (x,)))):
        found = page.quantise(program, quantizer)
        assert torch.equal(outputs(found, x), outputs(expected_there, x))
    lowered = to_edge_transform_and_lower(export(found, (x,)), partitioner=[XnnpackPartitioner()])
    lowered.to_executorch().save(str(tmp_path / "int8.pte"))
    same(executed(tmp_path / "int8.pte", x), outputs(found, x), atol=0.02)
    # compiled with our backend, both convolutions run as int8
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        compiled = torch.compile(page.quantised, backend=fs.fusing_backend(plain=True))
        same(compiled(x), outputs(expected, x))
    with torch.no_grad(), torch.autograd.profiler.profile() as profile:
        compiled(x)
    assert sum("qconv" in event.name for event in profile.function_events) == 2


@recipe("torchao, linear layers")
def test_torchao_linear_layers() -> None:
    swin2sr = client("swin2sr-pixelshuffle-x4").float()
    page = run("torchao, linear layers", swin2sr=copy.deepcopy(swin2sr))
    in_float = outputs(swin2sr, page.x).reconstruction
    page.quantize_(swin2sr, page.Int8WeightOnlyConfig())
    expected = outputs(swin2sr, page.x).reconstruction
    assert not torch.equal(expected, in_float)
    for model in (page.swin2sr, fs.replace_pixel_shuffle(swin2sr, page.x)):
        same(outputs(model, page.x).reconstruction, expected)
        assert calls(model, page.x) == 2


@recipe("torch.ao.quantization")
def test_torch_ao_quantization() -> None:
    from torch.ao import quantization

    page = run("torch.ao.quantization")
    x, mapping = page.x, page.get_default_qconfig_mapping("x86")

    def traced(model: nn.Module) -> nn.Module:
        prepared = page.prepare_fx(copy.deepcopy(model), mapping, (x,))
        prepared(x)
        return page.convert_fx(prepared)

    def by_modules(model: nn.Module) -> nn.Module:
        wrapped = quantization.QuantWrapper(copy.deepcopy(model)).eval()
        wrapped.qconfig = quantization.get_default_qconfig("x86")
        prepared = quantization.prepare(wrapped)
        prepared(x)
        return quantization.convert(prepared)

    expected = traced(page.model)
    assert torch.equal(outputs(page.quantised, x), outputs(expected, x))
    assert "quantized.conv2d" in [str(node.target) for node in page.quantised.graph.nodes]
    chain = nn.Sequential(page.model.body, page.model.head, page.model.shuffle)
    for replaced in (page.fused, fs.replace_pixel_shuffle(chain)):
        found = by_modules(replaced)
        assert torch.equal(outputs(found, x), outputs(by_modules(page.model), x))
        assert calls(found, x) == 0
    # a module of this package
    network = nn.Sequential(page.model.body[0], fs.SubpixelConv2d(16, 3, 3, 2, padding=1)).eval()
    in_part = traced(network)
    assert calls(in_part, x) == 1
    assert 0 < (outputs(in_part, x) - outputs(network, x)).abs().max() < 0.02
    with pytest.raises(TypeError, match=r"expected dtype .*, got torch\.quint8"):
        outputs(by_modules(network), x)
