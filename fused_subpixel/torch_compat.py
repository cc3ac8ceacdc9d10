# SPDX-License-Identifier: BSD-3-Clause
"""Every name of PyTorch that is not public, and what it is needed for.

The rest of the package takes such names from here. PyTorch may remove or change them in any version: then the
import fails in words, and :func:`problems` (``python -m fused_subpixel info`` prints them) finds the names
that are needed later, or behave differently.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def _private(path: str, purpose: str) -> Any:
    """The object at ``path``, a dotted name below torch; ImportError where this version has none."""
    found: Any = torch
    try:
        for name in path.split("."):
            found = getattr(found, name)
    except AttributeError:
        raise ImportError(_lacks(f"torch.{path}", purpose)) from None
    return found


def _lacks(name: str, purpose: str) -> str:
    return (
        f"torch {torch.__version__} lacks {name}, which fused_subpixel needs {purpose}. Use another "
        "version of torch (see the table of versions in the documentation), or update fused_subpixel"
    )


# ---- modes and transforms ----------------------------------------------------------------------------------

below_autograd = _private("_C._AutoDispatchBelowAutograd", "to call its operators without their autograd")
without_torch_function = _private("_C.DisableTorchFunction", "to ask about tensors while it records a model")
without_subclass_torch_function = _private(
    "_C.DisableTorchFunctionSubclass", "to read tensors that stand for a convolution's output"
)
has_torch_function_mode = _private(
    "_C._is_torch_function_mode_enabled", "to notice modes such as DeviceContext"
)
has_transforms = _private("_C._are_functorch_transforms_active", "to notice torch.func transforms")
unwrap_if_dead = _private(
    "_C._functorch.unwrap_if_dead", "to take tensors that a transform of torch.func left behind"
)
jit_tracing_state = _private("_C._get_tracing_state", "to notice torch.jit.trace")
is_any_autocast_enabled = _private("_C._is_any_autocast_enabled", "to notice autocast")
dispatch_mode_depth = _private("_C._len_torch_dispatch_stack", "to notice modes that count operations")
in_pre_dispatch = functools.partial(
    _private("_C._dispatch_tls_is_dispatch_key_included", "to notice tracing before dispatch"),
    _private("_C.DispatchKey.PreDispatch", "to notice tracing before dispatch"),
)
without_dispatch_modes: Callable[[], Any] = _private(
    "utils._python_dispatch._disable_current_modes", "to ask for a plan while it is traced"
)
has_any_global_hook = _private("nn.modules.module._has_any_global_hook", "to notice hooks of all modules")


def _is_exporting_flag() -> bool:
    return bool(torch.compiler._is_exporting_flag)


# torch.compile of torch 2.10 and 2.11 takes torch.compiler.is_exporting() for True.
is_exporting: Callable[[], bool] = (
    _is_exporting_flag if torch.__version__ < "2.12" else torch.compiler.is_exporting
)


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open."""
    return forward_ad._current_level >= 0


# What PyTorch's settings allow for float32 in convolutions: "tf32" or, on CPUs, "bf16" where less than exact
# float32 will do. Every call asks: no Python frame.
cudnn_conv_precision: Callable[[], str] = functools.partial(
    _private("_C._get_fp32_precision_getter", "to learn whether tf32 is allowed"), "cuda", "conv"
)
mkldnn_conv_precision: Callable[[], str] = functools.partial(
    _private("_C._get_fp32_precision_getter", "to learn how exact float32 has to be"), "mkldnn", "conv"
)


# ---- tensors and layouts -----------------------------------------------------------------------------------

suggest_memory_format: Callable[[Tensor], torch.memory_format] = _private(
    "_prims_common.suggest_memory_format", "to give an output its input's memory format"
)
throw_on_mutable_data_ptr = _private(
    "_C._set_throw_on_mutable_data_ptr", "for tensors that have no memory, as those that stand for an output"
)
TorchDispatchMode = _private("utils._python_dispatch.TorchDispatchMode", "to follow the memory of a run")
StorageWeakRef = _private("multiprocessing.reductions.StorageWeakRef", "to follow the memory of a run")


# ---- operators ---------------------------------------------------------------------------------------------

parse_schema = _private("_C.parse_schema", "to compare its operators with those of an earlier import")
schemas_of_operator = _private("_C._jit_get_schemas_for_operator", "to find operators of an earlier import")
has_kernel_for_dispatch_key = _private(
    "_C._dispatch_has_kernel_for_dispatch_key", "to find the kernels that an earlier import registered"
)


def builtin_of(operator: Any) -> Callable[..., Any]:
    """The function that an overload calls, without the frame of its ``__call__``, which costs 0.5 µs."""
    found: Callable[..., Any] = getattr(operator, "_op", operator)
    return found


OpOverload = _private("_ops.OpOverload", "to read the operators of graphs")
builtin_nn_functions = _private("_C._nn", "to read the functions of graphs")
decomposition_table = _private("_decomp.decomposition_table", "for torch.onnx.export")
meta_table = _private("_decomp.meta_table", "for torch.onnx.export")
register_decomposition = _private("_decomp.register_decomposition", "for torch.onnx.export")


# ---- trees of arguments ------------------------------------------------------------------------------------

tree_map = _private("utils._pytree.tree_map", "to copy a model's inputs")
tree_leaves = _private("utils._pytree.tree_leaves", "to compare a model's outputs")


# ---- torch.compile: imported when it is used, because that takes longer than importing all else ------------


