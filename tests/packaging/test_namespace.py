# SPDX-License-Identifier: BSD-3-Clause
"""The operators' namespace is written once, and a build with another one runs beside this one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import ROOT, build, compiled, copy_of_project, run

import fused_subpixel
from fused_subpixel.ops.schemas import NAMESPACE

PACKAGE = Path(fused_subpixel.__file__).parent
SCHEMAS = PACKAGE / "ops/schemas.py"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != SCHEMAS)
CPP = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


def spelled_out(text: str) -> Iterator[str]:
    """Where Python names the namespace, or a library, by itself: in code, not in docstrings and messages."""
    tree = ast.parse(text)
    docstrings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == NAMESPACE:
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and node not in docstrings:
            text = node.value if isinstance(node.value, str) else ""
            if re.search(rf"^{NAMESPACE}$|{NAMESPACE}(::|_(cpu|cuda|schemas)\b)", text):
                yield text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_takes_it_from_one_constant(path: Path) -> None:
    assert list(spelled_out(path.read_text())) == []


def test_a_second_place_would_be_noticed() -> None:
    text = (
        '"""torch.ops.fused_subpixel"""\na = torch.ops.fused_subpixel.shuffle\nb = f"fused_subpixel::{a}"\n'
    )
    text += (
        'c = "fused_subpixel_cpu"\nd = getattr(torch.ops, "fused_subpixel")\nprint("fused_subpixel runs")\n'
    )
    expected = {"torch.ops.fused_subpixel", "fused_subpixel::", "fused_subpixel_cpu", "fused_subpixel"}
    assert set(spelled_out(text)) == expected


@pytest.mark.skipif(not CPP, reason="no C++ sources here")
def test_cpp_takes_it_from_one_macro() -> None:
    texts = {path: path.read_text() for path in CPP}
    named = [name for text in texts.values() for name in re.findall(r"STABLE_TORCH_LIBRARY\w*\((\w+)", text)]
    assert named == ["FS_NAMESPACE"] * 5
    assert [path.name for path, text in texts.items() if f'"{NAMESPACE}::' in text] == []
    assert f"#define FS_NAMESPACE {NAMESPACE}\n" in (ROOT / "csrc/torch/namespace.h").read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_project(tmp_path_factory.mktemp("project"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("namespace", "message"),
    [("a-b", "is a C identifier, not 'a-b'"), ("other", "goes with a wheel, not with a build in place")],
)
def test_mistakes_are_told_in_one_line(project: Path, namespace: str, message: str) -> None:
    command = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    result = run(*command, cwd=project, FUSED_SUBPIXEL_NAMESPACE=namespace, FUSED_SUBPIXEL_CUDA="0")
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr


BOTH = """
import importlib.util, pathlib, sys, warnings
import torch
from torch.utils.flop_counter import FlopCounterMode
import fused_subpixel

folder = pathlib.Path(sys.argv[1])
# under a name of its own, as programs load it that keep several versions
spec = importlib.util.spec_from_file_location("other_name", folder / "__init__.py")
other = sys.modules["other_name"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(other)

packages = {"fused_subpixel": fused_subpixel, "other": other}
for namespace, package in packages.items():
    library = package.ops.library
    assert library.operators is getattr(torch.ops, namespace)
    assert library.libraries["cpu"].loaded and library.libraries["cpu"].path.name == f"{namespace}_cpu.so"

x, w = torch.randn(1, 3, 9, 8, requires_grad=True), torch.randn(8, 3, 3, 3, requires_grad=True)
results = {}
for namespace, package in packages.items():
    def call(x, w):
        return package.subpixel_conv2d(x, w, padding=1, activation="relu")

    with torch.profiler.profile() as profile:
        y = call(x, w)
        gradients = torch.autograd.grad(y.sum(), (x, w))
    names = [event.key for event in profile.key_averages() if "subpixel_conv2d" in event.key]
    assert {name.partition("::")[0] for name in names} == {namespace}, names
    with FlopCounterMode(display=False) as counter:
        call(x, w)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(x, w)
    results[namespace] = y, *gradients, compiled, *torch.autograd.grad(compiled.sum(), (x, w))
    results[namespace] += (torch.tensor(counter.get_total_flops()),)

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.PixelShuffle(2))
    program = torch.export.export(package.replace_pixel_shuffle(model), (x.detach(),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [f"{namespace}.subpixel_conv2d.default"], targets
    plain = [str(node.target) for node in package.unfuse(program).graph.nodes]
    assert "aten.conv2d.default" in plain and not any(namespace in target for target in plain), plain
    assert package.explain(package.subpixel_conv2d, x, w).backend == "cpu"
for ours, others in zip(results["fused_subpixel"], results["other"], strict=True):
    assert torch.equal(ours, others)

# Each has a library of its own.
before = torch.ops.fused_subpixel._cpu_capability()
torch.ops.other._cpu_select_isa(0)
assert torch.ops.other._cpu_capability()[0] == 0 and torch.ops.fused_subpixel._cpu_capability() == before

# Warnings name the caller's line, whatever the package is called.
other.ops.library.libraries["cpu"].problem = "it is gone"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    other.SubpixelConv2d(3, 2, 3)(x)
assert [warning.filename for warning in caught] == ["<string>"], caught
"""


@pytest.mark.full
def test_two_builds_run_in_one_process(project: Path, tmp_path: Path) -> None:
    environment = {"FUSED_SUBPIXEL_NAMESPACE": "other", "FUSED_SUBPIXEL_CUDA": "0"}
    output = build(project, "--quiet", "build", "--build-lib", str(tmp_path), **environment)
    made = compiled(output)
    objects = {"ops_cpu.cpp.other.o", "schemas.cpp.other.o"}
    assert made == objects | {"other_cpu.so", "other_schemas.so"}, "all else serves any namespace"
    done = run(sys.executable, "-c", BOTH, tmp_path / PACKAGE.name)
    assert done.returncode == 0, done.stderr
