# SPDX-License-Identifier: BSD-3-Clause
"""Replacing what :mod:`.pattern` finds: in exported programs, and in what torch.compile captures."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from .. import torch_compat
from ..ops.fallback import PLAIN_KERNELS
from ..ops.layout import memory_format
from ..ops.library import operators
from ..surgery.report import ALREADY_REPLACED, LEFT_ALONE, REPLACED, Report, Site
from .calls import Call, call_of, has_side_effects, is_dequantised, known, number_of, spelled, tensor_of
from .find_shuffle import Refusal, Shuffle, plain_convolutions, shuffles
from .match import Match, match

aten = torch.ops.aten
_operator = operators.subpixel_conv2d.default
_log = logging.getLogger(__name__)

# Of a call in a quantised program.
_FLOAT = "not quantised; to quantise it, export restore(model) or unfuse(program) first"


# ---- exported programs -------------------------------------------------------------------------------------


def fuse(program: Any, *, plain: bool = False, return_report: bool = False) -> Any:
    """Replace convolutions and pixel shuffles of an exported program by sub-pixel convolutions.

    Every ``conv2d -> pixel_shuffle``, with a batch norm in eval mode behind the convolution, and activation,
    residual and clamp before or after the shuffle in the order of :func:`fused_subpixel.subpixel_conv2d`,
    becomes one call of ``torch.ops.fused_subpixel.subpixel_conv2d``. What is not provably that, for all sizes
    the program allows, is left alone, and so are quantised convolutions. docs/export.md lists what is
    recognised.

    Args:
        program: what ``torch.export.export`` returns, also after ``run_decompositions``.
        plain: also replace convolutions in one and two dimensions that no shuffle follows, by calls with an
            upscale factor of 1. For some layers PyTorch's own kernels are faster, and nothing is measured
            here: :func:`accelerate` measures.
        return_report: return (program, report) instead of the program alone.

    Returns:
        A new ``torch.export.ExportedProgram`` that shares parameters, buffers and constants with
        ``program``, and, if asked for, a :class:`Report` of every shuffle, and with ``plain`` of every
        convolution that is left, that was found. It is saved, loaded, compiled and differentiated as any
        other; before loading it, ``import fused_subpixel``.

    Raises:
        TypeError: ``program`` is not an ExportedProgram.

    Warns:
        UserWarning: nothing was replaced, now or before.
    """
    from torch.export import ExportedProgram

    _check_program(program)
    graph_module = copy.deepcopy(program.graph_module)
    # The copy renames nodes that are called as builtins of Python are, and the signature knows them by name.
    for copied, node in zip(graph_module.graph.nodes, program.graph.nodes, strict=True):
        copied.name = node.name
    signatures = [entry.signature for entry in program.module_call_graph if entry.signature is not None]
    kept = {
        argument.name
        for signature in signatures
        for argument in (*signature.inputs, *signature.outputs)
        if hasattr(argument, "name")
    }
    report = _fuse_all(graph_module, training=False, plain=plain, kept=kept)
    if not report.replaced and not report.already_replaced:
        warnings.warn(f"fuse: nothing was replaced: {report}", UserWarning, stacklevel=2)
    fused = ExportedProgram(
        root=graph_module,
        graph=graph_module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )
    return (fused, report) if return_report else fused


def unfuse(program: Any) -> Any:
    """Write the operators of this package in an exported program as PyTorch's own.

    A way out to what does not know ``torch.ops.fused_subpixel``: other compilers and runtimes, and processes
    that do not import this package. Sub-pixel convolutions become ``aten.conv2d`` and ``aten.pixel_shuffle``
    (nothing for a factor of 1; views and a copy where the factors differ or the channel order is ``"dcr"``),
    with padding, crop, activation, residual and clamp spelled out around them. The numbers are those of the
    reference.

    Args:
        program: a ``torch.export.ExportedProgram``: of a model with layers of this package, or of
            :func:`fuse`; also after ``run_decompositions``.

    Returns:
        A new program with the same inputs, outputs, parameters, buffers and dynamic shapes, after
        ``run_decompositions`` with a table of these operators only: other operators stay, but in-place ones
        become functional. ``program`` itself where it holds none of them.

    Raises:
        TypeError: ``program`` is not an ExportedProgram.
    """
    _check_program(program)
    table = {getattr(operators, name).default: run for name, run in PLAIN_KERNELS.items()}
    modules = [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    if not any(node.target in table for module in modules for node in module.graph.nodes):
        return program
    plain = program.run_decompositions(table)
    for module in plain.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            if node.target is aten.conv2d.default and "subpixel_conv2d" in str(node.meta.get("torch_fn")):
                # Quantizers look for what torch.nn.Conv2d did, by this note.
                node.meta["source_fn_stack"] = [(node.name, torch.nn.Conv2d)]
    return plain


def _check_program(program: Any) -> None:
    from torch.export import ExportedProgram

    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"program: expected a torch.export.ExportedProgram, got {type(program).__name__}; "
            "torch.export.export makes one of a module"
        )


# ---- torch.compile -----------------------------------------------------------------------------------------


@functools.cache  # so that equal backends are one: torch.compile compiles again for another
def fusing_backend(
    backend: str | Callable[..., Any] = "inductor", *, plain: bool = False
) -> Callable[..., Any]:
    """A backend for ``torch.compile`` that does what :func:`fuse` does, then hands over to another backend.

    >>> compiled = torch.compile(model, backend=fusing_backend())
    >>> compiled = torch.compile(model, backend=fusing_backend("aot_eager"), dynamic=True)

    ``mode`` and ``options`` of ``torch.compile`` reach the other backend. In training, an epilogue is taken
    into the call only where its gradient can be read from the output. The backend of :class:`use_backend`
    counts when the graph is compiled. What was done is logged for each graph by the logger
    ``fused_subpixel.fx.rewrite``, with level INFO.

    Args:
        backend: a name from ``torch.compiler.list_backends()``, or a callable.
        plain: also replace convolutions that no shuffle follows, as :func:`fuse` does.
    """
    return _FusingBackend(backend, plain)


@dataclasses.dataclass(frozen=True)
class _FusingBackend:
    backend: str | Callable[..., Any]
    plain: bool

    def __call__(self, graph_module: GraphModule, inputs: list[Any], **options: Any) -> Any:
        """Fuse in the graph that Dynamo captured, then compile it."""
        report = _fuse_all(graph_module, training=True, plain=self.plain)
        if len(report):
            _log.info("%s", report)
        if self.backend == "inductor":
            options = {"config_patches": _inductor_options(**options)}
        return torch_compat.compiler_backend(self.backend)(graph_module, inputs, **options)


def _inductor_options(mode: str | None = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings of Inductor that ``mode`` and ``options`` of torch.compile stand for."""
    settings = {**torch_compat.inductor_mode_options(mode or "default"), **(options or {})}
    return {name.replace("-", "_"): value for name, value in settings.items()}


