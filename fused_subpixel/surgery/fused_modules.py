# SPDX-License-Identifier: BSD-3-Clause
"""The modules that a replaced model consists of: the model's own ones, with another class.

A module keeps its identity, its attributes, its parameters, its place in the model and all base classes; only
its ``__class__`` becomes a subclass with another ``forward``. Both forwards are right, whatever the rest of
the model does:

- :class:`FusedSequential` fuses what it runs itself, one after another, and looks anew in every call.
- :class:`FusedConv2d` returns a tensor that holds the convolution's output shuffled, see low_resolution.py.
  A pixel shuffle takes that out. Anything else gets the convolution's output as it always was. Where no
  shuffle follows, the factor is 1, and what is taken out is the output of the activation that follows.
- :class:`FusedConv1d` is the same for signals, where no shuffle follows.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..torch_compat import is_exporting
from . import chain as chains
from . import originals
from .chain import Activation, Chain, UnshuffleConv
from .low_resolution import LowResolution, PendingOutput, Source, Traced, with_versions

# ---- changing a module's class ----------------------------------------------------------------------------


class Fused:
    """A class that stands for another one, its base; see :func:`fuse_class`."""

    original_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by the original class: a class made at run time cannot be imported."""
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or type(self) in (FusedSequential, FusedConv2d, FusedConv1d):
            return reduced
        return (_new, (type(self).original_class,), *reduced[2:])


def _new(original: Any) -> Any:
    """An instance of the fused class of ``original``, not initialised."""
    kind = _fused_subclass(original)
    return kind.__new__(kind)


def fuse_class(module: nn.Sequential | nn.Conv2d | nn.Conv1d) -> None:
    """Make ``module`` an instance of its class' fused subclass."""
    module.__class__ = _with_base(module, type(module), _fused_subclass)


