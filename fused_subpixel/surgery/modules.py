# SPDX-License-Identifier: BSD-3-Clause
"""The modules that a replaced model consists of: the model's own ones, with another class.

A module keeps its identity, its attributes, its parameters, its place in the model and all base classes; only
its ``__class__`` becomes a subclass with another ``forward``. Both forwards are right, whatever the rest of
the model does:

- :class:`FusedSequential` fuses what it runs itself, one after another, and looks anew in every call.
- :class:`FusedConv2d` returns a :class:`LowResolution`: a tensor that holds the convolution's output
  shuffled. A pixel shuffle takes that out. Anything else gets the convolution's output as it always was.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

from . import chain as chains
from .calls import METADATA, SIZES, Call, call_of
from .chain import Activation, Chain, Downward

# ---- changing a module's class ----------------------------------------------------------------------------


class Fused:
    """A class that stands for another one, its base; see :func:`fuse_class`."""

    original_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by the original class: a class made at run time cannot be imported."""
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or type(self) in (FusedSequential, FusedConv2d):
            return reduced
        return (_new, (type(self).original_class,), *reduced[2:])


def _new(original: Any) -> Any:
    """An instance of the fused class of ``original``, not initialised."""
    kind = _fused_subclass(original)
    return kind.__new__(kind)


def fuse_class(module: nn.Sequential | nn.Conv2d) -> None:
    """Make ``module`` an instance of its class' fused subclass."""
    module.__class__ = _with_base(module, type(module), _fused_subclass)


def restore_class(module: nn.Module) -> None:
    """Undo :func:`fuse_class`, whatever parametrizations came or went since."""
    module.__class__ = _with_base(module, type(module), operator.attrgetter("original_class"))


def _with_base(module: nn.Module, kind: Any, exchange: Any) -> Any:
    """``kind`` with another base.

    torch.nn.utils.parametrize makes a class for a single module, holding the properties, and takes
    ``__bases__[0]`` for the class to go back to. So that class is made anew, on top of the exchanged one.
    """
    if not (
        parametrize.is_parametrized(module) and kind.__name__ == f"Parametrized{kind.__bases__[0].__name__}"
    ):
        return exchange(kind)
    base = exchange(kind.__bases__[0])
    members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), members)


