# SPDX-License-Identifier: BSD-3-Clause
"""Programs that hold the operator, elsewhere: loaded again, ONNX, AOTInductor in Python and in C++."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporting
import pytest
import torch
import torch.nn.functional as F
from conftest import needs_cpu_library
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import fused_subpixel as fs
from fused_subpixel.ops import library

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/aot_inductor_cpp"
OPERATOR = torch.ops.fused_subpixel.subpixel_conv2d.default

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Net(nn.Module):
    """A convolution before, and heads of all kinds, side by side."""

    def __init__(self, *heads: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 12, (3, 2), padding="same")
        self.slopes = nn.PReLU(3)
        self.low_slopes = nn.PReLU(12)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.cat([head(self, x, y) for head in self.heads])


def dcr(m: Net, x: Tensor, y: Tensor) -> Tensor:
    n, c, h, w = (z := m.head(y).clamp(min=-0.5)).shape
    return z.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, h * 2, w * 2)


HEADS: tuple[Callable[[Net, Tensor, Tensor], Tensor], ...] = (
    lambda m, x, y: F.pixel_shuffle(m.head(y), 2),
    lambda m, x, y: m.slopes(F.pixel_shuffle(m.head(y), 2)) + F.interpolate(x, scale_factor=2),
    lambda m, x, y: (F.pixel_shuffle(F.silu(m.head(y)), 2) + F.interpolate(x, scale_factor=2)).clamp(-1, 1),
    lambda m, x, y: F.pixel_shuffle(m.low_slopes(m.head(y)) + x.repeat(1, 4, 1, 1), 2),
    dcr,
)


def fused_program(*heads: Callable[[Net, Tensor, Tensor], Tensor]) -> tuple[Net, ExportedProgram]:
    """All of the heads fused, for any size."""
    model = Net(*heads).eval()
    sizes = {0: Dim("N", max=16), 2: Dim("H", min=4, max=4096), 3: Dim("W", min=4, max=4096)}
    program = exporting.export(model, (torch.randn(2, 3, 6, 9),), sizes=({**sizes},))
    fused, report = fs.fuse(program, return_report=True)
    assert len(report.replaced) == len(heads) and "stays" not in str(report)
    return model, fused


def run(*command: Any, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)


# ---- another process ---------------------------------------------------------------------------------------


@pytest.mark.full
def test_saved_and_loaded_by_a_fresh_process(tmp_path: Path) -> None:
    """It imports fused_subpixel and nothing else, and computes the same."""
    model, fused = fused_program(*HEADS)
    x = torch.randn(1, 3, 7, 8)
    torch.export.save(fused, tmp_path / "program.pt2")
    torch.save({"x": x, "expected": model(x).detach()}, tmp_path / "tensors.pt")
    code = """
import sys, torch, fused_subpixel
program = torch.export.load(sys.argv[1])
assert sum("subpixel_conv2d" in str(node.target) for node in program.graph.nodes) == int(sys.argv[3])
tensors = torch.load(sys.argv[2])
torch.testing.assert_close(program.module()(tensors["x"]), tensors["expected"], rtol=1e-4, atol=1e-5)
"""
    done = run(
        sys.executable, "-c", code, tmp_path / "program.pt2", tmp_path / "tensors.pt", len(HEADS)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_unfused_for_a_process_without_this_package(tmp_path: Path) -> None:
    model, fused = fused_program(*HEADS[2:4])
    x = torch.randn(1, 3, 7, 8)
    torch.export.save(fs.unfuse(fused), tmp_path / "program.pt2")
    torch.save({"x": x, "expected": model(x).detach()}, tmp_path / "tensors.pt")
    code = """
