# SPDX-License-Identifier: BSD-3-Clause
"""A small reader of ncnn models: a text graph (.param) and its weights (.bin), as NumPy arrays.

    layers = read_model(Path("net.param"), Path("net.bin"))
    layers[2].kind, layers[2].params[0], layers[2].weights["weight"].shape

The .param file is a magic number, a line with the number of layers and of blobs, then one layer a line:

    type name n_inputs n_outputs input... output... key=value...

The .bin file holds the weights of the layers one after another, in the order of the graph and without any
index: only the graph says how many numbers come next. Convolution kernels begin with a tag for their storage
(none, float16); biases and PReLU slopes are plain float32. Everything is little-endian, in units of 4 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PARAM_MAGIC = "7767517"
TAG_FLOAT32 = (0, 0x0002C056)  # the second marks float32 kernels kept out of a quantised model
TAG_FLOAT16 = 0x01306B47
WEIGHTLESS = {"Input", "Split", "PixelShuffle", "Interp", "BinaryOp"}


class NcnnError(ValueError):
    """The files are not an ncnn model that this reader understands; the message says where and why."""


@dataclass
class Layer:
    """One line of the graph; `params` by ncnn's numeric keys, `weights` filled from the .bin file."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, int | float | list[int | float]]
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def integer(self, key: int, default: int = 0) -> int:
        value = self.params.get(key, default)
        if not isinstance(value, int):
            raise NcnnError(f"{self.name}: parameter {key} should be an integer, not {value}")
        return value


def read_model(param: Path, weights: Path) -> list[Layer]:
    """Read a .param/.bin pair; raises NcnnError, or OSError where a file cannot be read."""
    try:
        text = param.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NcnnError(f"{param.name}: not a text file, so not an ncnn .param file") from error
    try:
        layers = parse_graph(text)
    except NcnnError as error:
        raise NcnnError(f"{param.name}: {error}") from error
    try:
        _load_weights(layers, weights.read_bytes())
    except NcnnError as error:
        raise NcnnError(f"{weights.name}: {error}") from error
    return layers


def parse_graph(text: str) -> list[Layer]:
    lines = text.splitlines()
    if not lines or lines[0].strip() != PARAM_MAGIC:
        raise NcnnError(f"does not begin with {PARAM_MAGIC}, the mark of an ncnn .param file")
    try:
        layer_count, _blob_count = (int(number) for number in lines[1].split())
    except (IndexError, ValueError) as error:
        raise NcnnError("line 2 should hold the number of layers and of blobs") from error
    layers = [_parse_layer(line, number) for number, line in enumerate(lines[2:], start=3) if line.strip()]
    if len(layers) != layer_count:
        raise NcnnError(f"announces {layer_count} layers and holds {len(layers)}")
    return layers


def _parse_layer(line: str, number: int) -> Layer:
    try:
        kind, name, n_inputs, n_outputs, *rest = line.split()
        ends_inputs = int(n_inputs)
        ends_outputs = ends_inputs + int(n_outputs)
        if len(rest) < ends_outputs:
            raise ValueError("the line ends before its blobs do")
        params = dict(_parse_pair(pair) for pair in rest[ends_outputs:])
    except ValueError as error:
        raise NcnnError(f"line {number} is not a layer ({error})") from error
    return Layer(kind, name, rest[:ends_inputs], rest[ends_inputs:ends_outputs], params)


def _parse_pair(pair: str) -> tuple[int, int | float | list[int | float]]:
    key_text, _, value = pair.partition("=")
    key = int(key_text)
    if key <= -23300:  # an array: its length, then its values
        length, *values = value.split(",")
        if int(length) != len(values):
            raise ValueError(f"array of {length} with {len(values)} values")
        return -23300 - key, [_parse_number(item) for item in values]
    return key, _parse_number(value)


def _parse_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _load_weights(layers: list[Layer], data: bytes) -> None:
    stream = _Stream(data)
    for layer in layers:
        stream.layer = layer.name
        if layer.kind == "Convolution":
            # keys: 0 output channels, 1 and 11 kernel width and height, 5 has a bias, 6 size of the kernel
            out_channels, size = layer.integer(0), layer.integer(6)
            kernel_w = layer.integer(1)
            kernel_h = layer.integer(11, kernel_w)
            per_input = out_channels * kernel_h * kernel_w
            if min(out_channels, kernel_h, kernel_w, size) <= 0 or size % per_input:
                raise NcnnError(
                    f"{layer.name}: {size} weights do not make a convolution to {out_channels} "
                    f"channels with a {kernel_h}x{kernel_w} kernel"
                )
            shape = (out_channels, size // per_input, kernel_h, kernel_w)
            layer.weights["weight"] = stream.tagged(size).reshape(shape)
            if layer.integer(5):
                layer.weights["bias"] = stream.float32(out_channels)
        elif layer.kind == "PReLU":
            layer.weights["weight"] = stream.float32(layer.integer(0))
        elif layer.kind not in WEIGHTLESS:
            raise NcnnError(f"{layer.name}: layers of type {layer.kind} are not supported")
    stream.finish()


class _Stream:
    """Takes the weights off the .bin file front to back; `layer` is only for messages."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.layer = data, 0, ""

    def tagged(self, count: int) -> np.ndarray:
        tag = int(self._take("<u4", 1)[0])
        if tag == TAG_FLOAT16:
            values = self._take("<f2", count)
            self.position += -self.position % 4
        elif tag in TAG_FLOAT32:
            values = self._take("<f4", count)
        else:
            raise NcnnError(f"{self.layer}: weights with tag {tag:#010x} are neither float32 nor float16")
        return self._finite(values)

    def float32(self, count: int) -> np.ndarray:
        return self._finite(self._take("<f4", count))

    def finish(self) -> None:
        if self.position != len(self.data):
            raise NcnnError(f"{len(self.data) - self.position} bytes are left over after the last layer")

    def _take(self, dtype: str, count: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize * count
        if size > len(self.data) - self.position:
            raise NcnnError(f"ends at byte {len(self.data)}, inside the weights of {self.layer}")
        values = np.frombuffer(self.data, dtype, count, self.position)
        self.position += size
        return values

    def _finite(self, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise NcnnError(f"{self.layer}: the weights hold values that are not finite")
        return values.astype(np.float32)  # a copy: frombuffer's arrays are read-only
