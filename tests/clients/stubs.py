# SPDX-License-Identifier: BSD-3-Clause
"""Stand-ins for packages that a client imports and its models never use, like data sets or a video player."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec


class Stub(types.ModuleType):
    """Has every name: each is a class, so it can be inherited from, and decorates what it is put on."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package: its modules are imported through it
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _StubMeta(name, (), {})
        setattr(self, name, found)
        return found


class _StubMeta(type):
    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StubMeta(name, (), {})

    def __call__(cls, *args: object, **kwargs: object) -> object:
        return lambda decorated: decorated


@contextmanager
def stubs(*names: str) -> Iterator[None]:
    """Until the end of the block the named modules are stubs, unless they have been imported before.

    Then they are gone: what stays behind would tell the next client that the package is installed.
    """
    added = [name for name in names if name not in sys.modules]
    sys.modules.update({name: Stub(name) for name in added})
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