@functools.cache
def _fused_subclass(original: Any) -> Any:
    fused: Any = FusedConv2d if issubclass(original, nn.Conv2d) else FusedSequential
    if fused.original_class is original:
        return fused
    members = {"original_class": original, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(f"Fused{original.__name__}", (fused, original), members)


# ---- nn.Sequential ---------------------------------------------------------------------------------------


class FusedSequential(Fused, nn.Sequential):
    """An ``nn.Sequential`` that runs convolution and pixel shuffle, where they are neighbours, as one call.

    It looks for them in every call, so that its modules may be exchanged, sliced, hooked or called alone as
    ever. ``fold_batch_norm`` and ``unshuffle`` are those of :func:`fused_subpixel.replace_pixel_shuffle`.
    """

    original_class = nn.Sequential
    fold_batch_norm = False
    unshuffle = False

    def forward(self, input: Any) -> Any:
        """Apply all modules, chains of them as one call."""
        modules = chains.flatten(self)
        position = 0
        while position < len(modules):
            found: Chain | Downward | str | None = None
            if isinstance(modules[position], (nn.Conv2d, nn.PixelUnshuffle)) and chains.runs_fused(input):
                found = chains.match(modules, position, self.fold_batch_norm, self.unshuffle)
            if found is None or isinstance(found, str):
                input = modules[position](input)
                position += 1
            else:
                input = self.run(found, input)
                position += len(found.modules)
        return input

    def run(self, found: Chain | Downward, input: Tensor) -> Any:
        """Apply a chain as one call."""
        if isinstance(found, Downward):
            return chains.run_downward(input, found.unshuffle, found.conv)
        factor = found.shuffle.upscale_factor
        output = chains.run(input, found.conv, factor, found.norm, found.before, found.after)
        if output is None:
            output = input
            for module in found.modules:
                output = module(output)
        return output


# ---- nn.Conv2d -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    """What a :class:`FusedConv2d` does at once, because it is expected to follow.

    Modules stand here for their parameters. They are no part of the convolution, whose state_dict stays.
    """

    factor: int
    norm: nn.BatchNorm2d | None = None
    before: Activation | nn.PReLU | None = None
    shuffle: str = ""  # the path of the shuffle, for reports

    def activation(self) -> Activation | None:
        """The activation before the shuffle, with its present parameter."""
        before = self.before
        return Activation("prelu", weight=before.weight) if isinstance(before, nn.PReLU) else before

    def is_ready(self, device: torch.device, replica: bool) -> bool:
        """Whether the parameters of the steps' modules can be used on ``device`` before these are called.

        Hooks may have to run first: offloading fetches parameters when their module is called. A ``replica``
        of nn.DataParallel shares these modules with the model, whose parameters are on the first device.
        """
        for module, base in ((self.norm, nn.BatchNorm2d), (self.before, nn.PReLU)):
            if not isinstance(module, nn.Module):
                continue
            if replica or chains.why_altered(module, base) is not None:
                return False
            tensors = (*module._parameters.values(), *module._buffers.values())
            if any(tensor is not None and tensor.device != device for tensor in tensors):
                return False
        return True

    def steps(self) -> tuple[nn.BatchNorm2d | Activation, ...]:
        """What is to come between convolution and shuffle, in order."""
        return tuple(step for step in (self.norm, self.activation()) if step is not None)


class FusedConv2d(Fused, nn.Conv2d):
    """An ``nn.Conv2d`` whose output a pixel shuffle is expected to take: a :class:`LowResolution`."""

    original_class = nn.Conv2d
    subpixel: Plan

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Another layer, made by type(layer)(...) as LoRA libraries do. No shuffle is known to follow it.
        object.__setattr__(self, "__class__", type(self).original_class)
        type(self).__init__(self, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig" and value is not None:  # eager-mode quantisation looks for the original class
            restore_class(self)
            del self.subpixel

    def forward(self, input: Tensor) -> Tensor:
        """Apply the convolution, and at once what is to follow."""
        plan = self.subpixel
        before = plan.activation()
        if not chains.runs_fused(input) or chains.has_output_hooks(self):
            return super().forward(input)
        if plan.norm is not None and plan.norm.training:
            return super().forward(input)
        if not plan.is_ready(input.device, "_is_replica" in self.__dict__):
            return super().forward(input)
        # In compiled code nothing is done ahead: on another path it could not be undone.
        compiling = torch.compiler.is_dynamo_compiling()
        later = compiling or not chains.overwritable(before, before=True)
        if later and before is not None and before.commutes():
            before = None
        if compiling and (plan.norm is not None or before is not None):
            return super().forward(input)
        high = chains.run(input, self, plan.factor, plan.norm, before)
        if high is None:
            return super().forward(input)
        steps: tuple[Step, ...] = tuple(step for step in (plan.norm, before) if step is not None)
        return LowResolution.of(Held(high, plan.factor, steps, self, input if steps else None), 0)


functools.update_wrapper(FusedConv2d.__init__, nn.Conv2d.__init__)  # skip_init reads the signature

# What why_altered takes for the forward of PyTorch's own class.
FusedSequential.forward.stands_for = nn.Sequential.forward  # type: ignore[attr-defined]
FusedConv2d.forward.stands_for = nn.Conv2d.forward  # type: ignore[attr-defined]


# ---- the tensor in between -------------------------------------------------------------------------------

Step = nn.BatchNorm2d | Activation


class Held:
    """The output of a :class:`FusedConv2d`, shuffled, all ``steps`` done that are to come before it."""

    def __init__(
        self, high: Tensor, factor: int, steps: tuple[Step, ...], conv: FusedConv2d, input: Tensor | None
    ) -> None:
        self.high = high  # [N, C, P*r, Q*r]
        self.factor = factor
        self.steps = steps
        self.conv = conv
        self.input = input  # to compute again what is needed without all steps; None where there are none
        self.input_version = None if input is None else _version(input)
        self.taken = False
        self.taken_version: int | None = None

    def take(self) -> Tensor:
        """The shuffled output: itself the first time, then copies."""
        if self.taken:
            return self.unchanged().clone()
        self.taken, self.taken_version = True, _version(self.high)
        return self.high

    def unchanged(self) -> Tensor:
        """The shuffled output, provided that nobody can have written to it."""
        if self.taken and (self.taken_version is None or self.taken_version != self.high._version):
            raise RuntimeError(_MOVED_ON.format("its result"))
        return self.high

    def plain(self, done: int) -> Tensor:
        """The convolution's output, [N, C*r*r, P, Q], with the first ``done`` steps."""
        if done == len(self.steps):
            return F.pixel_unshuffle(self.unchanged(), self.factor)
        assert self.input is not None
        if self.input_version is None or self.input_version != self.input._version:
            raise RuntimeError(_MOVED_ON.format("the convolution's input"))
        output = nn.Conv2d.forward(self.conv, self.input)
        for step in self.steps[:done]:
            output = step.apply(output) if isinstance(step, Activation) else step(output)
        return output

    def low_shape(self) -> tuple[int, ...]:
        """[N, C*r*r, P, Q], without N where the input has none."""
        *batch, channels, height, width = self.high.shape
        r = self.factor
        return (*batch, channels * r * r, height // r, width // r)


_WHAT_TO_DO = (
    "Undo that with fused_subpixel.restore_pixel_shuffle(model), or replace it with example_inputs that take "
    "this path"
)
_MOVED_ON = (
    "the output of a fused convolution is used in another way than for its pixel shuffle, after {} may have "
    f"been changed in place. Nothing like it was seen when the model was replaced. {_WHAT_TO_DO}"
)


def _version(tensor: Tensor) -> int | None:
    """A number that changes when the tensor is written to, or None where there is none."""
    return None if torch.compiler.is_dynamo_compiling() or tensor.is_inference() else tensor._version


class LowResolution(Tensor):
    """What a :class:`FusedConv2d` returns; it stands for the convolution's output [N, C*r*r, P, Q].

    Each function of PyTorch that gets it comes by ``__torch_function__`` first. The pixel shuffle gets the
    shuffled output, without any work; so do elementwise activations; all else gets the plain output.
    """

    held: Held
    done: int  # how many of the steps held this tensor stands for
    low: Tensor | None  # the plain output, once something has asked for it: from then on the only truth

    @staticmethod
    def of(held: Held, done: int) -> LowResolution:
        """A tensor that stands for what ``held`` holds, after ``done`` steps."""
        high = held.high
        self: Any
        if torch.compiler.is_dynamo_compiling():  # it follows the Python code; there is nothing below
            self = high.as_subclass(LowResolution)
        elif high.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self = _StandIn.apply(high, held, done)
        else:
            self = _without_memory(held)
        self.held, self.done, self.low = held, done, None
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Shuffle, or do the next step, if ``func`` is that; else apply ``func`` to the plain output."""
        kwargs = kwargs or {}
        self = args[0] if args else None
        if isinstance(self, LowResolution) and self.low is None:
            held = self.held
            if func is torch.pixel_shuffle:
                factor = args[1] if len(args) > 1 else kwargs.get("upscale_factor")
                if self.done == len(held.steps) and factor == held.factor:
                    return held.take()
            elif func in METADATA:
                return func(self.stand_in() if func in SIZES else held.high, *args[1:], **kwargs)
            elif (call := call_of(func, args, kwargs)) is not None and (moved := self.move(call)) is not None:
                return moved
        args, kwargs = tree_map(_plain, (args, kwargs))
        return func(*args, **kwargs)

    def move(self, call: Call) -> LowResolution | None:
        """This tensor after a step, or None if the step cannot be done to it."""
        held, done = self.held, self.done
        if done < len(held.steps):
            if not call.does(held.steps[done]):
                return None
            done += 1
        elif call.activation is not None and call.activation.commutes():
            high = call.activation.apply(held.unchanged())
            held, done = Held(high, held.factor, (), held.conv, None), 0
        else:
            return None
        if not call.in_place:
            return LowResolution.of(held, done)
        self.held, self.done = held, done
        return self

    def plain(self) -> Tensor:
        """The convolution's output with the steps done that this tensor stands for."""
        if self.low is None:
            self.low = self.held.plain(self.done)
        return self.low

    def stand_in(self) -> Tensor:
        """A tensor of the plain output's shape, dtype and device, and nothing in it."""
        return self.held.high.new_empty(()).expand(self.held.low_shape())


class _WithoutMemory(LowResolution):
    """What goes past ``__torch_function__`` finds no memory and gets an error, not wrong numbers."""

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise RuntimeError(
            "something that is no function of PyTorch got the output of a fused convolution before its pixel "
            f"shuffle. Nothing like it was seen when the model was replaced. {_WHAT_TO_DO}"
        )


class _StandIn(torch.autograd.Function):
    """Connects a :class:`LowResolution` with the gradient of what it stands for.

    For the one thing that goes past ``__torch_function__`` at first: a ``torch.autograd.Function``.
    """

    @staticmethod
    def forward(ctx: Any, high: Tensor, held: Held, done: int) -> Tensor:
        ctx.factor, ctx.exact = held.factor, done == len(held.steps)
        return _without_memory(held)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if not ctx.exact:
            raise RuntimeError(
                "a torch.autograd.Function was applied to the output of a fused convolution before its "
                f"activation. Nothing like it was seen when the model was replaced. {_WHAT_TO_DO}"
            )
        return F.pixel_shuffle(grad, ctx.factor), None, None


def _without_memory(held: Held) -> LowResolution:
    return Tensor._make_wrapper_subclass(
        _WithoutMemory, held.low_shape(), dtype=held.high.dtype, device=held.high.device
    )


def _plain(value: Any) -> Any:
    return value.plain() if isinstance(value, LowResolution) else value
