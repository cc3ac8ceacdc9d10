# SPDX-License-Identifier: BSD-3-Clause
"""Running a model once to see what becomes of each convolution's output, and leaving no trace of the run."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import gc
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from ..torch_compat import tree_leaves, tree_map, without_torch_function
from . import chain as chains
from .calls import METADATA, Call, call_of
from .fused_modules import run_chain
from .low_resolution import LowResolution
from .report import TRANSPOSED

Chained = dict[nn.Sequential, set[nn.Conv2d]]  # Sequentials, and the convolutions of their chains


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has a shape, strides and values."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta


class TensorLike(NamedTuple):
    """What a tensor like another one is made from."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    autocast: torch.dtype | None  # what the call that got the tensor computes in, if autocast decides that

    @classmethod
    def of(cls, tensor: Any) -> TensorLike | None:
        """That of ``tensor``, or None where it is none of a shape and strides."""
        if not isinstance(tensor, Tensor) or not _is_plain(tensor):
            return None
        kind, autocast = tensor.device.type, None
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            autocast = torch.get_autocast_dtype(kind)
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, autocast)

    def make(self) -> Tensor:
        """A tensor of random values; elements that share memory, as after expand(), do so again."""
        sizes = zip(self.shape, self.stride, strict=True)
        elements = 0 if 0 in self.shape else 1 + sum((size - 1) * stride for size, stride in sizes)
        memory = torch.randn(elements, dtype=self.dtype, device=self.device)
        return memory.as_strided(self.shape, self.stride)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast of the call."""
        kind = self.device.type
        if not torch.amp.is_autocast_available(kind):
            return contextlib.nullcontext()
        return torch.autocast(kind, self.autocast, self.autocast is not None)


@dataclasses.dataclass(eq=False)
class Run:
    """One call of a convolution, and what its output went through."""

    conv: nn.Conv1d | nn.Conv2d
    input: TensorLike | None
    input_size: int  # in bytes, as the next
    output_size: int
    in_sequential: bool  # whether a Sequential ran it that has a chain with it
    steps: tuple[Call, ...] = ()
    factor: int | None = None  # of the shuffle at the end
    # the modules that shuffled it, None for the function alone
    shuffles: list[nn.Module | None] = dataclasses.field(default_factory=list)
    fused: bool = False  # whether the shuffle got a LowResolution
    others: list[str] = dataclasses.field(default_factory=list)  # what else was done with the output
    trail: _Trail | None = None  # of the output

    def following(self) -> tuple[Call, ...]:
        """The steps that follow, as far as nothing else uses what they are applied to."""
        steps: tuple[Call, ...] = ()
        trail = self.trail
        while trail is not None and trail.uses == 1 and trail.next is not None:
            trail = trail.next
            steps = trail.steps
        return steps


@dataclasses.dataclass(eq=False)
class _Trail:
    """A tensor that is a convolution's output, or that after some steps."""

    run: Run
    steps: tuple[Call, ...]
    uses: int = 0
    next: _Trail | None = None  # after one more step


