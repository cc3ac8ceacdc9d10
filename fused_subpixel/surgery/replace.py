# SPDX-License-Identifier: BSD-3-Clause
"""One call of replace_pixel_shuffle: find the sites, decide, change classes, check, report."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from . import chain as chains
from . import trace
from .chain import Activation, Chain, UnshuffleConv
from .fused_modules import FusedConv, FusedConv2d, FusedSequential, Plan, fuse_class
from .report import ALREADY_REPLACED, LEFT_ALONE, REPLACED, Report, Site, Status

Pair = tuple[nn.Module, nn.Module | None]  # a convolution and the shuffle (or an unshuffle and a convolution)


class Replacer:
    """One call of :func:`replace_pixel_shuffle`: finds the sites, changes classes, checks, reports."""

    def __init__(self, model: nn.Module, fold: bool, unshuffle: bool) -> None:
        self.model, self.fold, self.unshuffle = model, fold, unshuffle
        self.names = {module: name or "(the model)" for name, module in model.named_modules()}
        self.changed: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
        self.sites: dict[Pair, Site] = {}
        self.sequentials: dict[nn.Sequential, list[Chain | UnshuffleConv]] = {}
        self.bytes: dict[nn.Module, int] = {}  # of the outputs of each convolution, in a run
        self.convs: dict[nn.Conv1d | nn.Conv2d, Plan] = {}
        self.on_meta = False

    def replace(self, inputs: Any) -> Report:
        """Do all of it."""
        self.look_at_sequentials()
        self.look_at_replaced()
        note, first = "", None
        self.on_meta = inputs is not None and trace.has_meta_tensors(self.model, inputs)
        if self.on_meta:
            self.change()
            note = (
                "Tensors on the meta device cannot be computed with, so the model was not run: "
                "only neighbours in an nn.Sequential are found"
            )
        elif inputs is None:
            self.change()
            if not self.changed:
                note = "Without example_inputs only neighbours in an nn.Sequential are found"
        else:
            chained = {s: {found.conv for found in chain} for s, chain in self.sequentials.items()}
            first, expected = self.run(inputs, chained)
            self.look_at_run(first)
            self.change()
            if self.changed:
                note = self.check(inputs, chained, first, expected)
        self.look_at_other_shuffles(first)
        places = {module: place for place, module in enumerate(self.names)}
        pairs = sorted(
            self.sites, key=lambda pair: min(places[module] for module in pair if module is not None)
        )
        sites = [
            self.sites[pair]
            if self.sites[pair].status == LEFT_ALONE
            else dataclasses.replace(self.sites[pair], saved_bytes=self.bytes.get(pair[0]))
            for pair in pairs
        ]
        return Report(sites, note)

    def undo(self) -> None:
        """Take all changes back."""
        for module, kind, attributes in reversed(self.changed):
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)
        self.changed.clear()

    # -- finding

    def look_at_sequentials(self) -> None:
        """Find chains of neighbours."""
        for sequential in self.names:
            if not isinstance(sequential, nn.Sequential):
                continue
            reason = chains.why_own_forward(sequential, nn.Sequential)
            modules = chains.flatten(sequential)
            fold, unshuffle = self.fold, self.unshuffle
            if isinstance(sequential, FusedSequential):
                fold, unshuffle = fold or sequential.fold_batch_norm, unshuffle or sequential.unshuffle
            for position in range(len(modules)):
                found = chains.match(modules, position, fold, unshuffle)
                if found is None:
                    continue
                pair = _pair(found) if not isinstance(found, str) else _looks_like(modules, position)
                if isinstance(found, str) or reason is not None:
                    why = found if isinstance(found, str) else str(reason)
                    if reason is None and self.reparametrised_by_hooks(modules, position):
                        assert isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.PixelShuffle)
                        if isinstance(pair[0], FusedConv2d):
                            continue  # as look_at_replaced will say
                        self.plan(pair[0], Plan(pair[1].upscale_factor, shuffle=self.names[pair[1]]), pair[1])
                    else:
                        self.sites.setdefault(pair, self.site(pair, LEFT_ALONE, why))
                elif isinstance(sequential, FusedSequential) and self.is_done(sequential, found):
                    self.sites[pair] = self.site(pair, ALREADY_REPLACED, how(found))
                else:
                    self.sequentials.setdefault(sequential, []).append(found)
                    self.sites[pair] = self.site(pair, REPLACED, how(found))

    def is_done(self, sequential: FusedSequential, found: Chain | UnshuffleConv) -> bool:
        """Whether a Sequential that was replaced before runs this chain as one call."""
        if isinstance(found, UnshuffleConv):
            return sequential.unshuffle
        return found.norm is None or sequential.fold_batch_norm

    def reparametrised_by_hooks(self, modules: list[nn.Module], position: int) -> bool:
        """Whether only hooks like the old weight_norm's keep a pair of neighbours apart.

        They set ``weight`` before each call of the convolution, so it has to be called.
        """
        conv, (_, shuffle) = modules[position], chains.behind(modules, position)
        return (
            isinstance(conv, nn.Conv2d)
            and isinstance(shuffle, nn.PixelShuffle)
            and chains.has_hooks(conv)
            and only_reparametrising_hooks(conv)
            and chains.why_own_forward(conv, nn.Conv2d) is None
            and chains.why_altered(shuffle, nn.PixelShuffle) is None
            and chains.why_unfit(conv, shuffle.upscale_factor, None) is None
        )

    def look_at_replaced(self) -> None:
        """Note the convolutions that an earlier call replaced."""
        paths = {name: module for module, name in self.names.items()}
        for module in self.names:
            if isinstance(module, FusedConv2d) and module.subpixel.factor > 1:
                pair = module, paths.get(module.subpixel.shuffle)
                self.sites[pair] = self.site(pair, ALREADY_REPLACED, how(module.subpixel))

    def look_at_run(self, recorder: trace.Recorder) -> None:
        """Find pairs in what was recorded of a run."""
        found_ones = (found for chain in self.sequentials.values() for found in chain)
        unshuffles = {found.conv: found.unshuffle for found in found_ones if isinstance(found, UnshuffleConv)}
        runs: dict[Any, list[trace.Run]] = {}
        for run in recorder.runs:
            self.bytes[run.conv] = self.bytes.get(run.conv, 0) + run.output_size
            if run.conv in unshuffles:
                unshuffle = unshuffles[run.conv]
                self.bytes[unshuffle] = self.bytes.get(unshuffle, 0) + run.input_size
            if not run.in_sequential:
                runs.setdefault(run.conv, []).append(run)
        for conv, calls in runs.items():
            ends = [shuffle for run in calls for shuffle in run.shuffles]
            if not ends or isinstance(conv, FusedConv2d):
                continue
            pair = conv, ends[0]
            decision = self.decide(conv, calls)
            if isinstance(decision, Plan):
                self.plan(conv, decision, pair[1])
            elif pair not in self.sites or self.sites[pair].status == LEFT_ALONE or conv in self.convs:
                planned = self.convs.pop(conv, None) is not None  # for hooks, see look_at_sequentials
                pairs = [other for other in self.sites if planned and other[0] is conv]
                for each in (pair, *pairs):
                    self.sites[each] = self.site(each, LEFT_ALONE, decision)

    def decide(self, conv: nn.Conv2d, calls: list[trace.Run]) -> Plan | str:
        """What to do about a convolution that was called outside of chains: a plan, or why not."""
        shuffles = [shuffle for run in calls for shuffle in run.shuffles if shuffle is not None]
        if not only_reparametrising_hooks(conv):
            return f"{type(conv).__name__} has hooks"
        if any(chains.has_hooks(shuffle) for shuffle in shuffles):
            return "PixelShuffle has hooks"
        others = sorted({name for run in calls for name in run.others})
        if others:
            return f"the convolution's output is also used by {', '.join(others)}"
        if any(run.factor is None for run in calls):
            return "not every call of the convolution is followed by a shuffle"
        if len({run.factor for run in calls}) > 1:
            return "the convolution feeds shuffles of different factors"
        first = calls[0]
        norm, before = None, None
        steps = list(first.steps)
        if steps and steps[0].norm:
            norm = next((m for m in self.names if isinstance(m, nn.BatchNorm2d) and steps[0].does(m)), None)
            if norm is None or chains.why_altered(norm, nn.BatchNorm2d):
                return "a batch norm stands in between that is no nn.BatchNorm2d as PyTorch made it"
            if (reason := chains.why_not_folded(norm, self.fold)) is not None:
                return reason
            steps.pop(0)
        if steps and steps[0].activation is not None:
            before = self.module_of(steps.pop(0).activation)
        if steps:
            return "more than a batch norm and an activation stand in between"
        path = self.names[shuffles[0]] if shuffles else ""
        plan = Plan(int(first.factor or 0), norm, before, path)
        for run in calls[1:]:
            if len(run.steps) != len(first.steps) or not all(
                a.does(b) for a, b in zip(run.steps, plan.steps(), strict=True)
            ):
                return "the calls of the convolution are followed by different activations"
        if isinstance(before, Activation) and before.weight is not None:
            return "the slopes of the PReLU in between belong to no nn.PReLU"
        return chains.why_unfit(conv, plan.factor, plan.activation()) or plan

    def module_of(self, activation: Activation | None) -> Activation | nn.PReLU | None:
        """The nn.PReLU whose slopes an activation has, or the activation."""
        if activation is None or activation.weight is None:
            return activation
        prelus = (m for m in self.names if isinstance(m, nn.PReLU) and m.weight is activation.weight)
        return next(prelus, activation)

    def plan(self, conv: nn.Conv2d, plan: Plan, shuffle: nn.Module | None) -> None:
        """Note that ``conv`` is to be replaced."""
        self.convs[conv] = plan
        self.sites[conv, shuffle] = self.site((conv, shuffle), REPLACED, how(plan))

    def look_at_other_shuffles(self, recorder: trace.Recorder | None) -> None:
        """Say of each shuffle that belongs to no site yet why it does not."""
        known = {module for pair in self.sites for module in pair}
        if recorder is not None:
            known.update(shuffle for run in recorder.runs for shuffle in run.shuffles)
        for module in self.names:
            if not isinstance(module, nn.PixelShuffle):
                continue
            if recorder is not None and module in recorder.fed:
                reason = f"{'also ' if module in known else ''}fed by {recorder.fed[module]}"
            elif module in known:
                continue
            elif recorder is None:
                reason = "not behind a convolution in an nn.Sequential; " + (
                    "on the meta device no run tells its source"
                    if self.on_meta
                    else "example_inputs would tell its source"
                )
            else:
                reason = "did not run on the example inputs"
            self.sites[module, None] = self.site((module, None), LEFT_ALONE, reason)

    # -- changing and checking

    def change(self) -> None:
        """Change the classes."""
        for sequential in self.sequentials:
            self.remember(sequential)
            if not isinstance(sequential, FusedSequential):
                fuse_class(sequential)
            assert isinstance(sequential, FusedSequential)
            if self.fold:
                sequential.fold_batch_norm = True
            if self.unshuffle:
                sequential.unshuffle = True
        for conv, plan in self.convs.items():
            self.remember(conv)
            fuse_class(conv)
            assert isinstance(conv, FusedConv)
            conv.subpixel = plan

    def remember(self, module: nn.Module) -> None:
        """Note what ``module`` is, before it is changed."""
        self.changed.append((module, type(module), dict(module.__dict__)))

    def run(self, inputs: Any, chained: trace.Chained) -> tuple[trace.Recorder, Any]:
        """Run the model and record what happens."""
        recorder = trace.Recorder(self.model, chained)
        inputs = trace.copied(inputs)
        with trace.unchanged(self.model), recorder.watching():
            output = trace.call(self.model, inputs)
            recorder.finish(output)  # before what the model keeps is taken from it
        return recorder, output

    def check(self, inputs: Any, chained: trace.Chained, first: trace.Recorder, expected: Any) -> str:
        """Run the changed model; if it is not what it was, undo everything and say why."""
        recorder, found = self.run(inputs, chained)
        repeatable = bool(trace.tensors_in(expected))
        problem = trace.difference(found, expected)
        if problem is None:
            unfused = {
                run.conv
                for run in recorder.runs
                if run.conv in self.convs and self.convs[run.conv].factor > 1 and not run.fused
            }
            unfused |= {run.conv for run in first.runs if run.in_sequential}
            unfused -= {found.conv for found in recorder.chain_runs}
            if unfused:
                problem = f"{', '.join(sorted(self.names[conv] for conv in unfused))} did not run fused"
        if problem is None:
            return ""
        self.undo()
        _, again = self.run(inputs, {})
        if repeatable and trace.difference(again, expected) is not None:
            problem = "the model does not give the same output twice, so that nothing can be checked"
        for pair, site in self.sites.items():
            if site.status == REPLACED:
                self.sites[pair] = self.site(pair, LEFT_ALONE, f"undone: {problem}")
        return f"All was undone: {problem}"

    # -- reporting

    def site(self, pair: Pair, status: Status, reason: str) -> Site:
        """The report's entry of a pair."""
        names = [
            self.names.get(module, "pixel_shuffle()") if module else "pixel_shuffle()" for module in pair
        ]
        first, second = pair
        if isinstance(first, nn.PixelShuffle):
            return Site(self.names[first], describe(first), status, reason)
        layers = f"{describe(first)} -> {describe(second)}" if second is not None else describe(first)
        per_pixel = None
        if isinstance(first, nn.Conv2d) and status != LEFT_ALONE:
            weight = weight_of(first)
            per_pixel = None if weight is None else first.out_channels * weight.element_size()
        return Site(" -> ".join(names), layers, status, reason, saved_bytes_per_pixel=per_pixel)


