# SPDX-License-Identifier: BSD-3-Clause
"""The tensor between a fused convolution and its pixel shuffle.

:class:`LowResolution` stands for the convolution's output [N, C*r*r, P, Q] and holds the shuffled output
[N, C, P*r, Q*r]. It is an ordinary tensor to C++ and to autograd, but its memory is filled only when
something reads it:

- ``__torch_function__`` sees the functions of PyTorch. A pixel shuffle gets the shuffled output without any
  work, and so do elementwise activations. Every other function gets a plain tensor, a view of this one.
- ``__torch_dispatch__`` sees what reads or writes this tensor below autograd, including code that bypasses
  ``__torch_function__``, and gives it the memory.

The pending tensor has no history in autograd. Instead, the shuffled output is a differentiable function of
the :class:`LowResolution`, which is a differentiable function of the convolution's result. Gradients
therefore flow through the tensor itself, whatever gave it its history: the convolution, a
``torch.autograd.Function`` that returned it (a checkpoint, a reversible block), or ``requires_grad_()``.

:class:`Traced` is its counterpart in code that torch.compile traces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from .. import torch_compat
from ..torch_compat import tree_map, without_subclass_torch_function
from . import chain as chains
from .calls import ABOUT_ITSELF, METADATA, REPLACES_DATA, Call, call_of
from .chain import Activation

Step = nn.BatchNorm2d | Activation
P = ParamSpec("P")
T = TypeVar("T")


def with_versions(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` such that its result has a version counter, which inference mode would leave out."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return function(*args, **kwargs)
    with torch.inference_mode(False), torch.no_grad():
        return function(*args, **kwargs)


class Source(NamedTuple):
    """A call of a convolution, to compute again what is needed without all steps."""

    conv: nn.Conv1d | nn.Conv2d
    tensors: tuple[Tensor, Tensor, Tensor | None]  # input, weight, bias
    versions: tuple[int | None, ...]  # of the tensors at that time

    @classmethod
    def of(cls, conv: nn.Conv1d | nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Source:
        """That of a call at this moment."""
        tensors = input, weight, bias
        return cls(conv, tensors, tuple(map(_version, tensors)))

    def output(self, steps: tuple[Step, ...], dtype: torch.dtype) -> Tensor:
        """The convolution's output, [N, C*r*r, P, Q], after ``steps``, in the ``dtype`` of the call."""
        if torch_compat.is_any_autocast_enabled():  # which need not be the call's
            with torch.autocast(self.tensors[0].device.type, enabled=False):
                return self.output(steps, dtype)
        input, weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in self.tensors)
        assert input is not None and weight is not None
        if isinstance(self.conv, nn.Conv1d):
            output = nn.Conv1d._conv_forward(self.conv, input, weight, bias)
        else:
            output = nn.Conv2d._conv_forward(self.conv, input, weight, bias)
        for step in steps:
            if not isinstance(step, Activation):
                output = chains.normalised(output, step)
            else:
                slopes = None if step.weight is None else step.weight.to(dtype)
                output = step._replace(weight=slopes).apply(output)
        return output


