# SPDX-License-Identifier: BSD-3-Clause
"""The notebook of examples/: it is committed without outputs, and its cells run from top to bottom."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples/quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_the_notebook_has_no_outputs() -> None:
    assert [cell["id"] for cell in CELLS if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:fused_subpixel runs as plain PyTorch:RuntimeWarning")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for cell in CELLS:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.startswith("%pip"):
            continue
        if source.startswith("!"):  # commands, one a line
            for line in source.splitlines():
                command = line.removeprefix("!").replace("python", shlex.quote(sys.executable), 1)
                subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)
        else:
            exec(compile(source, f"{NOTEBOOK.name}, {cell['id']}", "exec"), namespace)
    assert (tmp_path / "upscaler.onnx").exists()