# Hooks that set the weight before each call of a convolution, and do nothing else.
_REPARAMETRISING = (WeightNorm, SpectralNorm, BasePruningMethod)


def only_reparametrising_hooks(conv: nn.Conv2d) -> bool:
    """Whether no hooks but those of the old weight_norm and spectral_norm are on ``conv``."""
    return not chains.has_output_hooks(conv) and all(
        isinstance(hook, _REPARAMETRISING) for hook in conv._forward_pre_hooks.values()
    )


def weight_of(conv: Any) -> Tensor | None:
    """The weight, or None if the model sets it in each call.

    Where computing it changes the layer, as spectral_norm does, that is taken back.
    """
    if not parametrize.is_parametrized(conv):
        return getattr(conv, "weight", None)
    with trace.unchanged(conv), torch.no_grad():
        weight: Tensor = conv.weight
        return weight


def _pair(found: Chain | UnshuffleConv) -> Pair:
    return (found.conv, found.shuffle) if isinstance(found, Chain) else (found.unshuffle, found.conv)


def _looks_like(modules: list[nn.Module], start: int) -> Pair:
    """The pair at ``start`` that was refused."""
    ends = (nn.PixelShuffle,) if isinstance(modules[start], nn.Conv2d) else (nn.Conv2d,)
    return modules[start], next(module for module in modules[start + 1 :] if isinstance(module, ends))


