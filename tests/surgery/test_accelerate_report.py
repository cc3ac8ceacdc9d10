# SPDX-License-Identifier: BSD-3-Clause
"""The report of fs.accelerate, how it decides, and what its runs leave behind: nothing, whatever happens."""

from __future__ import annotations

import random
import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surgery_checks import accelerate, image, saying, types
from surgery_models import Three, Wide, conv
from torch import Tensor, nn
from torch.nn.utils import weight_norm

import fused_subpixel as fs
from fused_subpixel.surgery import chain, timing
from fused_subpixel.surgery.fused_modules import FusedConv2d

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fused_is_faster"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
]


# ---- the report --------------------------------------------------------------------------------------------


def test_report(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(((1e-3, 2e-3), (4e-3, 2e-3), (8e-3, 2e-3), (10e-3, 5e-3)))
    monkeypatch.setattr(timing, "compare", lambda a, b, *_: saying(*next(times))(a, b, 1))
    found, report = accelerate(Three().eval(), image(torch.float32))
    assert [(s.path, s.status, s.before_ms, s.after_ms) for s in report] == [
        ("body", "left alone", 1, 2), ("mid", "replaced", 4, 2), ("head", "replaced", 8, 2),
    ]  # fmt: skip
    assert [type(m) for m in (found.body, found.mid)] == [nn.Conv2d, FusedConv2d]
    assert report.whole is not None and (report.whole.before_ms, report.whole.after_ms) == (10, 5)
    assert report.whole.after_bytes < report.whole.before_bytes
    text = re.sub(r"memory .* before, .* after$", "memory A before, B after", str(report))
    table, kernels = " " * 22, "the fused kernels"
    assert text.splitlines() == [
        f"path  layers               {table[4:]}status      PyTorch ms  fused ms  how, or why not",
        f"body  Conv2d(4, 6, 3x3)    {table[4:]}left alone  1           2         {kernels} are not faster",
        f"mid   Conv2d(6, 6, 3x3)    {table[4:]}replaced    4           2         {kernels}, with sigmoid",
        "head  Conv2d(6, 12, 3x3) -> PixelShuffle(2)  replaced    8           2         one call",
        "3 sites: 2 replaced, 1 left alone",
        "whole model: 10 ms before, 5 ms after, 2.00 times as fast; peak memory A before, B after",
    ]


def test_calls_of_one_size_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(timing, "compare", lambda *a: [calls.append(a), saying(2.0, 1.0)(*a)][1])
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(shared, shared, nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2), shared)
    _, report = accelerate(model, image(torch.float32))
    assert (
        len(calls) == 3
        and calls[0][2] == pytest.approx(20 * 0.6 / 2)
        and calls[2][2] == pytest.approx(20 * 0.4)
    )
    assert [(site.before_ms, site.after_ms) for site in report] == [(6000, 3000), (2000, 1000)]


def test_what_is_slower_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "compare", saying(1.0, 0.98))
    model = Wide().eval()
    with pytest.warns(UserWarning, match="accelerate changed nothing: 5 sites: 5 left alone"):
        found = fs.accelerate(model, image(torch.float32))
    assert types(found) == types(model)


def test_a_whole_model_that_is_slower_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Three().eval(), image(torch.float32)
    kinds, attributes = types(model), [dict(vars(module)) for module in model.modules()]
    times = iter([(2.0, 1.0)] * 3 + [(1.0, 1.5)])
    monkeypatch.setattr(timing, "compare", lambda a, b, *_: saying(*next(times))(a, b, 1))
    with pytest.warns(UserWarning, match="All was undone: the whole model was not faster\nwhole model: 1e"):
        _, report = fs.accelerate(model, x, inplace=True, return_report=True)
    assert types(model) == kinds and [dict(vars(module)) for module in model.modules()] == attributes
    assert [site.reason for site in report] == ["undone, see below"] * 3


def test_nothing_to_replace(recwarn: pytest.WarningsRecorder) -> None:
    found, report = fs.accelerate(nn.Sequential(nn.Linear(4, 3)), torch.rand(2, 4), return_report=True)
    (warning,) = recwarn.list
    assert (
        warning.filename == __file__ and str(warning.message) == "accelerate changed nothing: no site found"
    )
    assert len(report) == 0 and report.whole is None and types(found) == [nn.Sequential, nn.Linear]


