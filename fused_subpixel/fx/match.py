# SPDX-License-Identifier: BSD-3-Clause
"""What may become one sub-pixel convolution, and in words why not.

The pattern is ``convolution -> batch norm -> shuffle``, where elementwise steps may stand before the shuffle,
which they commute with, and after it, in the order that the operator has: activation, residual, clamp. Every
value between the first and the last step must serve the next one only. A plain convolution matches with a
shuffle that has no nodes.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..dispatch import backends
from ..dispatch.checks import four_paddings
from ..dispatch.choose import why_not_in_graph
from ..ops.geometry import ACTIVATIONS, CHANNEL_ORDERS, DTYPES, Epilogue, Geometry
from .calls import (
    CLAMPS,
    CONVOLUTIONS,
    COPIES,
    EPILOGUES,
    UPSAMPLINGS,
    Call,
    call_of,
    has_side_effects,
    is_dequantised,
    is_norm_of_three_results,
    number_of,
    same_shape,
    spelled,
    tensor_of,
)
from .find_shuffle import Refusal, Shuffle, given_tensor, only_user


@dataclasses.dataclass(frozen=True)
class Match:
    """What one call of the operator replaces, and that call's arguments."""

    nodes: tuple[Node, ...]  # from the convolution to the last step, whose place the call takes
    convolution: Call
    shuffle: Shuffle
    geometry: Geometry
    epilogue: Epilogue = dataclasses.field(default_factory=Epilogue)
    activation_weight: Node | None = None
    residual: Node | None = None
    norm: Call | None = None  # a batch norm in eval mode, to be folded into the convolution
    stopped: str = ""  # why the step after the last one stays outside, in words


def match(shuffle: Shuffle, training: bool) -> Match:
    """The largest match around a shuffle.

    Args:
        shuffle: where to look.
        training: the graph is differentiated later, so no epilogue whose gradient needs the values before it.

    Raises Refusal, with the reason in words.
    """
    if shuffle.nodes and shuffle.factor_h * shuffle.factor_w == 1:
        raise Refusal("a factor of 1 shuffles nothing")
    before = _path_to_convolution(shuffle.source, shuffle.nodes[0]) if shuffle.nodes else [shuffle.source]
    convolution = call_of(before[0])
    assert convolution is not None
    found = Match((before[0],), convolution, shuffle, _geometry(before[0], convolution, shuffle))
    training = training and given_tensor(before[0]).requires_grad
    for step in before[1:]:
        try:
            found = _extend(found, step, shuffle, training)
        except Refusal as refusal:
            raise Refusal(f"{spelled(step)} stands before it: {refusal}") from None
    found = dataclasses.replace(found, nodes=found.nodes + shuffle.nodes)
    if shuffle.nodes:
        _check_quiet(found.nodes, shuffle.nodes[-1])
    while len(found.nodes[-1].users) == 1:
        step = only_user(found.nodes[-1])
        if is_norm_of_three_results(step) and len(step.users) == 1:
            step = only_user(step)
        call = call_of(step)
        if call is None or call.name not in EPILOGUES | COPIES | {"batch_norm"}:
            break
        try:
            found = _extend(found, step, shuffle, training)
        except Refusal as refusal:
            return dataclasses.replace(found, stopped=f"{spelled(step)} stays: {refusal}")
    return found


def _path_to_convolution(node: Any, user: Node) -> list[Node]:
    """From the convolution that a step comes from to that step."""
    if not isinstance(node, Node):
        raise Refusal(f"{spelled(node)} is no convolution")
    call = call_of(node)
    if call is None or call.name not in EPILOGUES | CONVOLUTIONS | {"batch_norm"}:
        raise Refusal(f"{spelled(node)} feeds it, not a convolution")
    if len(node.users) != 1:
        others = ", ".join(spelled(other) for other in node.users if other is not user)
        raise Refusal(f"{spelled(node)} is used elsewhere too: {others}")
    if call.name in CONVOLUTIONS:
        return [node]
    try:
        return [*_path_to_convolution(call.arguments["input"], node), node]
    except Refusal:
        if call.name != "add" or not isinstance(call.arguments["other"], Node):
            raise
        return [*_path_to_convolution(call.arguments["other"], node), node]