def twin(module: Any, kind: Any = None, **attributes: Any) -> Any:
    """A module that shares all that ``module`` has, of its class' fused subclass or of ``kind``."""
    kind = kind or _with_base(module, type(module), _fused_subclass)
    made = kind.__new__(kind)
    vars(made).update(vars(module), **attributes)
    return made


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
    kinds: tuple[Any, ...] = (FusedConv2d, FusedConv1d, FusedSequential)
    fused = next(kind for kind in kinds if issubclass(original, kind.original_class))
    if fused.original_class is original:
        return fused
    members = {"original_class": original, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(f"Fused{original.__name__}", (fused, original), members)


# ---- nn.Sequential ---------------------------------------------------------------------------------------


def run_chain(found: Chain | UnshuffleConv, input: Tensor) -> Any:
    """Apply a chain as one call."""
    if isinstance(found, UnshuffleConv):
        return chains.run_unshuffle_conv(input, found.unshuffle, found.conv)
    factor = found.shuffle.upscale_factor
    output = chains.run(input, found.conv, factor, found.norm, found.before, found.after)
    if output is None:
        output = input
        for module in found.modules:
            output = module(output)
    return output


class FusedSequential(Fused, nn.Sequential):
    """An ``nn.Sequential`` that runs convolution and pixel shuffle, where they are neighbours, as one call.

    It looks for them in every call, so that its modules may be exchanged, sliced, hooked or called alone as
    ever. ``fold_batch_norm`` and ``unshuffle`` are those of :func:`fused_subpixel.replace_pixel_shuffle`.
    """

    original_class = nn.Sequential
    fold_batch_norm = False
    unshuffle = False
    run = staticmethod(run_chain)  # which a recording of the model replaces, for one module

    def forward(self, input: Any) -> Any:
        """Apply all modules, chains of them as one call."""
        kind: Any = type(self).original_class
        if kind.forward is not nn.Sequential.forward:
            return super().forward(input)
        return run_sequential(self, input, self.fold_batch_norm, self.unshuffle, self.run)


def run_sequential(
    sequential: Any, input: Any, fold_batch_norm: bool, unshuffle: bool, run: Callable[..., Any]
) -> Any:
    """The forward of an ``nn.Sequential``, with chains of its modules as one call."""
    if not originals.intact():
        return nn.Sequential.forward(sequential, input)
    modules = chains.flatten(sequential)
    position = 0
    while position < len(modules):
        found: Chain | UnshuffleConv | str | None = None
        if isinstance(modules[position], (nn.Conv2d, nn.PixelUnshuffle)) and chains.runs_fused(input):
            found = chains.match(modules, position, fold_batch_norm, unshuffle)
        if found is None or isinstance(found, str):
            input = modules[position](input)
            position += 1
        else:
            input = run(found, input)
            position += len(found.modules)
    return input


# ---- convolutions ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    """What a :class:`FusedConv2d` does at once, because it is expected to follow.

    Modules stand here for their parameters. They are no part of the convolution, whose state_dict stays.
    """

    factor: int  # of the shuffle; 1 without one
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


class FusedConv(Fused):
    """A convolution whose output a shuffle or an activation is expected to take: see low_resolution.py."""

    convolution: Any  # PyTorch's class of it
    subpixel: Plan

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Another layer, made by type(layer)(...) as LoRA libraries do. Nothing is known to follow it.
        object.__setattr__(self, "__class__", type(self).original_class)
        type(self).__init__(self, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig" and value is not None:  # eager-mode quantisation looks for the original class
            conv: Any = self
            restore_class(conv)
            del self.subpixel

    def forward_fused(self: Any, input: Tensor) -> Any:
        """Apply the convolution, and at once what is to follow."""
        plan, original = self.subpixel, super().forward  # type: ignore[misc]
        if type(input) is LowResolution:  # of a convolution that is not followed as it was when replaced
            input = input.plain()
        kind: Any = type(self).original_class
        if (
            not originals.intact()
            or kind.forward is not self.convolution.forward
            or chains.has_own_convolution(self)
        ):
            return original(input)
        if not chains.runs_fused(input) or chains.has_output_hooks(self):
            return original(input)
        norm, before = plan.norm, plan.activation()
        training = norm is not None and norm.training
        compiling = torch.compiler.is_dynamo_compiling()
        if plan.factor == 1:
            differentiated = needs_gradient(self, input)
            if differentiated and input.device.type != "cpu":
                return original(input)
            if training or differentiated or compiling:
                norm = before = None  # the convolution alone; what follows sees an ordinary tensor
        elif training:
            return original(input)
        if not plan.is_ready(input.device, "_is_replica" in self.__dict__):
            return original(input)
        # Nothing is done ahead where gradients may be wanted, because autograd must know each tensor in
        # between, nor in compiled code, which could not compute again what another path needs.
        if compiling or (torch.is_grad_enabled() and not is_exporting()):
            if norm is not None or (before is not None and not before.commutes()):
                return original(input)
            before = None
        steps = tuple(step for step in (norm, before) if step is not None)
        parameters = self.weight, self.bias
        source = Source.of(self, input, *parameters) if steps else None
        arguments = input, self, plan.factor, norm, before, None, parameters
        alone = plan.factor == 1 and not steps
        high = chains.run(*arguments) if alone else with_versions(chains.run, *arguments)
        if high is None:
            return self._conv_forward(input, *parameters)
        if alone:
            return high
        if compiling:
            return Traced.of(high, plan.factor)
        return LowResolution.of(high, PendingOutput(plan.factor, steps, source))


class FusedConv2d(FusedConv, nn.Conv2d):
    """An ``nn.Conv2d`` whose output a shuffle or an activation is expected to take."""

    original_class = convolution = nn.Conv2d

    def forward(self, input: Tensor) -> Any:
        """Apply the convolution, and at once what is to follow."""
        return self.forward_fused(input)


class FusedConv1d(FusedConv, nn.Conv1d):
    """An ``nn.Conv1d`` whose output an activation is expected to take, or nothing."""

    original_class = convolution = nn.Conv1d

    def forward(self, input: Tensor) -> Any:
        """Apply the convolution, and at once what is to follow."""
        return self.forward_fused(input)


def needs_gradient(conv: nn.Conv1d | nn.Conv2d, input: Tensor) -> bool:
    """Whether autograd follows this call."""
    if not torch.is_grad_enabled():
        return False
    if parametrize.is_parametrized(conv):  # to read a parameter computes it, and may change it
        return input.requires_grad or any(parameter.requires_grad for parameter in conv.parameters())
    tensors = (input, conv.weight, conv.bias)
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


for _kind, _base in ((FusedConv2d, nn.Conv2d), (FusedConv1d, nn.Conv1d)):
    functools.update_wrapper(_kind.__init__, _base.__init__)  # skip_init reads the signature

# What chain.py takes for the forward of PyTorch's own class.
FusedSequential.forward.stands_for = nn.Sequential.forward  # type: ignore[attr-defined]
FusedConv2d.forward.stands_for = nn.Conv2d.forward  # type: ignore[attr-defined]
FusedConv1d.forward.stands_for = nn.Conv1d.forward  # type: ignore[attr-defined]