class Recorder(TorchFunctionMode):
    """Sees every call of PyTorch's functions during a run, and follows the outputs of the convolutions.

    ``chained``: the Sequentials of which it is to be known that they run.
    """

    def __init__(self, model: nn.Module, chained: Chained) -> None:
        super().__init__()
        self.runs: list[Run] = []  # of 2-D convolutions
        self.signal_runs: list[Run] = []  # of 1-D ones
        self.chain_runs: list[Any] = []  # the chains that fused Sequentials ran
        self.fed: dict[nn.Module, str] = {}  # shuffles that no followed convolution feeds, and what does
        self.inputs: dict[nn.Module, list[TensorLike | None]] = {}  # of other convolutions: of their calls
        self._trails: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._model, self._chained = model, chained
        self._sequentials: list[nn.Sequential] = []  # those that are running
        self._shuffles: list[nn.Module] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Let the modules tell of their calls, as modules or by ``.forward()``; they keep their classes."""
        watched: list[tuple[nn.Module, str]] = []
        try:
            for module in self._model.modules():
                if isinstance(module, nn.Conv2d) and chains.why_own_forward(module, nn.Conv2d) is None:
                    watched.append((module, "forward"))
                    module.__dict__["forward"] = _standing_for(self._watch_conv(module, self.runs), module)
                elif isinstance(module, nn.Conv1d) and chains.why_own_forward(module, nn.Conv1d) is None:
                    watched.append((module, "forward"))
                    module.__dict__["forward"] = _standing_for(
                        self._watch_conv(module, self.signal_runs), module
                    )
                elif isinstance(module, TRANSPOSED) and "forward" not in module.__dict__:
                    watched.append((module, "forward"))
                    module.__dict__["forward"] = _standing_for(self._watch_input(module), module)
                elif isinstance(module, nn.PixelShuffle) and "forward" not in module.__dict__:
                    watched.append((module, "forward"))
                    module.__dict__["forward"] = _standing_for(
                        self._watch_call(module, self._shuffles), module
                    )
                elif module in self._chained:
                    watched += [(module, "forward"), (module, "run")]
                    watching = self._watch_call(module, self._sequentials)
                    module.__dict__["forward"] = _standing_for(watching, module)
                    module.__dict__["run"] = self._watch_chains()
            with self:
                yield
        finally:
            for module, name in watched:
                module.__dict__.pop(name, None)

    def _watch_conv(self, module: Any, runs: list[Run]) -> Any:
        def forward(input: Tensor) -> Any:
            output = type(module).forward(module, input)
            inside = any(module in self._chained[sequential] for sequential in self._sequentials)
            with without_torch_function():  # these questions are ours
                in_bytes, out_bytes = (t.numel() * t.element_size() for t in (input, output))
                run = Run(module, TensorLike.of(input), in_bytes, out_bytes, inside)
            runs.append(run)
            run.trail = self._trails[output] = _Trail(run, ())
            return output

        return forward

    def _watch_input(self, module: nn.Module) -> Any:
        def forward(input: Tensor, *args: Any, **kwargs: Any) -> Any:
            with without_torch_function():
                self.inputs.setdefault(module, []).append(TensorLike.of(input))
            return type(module).forward(module, input, *args, **kwargs)

        return forward

    def _watch_call(self, module: nn.Module, running: list[Any]) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            running.append(module)
            try:
                return type(module).forward(module, *args, **kwargs)
            finally:
                running.pop()

        return forward

    def _watch_chains(self) -> Any:
        def run(found: Any, input: Tensor) -> Any:
            self.chain_runs.append(found)
            return run_chain(found, input)

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follow the tensors through ``func``."""
        kwargs = kwargs or {}
        if func in METADATA:
            return func(*args, **kwargs)
        trails = [
            trail
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and (trail := self._trails.get(leaf)) is not None
        ]
        ending = func is torch.pixel_shuffle
        call = None if ending or not trails else call_of(func, args, kwargs)
        first = self._trails.get(args[0]) if args and isinstance(args[0], Tensor) else None
        following = first is not None and len(trails) == 1 and (ending or call is not None)
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        for trail in trails:
            if trail.uses or not following:
                trail.run.others.append(name)
            trail.uses += 1
        if ending:
            self._end(first, args, kwargs)

        result = func(*args, **kwargs)

        if following and call is not None and first is not None:
            first.next = self._trails[result] = _Trail(first.run, (*first.steps, call))
        elif isinstance(result, Tensor):
            self._origins[result] = name
        return result

    def _end(self, trail: _Trail | None, args: Any, kwargs: Any) -> None:
        """A pixel shuffle is about to get the tensor of ``trail``."""
        shuffle = self._shuffles[-1] if self._shuffles else None
        if trail is None:
            if shuffle is not None and args and isinstance(args[0], Tensor):
                self.fed.setdefault(
                    shuffle, self._origins.get(args[0]) or "the model's input or a scripted module"
                )
            return
        trail.run.factor = args[1] if len(args) > 1 else kwargs.get("upscale_factor")
        trail.run.shuffles.append(shuffle)
        trail.run.steps = trail.steps
        trail.run.fused = isinstance(args[0], LowResolution) and args[0].memory is None

    def finish(self, output: Any) -> None:
        """The model has returned ``output``: what it or its caller keeps of the tensors has another user."""
        returned = {id(tensor) for tensor in tensors_in(output)}
        if any(id(tensor) not in returned for tensor in self._trails):
            gc.collect()  # some may be garbage
        for tensor, trail in self._trails.items():
            keeps = "the model's caller" if id(tensor) in returned else "something that keeps it"
            trail.run.others.append(keeps)
            trail.uses += 1


def _standing_for(watching: Any, module: nn.Module) -> Any:
    """A watching forward, which counts as the one that it watches."""
    forward = type(module).forward
    watching.stands_for = getattr(forward, "stands_for", forward)
    return watching


