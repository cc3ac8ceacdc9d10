# SPDX-License-Identifier: BSD-3-Clause
"""The convolutions of a model on the fused kernels, where these are measured to be faster."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle
from torch.nn.parameter import is_lazy

from ..ops.geometry import DTYPES
from . import chain as chains
from . import conv_transpose, timing, trace, training
from .arguments import Model, as_arguments, check_model, copied
from .chain import Activation
from .conv_transpose import FUSED
from .fused_modules import FusedConv, FusedSequential, Plan, twin
from .replace import Replacer, describe, how, only_reparametrising_hooks, weight_of
from .report import ALREADY_REPLACED, LEFT_ALONE, REPLACED, TRANSPOSED, Report, Site, Status, WholeModel

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

    It looks at ``nn.ConvTranspose1d``, ``2d`` and ``3d``, at ``nn.Conv1d`` together with the activation that
    follows, and at ``nn.Conv2d`` together with the pixel shuffle, or the batch norm in eval
    mode and the activation. It runs the model on ``example_inputs`` to see what follows each layer and which
    sizes the layer gets. It then measures each layer both ways, in turns, and replaces it if the fused
    kernels take less time. At the end it measures the whole model both ways, and undoes everything if the
    model is slower than before. It measures with PyTorch's settings of the moment: on CPUs, 3x3 kernels are
    faster where ``torch.backends.mkldnn.conv.fp32_precision`` allows less than exact float32.

    Layers stay the same objects, of a subclass of their class; parameters, buffers and the keys of
    ``state_dict()`` stay what they are. :func:`restore` undoes it. Where gradients are needed, and with a
    batch norm in training mode, a plain convolution runs alone and its activation after it; on GPUs PyTorch
    computes it then. Times hold for the machine, the number of threads and the sizes that they are measured
    with. More in docs/surgery.md.

    Where the model is in training mode and can be trained, and gradients are enabled, all times are those of
    a training step, the run and its backward pass: layers whose gradients gain are replaced too.

    Args:
        model: any module, in eval mode to be applied, in training mode to be trained. A batch norm is folded
            in eval mode only.
        example_inputs: what the model is called with, of the size that matters: a tensor, a tuple of
            positional arguments or a dict of keyword arguments. The runs leave gradients, buffers,
            attributes and random numbers as they were.
        inplace: whether to change ``model`` itself; by default a deep copy is changed.
        seconds: how long to measure, roughly. Each kind of layer is measured three times at least.
        progress: show a progress bar, if tqdm is installed and the output is a terminal.
        return_report: also return a :class:`Report`: for each layer both times and the reason, and both times
            and the peak memory of the whole model, as the size of its tensors.

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
    after: Callable[[Tensor], object]  # as the replaced module will, with all that Python does in it
    layers: str
    how: str


def in_training(candidate: Candidate, differentiated: bool) -> Candidate:
    """Its ways to compute a training step; ``differentiated``: including the gradient of its input."""
    parameters = training.trained_parameters(candidate.module)

    def step(run: Callable[[Tensor], object], input: Tensor) -> object:
        input = input.detach().requires_grad_(differentiated)
        wanted = [*parameters, input] if differentiated else parameters
        return training.step(functools.partial(run, input), wanted)()

    return candidate._replace(
        key=(candidate.key, differentiated, len(parameters)),
        before=functools.partial(step, candidate.before),
        after=functools.partial(step, candidate.after),
    )


class Accelerator(Replacer):
    """One call of :func:`accelerate`: finds the layers, measures, changes classes, checks, reports."""

    def __init__(self, model: nn.Module, seconds: float, progress: bool) -> None:
        super().__init__(model, fold=not model.training, unshuffle=False)
        self.seconds, self.progress = seconds, progress
        self.trained = training.is_trained(model)
        self.layers: dict[nn.Module, Site] = {}

    def accelerate(self, inputs: Any) -> Report:
        """Do all of it."""
        chained: trace.Chained = {m: set() for m in self.names if isinstance(m, FusedSequential)}
        recorder, expected = self.run(inputs, chained)
        self.look_at_run(recorder)
        candidates = [*self.convs_of(recorder), *self.transposed_convs(recorder)]
        if self.trained:
            modules = {candidate.module for candidate in candidates}
            differentiated = training.differentiated_inputs(self.model, modules, inputs)
            self.trained = differentiated is not None
            if differentiated is not None:
                candidates = [in_training(one, one.module in differentiated) for one in candidates]
        with trace.unchanged(self.model):
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

    def note(self, module: nn.Module, layers: str, status: Status, reason: str) -> None:
        """Note what becomes of a layer that is not measured."""
        self.layers[module] = Site(self.names[module], layers, status, reason)

    def convs_of(self, recorder: trace.Recorder) -> list[Candidate]:
        """Convolutions that are not transposed."""
        runs: dict[Any, list[trace.Run]] = {}
        for run in (*recorder.runs, *recorder.signal_runs):
            runs.setdefault(run.conv, []).append(run)
        chained = {found.conv: how(found) for found in recorder.chain_runs}
        found = []
        for module in self.names:
            if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
                continue
            plan = self.convs.pop(module, None)  # with a pixel shuffle, as look_at_run has found
            if isinstance(module, FusedConv):
                self.note(module, describe(module), ALREADY_REPLACED, how(module.subpixel))
                continue
            if module in chained and module not in runs:
                self.note(module, describe(module), ALREADY_REPLACED, chained[module])
                continue
            inputs = [run.input for run in runs.get(module, [])]
            base = nn.Conv1d if isinstance(module, nn.Conv1d) else nn.Conv2d
            reason = self.why_not(module, base, inputs, plan is not None)
            if reason is None:
                plan = plan or self.plan_of(module, runs[module])
                found.append(self.candidate_of_conv(module, base, plan, inputs))
            else:
                self.note(module, describe(module), LEFT_ALONE, reason)
        return found

    def why_not(
        self, module: Any, base: type[nn.Module], inputs: Sequence[trace.TensorLike | None], shuffled: bool
    ) -> str | None:
        """Why a layer that ran on ``inputs`` cannot be replaced."""
        reason = chains.why_own_forward(module, base)
        if reason is None and not only_reparametrising_hooks(module):
            reason = f"{type(module).__name__} has hooks"
        return reason or self.why_not_computed(module, inputs, shuffled)

    def why_not_computed(
        self, module: Any, inputs: Sequence[trace.TensorLike | None], everywhere: bool
    ) -> str | None:
        """Why no kernel computes a layer; ``everywhere``: whether kernels for GPUs are there too."""
        if not inputs:
            return "did not run on the example inputs"
        weight = weight_of(module)
        if weight is None:
            return "the model sets its weight in each call"
        if weight.dtype not in DTYPES:
            return f"no kernel computes {weight.dtype}"
        if None in inputs:
            return "its input is no tensor with strides"
        if weight.is_cuda and not everywhere:
            return "on a GPU plain convolutions are PyTorch's"
        return None

    def plan_of(self, conv: nn.Conv1d | nn.Conv2d, runs: list[trace.Run]) -> Plan:
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

    def candidate_of_conv(
        self, conv: nn.Conv1d | nn.Conv2d, base: Any, plan: Plan, inputs: Sequence[Any]
    ) -> Candidate:
        """A convolution with what follows it."""
        fused = twin(conv, subpixel=plan)

        def follow(output: Tensor) -> Tensor:
            for step in plan.steps():
                output = step.apply(output) if isinstance(step, Activation) else step(output)
            return output if plan.factor == 1 else pixel_shuffle(output, plan.factor)

        self.convs[conv] = plan
        activation = plan.activation()
        key = (_options(conv), plan.factor, plan.norm is None, activation and activation.name)
        layers = describe(conv) if plan.factor == 1 else f"{describe(conv)} -> PixelShuffle({plan.factor})"
        return Candidate(
            conv, tuple(inputs), key, lambda input: follow(base.forward(conv, input)),
            lambda input: follow(fused.forward(input)), layers, how(plan),
        )  # fmt: skip

    def transposed_convs(self, recorder: trace.Recorder) -> list[Candidate]:
        """Transposed convolutions."""
        found: list[Candidate] = []
        for module in self.names:
            if not isinstance(module, TRANSPOSED):
                continue
            inputs: Sequence[Any] = recorder.inputs.get(module, [])
            base: Any = next(kind for kind in TRANSPOSED if isinstance(module, kind))
            layers, kind = conv_transpose.layers_of(module), FUSED[base]
            how = conv_transpose.how(module)
            reason = conv_transpose.why_not(module) or self.why_not_computed(module, inputs, True)
            if type(module) is kind:
                self.note(module, layers, ALREADY_REPLACED, how)
            elif reason is not None:
                self.note(module, layers, LEFT_ALONE, reason)
            else:
                before, after = functools.partial(base.forward, module), twin(module, kind).forward
                found.append(Candidate(module, tuple(inputs), _options(module), before, after, layers, how))
        return found

    # -- measuring

    def choose(self, candidates: list[Candidate]) -> None:
        """Measure each candidate, and keep those that are faster."""
        measured: dict[Any, Candidate] = {}
        for candidate in candidates:
            for like in dict.fromkeys(candidate.inputs):
                measured.setdefault((candidate.key, like), candidate)
        share = _SHARE_OF_LAYERS * self.seconds / max(len(measured), 1)
        times: dict[Any, timing.Comparison] = {}
        for key in timing.with_progress(measured, len(measured), self.progress):
            candidate, like = measured[key], key[1]
            input = like.make()
            with torch.no_grad(), like.context():
                times[key] = timing.compare(
                    functools.partial(candidate.before, input),
                    functools.partial(candidate.after, input),
                    share,
                    [like.device],
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
            if not faster and isinstance(candidate.module, (nn.Conv1d, nn.Conv2d)):
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
                return trace.call(self.model, trace.copied(inputs), gradients=self.trained)

            return once

        inputs = trace.copied(inputs)
        before, after = run(originals), run(changed)
        if self.trained:
            wanted = training.trained_parameters(self.model)
            before, after = training.step(before, wanted), training.step(after, wanted)
        devices = trace.devices_of(self.model, inputs)
        with trace.unchanged(self.model):
            times = timing.compare(before, after, (1 - _SHARE_OF_LAYERS) * self.seconds, devices)
            peaks = timing.peak_bytes(before), timing.peak_bytes(after)
        return WholeModel(1e3 * times.before, 1e3 * times.after, *peaks, training=self.trained)

    # -- changing

    def change(self) -> None:
        """Change the classes of what was chosen."""
        super().change()
        for module, site in self.layers.items():
            if site.status != REPLACED or module in self.convs:
                continue
            self.remember(module)
            module.__class__ = FUSED[type(module)]


def _options(conv: Any) -> Any:
    """What the time of a convolution depends on, beside its input."""
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "output_padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    weight: Any = weight_of(conv)
    options = (repr(getattr(conv, name)) for name in names)
    return (type(conv).__name__, conv.bias is None, weight.dtype, weight.stride(), *options)
