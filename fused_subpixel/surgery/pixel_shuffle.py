# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions and pixel shuffles of an existing model as fused calls: :func:`replace_pixel_shuffle`."""

from __future__ import annotations

import warnings
from typing import Any, Literal, overload

from torch.nn.parameter import is_lazy

from .arguments import Model, as_arguments, check_model, copied
from .replace import Replacer
from .report import Report, what_else_finds


@overload
def replace_pixel_shuffle(
    model: Model, example_inputs: Any = None, *, inplace: bool = False, fold_batch_norm: bool = False,
    unshuffle: bool = False, return_report: Literal[False] = False,
) -> Model: ...  # fmt: skip
@overload
def replace_pixel_shuffle(
    model: Model, example_inputs: Any = None, *, inplace: bool = False, fold_batch_norm: bool = False,
    unshuffle: bool = False, return_report: Literal[True],
) -> tuple[Model, Report]: ...  # fmt: skip
def replace_pixel_shuffle(
    model: Model,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    fold_batch_norm: bool = False,
    unshuffle: bool = False,
    return_report: bool = False,
) -> Model | tuple[Model, Report]:
    """Make a model compute ``nn.Conv2d`` + pixel shuffle as one call each, with the same numbers.

    Neighbours in an ``nn.Sequential`` are found by looking, with an activation between or behind them. Other
    pairs - a convolution and a shuffle that a ``forward`` chains, a shared shuffle, ``F.pixel_shuffle`` - are
    found by running the model once on ``example_inputs``, and checked by running it again. What is not
    certainly a pair is left alone.

    Modules stay the same objects, of a subclass of their class; parameters, buffers and the keys of
    ``state_dict()`` stay what they are. :func:`restore` undoes it. More in docs/surgery.md.

    Args:
        model: any module.
        example_inputs: what the model is called with: a tensor, a tuple of positional arguments or a dict of
            keyword arguments. The two runs are without gradients, and leave buffers, attributes and random
            numbers as they were.
        inplace: whether to change ``model`` itself; by default a deep copy is changed.
        fold_batch_norm: also convolution + ``nn.BatchNorm2d`` + activation + shuffle, the batch norm folded
            into the weight in each call. It takes effect in eval mode; in training mode they run as ever.
        unshuffle: also ``nn.PixelUnshuffle`` + convolution in an ``nn.Sequential``: a strided convolution.
        return_report: also return a :class:`Report` of what was done and why the rest was not.

    Returns:
        The model, or (model, report). Where nothing was replaced, a ``UserWarning`` says so.

    Raises:
        TypeError: ``model`` is no module, or ``example_inputs`` none of the above.
        ValueError: the model is in training mode and ``fold_batch_norm`` is set, it cannot be copied, or it
            is scripted or uninitialised.
        Exception: the model's own, if it rejects ``example_inputs``; it is then as it was.
    """
    check_model(model)
    inputs = as_arguments(example_inputs)
    if fold_batch_norm and model.training:
        raise ValueError("fold_batch_norm: needs the model in eval mode, call model.eval() first")
    if inputs is not None and any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise ValueError("model: has uninitialized lazy modules, run it once first")
    model = model if inplace else copied(model)

    replacer = Replacer(model, fold_batch_norm, unshuffle)
    try:
        report = replacer.replace(inputs)
    except BaseException:
        replacer.undo()
        raise
    if not report.sites:
        hints = what_else_finds(model, "replace_pixel_shuffle")
        report.note = ". ".join(part for part in (report.note, hints) if part)
    if not (report.replaced or report.already_replaced):
        warnings.warn(f"replace_pixel_shuffle: {report.summary}", UserWarning, stacklevel=2)
    return (model, report) if return_report else model
