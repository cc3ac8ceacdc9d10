# SPDX-License-Identifier: BSD-3-Clause
"""The convolutions of a model on the fused kernels, where these are measured to be faster."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle
from torch.nn.parameter import is_lazy

from ..ops.geometry import DTYPES
from . import chain as chains
from . import conv_transpose, timing, trace
from .arguments import Model, as_arguments, check_model, copied
from .chain import Activation
from .conv_transpose import FUSED
from .fused_modules import FusedConv1d, FusedConv2d, Plan, fuse_class
from .replace import Replacer, describe, how, only_reparametrising_hooks
from .report import ALREADY_REPLACED, LEFT_ALONE, REPLACED, Report, Site, WholeModel

_WORTH_IT = 0.97  # of PyTorch's time: below what measurements differ by, a change is not worth it
_SHARE_OF_LAYERS = 0.6  # of the seconds; the rest is for the whole model


@overload
def accelerate(
    model: Model, example_inputs: Any, *, inplace: bool = False, seconds: float = 20.0, progress: bool = True,
    return_report: Literal[False] = False,
) -> Model: ...  # fmt: skip
@overload
def accelerate(
    model: Model, example_inputs: Any, *, inplace: bool = False, seconds: float = 20.0, progress: bool = True,
    return_report: Literal[True],
) -> tuple[Model, Report]: ...  # fmt: skip
def accelerate(
    model: Model,
    example_inputs: Any,
    *,
    inplace: bool = False,
    seconds: float = 20.0,
    progress: bool = True,
    return_report: bool = False,
) -> Model | tuple[Model, Report]:
    """Let each convolution of a model run on the fused kernels where these are measured to be faster.

    Looked at are ``nn.Conv2d`` - with the pixel shuffle, or the batch norm in eval mode and the activation,
    that follow - ``nn.Conv1d``, ``nn.ConvTranspose1d`` and ``nn.ConvTranspose2d``. The model is run on
    ``example_inputs`` to see what follows each layer and on what sizes it works. Then each layer is computed
    both ways, in turns. It is replaced where the fused kernels take less time, and left to PyTorch where they
    do not. At the end the whole model is measured both ways; where it is slower than before, all is undone.

    Layers stay the same objects, of a subclass of their class; parameters, buffers and the keys of
    ``state_dict()`` stay what they are. :func:`restore` undoes it. Where autograd needs a gradient of a plain
    convolution, PyTorch computes it as before. Times hold for the machine, the number of threads and the
    sizes that they are measured with. More in docs/surgery.md.

    Args:
        model: any module, best in eval mode: a batch norm is folded in eval mode only.
        example_inputs: what the model is called with, of the size that matters: a tensor, a tuple of
            positional arguments or a dict of keyword arguments. The runs are without gradients, and leave
            buffers, attributes and random numbers as they were.
        inplace: whether to change ``model`` itself; by default a deep copy is changed.
        seconds: how long to measure, roughly. Each kind of layer is measured three times at least.
        progress: show a progress bar, if tqdm is installed and the output is a terminal.
        return_report: also return a :class:`Report`: for each layer both times and the reason, and both times
            and the peak memory of the whole model.

    Returns:
        The model, or (model, report). Where nothing was replaced, a ``UserWarning`` says so.

    Raises:
        TypeError: ``model`` is no module, or ``example_inputs`` none of the above.
        ValueError: ``seconds`` is not positive, or the model cannot be copied, is scripted, uninitialised or
            on the meta device.
        Exception: the model's own, if it rejects ``example_inputs``; it is then as it was.
    """
    check_model(model)
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"seconds: expected a number, got {seconds!r} of type {type(seconds).__name__}")
    if not seconds > 0:
        raise ValueError(f"seconds: expected a positive number, got {seconds}")
    inputs = as_arguments(example_inputs)
    if inputs is None:
        raise TypeError("example_inputs: expected what the model is called with, got None")
    if any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise ValueError("model: has uninitialized lazy modules, run it once first")
    if trace.has_meta_tensors(model, inputs):
        raise ValueError("model: tensors on the meta device cannot be computed with, nor measured")
    model = model if inplace else copied(model)

    accelerator = Accelerator(model, seconds, progress)
    try:
        report = accelerator.accelerate(inputs)
    except BaseException:
        accelerator.undo()
        raise
    if not (report.replaced or report.already_replaced):
        warnings.warn(f"accelerate changed nothing: {report.summary}", UserWarning, stacklevel=2)
    return (model, report) if return_report else model


class Candidate(NamedTuple):
    """A layer that could be replaced, and its ways to compute one input."""

    module: nn.Module
    inputs: tuple[trace.TensorLike, ...]  # of its calls
    key: Any  # equal where times are
    before: Callable[[Tensor], object]
    after: Callable[[Tensor], object]
    layers: str
    how: str


class Accelerator(Replacer):
    """One call of :func:`accelerate`: finds the layers, measures, changes classes, checks, reports."""

    def __init__(self, model: nn.Module, seconds: float, progress: bool) -> None:
        super().__init__(model, fold=not model.training, unshuffle=False)
        self.seconds, self.progress = seconds, progress
        self.layers: dict[nn.Module, Site] = {}

    def accelerate(self, inputs: Any) -> Report:
        """Do all of it."""
        self.look_at_replaced()
        recorder, expected = self.run(inputs, {})
        self.look_at_run(recorder)
        candidates = [self.candidate_of_conv(conv, plan, recorder) for conv, plan in self.convs.items()]
        candidates += [*self.plain_convs(recorder), *self.other_convs(recorder)]
        self.choose(candidates)
        self.change()
        note, whole = "", None
        if self.changed:
            note = self.check(inputs, {}, recorder, expected)
        if self.changed:
            whole = self.measure_whole(inputs)
            if whole.after_ms > whole.before_ms:
                note = "All was undone: the whole model was not faster"
                self.undo()
        if note:
            for module, site in self.layers.items():
                if site.status == REPLACED:
                    self.layers[module] = dataclasses.replace(
                        site, status=LEFT_ALONE, reason="undone, see below"
                    )
        sites = [self.layers[module] for module in self.names if module in self.layers]
        return Report(sites, note, whole)

    # -- finding

    def note(self, module: nn.Module, layers: str, status: str, reason: str) -> None:
        """Note what becomes of a layer that is not measured."""
        self.layers[module] = Site(self.names[module], layers, status, reason)

    def plain_convs(self, recorder: trace.Recorder) -> list[Candidate]:
        """Convolutions that no pixel shuffle follows."""
        runs: dict[nn.Conv2d, list[trace.Run]] = {}
        for run in recorder.runs:
            runs.setdefault(run.conv, []).append(run)
        found = []
        for module in self.names:
            if not isinstance(module, nn.Conv2d) or module in self.convs:
                continue
            if isinstance(module, FusedConv2d):
                self.note(module, describe(module), ALREADY_REPLACED, how(module.subpixel))
                continue
            reason = self.why_not(module, nn.Conv2d, module in runs)
            if reason is not None:
                self.note(module, describe(module), LEFT_ALONE, reason)
                continue
            found.append(self.candidate_of_conv(module, self.plan_of(module, runs[module]), recorder))
        return found

    def why_not(self, module: Any, base: type[nn.Module], runs: bool) -> str | None:
        """Why a layer cannot be replaced."""
        reason = chains.why_own_forward(module, base)
        if reason is None and not only_reparametrising_hooks(module):
            reason = f"{type(module).__name__} has hooks"
        if reason is None and not runs:
            reason = "did not run on the example inputs"
        if reason is None and module.weight.dtype not in DTYPES:
            reason = f"no kernel computes {module.weight.dtype}"
        if reason is None and module.weight.is_cuda:
            reason = "on a GPU plain convolutions are PyTorch's"
        return reason

    def plan_of(self, conv: nn.Conv2d, runs: list[trace.Run]) -> Plan:
        """What can be done at once with a convolution: what follows it in all its calls."""
        followings = [run.following() for run in runs]
        steps = list(followings[0])
        norm, before = None, None
        if steps and steps[0].norm:
            step = steps.pop(0)
            norm = next((m for m in self.names if isinstance(m, nn.BatchNorm2d) and step.does(m)), None)
            if (
                norm is None
                or chains.why_altered(norm, nn.BatchNorm2d)
                or chains.why_not_folded(norm, self.fold)
            ):
                return Plan(1)
        if steps and steps[0].activation is not None:
            before = self.module_of(steps[0].activation)
            weight = before.weight if before is not None else None
            if weight is not None and (
                isinstance(before, Activation) or weight.numel() not in (1, conv.out_channels)
            ):
                before = None
        plan = Plan(1, norm, before)
        expected = plan.steps()
        same = all(
            len(calls) >= len(expected)
            and all(call.does(step) for call, step in zip(calls, expected, strict=False))
            for calls in followings
        )
        return plan if same else Plan(1)

    def candidate_of_conv(self, conv: nn.Conv2d, plan: Plan, recorder: trace.Recorder) -> Candidate:
        """A convolution with what follows it."""

        def before(input: Tensor) -> Tensor:
            output = nn.Conv2d.forward(conv, input)
            for step in plan.steps():
                output = step.apply(output) if isinstance(step, Activation) else step(output)
            return output if plan.factor == 1 else pixel_shuffle(output, plan.factor)

        def after(input: Tensor) -> Tensor | None:
            return chains.run(input, conv, plan.factor, plan.norm, plan.activation())

        self.convs[conv] = plan
        inputs = tuple(run.input for run in recorder.runs if run.conv is conv)
        activation = plan.activation()
        key = (_options(conv), plan.factor, plan.norm is None, activation and activation.name)
        layers = describe(conv) if plan.factor == 1 else f"{describe(conv)} -> PixelShuffle({plan.factor})"
        return Candidate(conv, inputs, key, before, after, layers, how(plan))

    def other_convs(self, recorder: trace.Recorder) -> list[Candidate]:
        """1-D and transposed convolutions."""
        found: list[Candidate] = []
        for module in self.names:
            if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
                layers, reason = conv_transpose.layers_of(module), conv_transpose.why_not(module)
                if type(module) in FUSED.values():
                    self.note(module, layers, ALREADY_REPLACED, conv_transpose.how(module))
                    continue
            elif isinstance(module, nn.Conv1d):
                layers, reason = _describe_conv1d(module), self.why_not(module, nn.Conv1d, True)
                if isinstance(module, FusedConv1d):
                    self.note(module, layers, ALREADY_REPLACED, "runs on the fused kernels")
                    continue
            else:
                continue
            if reason is None and module not in recorder.inputs:
                reason = "did not run on the example inputs"
            if reason is not None:
                self.note(module, layers, LEFT_ALONE, reason)
                continue
            found.append(self.candidate_of_other(module, layers, tuple(recorder.inputs[module])))
        return found

    def candidate_of_other(self, module: Any, layers: str, inputs: tuple[trace.TensorLike, ...]) -> Candidate:
        """A 1-D or transposed convolution."""
        if isinstance(module, nn.Conv1d):
            return Candidate(
                module, inputs, _options(module), lambda input: nn.Conv1d.forward(module, input),
                lambda input: chains.run_conv1d(input, module), layers, "runs on the fused kernels",
            )  # fmt: skip
        pytorchs, fused = type(module).forward, FUSED[type(module)]._fused  # type: ignore[attr-defined]
        arguments = (
            module.stride, module.padding, module.output_padding, module.groups, module.dilation,
        )  # fmt: skip
        return Candidate(
            module, inputs, _options(module), lambda input: pytorchs(module, input),
            lambda input: fused(input, module.weight, module.bias, *arguments), layers,
            conv_transpose.how(module),
        )  # fmt: skip

    # -- measuring

    def choose(self, candidates: list[Candidate]) -> None:
        """Measure each candidate, and keep those that are faster."""
        measured: dict[Any, Candidate] = {}
        for candidate in candidates:
            for like in dict.fromkeys(candidate.inputs):
                measured.setdefault((candidate.key, like), candidate)
        share = _SHARE_OF_LAYERS * self.seconds / max(len(measured), 1)
        times: dict[Any, timing.Comparison] = {}
        with torch.no_grad():
            for key in timing.with_progress(measured, len(measured), self.progress):
                candidate = measured[key]
                input = key[1].make()
                times[key] = timing.compare(
                    functools.partial(candidate.before, input),
                    functools.partial(candidate.after, input),
                    share,
                )
        for candidate in candidates:
            each = [times[candidate.key, like] for like in candidate.inputs]
            before, after = sum(one.before for one in each), sum(one.after for one in each)
            faster = after < _WORTH_IT * before
            self.layers[candidate.module] = Site(
                self.names[candidate.module],
                candidate.layers,
                REPLACED if faster else LEFT_ALONE,
                candidate.how if faster else "the fused kernels are not faster",
                before_ms=1e3 * before,
                after_ms=1e3 * after,
            )
            if not faster and isinstance(candidate.module, nn.Conv2d):
                del self.convs[candidate.module]

    def measure_whole(self, inputs: Any) -> WholeModel:
        """The whole model, both ways."""
        changed = [(module, type(module), dict(module.__dict__)) for module, *_ in self.changed]
        originals = list(self.changed)

        def run(states: list[Any]) -> Callable[[], object]:
            def once() -> object:
                for module, kind, attributes in states:
                    module.__class__ = kind
                    module.__dict__.clear()
                    module.__dict__.update(attributes)
                return trace.call(self.model, inputs)

            return once

        inputs = trace.copied(inputs)
        before, after = run(originals), run(changed)
        with trace.unchanged(self.model):
            times = timing.compare(before, after, (1 - _SHARE_OF_LAYERS) * self.seconds)
            peaks = timing.peak_bytes(before), timing.peak_bytes(after)
        return WholeModel(1e3 * times.before, 1e3 * times.after, *peaks)

    # -- changing

    def change(self) -> None:
        """Change the classes of what was chosen."""
        super().change()
        for module, site in self.layers.items():
            if site.status != REPLACED or module in self.convs:
                continue
            self.remember(module)
            if isinstance(module, nn.Conv1d):
                fuse_class(module)
            else:
                module.__class__ = FUSED[type(module)]


def _options(conv: Any) -> Any:
    """What the time of a convolution depends on, beside its input."""
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    options = tuple(getattr(conv, name) for name in names)
    return (type(conv).__name__, conv.bias is None, conv.weight.dtype, conv.weight.stride(), *options,
            getattr(conv, "output_padding", None))  # fmt: skip


def _describe_conv1d(conv: nn.Conv1d) -> str:
    options = f", dilation {conv.dilation[0]}" if conv.dilation[0] > 1 else ""
    options += f", stride {conv.stride[0]}" if conv.stride[0] > 1 else ""
    return f"Conv1d({conv.in_channels}, {conv.out_channels}, {conv.kernel_size[0]}{options})"
