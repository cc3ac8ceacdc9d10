# SPDX-License-Identifier: BSD-3-Clause
"""Compare two builds of this project on CPUs, bit for bit: python -m tools.same_bits OTHER_FOLDER.

Outputs and gradients of every workload of the benchmarks, of other geometries and of random small ones, in
every dtype, memory format and instruction set that this machine has, with one thread and with two. Each build
computes in a process of its own. A difference is told by its case, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAYOUTS = ("contiguous", "channels_last")
INSTRUCTION_SETS = ("portable", "avx2", "avx512")


def workload_cases() -> list[dict[str, Any]]:
    """The workloads at full size in float32, and in every dtype with images that compute in a moment."""
    from bench.workloads import SUITE, Transposed

    cases = []
    for w in SUITE:
        transposed = isinstance(w, Transposed)
        common = {"transposed": transposed, "ci": w.ci, "c": w.c, "k": w.kernel, "r": w.r, "bias": w.bias}
        common |= {"padding": w.cut if transposed else w.padding, "activation": w.activation}
        cases.append(
            {**common, "name": w.name, "n": w.n, "h": w.h, "w": w.w, "dtypes": ["float32"], "large": True}
        )
        cases.append({**common, "name": f"{w.name}_small", "n": 2, "h": 11, "w": 19, "dtypes": DTYPES})
    return cases


def random_cases(count: int) -> list[dict[str, Any]]:
    """Small geometries with every option: strides, dilation, groups, crop, epilogues, channel orders."""
    pick = random.Random(0)
    cases = []
    for index in range(count):
        transposed = index % 3 == 2
        groups = pick.choice((1, 1, 2))
        r = [pick.randint(1, 4), pick.randint(1, 4)]
        case = {
            "name": f"random_{index}", "transposed": transposed, "groups": groups, "r": r,
            "n": pick.randint(1, 3), "ci": groups * pick.randint(1, 9), "c": groups * pick.randint(1, 9),
            "h": pick.randint(4, 13), "w": pick.randint(4, 37), "bias": pick.random() < 0.7,
            "k": [pick.randint(1, 4), pick.randint(1, 4)], "dtypes": [DTYPES[index % 4]],
            "activation": pick.choice((None, "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid")),
            "residual": pick.random() < 0.3, "clamp": [-0.5, 0.5] if pick.random() < 0.3 else None,
        }  # fmt: skip
        if transposed:
            case["padding"] = [pick.randint(0, size // 2) for size in case["k"]]
            case["output_padding"] = [pick.randrange(size) if size > 1 else 0 for size in r]
        else:
            case |= {"padding": [pick.randint(0, 2) for _ in range(4)], "dilation": pick.choice((1, 1, 2))}
            case |= {"stride": pick.choice((1, 1, 2)), "channel_order": pick.choice(("crd", "dcr"))}
            case["h"], case["w"] = case["h"] + 3, case["w"] + 3
        cases.append(case)
    return cases


def compute(case: dict[str, Any], dtype: str, layout: str) -> list[Tensor]:
    """The output and all gradients of a case."""
    import fused_subpixel as fs

    kernel, r = ([size] * 2 if isinstance(size, int) else size for size in (case["k"], case["r"]))
    groups, ci, c = case.get("groups", 1), case["ci"], case["c"]
    lr_channels = c * r[0] * r[1]
    shape = (ci, c // groups, *kernel) if case["transposed"] else (lr_channels, ci // groups, *kernel)
    generator = torch.Generator().manual_seed(0)

    def leaf(*size: int) -> Tensor:
        tensor = torch.randn(size, generator=generator).to(getattr(torch, dtype))
        format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        return (tensor.contiguous(memory_format=format) if len(size) == 4 else tensor).requires_grad_()

    input, weight = leaf(case["n"], ci, case["h"], case["w"]), leaf(*shape)
    bias = leaf(c if case["transposed"] else lr_channels) if case["bias"] else None
    options = {"activation": case["activation"], "groups": groups, "padding": case["padding"]}
    options |= {"clamp": case.get("clamp")}
    if case["transposed"]:
        options |= {"stride": r, "output_padding": case.get("output_padding", 0)}
        function = fs.conv_transpose2d
    else:
        options |= {"upscale_factor": r, "stride": case.get("stride", 1), "dilation": case.get("dilation", 1)}
        options |= {"channel_order": case.get("channel_order", "crd")}
        function = fs.subpixel_conv2d
    leaves = [tensor for tensor in (input, weight, bias) if tensor is not None]
    output = function(input, weight, bias, **options)
    if case.get("residual"):
        residual = leaf(*output.shape)
        leaves.append(residual)
        output = function(input, weight, bias, residual=residual, **options)
    with torch.no_grad():  # as inference calls it
        plain = function(input, weight, bias, **options)
    gradient = torch.randn(output.shape, generator=generator).to(output.dtype)
    return [output, plain, *torch.autograd.grad(output, leaves, gradient)]


def digest(tensor: Tensor) -> str:
    """A hash of shape, strides and values."""
    text = f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype}".encode()
    values = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(text + values).hexdigest()[:16]


def record(cases: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What this process's build computes, by case."""
    import fused_subpixel  # noqa: F401

    operators = torch.ops.fused_subpixel
    private = "_cpu_capability" in dir(operators) or hasattr(operators, "_cpu_capability")
    capability = operators._cpu_capability if private else operators.cpu_capability
    select = operators._cpu_select_isa if private else operators.cpu_select_isa
    usable = [isa for isa in range(len(INSTRUCTION_SETS)) if capability()[1] >> isa & 1]
    found = {}
    for case, isa, threads in itertools.product(cases, usable, (1, 2)):
        if case.get("large") and isa == 0 < usable[-1]:
            continue
        select(isa)
        torch.set_num_threads(threads)
        for dtype, layout in itertools.product(case["dtypes"], LAYOUTS):
            name = f"{case['name']} {dtype} {layout} {INSTRUCTION_SETS[isa]} {threads} threads"
            found[name] = [digest(tensor) for tensor in compute(case, dtype, layout)]
    return found


def record_in(folder: Path, cases: list[dict[str, Any]]) -> subprocess.Popen[str]:
    """Start :func:`record` with the build in ``folder``."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--record"], cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(cases))
    process.stdin.close()
    return process


def main() -> int:
    """Compare, and tell what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "other", nargs="?", type=Path, help="source folder of the other build, built in place"
    )
    parser.add_argument("--random", type=int, default=400, help="how many random geometries (default 400)")
    parser.add_argument("--record", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        json.dump(record(json.load(sys.stdin)), sys.stdout)
        return 0
    if options.other is None:
        parser.error("name the source folder of the other build")
    cases = workload_cases() + random_cases(options.random)
    here, there = (record_in(folder, cases) for folder in (ROOT, options.other.resolve()))
    ours, theirs = (json.load(process.stdout) for process in (here, there))  # type: ignore[arg-type]
    different = [name for name in ours if ours[name] != theirs.get(name)]
    for name in different:
        print(f"differs: {name}")
    results = sum(map(len, ours.values()))
    print(f"{len(ours)} calls, {results} tensors: {len(different)} calls differ")
    return 1 if different or ours.keys() != theirs.keys() else 0


if __name__ == "__main__":
    raise SystemExit(main())