def _geometry(node: Node, call: Call, shuffle: Shuffle) -> Geometry:
    """The operator's geometry for a convolution; every refusal that has to do with it."""
    arguments = call.arguments
    input, weight, output = (given_tensor(n) for n in (arguments["input"], arguments["weight"], node))
    if arguments.get("transposed"):
        raise Refusal(f"{spelled(node)} is a transposed convolution")
    if is_dequantised(arguments["weight"]):  # a pattern of compilers that have int8 kernels
        raise Refusal(f"{spelled(node)} is quantised")
    signal = weight.dim() == 3  # an image of one row
    if input.dim() != weight.dim() or weight.dim() not in ((4,) if shuffle.nodes else (3, 4)):
        kind = "2-d" if shuffle.nodes else "1-d or 2-d"
        raise Refusal(f"{spelled(node)} is not a {kind} convolution of a batch")
    if output.dtype not in DTYPES:
        raise Refusal(f"no kernel for {output.dtype}")
    if not all(isinstance(size, int) for size in weight.shape):
        raise Refusal(f"the shape of the weight of {spelled(node)} is not constant")
    stride, dilation = (_pair(call, name, 1 if signal else None) for name in ("stride", "dilation"))
    padding = arguments["padding"]
    if not isinstance(padding, str):  # else "same" or "valid"
        padding = _pair(call, "padding", 0 if signal else None)
    kernel = (1, weight.shape[2]) if signal else weight.shape[2:]
    top, left, bottom, right = four_paddings(padding, stride, dilation, kernel)
    geometry = Geometry(
        shuffle.factor_h,
        shuffle.factor_w,
        *stride,
        top,
        left,
        bottom,
        right,
        *dilation,
        groups=_pair(call, "groups")[0],
        channel_order=CHANNEL_ORDERS[shuffle.channel_order],
        tf32=int(backends.allows_tf32(input.device.type == "cuda")),
    )
    reason = why_not_in_graph(geometry, weight.shape, output)
    if reason is not None:
        raise Refusal(reason)
    return geometry


def _pair(call: Call, name: str, vertical: int | None = None) -> tuple[int, int]:
    """An argument of a convolution as (vertical, horizontal); of a signal's, which has the latter only."""
    given = call.arguments[name]
    numbers = [number_of(value) for value in (given if isinstance(given, (list, tuple)) else [given])]
    if not all(isinstance(number, int) for number in numbers):
        raise Refusal(f"the convolution's {name} is not a constant of the graph")
    return int(numbers[0] or 0) if vertical is None else vertical, int(numbers[-1] or 0)


def _check_quiet(nodes: tuple[Node, ...], until: Node) -> None:
    """Nothing between the convolution and the call's place may write into what the call will read there."""
    disturbing = _first_with_effects(nodes[0], until, nodes)
    if disturbing is not None:
        raise Refusal(f"{spelled(disturbing)} stands between and may change what it reads")


def _first_with_effects(start: Node, end: Node, but: tuple[Node, ...]) -> Node | None:
    """The first node between two, not in ``but``, that may write into a tensor or change a mode."""
    node = start.next
    while node is not end:
        if node not in but and has_side_effects(node):
            return node
        node = node.next
    return None


# ---- the epilogue, step by step ----------------------------------------------------------------------------