import sys, torch
program = torch.export.load(sys.argv[1])
tensors = torch.load(sys.argv[2])
torch.testing.assert_close(program.module()(tensors["x"]), tensors["expected"], rtol=1e-4, atol=1e-5)
assert "fused_subpixel" not in sys.modules
"""
    done = run(sys.executable, "-c", code, tmp_path / "program.pt2", tmp_path / "tensors.pt")
    assert done.returncode == 0, done.stderr


# ---- OpenVINO ----------------------------------------------------------------------------------------------


def test_openvino_takes_unfused_programs() -> None:
    openvino = pytest.importorskip("openvino")
    model, fused = fused_program(*HEADS)
    compiled = openvino.compile_model(openvino.convert_model(fs.unfuse(fused)), "CPU")
    for shape in ((2, 3, 6, 9), (1, 3, 11, 5)):
        x = torch.randn(shape)
        found = torch.from_numpy(compiled(x.numpy())[0])
        torch.testing.assert_close(found, model(x).detach(), rtol=1e-3, atol=1e-3)


# ---- ONNX --------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_onnx_of_a_fused_program(tmp_path: Path) -> None:
    """Conv and DepthToSpace again, in both orders, without a word from the user."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, fused = fused_program(*HEADS)
    path = tmp_path / "program.onnx"
    torch.onnx.export(fused, (), path, dynamo=True, verbose=False)
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} == {""}
    modes = [a.s for n in nodes if n.op_type == "DepthToSpace" for a in n.attribute if a.name == "mode"]
    assert modes.count(b"DCR") == 1 and modes.count(b"CRD") >= 4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 6, 9), (1, 3, 11, 5)):
        x = torch.randn(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_onnx_of_an_exported_program_with_unequal_factors(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = fs.SubpixelConv2d(3, 2, 3, (3, 2), padding=(1, 0, 2, 1), activation="relu").eval()
    x = torch.randn(2, 3, 5, 6)
    program = torch.export.export(model, (x,))
    if library.libraries["cpu"].loaded:
        assert any(node.target is OPERATOR for node in program.graph.nodes)
    path = tmp_path / "program.onnx"
    torch.onnx.export(program, (), path, dynamo=True, verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_fake_tensors_do_not_run_the_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there for ONNX; under symbolic sizes it would compare them, and so fix them."""
    from torch._decomp import decomposition_table

    def never(*arguments: Any) -> Any:
        raise AssertionError("the decomposition ran")

    monkeypatch.setitem(decomposition_table, OPERATOR, never)
    fused_program(*HEADS)[1].run_decompositions()
    with pytest.raises(AssertionError, match="the decomposition ran"):
        fused_program(HEADS[0])[1].run_decompositions({OPERATOR: decomposition_table[OPERATOR]})


# ---- AOTInductor -------------------------------------------------------------------------------------------

compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(compiler is None, reason="no C++ compiler: install g++ or clang++")


@pytest.mark.full
@needs_compiler
@needs_cpu_library
def test_aot_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of argument reaches the operator: numbers or none as bounds, slopes, all residuals."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    model, fused = fused_program(*HEADS)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(fused, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        for shape in ((2, 3, 6, 9), (1, 3, 11, 5)):
            x = torch.randn(shape)
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.full
@needs_compiler
@needs_cpu_library
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_cpp_program_without_python(tmp_path: Path) -> None:
    """examples/aot_inductor_cpp: what C++ prints is what Python prints."""
    build = tmp_path / "build"
    done = run(
        "make", "-C", EXAMPLE, "run", f"PYTHON={sys.executable}", f"CXX={compiler}", f"BUILD={build}",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 site: 1 replaced" in done.stdout
    sums = re.findall(r"^checksum (\d+\.\d+)$", done.stdout, re.M)
    assert len(sums) == 4 and float(sums[0]) > 1000
    assert [float(s) for s in sums[2:]] == pytest.approx([float(s) for s in sums[:2]], rel=1e-5)

    package = Path(fs.__file__).parent
    kernels, schemas = (package / f"fused_subpixel_{name}.so" for name in ("cpu", "schemas"))
    swapped = run(build / "upscale", build / "model.pt2", kernels, schemas)
    assert re.findall(r"^checksum (\d+\.\d+)$", swapped.stdout, re.M) == sums[2:]
    without = run(build / "upscale", build / "model.pt2", kernels, kernels)
    assert without.returncode == 1 and "fused_subpixel::subpixel_conv2d" in without.stderr
    missing = run(build / "upscale", build / "model.pt2", package / "nowhere.so", kernels)
    assert missing.returncode == 1 and "nowhere.so" in missing.stderr
    if shutil.which("ldd"):
        assert not re.search(r"lib(torch_)?python", run("ldd", build / "upscale").stdout)
