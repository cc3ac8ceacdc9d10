# SPDX-License-Identifier: BSD-3-Clause
"""The package kernels loads this package as a kernel of the Hugging Face Hub, beside the installed one.

`make test-clients` writes it before: in this environment another ninja might compile everything again.
"""

from __future__ import annotations

import sys

import pytest
from building import ROOT, run

# In a process of its own, because the decorated classes are PyTorch's.
LOAD = """
import sys
from pathlib import Path
import torch
from kernels import (
    LocalLayerRepository, Mode, get_local_kernel, kernelize, replace_kernel_forward_from_hub,
    use_kernel_mapping,
)
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
import fused_subpixel

repository = Path(sys.argv[1])
assert "cpu" in [str(backend) for backend in Build.open(repository).general.backends]
kernel = get_local_kernel(repository)
variant = Path(kernel.__file__).parent
metadata = Metadata.read_from_file(variant / "metadata.json")
metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
assert kernel is not fused_subpixel and kernel.__name__ == metadata.id

x, w = torch.randn(1, 3, 9, 8), torch.randn(8, 3, 3, 3)
expected = fused_subpixel.subpixel_conv2d(x, w, padding=1, activation="relu")
assert torch.equal(kernel.subpixel_conv2d(x, w, padding=1, activation="relu"), expected)
assert kernel.explain(kernel.subpixel_conv2d, x, w).backend == "cpu"

model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3, padding=1),
    torch.nn.Sequential(torch.nn.Conv2d(16, 64, 3, padding=1), torch.nn.PixelShuffle(2), torch.nn.ReLU()),
    torch.nn.ConvTranspose2d(16, 3, 4, 2, 1),
)
expected = model(x)
mapping = {}
for kind in (torch.nn.Sequential, torch.nn.ConvTranspose2d):
    name = kind.__name__
    replace_kernel_forward_from_hub(kind, name)
    mapping[name] = {"cpu": LocalLayerRepository(repository, layer_name=name)}
for mode in (Mode.INFERENCE, Mode.TRAINING | Mode.TORCH_COMPILE):
    with use_kernel_mapping(mapping):
        model = kernelize(model, mode=mode, device="cpu", use_fallback=False)
    with torch.profiler.profile() as profile:
        found = model(x)
    calls = [event for event in profile.events() if event.name == f"{metadata.id}::_subpixel_conv2d"]
    assert len(calls) == 2, [event.name for event in profile.events()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
compiled(x).sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
"""


def test_kernels_loads_it() -> None:
    pytest.importorskip("kernels")
    repository = ROOT / "build/hub"
    if not repository.exists():
        pytest.skip("there is no build/hub: `make hub-kernel` writes it")
    done = run(sys.executable, "-c", LOAD, repository, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
