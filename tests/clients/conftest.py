# SPDX-License-Identifier: BSD-3-Clause
"""Says at the end, in plain sentences, which clients were not tested and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import install
import pytest
import torch
from clients import Client
from torch import nn


def could_not_be_had() -> dict[str, str]:
    """What install.py had to do without: what, and why."""
    if not install.MISSING.is_file():
        raise pytest.UsageError("the clients' environment is not there; make test-clients makes it")
    return json.loads(install.MISSING.read_text())


MISSING = could_not_be_had()
NOT_TESTED: dict[str, str] = {}  # client or recipe: the error it ended with


@contextmanager
def skipped_if_missing(name: str) -> Iterator[None]:
    """Skips the test if a package that the block imports could not be had."""
    try:
        yield
    except (ImportError, OSError) as error:
        if not MISSING:
            raise
        NOT_TESTED[name] = " ".join(str(error).split())
        pytest.skip(f"not all that it needs could be had: {NOT_TESTED[name]}")


def build(client: Client) -> nn.Module:
    """The client's model in eval mode, always with the same numbers; skips the test if it cannot be had."""
    torch.manual_seed(0)
    with skipped_if_missing(client.name):
        return client.build().eval().to(client.dtype)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # small tensors: where other processes run, threads would wait for each other
    # what the clients' authors have to mend
    for message in (
        "torch.meshgrid", "Initializing zero-element tensors", ".*weight_norm. is deprecated",
        ".saved_variables. is deprecated",
    ):  # fmt: skip
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MISSING:
        return
    terminalreporter.section("clients")
    for what, why in MISSING.items():
        terminalreporter.line(f"{what} could not be had: {why}.")
    for client, error in NOT_TESTED.items():
        terminalreporter.line(f"So {client} was not tested: {error}.")
