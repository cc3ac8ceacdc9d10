# SPDX-License-Identifier: BSD-3-Clause
"""What a figure depends on besides the code: machine, threads, versions. No host names, no paths."""

from __future__ import annotations

import datetime
import os
import platform
import re

import torch

import fused_subpixel as fs
from fused_subpixel.ops import library
from fused_subpixel.ops.geometry import INSTRUCTION_SETS


def describe(command: str) -> dict[str, str | int]:
    """The columns that are the same in every row of a run; ``command`` is how to repeat it."""
    return {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "cpu": _cpu_model(),
        "instruction_set": _instruction_set(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_before": f"{os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "fused_subpixel": fs.__version__,
        "os": _system(),
        "command": command,
    }


def load_per_core() -> float:
    """The load average of one minute over the cores of the machine: both count all that runs on it."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def slug(text: str) -> str:
    """``text`` as a part of a file name."""
    text = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\(family.*", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _cpu_model() -> str:
    """The processor's name; family and model tell apart what virtual machines call the same."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


def _instruction_set() -> str:
    """What the fused kernels use."""
    if not library.libraries["cpu"].loaded:
        return "none (no CPU library)"
    current, _, l2_bytes, _ = torch.ops.fused_subpixel._cpu_capability()
    return f"{INSTRUCTION_SETS[current]}, L2 {l2_bytes // 1024} KiB"


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.system()
    version = re.match(r"[\d.]*", platform.release())  # what follows the numbers may name a provider
    return f"{name}, kernel {version.group() if version else ''}"