def constant_when_compiled(function: Callable[..., Any]) -> None:
    """Let torch.compile call a function instead of tracing it, and keep its result.

    As torch.compiler.assume_constant_result, which would import the whole of Dynamo along with this package.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def disabled_in_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which torch.compile calls instead of tracing it; as torch.compiler.disable."""
    disabled: Callable[..., Any] = torch._dynamo.disable(function)
    return disabled


def keep_call_in_inductor(operator: str) -> None:
    """Have Inductor keep an operator as a call though it has a decomposition, which ONNX export needs.

    It does so by itself, except where the environment variable CI is set: there it takes that for a mistake
    and raises, unless the operator's name is in this list. Shape functions call this, because they run
    whenever Inductor traces a graph.
    """
    if lowering := sys.modules.get("torch._inductor.lowering"):
        lowering.FALLBACK_ALLOW_LIST.add(operator)


def compiler_backend(name: str | Callable[..., Any]) -> Callable[..., Any]:
    """The backend of torch.compile with this name."""
    from torch._dynamo import lookup_backend

    found: Callable[..., Any] = lookup_backend(name)
    return found


def inductor_mode_options(mode: str) -> dict[str, Any]:
    """The settings of Inductor that a ``mode`` of torch.compile stands for."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode))


# ---- probes ------------------------------------------------------------------------------------------------

# Attributes of PyTorch's classes that the surgery reads where they are.
_ATTRIBUTES: dict[Any, tuple[str, ...]] = {
    nn.Module: ("_call_impl",),
    nn.Conv2d: ("_conv_forward",),
    nn.modules.conv._ConvTransposeNd: ("_output_padding",),
    Tensor: ("_version", "_backward_hooks", "_make_wrapper_subclass"),
}
_INSTANCE_ATTRIBUTES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_modules",
)


def _probe_modes() -> None:
    with below_autograd(), without_torch_function(), without_subclass_torch_function():
        pass
    assert not in_forward_mode()
    with forward_ad.dual_level():
        assert in_forward_mode()
    assert jit_tracing_state() is None
    assert not is_any_autocast_enabled()
    assert dispatch_mode_depth() == 0
    assert not in_pre_dispatch()
    assert not is_exporting()
    assert not has_any_global_hook()
    assert has_torch_function_mode() in (True, False)
    assert not has_transforms()
    tensor = torch.empty(1)
    assert unwrap_if_dead(tensor) is tensor


def _probe_settings() -> None:
    assert cudnn_conv_precision() in ("none", "ieee", "tf32")
    assert mkldnn_conv_precision() in ("none", "ieee", "tf32", "bf16")


def _probe_tensors() -> None:
    channels_last = torch.empty(2, 3, 4, 5, memory_format=torch.channels_last)
    assert suggest_memory_format(channels_last) is torch.channels_last
    assert suggest_memory_format(torch.empty(2, 3, 4, 5)) is torch.contiguous_format
    assert tree_map(lambda value: value + 1, ([1], {"a": 2})) == ([2], {"a": 3})
    assert tree_leaves(([1], {"a": 2})) == [1, 2]
    memory = torch.empty(3).untyped_storage()
    known = StorageWeakRef(memory)
    assert known == StorageWeakRef(memory) and not known.expired()
    del memory
    assert known.expired()


def _probe_operators() -> None:
    assert has_kernel_for_dispatch_key("aten::convolution", "CompositeExplicitAutograd")
    (schema, *_) = schemas_of_operator("aten::relu")
    assert schema == parse_schema("aten::relu(Tensor self) -> Tensor")
    assert isinstance(torch.ops.aten.relu.default, OpOverload)
    assert torch.ops.aten.relu.default._schema.arguments[0].name == "self"
    assert isinstance(decomposition_table, dict) and isinstance(meta_table, dict)


def _probe_attributes() -> None:
    for owner, names in _ATTRIBUTES.items():
        for name in names:
            assert hasattr(owner, name), _lacks(f"{owner.__name__}.{name}", "to replace layers")
    for name in _INSTANCE_ATTRIBUTES:
        assert isinstance(getattr(nn.Identity(), name, None), dict), _lacks(
            f"nn.Module.{name}", "to see hooks"
        )


def _probe_compiler() -> None:
    assert callable(compiler_backend("eager"))
    assert isinstance(inductor_mode_options("max-autotune"), dict)
    import torch._inductor.lowering as lowering

    assert isinstance(lowering.FALLBACK_ALLOW_LIST, (set, type(lowering.FALLBACK_ALLOW_LIST)))
    assert hasattr(lowering.FALLBACK_ALLOW_LIST, "add")


PROBES: dict[str, Callable[[], None]] = {
    "modes and transforms": _probe_modes,
    "precision settings": _probe_settings,
    "tensors and layouts": _probe_tensors,
    "operators": _probe_operators,
    "attributes of modules": _probe_attributes,
    "torch.compile": _probe_compiler,
}


@functools.cache
def problems(compiler: bool = True) -> tuple[str, ...]:
    """What this version of PyTorch does otherwise than this package expects.

    Args:
        compiler: whether to ask torch.compile too, whose import takes seconds.
    """
    found = []
    for name, probe in PROBES.items():
        if probe is _probe_compiler and not compiler:
            continue
        try:
            probe()
        except Exception as error:
            found.append(
                f"torch {torch.__version__}: {name} differ from what fused_subpixel expects: "
                f"{type(error).__name__} {error}".rstrip()
            )
    return tuple(found)