class PendingOutput:
    """The output of a fused convolution, shuffled, with all ``steps`` done that are to come before that."""

    high: Tensor  # [N, C, P*r, Q*r]

    def __init__(self, factor: int, steps: tuple[Step, ...] = (), source: Source | None = None) -> None:
        self.factor = factor
        self.steps = steps
        self.source = source  # None where there are no steps
        self.taken_version: int | None = None  # that of ``high`` when it was taken first; None before

    def take(self) -> Tensor:
        """The shuffled output: itself the first time, then copies."""
        if self.taken_version is None:
            self.taken_version = self.high._version
            return self.high
        high = self.unchanged()
        return high.clone() if high is self.high else high

    def unchanged(self) -> Tensor:
        """The shuffled output to read; computed again if somebody has written to it."""
        if self.is_high_intact():
            return self.high
        if self.source is None:
            raise RuntimeError(_MOVED_ON.format("its result was"))
        output = self.again(len(self.steps))
        return pixel_shuffle(output, self.factor) if self.factor > 1 else output

    def is_high_intact(self) -> bool:
        """Whether nobody has written to the shuffled output."""
        return self.taken_version is None or self.taken_version == self.high._version

    def plain(self, done: int) -> Tensor:
        """The convolution's output, [N, C*r*r, P, Q], with the first ``done`` steps."""
        if done < len(self.steps):
            return self.again(done)
        return pixel_unshuffle(self.unchanged(), self.factor) if self.factor > 1 else self.take()

    def again(self, done: int) -> Tensor:
        """Convolution and the first ``done`` steps, from tensors that are what they were."""
        assert self.source is not None
        if not self.is_source_intact(self.source):
            raise RuntimeError(_MOVED_ON.format("the convolution's input or weight was, or may have been,"))
        return self.source.output(self.steps[:done], self.high.dtype)

    def is_source_intact(self, source: Source) -> bool:
        """Whether nobody has written to the tensors that the output was computed from.

        Tensors made in inference mode have no version. There the same call has to give the same values.
        """
        pairs = [(tensor, version) for tensor, version in zip(*source[1:], strict=True) if tensor is not None]
        if any(version is not None and version != tensor._version for tensor, version in pairs):
            return False
        if all(version is not None for _, version in pairs):
            return True
        if torch.compiler.is_compiling() or not self.is_high_intact():
            return False
        input, weight, bias = source.tensors
        norm = next((step for step in self.steps if not isinstance(step, Activation)), None)
        before = next((step for step in self.steps if isinstance(step, Activation)), None)
        high = chains.run(input, source.conv, self.factor, norm, before, None, (weight, bias))
        if high is None or high.dtype != self.high.dtype:
            return False
        return torch.allclose(high, self.high, rtol=0, atol=0, equal_nan=True)

    def lr_shape(self) -> tuple[int, ...]:
        """[N, C*r*r, P, Q], without N where the input has none; of a signal [N, C, P]."""
        r = self.factor
        if r == 1:
            return tuple(self.high.shape)
        *batch, channels, height, width = self.high.shape
        return (*batch, channels * r * r, height // r, width // r)


_WHAT_TO_DO = (
    "Nothing like it was seen when the model was replaced. Undo that with "
    "fused_subpixel.restore_pixel_shuffle(model), or replace it with example_inputs that take this path"
)
_MOVED_ON = (
    "the output of a fused convolution is used in another way than when the model was replaced, after {} "
    f"changed in place. {_WHAT_TO_DO}"
)


def _version(tensor: Tensor | None) -> int | None:
    """A number that changes when the tensor is written to, or None where there is none."""
    if tensor is None or torch.compiler.is_dynamo_compiling() or tensor.is_inference():
        return None
    return tensor._version


class LowResolution(Tensor):
    """What a :class:`FusedConv` returns; it stands for the convolution's output [N, C*r*r, P, Q]."""

    pending: PendingOutput
    done: int  # how many of the steps pending this tensor stands for
    memory: Tensor | None  # the plain output, once something has asked for it: from then on the only truth

    @staticmethod
    def of(high: Tensor, pending: PendingOutput) -> Tensor:
        """The tensor whose shuffled output is ``high``, as a differentiable function of ``high``."""
        if high.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            pending.high = high.detach()
            low: Tensor = _Unshuffle.apply(high, pending, None)
            return low
        pending.high = high
        return LowResolution.holding(pending, 0)

    @staticmethod
    def holding(pending: PendingOutput, done: int) -> LowResolution:
        """A tensor without history that stands for the convolution's output after ``done`` steps."""
        high, shape, strides = pending.high, pending.lr_shape(), None
        if len(shape) == 4 and not high.is_contiguous():  # as nn.Conv2d would return it
            _, channels, height, width = shape
            strides = (channels * height * width, 1, width * channels, channels)
        self: Any = Tensor._make_wrapper_subclass(
            LowResolution, shape, strides=strides, dtype=high.dtype, device=high.device
        )
        torch_compat.throw_on_mutable_data_ptr(self)  # rather than give out a null pointer
        self.pending, self.done, self.memory = pending, done, None
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply ``func``; where torch.compile traces a part behind the convolution, its graph breaks here."""
        if torch.compiler.is_dynamo_compiling():
            return torch_compat.disabled_in_dynamo(cls.apply)(func, args, kwargs or {})
        return cls.apply(func, args, kwargs or {})

    @staticmethod
    def apply(func: Any, args: Any, kwargs: Any) -> Any:
        """Shuffle, or do the next step, if ``func`` is that; else apply ``func`` to the plain output."""
        self = args[0] if args else None
        if func in METADATA or func in ABOUT_ITSELF:
            with without_subclass_torch_function():
                return func(*args, **kwargs)
        if func in REPLACES_DATA:
            raise RuntimeError(
                f"the output of a fused convolution cannot be given other memory. {_WHAT_TO_DO}"
            )
        if isinstance(self, LowResolution) and self.memory is None and not torch_compat.has_transforms():
            pending = self.pending
            if func is torch.pixel_shuffle:
                factor = args[1] if len(args) > 1 else kwargs.get("upscale_factor")
                if self.done == len(pending.steps) and factor == pending.factor:
                    return self.shuffled(pending.take())
            elif (call := call_of(func, args, kwargs)) is not None and (moved := self.move(call)) is not None:
                return moved
        plain: list[tuple[Tensor, LowResolution]] = []

        def view(value: Any) -> Any:
            if not isinstance(value, LowResolution):
                return value
            plain.append((value.plain(), value))
            return plain[-1][0]

        args, kwargs = tree_map(view, (args, kwargs))
        result = func(*args, **kwargs)
        return next((low for tensor, low in plain if result is tensor), result)  # in place

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Apply an operation below autograd to the memory."""
        args, kwargs = tree_map(
            lambda value: value.filled() if isinstance(value, LowResolution) else value, (args, kwargs or {})
        )
        return func(*args, **kwargs)

    def shuffled(self, high: Tensor) -> Tensor:
        """``high``, which is this tensor shuffled, as a differentiable function of this tensor."""
        if not (torch.is_grad_enabled() and self.requires_grad):
            return high
        if type(high) is Tensor:
            output: Tensor = _Shuffle.apply(self, high)
            return output
        # Of another class: what an autograd function makes of such a tensor would count as a view.
        wrapped: Tensor = _Shuffle.apply(self, high.as_subclass(Tensor)).as_subclass(type(high))
        vars(wrapped).update(vars(high))
        return wrapped

    def wants_gradient(self, step: Step) -> bool:
        """Whether autograd has to see a step, which was done without it."""
        if not torch.is_grad_enabled():
            return False
        tensors = (self, step.weight, None if isinstance(step, Activation) else step.bias)
        return any(tensor is not None and tensor.requires_grad for tensor in tensors)

    def move(self, call: Call) -> Tensor | None:
        """This tensor after a step, or None if the step cannot be done to it."""
        pending, done = self.pending, self.done
        if done < len(pending.steps):
            if not call.does(pending.steps[done]) or self.wants_gradient(pending.steps[done]):
                return None
            last = pending.factor == 1 and done + 1 == len(pending.steps)
            if not call.in_place:
                return _as_elementwise(pending.take()) if last else LowResolution.holding(pending, done + 1)
            self.done += 1
            return self.filled() if last else self
        if pending.factor == 1 or call.activation is None or not call.activation.commutes():
            return None
        high = with_versions(call.activation.apply, self.shuffled(pending.unchanged()))
        pending = PendingOutput(pending.factor)
        if not call.in_place:
            return LowResolution.of(high, pending)
        if not (torch.is_grad_enabled() and high.requires_grad):
            pending.high = high
            self.pending, self.done = pending, 0
            return self
        pending.high = high.detach()
        low: Tensor = _Unshuffle.apply(high, pending, self)
        return low

    def plain(self) -> Tensor:
        """The convolution's output after the steps that this tensor stands for: a view of this tensor."""
        if torch.compiler.is_compiling():  # for an export: see of(), the pending tensor has the history
            if self.memory is None:
                self.memory = self.pending.plain(self.done)
            return self.memory
        with without_subclass_torch_function():
            return self.view_as(self)

    def filled(self) -> Tensor:
        """The memory of this tensor, with its values."""
        if self.memory is None:
            with without_subclass_torch_function():
                shape, strides = self.shape, self.stride()
            with torch.inference_mode(False), torch.no_grad():
                values = self.pending.plain(self.done)
                if values.stride() != strides:  # on which autograd relies for the gradients of views
                    values = values.new_empty_strided(shape, strides).copy_(values)
            self.memory = values
        return self.memory


def _as_elementwise(output: Tensor) -> Tensor:
    """An activation's output, with the strides that PyTorch gives it where the shape leaves a choice."""
    if output.dim() == 4 and output.stride(1) == 1 and output.is_contiguous():
        _, channels, height, width = output.shape
        return output.as_strided(output.shape, (channels * height * width, height * width, width, 1))
    return output


# ---- in autograd -------------------------------------------------------------------------------------------


class _Unshuffle(torch.autograd.Function):
    """:class:`LowResolution` as a function of the shuffled output."""

    @staticmethod
    def forward(ctx: Any, high: Tensor, pending: PendingOutput, overwritten: LowResolution | None) -> Tensor:
        ctx.factor = pending.factor
        if overwritten is None:
            return LowResolution.holding(pending, 0)
        ctx.mark_dirty(overwritten)
        overwritten.pending, overwritten.done = pending, 0
        return overwritten

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return pixel_shuffle(grad, ctx.factor), None, None


class _Shuffle(torch.autograd.Function):
    """The shuffled output as a function of :class:`LowResolution`."""

    @staticmethod
    def forward(ctx: Any, low: LowResolution, high: Tensor) -> Tensor:
        ctx.factor = low.pending.factor
        return high.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ((origin, _), *_) = ctx.next_functions
        if isinstance(origin, _Unshuffle._backward_cls):  # which shuffles it back, without any work
            return LowResolution.of(grad, PendingOutput(ctx.factor)), None
        return pixel_unshuffle(grad, ctx.factor), None


# ---- in compiled code --------------------------------------------------------------------------------------


class Traced(Tensor):
    """What a :class:`FusedConv` returns while torch.compile traces it.

    It is the plain output itself, which compilers do not compute where nothing uses it. So it may cross a
    graph break: the code behind the break gets a tensor with the right values and history.
    """

    plain: Tensor  # the same, without the subclass: some compilers refuse subclasses
    high: Tensor | None  # [N, C, P*r, Q*r]: this tensor, shuffled; None once it may be out of date
    factor: int

    @staticmethod
    def of(high: Tensor, factor: int) -> Traced:
        """The tensor whose shuffled output is ``high``."""
        plain = pixel_unshuffle(high, factor)
        self: Traced = plain.as_subclass(Traced)
        self.plain, self.high, self.factor = plain, high, factor
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give a pixel shuffle what is pending, and do activations to that."""
        kwargs = kwargs or {}
        self = args[0] if args else None
        if isinstance(self, Traced) and self.high is not None and func not in METADATA:
            if not torch.compiler.is_dynamo_compiling():
                with without_subclass_torch_function():
                    version, result = self._version, func(*args, **kwargs)
                    if self._version != version or not isinstance(result, _ANSWERS):
                        self.high = None  # it may be out of date, or be some time
                return result
            high, self.high = self.high, None  # either may be written to from now on
            if self.has_another_history():
                pass
            elif func is torch.pixel_shuffle:
                factor = args[1] if len(args) > 1 else kwargs.get("upscale_factor")
                if factor == self.factor:
                    return high
            else:
                call = call_of(func, args, kwargs)
                if call is not None and call.activation is not None and call.activation.commutes():
                    activated = call.activation.apply(high)
                    if not call.in_place:
                        self.high = high
                        return Traced.of(activated, self.factor)
                    func(self.plain, *args[1:], **kwargs)
                    self.high = activated
                    return self
        args, kwargs = tree_map(_untraced, (args, kwargs))
        with without_subclass_torch_function():
            return func(*args, **kwargs)

    def has_another_history(self) -> bool:
        """Whether a ``torch.autograd.Function`` that is not compiled has returned this tensor."""
        with without_subclass_torch_function():
            return self.requires_grad != self.plain.requires_grad


# Results of functions that give nothing away by which the tensor could be changed later.
_ANSWERS = (bool, int, tuple, torch.dtype, torch.device, torch.layout)


def _untraced(value: Any) -> Any:
    return value.plain if isinstance(value, Traced) and not value.has_another_history() else value
