# SPDX-License-Identifier: BSD-3-Clause
"""Inference programs beside PyTorch, where they are installed: convolution and shuffle as a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from .workloads import Operands, Workload

Session = Callable[[Any], Any]  # from a NumPy array to one


def missing(name: str) -> str | None:
    """Which package is not installed that the runtime ``name`` takes."""
    return next((module for module in (name, "onnx") if importlib.util.find_spec(module) is None), None)


def onnx_model(workload: Workload, operands: Operands) -> bytes:
    """Conv and DepthToSpace with fixed sizes, as torch.onnx.export writes them."""
    from onnx import TensorProto, helper, numpy_helper

    before = (workload.kernel - 1) // 2
    after = workload.kernel - 1 - before
    parameters = {"weight": operands.weight, "bias": operands.bias}
    tensors = {name: t.detach().contiguous().numpy() for name, t in parameters.items() if t is not None}
    nodes = [
        helper.make_node("Conv", ["input", *tensors], ["low"], pads=[before, before, after, after]),
        helper.make_node("DepthToSpace", ["low"], ["high"], blocksize=workload.r, mode="CRD"),
        helper.make_node("Relu" if workload.activation else "Identity", ["high"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        workload.name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, workload.input_shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, workload.output_shape)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def onnxruntime_session(model: bytes, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # between calls its threads would go on spinning, at the cost of whoever is measured next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"input": image})[0]


def openvino_session(model: bytes, threads: int) -> Session:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model),
        "CPU",
        # without the hint it computes in bfloat16 where the processor can
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()
    return lambda image: request.infer({0: image}, share_inputs=True, share_outputs=True)[0]


SESSIONS: dict[str, Callable[[bytes, int], Session]] = {
    "onnxruntime": onnxruntime_session,
    "openvino": openvino_session,
}
