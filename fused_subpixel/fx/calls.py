# SPDX-License-Identifier: BSD-3-Clause
"""One reading for the many spellings of a call in a graph.

torch.export writes ATen overloads (``aten.relu_.default``); Dynamo keeps what the program said: functions of
torch and torch.nn.functional, operators, methods of tensors. :func:`call_of` names all of them as ATen does,
and binds their arguments to names.
"""

from __future__ import annotations

import inspect
import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from .. import torch_compat

aten = torch.ops.aten

VIEWS = frozenset(("view", "reshape", "_unsafe_view", "unflatten", "flatten"))
COPIES = frozenset(("clone", "contiguous"))
ACTIVATIONS = frozenset((
    "relu", "leaky_relu", "prelu", "silu", "gelu", "tanh", "sigmoid", "hardswish", "hardsigmoid", "elu",
    "mish", "softplus",
))  # fmt: skip
CLAMPS = frozenset(("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6"))
EPILOGUES = ACTIVATIONS | CLAMPS | {"add"}
UPSAMPLINGS = frozenset(("interpolate", "upsample_nearest2d", "_upsample_nearest_exact2d"))
CONVOLUTIONS = frozenset(("conv1d", "conv2d", "convolution"))
_CASTS = COPIES | {"to", "_to_copy"}
_READ = VIEWS | COPIES | EPILOGUES | UPSAMPLINGS | CONVOLUTIONS | {"batch_norm", "pixel_shuffle", "permute"}
# A batch norm in eval mode of functional graphs. The first of its three results is the one that is read.
_NORM_OF_THREE_RESULTS = "_native_batch_norm_legit_no_training"

# Where the callables of a Dynamo graph come from, if they are PyTorch's.
_HOMES = (torch, F, torch_compat.builtin_nn_functions, operator, math)


class Call(NamedTuple):
    """A call: ATen's name without the underscore, arguments by name, and whether it writes into ``input``."""

    name: str
    arguments: dict[str, Any]
    in_place: bool = False


def call_of(node: Any) -> Call | None:
    """What a node calls, if that is something the patterns know."""
    if not isinstance(node, Node):
        return None
    name = _name(node)
    if name is None:
        return None
    if name == "getitem":
        return _norm_of_three_results(*node.args)
    if node.op == "call_function" and name[0] == "i" and getattr(operator, name, None) is node.target:
        name = f"{name[1:]}_"  # operator.iadd
    base = name.rstrip("_")
    if base not in _READ:
        return None
    if base in VIEWS or base == "permute":
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
            sizes = tuple(sizes[0])
        return Call(base, {"input": _first(node), "sizes": node.kwargs.get("dims", sizes)})
    arguments = _bind(node, base)
    if arguments is None:
        return None
    in_place = name.endswith("_") or arguments.pop("inplace", False) is True
    return Call(base, arguments, in_place)


def _norm_of_three_results(norm: Any, index: Any) -> Call | None:
    if not isinstance(norm, Node) or _name(norm) != _NORM_OF_THREE_RESULTS or index != 0:
        return None
    arguments = _bind(norm, _NORM_OF_THREE_RESULTS)
    return None if arguments is None else Call("batch_norm", {**arguments, "training": False})


def is_norm_of_three_results(node: Node) -> bool:
    """Whether a node is a batch norm whose result a ``getitem`` picks: :func:`call_of` reads both there."""
    return _name(node) == _NORM_OF_THREE_RESULTS


def _name(node: Node) -> str | None:
    """``add_`` for ``aten.add_.Tensor``, ``add`` for ``torch.add``; None for what is not PyTorch's."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return None
    if isinstance(node.target, torch_compat.OpOverload):
        namespace, _, name = node.target._schema.name.partition("::")
        return name if namespace == "aten" else None
    name = getattr(node.target, "__name__", "")
    return name if any(getattr(home, name, None) is node.target for home in _HOMES) else None


def _first(node: Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("self", node.kwargs.get("input"))


def _bind(node: Node, base: str) -> dict[str, Any] | None:
    """A node's arguments by name, defaults filled in; None where they do not fit."""
    if inspect.isfunction(node.target):  # of torch.nn.functional
        try:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        return bound.arguments
    overload = node.target
    if not isinstance(overload, torch_compat.OpOverload):
        packet = getattr(aten, base)
        overload = packet.Tensor if base == "add" else packet.default
    given = dict(node.kwargs)
    arguments: dict[str, Any] = {}
    for position, argument in enumerate(overload._schema.arguments):
        name = "input" if argument.name == "self" else argument.name
        if position < len(node.args):
            arguments[name] = node.args[position]
        elif name in given or argument.name in given:
            arguments[name] = given.pop(name) if name in given else given.pop(argument.name)
        elif argument.has_default_value():
            arguments[name] = argument.default_value
        else:
            return None
    return None if given or len(node.args) > len(arguments) else arguments


# ---- what is known of a node's result ----------------------------------------------------------------------


def value_of(node: Any) -> Any:
    """What export ("val") or Dynamo ("example_value") noted of a node's result: fake tensors, symbols."""
    if not isinstance(node, Node):
        return node
    return node.meta.get("val", node.meta.get("example_value"))


def tensor_of(node: Any) -> Tensor | None:
    """The fake tensor of a node, None if it has none."""
    value = value_of(node) if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def number_of(value: Any) -> int | float | None:
    """A number that is a constant of the graph, None if it is not."""
    value = value_of(value)
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        expression = value.node.expr
        if not expression.is_number:
            return None
        value = int(expression) if isinstance(value, torch.SymInt) else float(expression)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def known(condition: Any) -> bool:
    """Whether a condition on symbolic sizes holds whatever these turn out to be."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def is_dequantised(node: Any) -> bool:
    """Whether a tensor of a quantised program is widened from integers just before it is used."""
    while isinstance(node, Node) and _name(node) in _CASTS:
        node = _first(node)
    return isinstance(node, Node) and node.op.startswith("call") and "dequantize" in str(node.target)


def same_shape(one: Any, other: Any) -> bool:
    """Whether two shapes are equal whatever their symbols turn out to be."""
    return len(one) == len(other) and all(known(a == b) for a, b in zip(one, other, strict=True))


def has_side_effects(node: Node) -> bool:
    """Whether a node may write into a tensor or change a mode, such as autocast. What is unknown may."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    call = call_of(node)
    if call is not None and call.name == "batch_norm":  # its schema does not say that it updates statistics
        return call.arguments["training"] is not False
    if node.op == "call_function" and isinstance(node.target, torch_compat.OpOverload):
        return node.target._schema.is_mutable
    name = _name(node)
    if name is None or name.endswith("_") or name == "setitem" or "out" in node.kwargs:
        return True
    if getattr(operator, name, None) is node.target:
        return name[0] == "i" and (hasattr(operator, name[1:]) or hasattr(operator, f"{name[1:]}_"))
    if inspect.isfunction(node.target):  # of torch.nn.functional
        arguments = _bind(node, name)
        return arguments is None or arguments.get("inplace", False) is not False
    return False


def spelled(node: Any) -> str:
    """A node as a reader of the graph finds it: ``conv2d_1 (aten.conv2d.default)``."""
    if not isinstance(node, Node):
        return repr(node)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    if isinstance(node.target, torch_compat.OpOverload):
        target = str(node.target)
    return f"{node.name} ({target})" if node.op.startswith("call") else f"{node.name} ({node.op})"