# ---- a run that changes nothing --------------------------------------------------------------------------


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the attributes and buffers of all modules, and the state of random numbers, afterwards."""
    # A scripted module keeps its attributes in C++. The values of its buffers are among those of the model.
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    attributes = [(module, dict(module.__dict__)) for module in modules]
    held = _Held(module.__dict__ for module in modules)
    held.tensors.update((id(buffer), buffer) for buffer in model.buffers())
    values = [(tensor, tensor.detach().clone()) for tensor in held.tensors.values()]
    containers = [(container, copy.copy(container)) for container in held.containers.values()]
    generators = [(generator, generator.get_state()) for generator in held.generators.values()]
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = None if numpy is None else numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, saved in attributes:
            module.__dict__.clear()
            module.__dict__.update(saved)
        for container, saved in containers:
            container.clear()
            (container.extend if isinstance(container, _SEQUENCES) else container.update)(saved)
        for tensor, value in values:
            if not _equal(tensor, value):
                with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                    tensor.copy_(value)
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def _equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether all values are the same, undefined ones included."""
    if torch.equal(tensor, other):
        return True
    return tensor.is_floating_point() and torch.allclose(tensor, other, rtol=0, atol=0, equal_nan=True)


_SEQUENCES = (list, collections.deque)
_CONTAINERS = {list, collections.deque, set, dict, collections.OrderedDict, collections.defaultdict}


class _Held:
    """What modules hold that a run may write to: containers, tensors that are no parameters, generators.

    What classes of other packages hold is theirs to know.
    """

    def __init__(self, attributes: Iterable[dict[str, Any]]) -> None:
        self.containers: dict[int, Any] = {}
        self.tensors: dict[int, Tensor] = {}
        self.generators: dict[int, torch.Generator] = {}
        pending: list[Any] = [value for each in attributes for value in each.values()]
        while pending:
            value = pending.pop()
            if type(value) in _CONTAINERS and id(value) not in self.containers:
                self.containers[id(value)] = value
                pending += value.values() if isinstance(value, dict) else value
            elif type(value) is tuple:
                pending += value
            elif type(value) is Tensor and _is_plain(value):
                self.tensors[id(value)] = value
            elif isinstance(value, torch.Generator):
                self.generators[id(value)] = value


def copied(inputs: Any) -> Any:
    """Copies of all tensors, for a model that writes to its inputs."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, inputs)


def has_meta_tensors(model: nn.Module, inputs: Any) -> bool:
    """Whether a run would compute no values: parameters, buffers or inputs are on the meta device."""
    tensors = (*model.parameters(), *model.buffers(), *tree_leaves(inputs))
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors)


def devices_of(model: nn.Module, inputs: Any) -> set[torch.device]:
    """Where the model's tensors and its inputs are."""
    tensors = (*model.parameters(), *model.buffers(), *tree_leaves(inputs))
    return {tensor.device for tensor in tensors if isinstance(tensor, Tensor)}


def call(model: nn.Module, inputs: Any, gradients: bool = False) -> Any:
    """Run ``model``, with or without ``gradients``."""
    # Tensors that the model makes need values, also where the caller makes models under torch.device("meta").
    under_meta = torch.get_default_device().type == "meta"
    device = torch.device("cpu") if under_meta else contextlib.nullcontext()
    try:
        # what is compiled in the model would hide its calls
        with device, torch.set_grad_enabled(gradients), torch.compiler.set_stance("force_eager"):
            return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    finally:
        # Of weights that were cast without gradients, torch 2.10 would compute none afterwards.
        torch.clear_autocast_cache()


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors of an output: of containers that PyTorch knows, and of other objects' attributes."""
    found = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (nn.Module, type)):
            found += [value for value in tree_leaves(vars(leaf)) if isinstance(value, Tensor)]
    return found


def difference(found: Any, expected: Any) -> str | None:
    """How two outputs of a model differ by more than rounding.

    The bound, a relative distance of the square root of the dtype's precision, lies midway between rounding
    errors, some hundred times that precision, and wrong values.
    """
    mine, theirs = tensors_in(found), tensors_in(expected)
    if not theirs:
        return "there is no tensor in the model's output to compare"
    if [(t.shape, t.dtype) for t in mine] != [(t.shape, t.dtype) for t in theirs]:
        return "the shapes of the outputs differ"
    for a, b in zip(mine, theirs, strict=True):
        if torch.equal(a, b):
            continue
        if not (b.is_floating_point() or b.is_complex()):
            return "outputs of integers differ"
        finite = torch.isfinite(b)
        if not torch.equal(finite, torch.isfinite(a)):
            return "infinite or undefined values differ"
        precise = torch.promote_types(b.dtype, torch.float32)
        mine_finite, theirs_finite = a[finite].to(precise), b[finite].to(precise)
        distance, size = float((mine_finite - theirs_finite).norm()), float(theirs_finite.norm())
        if not distance <= torch.finfo(b.dtype).eps ** 0.5 * size:
            return f"outputs differ by {distance:.3g}, their norm being {size:.3g}"
    return None
