# SPDX-License-Identifier: BSD-3-Clause
"""Names of PyTorch that are not public: in one module, probed, and told in words where they are missing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fused_subpixel
from fused_subpixel import torch_compat
from fused_subpixel.ops import geometry

PACKAGE = Path(fused_subpixel.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "torch_compat.py")


def private_names(path: Path) -> Iterator[str]:
    """Dotted names below torch, and imports from it, with a part that begins with one underscore."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            names = [text] if text.startswith("torch.") else []
        else:
            continue
        for name in names:
            if any(part.startswith("_") and not part.startswith("__") for part in name.split(".")):
                yield name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_uses_a_private_name(path: Path) -> None:
    assert list(private_names(path)) == []


def test_private_names_would_be_noticed(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import torch\nfrom torch._ops import OpOverload\ntorch._C._jit_pass(torch.nn.Module)\n"
    )
    assert set(private_names(module)) == {"torch._ops.OpOverload", "torch._C._jit_pass", "torch._C"}


@pytest.mark.parametrize("name", torch_compat.PROBES)
def test_probe(name: str) -> None:
    torch_compat.PROBES[name]()


def test_a_missing_name_is_told_in_words() -> None:
    with pytest.raises(
        ImportError, match=r"lacks torch\._C\._nothing, which fused_subpixel needs to be here\."
    ):
        torch_compat._private("_C._nothing", "to be here")


def test_a_probe_that_fails_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compat, "cudnn_conv_precision", lambda: "other")
    torch_compat.problems.cache_clear()
    try:
        (found,) = torch_compat.problems(compiler=False)
    finally:
        torch_compat.problems.cache_clear()
    assert "precision settings differ from what fused_subpixel expects" in found


def test_named_tuples_of_traced_code_have_no_properties() -> None:
    """The oldest torch that is supported, 2.10, cannot read one where torch.compile traces."""
    kinds = [kind for kind in vars(geometry).values() if isinstance(kind, type) and issubclass(kind, tuple)]
    assert geometry.Geometry in kinds and geometry.Epilogue in kinds
    assert [name for kind in kinds for name, what in vars(kind).items() if isinstance(what, property)] == []
