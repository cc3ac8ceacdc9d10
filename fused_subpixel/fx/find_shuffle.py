# SPDX-License-Identifier: BSD-3-Clause
"""The pixel shuffles of a graph: single calls, and views that together rearrange pixels as a shuffle does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .calls import (
    CONVOLUTIONS,
    COPIES,
    VIEWS,
    Call,
    call_of,
    known,
    number_of,
    same_shape,
    spelled,
    tensor_of,
)


class Refusal(Exception):
    """Why a place of the graph is left alone."""


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """A rearrangement [N, C*r_h*r_w, P, Q] -> [N, C, P*r_h, Q*r_w], of one node or of several views.

    Without nodes it stands for the shuffle by 1 behind a plain convolution, its source.
    """

    nodes: tuple[Node, ...]
    source: Node
    factor_h: int
    factor_w: int
    channel_order: str

    @property
    def name(self) -> str:
        """As reports call it."""
        if not self.nodes:
            return "convolution"
        equal = self.factor_h == self.factor_w
        text = f"pixel_shuffle({self.factor_h if equal else (self.factor_h, self.factor_w)})"
        return text if self.channel_order == "crd" else f"{text[:-1]}, {self.channel_order})"


def shuffles(graph: Graph) -> Iterator[tuple[Node, Shuffle | Refusal]]:
    """All shuffles of a graph: whole ones, and those that were decomposed into views, permutes and copies."""
    for node in graph.nodes:
        call = call_of(node)
        if call is None:
            continue
        try:
            if call.name == "pixel_shuffle":
                yield node, _whole(node, call)
            elif call.name in VIEWS and _splits_channels(node, call.arguments["input"]):
                yield node, _decomposed(node, call.arguments["input"])
        except Refusal as refusal:
            yield node, refusal


def plain_convolutions(graph: Graph) -> Iterator[tuple[Node, Shuffle]]:
    """All convolutions of a graph, as sources of shuffles that do nothing."""
    for node in graph.nodes:
        call = call_of(node)
        if call is not None and call.name in CONVOLUTIONS:
            yield node, Shuffle((), node, 1, 1, "crd")


def _whole(node: Node, call: Call) -> Shuffle:
    factor = number_of(call.arguments["upscale_factor"])
    if not isinstance(factor, int):
        raise Refusal("the upscale factor is not a constant of the graph")
    return Shuffle((node,), call.arguments["input"], factor, factor, "crd")


def _splits_channels(view: Node, source: Any) -> bool:
    """Whether a view turns [N, L, P, Q] into [N, a, b, c, P, Q]."""
    before, after = tensor_of(source), tensor_of(view)
    if before is None or after is None or before.dim() != 4 or after.dim() != 6:
        return False
    return same_shape((*before.shape[:1], *before.shape[2:]), (*after.shape[:1], *after.shape[4:]))


# By channel order, which of the six axes of the view make up each axis of the output, and which of them are
# (C, r_h, r_w).
_ORDERS = {
    "crd": ([[0], [1], [4, 2], [5, 3]], (1, 2, 3)),
    "dcr": ([[0], [3], [4, 1], [5, 2]], (3, 1, 2)),
}


def _decomposed(view: Node, source: Node) -> Shuffle:
    """Follow the axes of the view until they are those of a shuffled image."""
    shape = given_tensor(view).shape
    axes, nodes = [[axis] for axis in range(6)], [view]
    while not (order := next((name for name, (found, _) in _ORDERS.items() if found == axes), None)):
        step = only_user(nodes[-1])
        call = call_of(step)
        if call is not None and call.name == "permute":
            axes = [axes[int(axis)] for axis in call.arguments["sizes"]]
        elif call is not None and call.name in VIEWS:
            axes = _merge(axes, shape, given_tensor(step).shape)
        elif call is None or call.name not in COPIES:
            raise Refusal(f"the split channels come to {spelled(step)}, not to a shuffle")
        nodes.append(step)
    if given_tensor(nodes[-1]).dtype != given_tensor(source).dtype:
        raise Refusal(f"{spelled(nodes[-1])} changes the dtype")
    _, factor_h, factor_w = (shape[axis] for axis in _ORDERS[order][1])
    if not isinstance(factor_h, int) or not isinstance(factor_w, int):
        raise Refusal("the upscale factor is not a constant of the graph")
    return Shuffle(tuple(nodes), source, factor_h, factor_w, order)


def _merge(axes: list[list[int]], shape: torch.Size, wanted: torch.Size) -> list[list[int]]:
    """The axes after a view that merges neighbours; ``shape`` has the sizes of the single axes."""
    merged: list[list[int]] = []
    rest = iter(axes)
    for size in wanted:
        group: list[int] = []
        while not group or not known(math.prod(shape[axis] for axis in group) == size):
            more = next(rest, None)
            if more is None:
                raise Refusal("the split channels are viewed in another way than a shuffle does")
            group = group + more
        merged.append(group)
    if next(rest, None) is not None:
        raise Refusal("the split channels are viewed in another way than a shuffle does")
    return merged


def only_user(node: Node) -> Node:
    """The one node that uses another's result."""
    if len(node.users) != 1:
        raise Refusal(f"{spelled(node)} is used elsewhere too")
    return next(iter(node.users))


def given_tensor(node: Any) -> Tensor:
    """What the graph notes of a node's result, a tensor."""
    tensor = tensor_of(node)
    if tensor is None:
        raise Refusal(f"the graph does not say what {spelled(node)} is")
    return tensor