def _extend(found: Match, step: Node, shuffle: Shuffle, training: bool) -> Match:
    """The match with one more step: batch norm, activation, residual or clamp."""
    call = call_of(step)
    assert call is not None
    last = found.nodes[-1]
    if call.in_place and call.arguments["input"] is not last:
        raise Refusal("it writes into its other operand")
    steps = (step,) if last in step.all_input_nodes else (step.all_input_nodes[0], step)
    before, after = given_tensor(last), given_tensor(step)
    if before.dtype != after.dtype or not same_shape(before.shape, after.shape):
        raise Refusal("it changes the shape or the dtype")
    _check_quiet(found.nodes, step)
    if call.name in COPIES:  # the operator's result is new anyway, and gets the layout that the copy has
        return dataclasses.replace(found, nodes=(*found.nodes, step))
    if call.name == "batch_norm":
        _check_norm(found, steps, call, shuffle, training)
        return dataclasses.replace(found, nodes=found.nodes + steps, norm=call)
    if call.name == "add":
        found = dataclasses.replace(found, residual=_residual(found, step, call, shuffle))
    elif call.name in CLAMPS or (call.name == "relu" and not _is_linear(found)):
        found = dataclasses.replace(found, epilogue=_clamped(found.epilogue, *_bounds(call)))
    else:
        found = _activated(found, call, before)
    if training and not found.epilogue.has_grad_from_output(found.residual is not None):
        raise Refusal("its gradient needs the values before it, which the operator does not keep")
    return dataclasses.replace(found, nodes=(*found.nodes, step))


def _check_norm(found: Match, steps: tuple[Node, ...], call: Call, shuffle: Shuffle, training: bool) -> None:
    """A batch norm is folded into the convolution if it has constants for its channels."""
    if not _is_linear(found) or found.norm is not None or set(shuffle.nodes) & set(found.nodes):
        raise Refusal("only a batch norm directly behind the convolution is folded into it")
    if call.arguments["training"] is not False or call.arguments["running_mean"] is None:
        raise Refusal("the batch norm is in training mode")
    if number_of(call.arguments["eps"]) is None:
        raise Refusal("its eps is not a constant of the graph")
    if training:
        raise Refusal("a batch norm is folded only where no gradient is wanted")
    for inner in steps[:-1]:
        only_user(inner)
    for name in ("running_mean", "running_var", "weight", "bias"):
        if call.arguments[name] is not None:
            given_tensor(call.arguments[name])


def _is_linear(found: Match) -> bool:
    return found.epilogue == Epilogue() and found.residual is None


def _activated(found: Match, call: Call, operand: Tensor) -> Match:
    if not _is_linear(found):
        raise Refusal("the operator has one activation, before residual and clamp")
    name, weight = call.name, None
    if name == "gelu" and call.arguments["approximate"] != "none":
        if call.arguments["approximate"] != "tanh":
            raise Refusal("the operator has the exact gelu and its approximation by tanh")
        name = "gelu_tanh"
    for option, value in _OPTIONS.get(name, {}).items():
        if number_of(call.arguments.get(option, value)) != value:
            raise Refusal(f"the operator has {name} with {option}={value} alone")
    epilogue = Epilogue(ACTIVATIONS[name])
    if call.name == "leaky_relu":
        slope = number_of(call.arguments["negative_slope"])
        if slope is None:
            raise Refusal("its slope is not a constant of the graph")
        epilogue = epilogue._replace(negative_slope=float(slope))
    elif call.name == "prelu":
        weight = call.arguments["weight"]
        slopes = given_tensor(weight)
        if slopes.dim() > 1 or slopes.dtype != operand.dtype:
            raise Refusal("its slopes have another dtype or more than one dimension")
    return dataclasses.replace(found, epilogue=epilogue, activation_weight=weight)


# What the options of an activation must be, where a call has them.
_OPTIONS: dict[str, dict[str, float]] = {
    "elu": {"alpha": 1, "scale": 1, "input_scale": 1},
    "softplus": {"beta": 1, "threshold": 20},
}


def _bounds(call: Call) -> tuple[float, float]:
    """(lowest, highest) of whatever clamps."""
    if call.name in ("relu", "relu6"):
        return 0.0, 6.0 if call.name == "relu6" else math.inf
    prefix, suffix = ("min_val", "max_val") if call.name == "hardtanh" else ("min", "max")
    bounds = []
    for name, infinite in ((prefix, -math.inf), (suffix, math.inf)):
        given = call.arguments.get(name)
        bound = infinite if given is None else number_of(given)
        if bound is None or bound != bound:
            raise Refusal("its bounds are not constant numbers of the graph")
        bounds.append(float(bound))
    if bounds[0] > bounds[1]:
        raise Refusal("its lower bound is above its upper one")
    return bounds[0], bounds[1]