# ---- rewriting ---------------------------------------------------------------------------------------------


def _fuse_all(root: GraphModule, *, training: bool, plain: bool, kept: Collection[str] = ()) -> Report:
    """Fuse in place, in a graph and those of its submodules; values whose names are ``kept`` stay."""
    sites: list[Site] = []
    for module in root.modules():
        if isinstance(module, GraphModule):
            found = _fuse_graph(module.graph, training, plain, kept)
            if any(site.status == REPLACED for site in found):
                module.graph.lint()
                module.recompile()
            sites += found
    return Report(sites)


def _fuse_graph(graph: Graph, training: bool, plain: bool, kept: Collection[str]) -> list[Site]:
    sites = []
    done = [node for node in graph.nodes if node.op == "call_function" and node.target is _operator]
    quantised = any(map(is_dequantised, graph.nodes))
    for node in done:
        sites.append(Site(_path(node), "subpixel_conv2d", ALREADY_REPLACED, _FLOAT * quantised))
    places = [*shuffles(graph), *(plain_convolutions(graph) if plain else ())]
    for node, shuffle in places:
        if node.graph is not graph or node._erased:  # gone with an earlier place that it was part of
            continue
        try:
            if isinstance(shuffle, Refusal):
                raise shuffle
            found = match(shuffle, training)
            for inner in found.nodes[:-1]:
                if inner.name in kept:
                    raise Refusal(f"{spelled(inner)} enters or leaves a module whose signature is preserved")
        except Refusal as refusal:
            layers = shuffle.name if isinstance(shuffle, Shuffle) else "pixel_shuffle"
            sites.append(Site(_path(node), layers, LEFT_ALONE, str(refusal)))
            continue
        sites.append(_site(found))
        _replace(graph, found)
    return sites


def _replace(graph: Graph, found: Match) -> None:
    """Let the last node of a match be the call of the operator, and erase the others.

    It keeps its name, which the signature of an exported program refers to, and what is noted of its result.
    """
    last, call = found.nodes[-1], found.convolution
    target = tensor_of(found.nodes[0])
    output = tensor_of(last)
    assert target is not None
    assert output is not None
    unused = [argument for node in found.nodes for argument in node.all_input_nodes]
    input, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    residual = found.residual
    if found.norm is not None:
        weight, bias = _folded(last, weight, bias, found.norm)
    input, weight, bias = (_cast(last, operand, target.dtype) for operand in (input, weight, bias))
    signal = output.dim() == 3  # which becomes an image of one row
    if signal:
        output = output.unsqueeze(2)
        input, weight = (_insert(last, aten.unsqueeze.default, operand, 2) for operand in (input, weight))
        if residual is not None:
            residual = _insert(last, aten.unsqueeze.default, residual, 2)
    operator: Any = _operator
    arguments: tuple[Any, ...] = (
        _laid_out_for(last, input, output), weight, bias, found.activation_weight, residual,
        list(found.geometry), *found.epilogue.numbers(),
    )  # fmt: skip
    if signal:
        operator, arguments = aten.squeeze.dim, (_insert(last, _operator, *arguments), 2)
    last.op, last.target, last.args, last.kwargs = "call_function", operator, arguments, {}
    for stale in ("torch_fn", "source_fn_stack", "eager_input_vals"):
        last.meta.pop(stale, None)
    for node in reversed(found.nodes[:-1]):
        graph.erase_node(node)
    _erase_unused(graph, unused)


