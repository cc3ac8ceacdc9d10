# SPDX-License-Identifier: BSD-3-Clause
"""The process of another build, see against.py: worker.py DIRECTORY FILE_DESCRIPTOR."""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

DIRECTORY = Path(sys.argv[1])
sys.path[0] = str(Path(__file__).resolve().parent.parent)
import bench  # noqa: E402, F401 - this folder's, whose modules are then found whatever follows

sys.path[0] = str(DIRECTORY)
import torch  # noqa: E402

import fused_subpixel as fs  # noqa: E402 - the other build's
from bench import correctness, memory  # noqa: E402
from bench.peers import PEERS, contenders  # noqa: E402
from bench.timing import keep_freed_memory, seconds_per_call  # noqa: E402
from bench.workloads import DTYPES, Workload, operands  # noqa: E402


class Worker:
    """What can be asked."""

    def start(self, threads: int) -> None:
        if (found := Path(fs.__file__).parent.parent.resolve()) != DIRECTORY:
            raise ImportError(f"{DIRECTORY} holds no fused_subpixel, found was {found}")
        try:
            with fs.use_backend("cpu"):
                fs.subpixel_conv2d(torch.zeros(1, 1, 1, 1), torch.zeros(4, 1, 1, 1))
        except Exception as problem:
            raise ImportError(f"{DIRECTORY} is not built: {problem}") from None
        torch.set_num_threads(threads)

    def prepare(
        self, workload: Workload, dtype: str, backward: bool, uniform_bias: bool
    ) -> dict[tuple[str, bool], int]:
        tensors = operands(workload, DTYPES[dtype], uniform_bias=uniform_bias)
        if backward:
            tensors = correctness.avoid_kink(workload, tensors)
        peers = {peer: peer.prepare(workload, tensors) for peer in contenders(workload, PEERS)}
        correctness.check(workload, tensors, peers, backward)
        ours = {peer.name: prepared for peer, prepared in peers.items() if peer.fused}
        self.functions: dict[tuple[str, bool], Callable[[], object]] = {
            (name, both): prepared.run(both) for name, prepared in ours.items() for both in (False, True)
        }
        return {
            (name, both): memory.extra_bytes(prepared, both, on_gpu=False)
            for name, prepared in ours.items()
            for both in ((False, True) if backward else (False,))
        }

    def sample(self, name: str, backward: bool, calls: int) -> float:
        with torch.set_grad_enabled(backward):
            return seconds_per_call(self.functions[name, backward], calls)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the other one ends this
    warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
    gc.disable()
    keep_freed_memory()
    pipe, worker = Connection(int(sys.argv[2])), Worker()
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(worker, method)(*arguments), None))
        except Exception as problem:
            pipe.send((None, (str(problem).strip() or repr(problem)).splitlines()[0]))


if __name__ == "__main__":
    main()