def how(found: Chain | UnshuffleConv | Plan) -> str:
    """How a site runs."""
    if isinstance(found, UnshuffleConv):
        return "one strided convolution"
    after = found.after if isinstance(found, Chain) else None
    before = found.activation() if isinstance(found, Plan) else found.before
    one_call = "the fused kernels" if isinstance(found, Plan) and found.factor == 1 else "one call"
    parts = ["batch norm"] if found.norm is not None else []
    parts += [activation.name for activation in (before, after) if activation is not None]
    return one_call + (f", with {' and '.join(parts)}" if parts else "")


def describe(module: nn.Module) -> str:
    """A layer and its shape."""
    if isinstance(module, nn.PixelShuffle):
        return f"PixelShuffle({module.upscale_factor})"
    if isinstance(module, nn.PixelUnshuffle):
        return f"PixelUnshuffle({module.downscale_factor})"
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    size = "x".join(map(str, module.kernel_size))
    options = "".join(
        f", {name} {value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value}"
        for name, value in (
            ("stride", module.stride),
            ("dilation", module.dilation),
            ("groups", module.groups),
        )
        if value not in (1, (1,), (1, 1))
    )
    kind = "Conv1d" if isinstance(module, nn.Conv1d) else "Conv2d"
    return f"{kind}({module.in_channels}, {module.out_channels}, {size}{options})"