def _insert(last: Node, operator: Any, *arguments: Any, **options: Any) -> Node:
    """Another call, before the last of its match, and what is noted of its result."""
    with last.graph.inserting_before(last):
        new = last.graph.call_function(operator, arguments, options)
    value = operator(*map_arg(arguments, tensor_of), **options)
    for name in ("val", "example_value"):
        if name in last.meta:
            new.meta[name] = value
    new.meta["nn_module_stack"] = last.meta.get("nn_module_stack", {})
    return new


def _folded(last: Node, weight: Node, bias: Node | None, norm: Call) -> tuple[Node, Node]:
    """Weight and bias of the convolution that does what a convolution and a batch norm in eval mode do.

    They are computed in every run, in float32 at least, so that they follow the parameters.
    """
    given = tensor_of(weight)
    assert given is not None
    wide = torch.promote_types(given.dtype, torch.float32)
    names = "weight", "bias", "running_mean", "running_var"
    gain, offset, mean, variance = (_cast(last, norm.arguments[name], wide) for name in names)
    scale = _insert(last, aten.add.Scalar, variance, number_of(norm.arguments["eps"]))
    scale = _insert(last, aten.rsqrt.default, scale)
    if gain is not None:
        scale = _insert(last, aten.mul.Tensor, scale, gain)
    if bias is None:
        shift = _insert(last, aten.neg.default, mean)
    else:
        shift = _insert(last, aten.sub.Tensor, _cast(last, bias, wide), mean)
    shift = _insert(last, aten.mul.Tensor, shift, scale)
    if offset is not None:
        shift = _insert(last, aten.add.Tensor, shift, offset)
    by_row = _insert(last, aten.view.default, scale, [-1] + [1] * (given.dim() - 1))
    return _insert(last, aten.mul.Tensor, _cast(last, weight, wide), by_row), shift


def _cast(last: Node, node: Node | None, dtype: torch.dtype) -> Node | None:
    """The operand in the dtype that it is needed in: under autocast it differs."""
    value = tensor_of(node)
    if node is None or value is None or value.dtype == dtype:
        return node
    return _insert(last, aten.to.dtype, node, dtype)


def _laid_out_for(last: Node, input: Node, output: Tensor) -> Node:
    """The input in the memory format that the output had, for the operator keeps that of its input.

    A convolution whose weight alone is channels_last changes the format, for one, and views that come later
    may rely on it.
    """
    value = tensor_of(input)
    wanted = _is_channels_last(output)
    if value is None or _is_channels_last(value) == wanted:
        return input
    return _insert(last, aten.clone.default, input, memory_format=memory_format(wanted))


def _is_channels_last(tensor: Tensor) -> bool:
    """As :func:`..ops.layout.is_channels_last`, without asking for the values of symbolic sizes."""
    return known(tensor.stride(1) == 1) and known(tensor.stride(3) != 1)


def _erase_unused(graph: Graph, nodes: list[Node]) -> None:
    """Erase what nothing reads any more: upsamplings, the arithmetic of view sizes, and what these read."""
    while nodes:
        node = nodes.pop()
        if node._erased or node.users or node.op in ("placeholder", "get_attr") or has_side_effects(node):
            continue
        nodes += node.all_input_nodes
        graph.erase_node(node)


# ---- reporting ---------------------------------------------------------------------------------------------


def _site(found: Match) -> Site:
    convolution, low = tensor_of(found.convolution.arguments["weight"]), tensor_of(found.nodes[0])
    assert convolution is not None
    assert low is not None
    rows, per_group, *kernel = convolution.shape
    size = "x".join(map(str, kernel))
    layers = [f"conv{len(kernel)}d({per_group * found.geometry.groups}, {rows}, {size})"]
    for node in found.nodes[1:]:
        if node in found.shuffle.nodes[:1]:
            layers.append(found.shuffle.name)
        elif node not in found.shuffle.nodes and (call := call_of(node)):
            layers.append(call.name)
    # The convolution's own output is not written and not read any more, if another step follows.
    per_pixel = 2 * rows * low.element_size() * (len(found.nodes) > 1)
    sizes = [size for dim, size in enumerate(low.shape) if dim != 1]
    static = all(isinstance(size, int) for size in sizes)
    return Site(
        " -> ".join(dict.fromkeys(map(_path, (found.nodes[0], *found.shuffle.nodes[:1])))),
        " -> ".join(layers),
        REPLACED,
        found.stopped,
        per_pixel * math.prod(sizes) if static else None,
        per_pixel,
    )


def _path(node: Node) -> str:
    """The module that a node comes from; its own name where that is the whole model or not known."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    for wrapping in ("L['self'].", "_modules.", "L__self___"):
        path = path.removeprefix(wrapping)
    return path if path and not path.startswith("L[") else node.name