def test_real_times(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever they are. Nothing is printed."""
    monkeypatch.undo()
    torch.set_num_threads(1)
    model, x = Three().eval(), image(torch.float32)
    found, report = accelerate(model, x, seconds=0.01)
    assert all(site.before_ms > 0 and site.after_ms > 0 for site in report)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)
    assert capfd.readouterr() == ("", "")
    slow = (
        timing.compare(lambda: torch.mm(big, big), lambda: None, 0.01)
        if (big := torch.rand(99, 99)) is not None
        else None
    )
    assert slow is not None and slow.before > slow.after > 0


def test_peak_memory() -> None:
    def run() -> Tensor:
        first = torch.zeros(1000, dtype=torch.uint8)
        second = first + 1
        del first
        kept.append(second.view(-1)[5:])
        return (second + 1).add_(known)

    known, kept = torch.ones(1000, dtype=torch.uint8), []
    assert timing.peak_bytes(run) == 2000


# ---- bad input ---------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    model, x = nn.Sequential(conv()), image(torch.float32)
    for arguments, options, error, message in (
        ((F.relu, x), {}, TypeError, r"model: expected an nn\.Module, got function"),
        ((model, None), {}, TypeError, "example_inputs: expected what the model is called with, got None"),
        ((model, [x]), {}, TypeError, "example_inputs: expected a tensor, a tuple .* got list"),
        ((model, x.numpy()), {}, TypeError, r"got ndarray; torch.from_numpy makes a tensor of it"),
        ((model, (1, 4, 5, 5)), {}, TypeError, r"expected tensors, got the shape \(1, 4, 5, 5\)"),
        ((model, x), {"seconds": "2"}, TypeError, "seconds: expected a number, got '2' of type str"),
        ((model, x), {"seconds": True}, TypeError, "seconds: expected a number, got True of type bool"),
        ((model, x), {"seconds": 0}, ValueError, "seconds: expected a positive number, got 0"),
        ((model, x), {"seconds": float("nan")}, ValueError, "seconds: expected a positive number, got nan"),
        ((torch.jit.script(model), x), {}, ValueError, "model: is scripted"),
        ((nn.Sequential(nn.LazyConv2d(4, 3)), x), {}, ValueError, "model: has uninitialized lazy modules"),
        ((nn.Sequential(conv()).to("meta"), x), {}, ValueError, "model: tensors on the meta device"),
        ((model, x.to("meta")), {}, ValueError, "model: tensors on the meta device"),
        ((nn.Sequential(weight_norm(conv())), x), {}, ValueError, "model: cannot be copied, inplace"),
        ((model, torch.rand(1, 3, 5, 5)), {}, RuntimeError, "to have 4 channels"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            fs.accelerate(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("moment", ["run", "measuring", "check", "whole before", "whole after"])
def test_an_exception_leaves_the_model_as_it_was(
    moment: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("in the middle")

    class Failing(Wide):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(type(self.three.mid))
            if moment == "run" or (moment == "whole before" and calls.count(nn.Conv2d) == 2):
                fail()
            if moment == "whole after" and calls.count(FusedConv2d) == 2:
                fail()
            return super().forward(x)

    calls: list[type] = []
    model, x = Failing().eval(), image(torch.float32)
    kinds, attributes = types(model), [dict(vars(module)) for module in model.modules()]
    if moment == "measuring":
        monkeypatch.setattr(chain, "subpixel_conv1d", fail)
    elif moment == "check":
        from fused_subpixel.surgery import trace

        monkeypatch.setattr(trace, "difference", fail)
    with pytest.raises(error, match="in the middle"):
        fs.accelerate(model, x, inplace=True)
    assert types(model) == kinds
    assert [dict(vars(module)) for module in model.modules()] == attributes


def test_a_wrong_result_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Wide().double().eval(), image()
    kinds = types(model)
    run = chain.subpixel_conv1d
    monkeypatch.setattr(chain, "subpixel_conv1d", lambda *args, **options: run(*args, **options) * 1.01)
    with pytest.warns(UserWarning, match="All was undone: outputs differ by"):
        _, report = fs.accelerate(model, x, inplace=True, return_report=True)
    assert not report.replaced and len(report) == 5 and types(model) == kinds and report.whole is None


def test_runs_leave_no_trace() -> None:
    """Statistics, counters, attributes, containers, modes, random numbers, and the inputs."""

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(8), nn.BatchNorm2d(8)
            self.calls, self.seen, self.by_name = 0, [], OrderedDict(a=[1])
            self.register_buffer("total", torch.zeros(3))
            self.sum, self.generator = torch.zeros(()), torch.Generator()

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            self.calls += 1
            self.seen.append(x)
            self.by_name["a"].append(2)
            self.by_name["b"] = x
            self.sum += 1
            self.train(not self.training)
            self.total = self.total + 1
            y = self.norm(self.conv(F.dropout(x, random.random() / 2)))
            return y + torch.rand(()) + torch.rand((), generator=self.generator)

    model, x = Stateful().train(), image(torch.float32)
    kept, state = x.clone(), {key: value.clone() for key, value in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate(), model.generator.get_state()
    _, report = accelerate(model, {"x": x}, inplace=True)
    assert len(report.replaced) == 1, str(report)
    assert x.equal(kept) and (model.calls, model.seen, model.training) == (0, [], True)
    assert model.by_name == {"a": [1]} and model.sum == 0
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.get_rng_state().equal(generators[0]) and random.getstate() == generators[1]
    assert model.generator.get_state().equal(generators[2])


def test_outputs_that_are_no_tensors() -> None:
    class Answer:
        def __init__(self, image: Tensor) -> None:
            self.image = image

    class Answering(Three):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {"answer": Answer(y), "parts": [y.mean(), None, 3]}

    found, report = accelerate(Answering().double().eval(), (image(),))
    assert len(report.replaced) == 3
    assert isinstance(found(image())["answer"], Answer)

    class Listing(Three):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).tolist()

    with pytest.warns(UserWarning, match="no tensor in the model's output to compare"):
        fs.accelerate(Listing().eval(), image(torch.float32))
