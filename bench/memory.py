# SPDX-License-Identifier: BSD-3-Clause
"""What a contender allocates beyond its operands, output and gradients, by PyTorch's allocators."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from . import cuda
from .peers import Prepared

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce each start and stop


def extra_bytes(prepared: Prepared, backward: bool, on_gpu: bool) -> int:
    """The peak of one call, less its results. The call has run before."""
    function = prepared.run(backward)
    with torch.set_grad_enabled(backward):
        peak = cuda.peak_bytes(function) if on_gpu else host_peak_bytes(function)
    return max(0, peak - prepared.results_bytes(backward))


def host_peak_bytes(function: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes), default=0)
