# SPDX-License-Identifier: BSD-3-Clause
"""Another build of this project as a contender. It lives in a process of its own, since two builds cannot
register the same operators in one, and is asked over a pipe for one sample at a time.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .peers import PEERS, Peer
from .timing import seconds_per_call
from .workloads import Workload

WORKER = Path(__file__).with_name("worker.py")


class Unusable(Exception):
    """The other build cannot be loaded, or cannot compute what it should."""


class OtherBuild:
    """The worker, seen from here: its methods are those of worker.Worker."""

    def __init__(self, directory: Path) -> None:
        self.name = directory.resolve().name.replace(" ", "_")
        self.peers = {
            peer.name: Peer(peer.name.replace("fused", f"fused@{self.name}"), True, peer.channels_last,
                            peer.build, build_name=self.name)
            for peer in PEERS
            if peer.fused
        }  # fmt: skip
        self._pipe, theirs = multiprocessing.Pipe()
        command = [sys.executable, str(WORKER), str(directory.resolve()), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self._ask("start", torch.get_num_threads())

    def prepare(
        self, workload: Workload, dtype: str, backward: bool, uniform_bias: bool
    ) -> dict[tuple[Peer, bool], int]:
        """Check its contenders there; which bytes each allocates, in the forward pass and in both."""
        found = self._ask("prepare", workload, dtype, backward, uniform_bias)
        return {(self.peers[name], backward): extra for (name, backward), extra in found.items()}

    def function(self, peer: Peer, backward: bool) -> Elsewhere:
        name = next(name for name, own in self.peers.items() if own is peer)
        return Elsewhere(lambda calls: self._ask("sample", name, backward, calls))

    def close(self) -> None:
        self._pipe.close()  # upon which it ends
        self._process.wait()

    def _ask(self, method: str, *arguments: object) -> Any:
        try:
            self._pipe.send((method, arguments))
            answer, problem = self._pipe.recv()
        except (EOFError, OSError):
            raise Unusable("its process has ended") from None
        if problem:
            raise Unusable(problem)
        return answer


@dataclass(frozen=True)
class Elsewhere:
    """A function of the worker's; there it is timed as well."""

    sample: Callable[[int], float]  # from the number of calls to seconds per call

    def __call__(self) -> None:
        self.sample(1)


def clock(function: Callable[[], object], calls: int) -> float:
    """By the host's clock, here or there."""
    return function.sample(calls) if isinstance(function, Elsewhere) else seconds_per_call(function, calls)