def _clamped(epilogue: Epilogue, lowest: float, highest: float) -> Epilogue:
    """One clamp for two: the bounds of the first are clamped by the second."""

    def clamp(value: float) -> float:
        return min(max(value, lowest), highest)

    return epilogue._replace(clamp_min=clamp(epilogue.clamp_min), clamp_max=clamp(epilogue.clamp_max))


def _residual(found: Match, step: Node, call: Call, shuffle: Shuffle) -> Node:
    """The operand of an addition as the operator takes it, where its shape tells how it is added."""
    last = found.nodes[-1]
    if found.epilogue.clamps() or found.residual is not None:
        raise Refusal("the operator has one residual, before the clamp")
    other = call.arguments["other" if call.arguments["input"] is last else "input"]
    if not isinstance(other, Node) or tensor_of(other) is None:
        raise Refusal("a number is added, not a tensor")
    if other is last:
        raise Refusal("it adds a value to itself")
    if number_of(call.arguments["alpha"]) != 1:
        raise Refusal("it scales what it adds")
    operand, tensor = given_tensor(last), given_tensor(other)
    if tensor.dtype != operand.dtype or tensor.device != operand.device:
        raise Refusal("its operands differ in dtype or device")
    if not same_shape(tensor.shape, operand.shape):
        raise Refusal(
            f"its operands differ in shape, or may: {_shape(operand.shape)} and {_shape(tensor.shape)}"
        )
    if not shuffle.nodes or shuffle.nodes[-1] not in found.nodes:
        return other
    source = _before_upsampling(other, given_tensor(found.nodes[0]), shuffle)
    if source is None or _first_with_effects(other, step, found.nodes) is not None:
        return other
    return source


def _before_upsampling(node: Node, low: Tensor, shuffle: Shuffle) -> Node | None:
    """What a high-resolution residual was made of, where the operator can do that too, else None."""
    call = call_of(node)
    if call is None:
        return None
    if call.name == "pixel_shuffle":  # of low-resolution channels, as the convolution's own are
        factor = number_of(call.arguments["upscale_factor"])
        if shuffle.channel_order == "dcr" or not shuffle.factor_h == shuffle.factor_w == factor:
            return None
        try:
            _path_to_convolution(call.arguments["input"], node)
        except Refusal:
            return call.arguments["input"]
        return None  # for it is better fused with the convolution that it follows
    source = call.arguments.get("input")
    if call.name not in UPSAMPLINGS or not isinstance(source, Node):
        return None
    before, after = given_tensor(source), given_tensor(node)
    if before.dim() != 4 or before.dtype != after.dtype or call.arguments.get("antialias"):
        return None
    if not str(call.arguments.get("mode", "nearest")).startswith("nearest"):
        return None
    batch, channels = after.shape[:2]
    if not same_shape(before.shape, (batch, channels, *low.shape[2:])):
        return None
    factors = shuffle.factor_h, shuffle.factor_w
    scales = _scales(call)
    if scales is not None and scales != factors:
        return None
    return source if all(map(_nearest_repeats, factors)) else None


def _scales(call: Call) -> tuple[float | None, float | None] | None:
    """The factors that an upsampling was given; None where it goes by the sizes."""
    arguments = call.arguments
    if arguments.get("recompute_scale_factor"):
        return None
    if "scales_h" in arguments:
        given = [arguments["scales_h"], arguments["scales_w"]]
    else:
        scales = arguments.get("scale_factor", arguments.get("scale_factors"))
        given = list(scales) if isinstance(scales, (list, tuple)) else [scales] * 2
    if all(scale is None for scale in given):
        return None
    return number_of(given[0]), number_of(given[1])


def _nearest_repeats(factor: int) -> bool:
    """Whether nearest upsampling by a factor repeats every pixel that often.

    It multiplies each index by 1/factor in float32. Where that is less than 1/factor, as for 25 or 29, it
    may take a wrong neighbour.
    """
    inverse = torch.tensor(1 / factor, dtype=torch.float32).item()
    return Fraction(inverse) * factor >= 1


def _shape(shape: torch.Size) -> str:
    return f"[{', '.join(map(str, shape))}]"
